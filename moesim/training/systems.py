"""Training systems as they are published: which layout, overlap and recomputation they choose."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.training.layout import AttentionCut, Overlap, Recompute

__all__ = ["SYSTEMS", "System"]


@dataclass(frozen=True)
class System:
    """Defaults of a system; every one can be overridden.

    Attributes:
        name: As given on the command line.
        title: What it is, in a few words.
        attention: How a sequence group shares attention.
        uniform: Whether an expert's width is cut over as many devices as attention.
        overlap: Of communication within a layer.
        recompute: What backward computes again.
        gradient_bytes: Per gradient on its way to be added up.
        source: Paper and section.
    """

    name: str
    title: str
    attention: AttentionCut
    uniform: bool
    overlap: Overlap
    recompute: Recompute
    gradient_bytes: float
    source: str


SYSTEMS = {
    system.name: system
    for system in (
        System(
            "megascale",
            "MegaScale-MoE: sequence parallel attention, expert parallelism, overlap",
            "sp", False, "full", "selective", 2.0,
            "arXiv 2505.11432, sections 3 to 5",
        ),
        System(
            "megatron",
            "Megatron-LM: tensor parallelism, nothing hidden within a layer",
            "tp", True, "none", "full", 4.0,
            "arXiv 2104.04473; arXiv 2205.05198 for sequence-cut activations",
        ),
    )
}  # fmt: skip
"""By name."""
