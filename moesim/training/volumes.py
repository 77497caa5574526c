"""Bytes that a device sends in a layer's forward pass, in closed form.

MegaScale-MoE (arXiv 2505.11432, section 3.1), n devices, b sequences of s tokens of h elements, m
query heads per key-value head, k experts per token, in elements that each device sends:

    attention, tensor parallel     2 bsh (n−1)/n               all-gather and reduce-scatter
    attention, sequence parallel   (2 + 2/m)/n bsh (n−1)/n     all-to-alls of q, k, v and outputs
    experts, tensor parallel       2 bsh (n−1)/n               all-gather and reduce-scatter
    experts, expert parallel       (2k/n) bsh (n−1)/n          all-to-alls, dispatch and combine

Exact sizes come from the calls (:mod:`moesim.training.calls`); these are what they must add up to.
"""

from __future__ import annotations

__all__ = [
    "ELEMENT_BYTES",
    "attention_sp_bytes",
    "attention_tp_bytes",
    "expert_parallel_bytes",
    "expert_tensor_bytes",
    "gather_bytes",
    "overlap_ratio",
    "prefers_alltoall",
]

ELEMENT_BYTES = 2
"""Activations and their gradients travel as bfloat16."""


def gather_bytes(tokens: int, hidden: int, ranks: int) -> float:
    """One all-gather or reduce-scatter of all tokens of a group: bsh (n−1)/n."""
    return ELEMENT_BYTES * tokens * hidden * (ranks - 1) / ranks


def attention_tp_bytes(tokens: int, hidden: int, ranks: int) -> float:
    """Tensor parallel attention with activations cut by tokens outside it."""
    return 2 * gather_bytes(tokens, hidden, ranks)


def attention_sp_bytes(tokens: int, hidden: int, ranks: int, queries_per_kv: float) -> float:
    """Sequence parallel attention; heads times head size equal the hidden size."""
    return (2 + 2 / queries_per_kv) / ranks * gather_bytes(tokens, hidden, ranks)


def expert_tensor_bytes(tokens: int, hidden: int, ranks: int) -> float:
    """Experts' width cut, or whole experts that are given all tokens and add up."""
    return 2 * gather_bytes(tokens, hidden, ranks)


def expert_parallel_bytes(tokens: int, hidden: int, ranks: int, top_k: float) -> float:
    """Every copy to its expert and back, routing even."""
    return 2 * top_k / ranks * gather_bytes(tokens, hidden, ranks)


def prefers_alltoall(ranks: int, top_k: float) -> bool:
    """Whether copies to experts are fewer bytes than all tokens to all: k < n."""
    return top_k < ranks


def overlap_ratio(
    expert_width: int, link_bytes_per_s: float, peak_flop_per_s: float, ranks: int
) -> float:
    """Seconds of the experts' arithmetic over those of dispatch and combine, forward.

    1.5 f B/P n/(n−1) of the paper for bfloat16: 6hf FLOPs per copy over 4h bytes of its way to
    the expert and back. Communication can hide where it is over 1; experts, top-k, hidden size,
    devices and tokens do not matter.
    """
    return 1.5 * expert_width * link_bytes_per_s / peak_flop_per_s * ranks / (ranks - 1)
