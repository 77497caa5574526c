"""Systems that balance experts' loads in training: static, shadowing, moving, replicating, Hecate.

Axes: I iterations, L MoE layers, E experts, G devices, N nodes. ``held: [L, E, G] bool`` says which
device can serve which expert; ``owner: [L, E] int`` which one keeps its optimizer state.
"""
