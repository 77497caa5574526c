"""Made-up placement instances: affinity that is diffuse, or that hides a known placement.

Tokens belong to latent topics. In every layer a topic prefers some experts (a Dirichlet draw, cut
at 1/k since a token chooses an expert once), experts differ in popularity (Zipf), and a token's
experts of two layers are independent given its topic. A planted instance adds flow between experts
that a hidden placement keeps on one device or in one node.
"""

from dataclasses import dataclass

import numpy as np

KINDS = {
    # concentration of the topics' preferences; topics, as a share of the experts
    "weak": (0.35, 0.25),
    "strong": (0.08, 0.25),
    "planted": (0.35, 0.25),
}

SHAPES = {
    # layers, experts, top-k, devices, nodes
    "mixtral/4": (32, 8, 2, 4, 1),
    "qwen3/8": (94, 128, 8, 8, 1),
    "deepseek-v3/32": (58, 256, 8, 32, 4),
    "deepseek-v3/64": (58, 256, 8, 64, 8),
}

ASSIGNMENT_S = 147e-9
"""An fp8 expert of DeepSeek-V3 for one token on an H200: 88 MFLOP at 600 TFLOP/s."""

NEAR_S, FAR_S = 48e-9, 430e-9
"""A vector's share of the scale-up links, and of the NIC, per token of a device."""


@dataclass(frozen=True)
class Instance:
    """Loads [L, E] and transitions [L−1, E, E]; hidden [L, E] device of a planted placement."""

    name: str
    loads: np.ndarray
    transitions: np.ndarray
    devices: int
    nodes: int
    hidden: np.ndarray | None


def make_instance(shape, kind, seed=0, zipf=0.4, same_device=0.25, same_node=0.25, noise=0.3):
    layers, experts, top_k, devices, nodes = SHAPES[shape]
    concentration, share = KINDS[kind]
    rng = np.random.default_rng(seed)
    topics = max(2, round(experts * share))
    weight = rng.dirichlet(np.full(topics, 2.0))
    preference = np.empty((layers, topics, experts))
    for layer in range(layers):
        popularity = rng.permutation(np.arange(1.0, experts + 1) ** -zipf)
        draw = rng.gamma(concentration, 1.0, (topics, experts)) * popularity + 1e-12
        preference[layer] = _capped(draw / draw.sum(1, keepdims=True), 1 / top_k)
    hidden = None
    if kind == "planted":
        room = experts // devices
        hidden = np.stack(
            [rng.permutation(np.repeat(np.arange(devices), room)) for _ in range(layers)]
        )
        return _planted(shape, preference, weight, hidden, devices, nodes,
                        (same_device, same_node, noise), rng)  # fmt: skip
    transitions = np.einsum("t,lti,ltj->lij", weight, preference[:-1], preference[1:])
    loads = np.einsum("t,lti->li", weight, preference)
    return Instance(f"{shape} {kind}", loads, transitions, devices, nodes, hidden)


def _capped(probability, cap):
    """Rows with no entry above the cap, the excess spread over the rest."""
    for _ in range(50):
        over = probability > cap
        if not over.any():
            break
        free = np.where(over, 0.0, probability)
        excess = (np.where(over, probability - cap, 0.0)).sum(1, keepdims=True)
        probability = np.where(over, cap, free * (1 + excess / free.sum(1, keepdims=True)))
    return probability


def _planted(shape, preference, weight, hidden, devices, nodes, shares, rng):
    """Flow with the balanced marginals of the hidden placement."""
    layers, _, experts = preference.shape
    loads = np.einsum("t,lti->li", weight, preference)
    for layer in range(layers):  # every device of the hidden placement gets the same load
        total = np.bincount(hidden[layer], loads[layer], devices)
        loads[layer] /= total[hidden[layer]] * devices
    node = hidden // (devices // nodes)
    on_device, in_node, noise = shares
    transitions = np.empty((layers - 1, experts, experts))
    for layer in range(layers - 1):
        into, out = loads[layer + 1], loads[layer]
        base = np.outer(out, into)
        device = base * (hidden[layer][:, None] == hidden[layer + 1]) * devices
        inside = base * (node[layer][:, None] == node[layer + 1]) * nodes
        flow = (1 - on_device - in_node) * base + on_device * device + in_node * inside
        flow *= np.exp(noise * rng.standard_normal(flow.shape))
        transitions[layer] = flow / flow.sum()
    return Instance(f"{shape} planted", loads, transitions, devices, nodes, hidden)


def price(instance, device_of):
    """Seconds per token and device, as in the module's constants; device_of [L, E]."""
    devices, per_node = instance.devices, instance.devices // instance.nodes
    seconds = 0.0
    for layer, row in enumerate(device_of):
        seconds += ASSIGNMENT_S * np.bincount(row, instance.loads[layer], devices).max()
        if layer + 1 < len(device_of):
            following = device_of[layer + 1]
            near = row[:, None] != following
            far = row[:, None] // per_node != following // per_node
            hop = np.where(far, FAR_S, np.where(near, NEAR_S, 0.0))
            seconds += (instance.transitions[layer] * hop).sum() / devices
    return seconds * devices


def even(instance):
    """What perfectly balanced computation alone would cost."""
    return ASSIGNMENT_S * instance.loads.sum()
