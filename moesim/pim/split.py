"""Which experts of a device run on which of its two processors, so that both finish early.

Axes: W draws, s experts of a device. Both processors work at once, but never in one memory space
(a set of banks) at the same time, so that a whole space goes to one of them for a layer. Times come
from a table that counts reads of one expert's weights by the main processor: an expert of n tokens
takes ``max(1, n / ridge)`` of them there, and near the memory, at so many times the bandwidth,
``max(1, n / ridge) / bandwidths`` with that processor's ridge (Duplex, arXiv 2409.01141, section V;
LLMSimulator, ``src/module/route.cpp``).
"""

from __future__ import annotations

import numpy as np

from moesim.pim.processors import Processor

__all__ = ["SPACES", "split_experts"]

SPACES = 4
"""Memory spaces of a Logic-PIM device: bank bundles of a pseudo-channel (Duplex, section V)."""


def split_experts(
    tokens: np.ndarray,
    main: Processor,
    near: Processor,
    weight_bytes: float = 2.0,
    spaces: int = SPACES,
) -> np.ndarray:
    """The split under which the slower processor is done soonest, spaces in order of their tokens.

    Experts lie in the spaces in equal runs. Those with most tokens go to the main processor first;
    of equally long splits the one that leaves it least counts.

    Args:
        tokens: [W, s] of every expert.
        main: Whose weight reads are the unit.
        near: Beside it.
        weight_bytes: Of a weight.
        spaces: Memory spaces.

    Returns:
        [W, s] bool: which experts run near the memory.
    """
    experts = tokens.shape[-1]
    groups = min(spaces, experts)
    starts = np.arange(groups) * experts // groups
    # A token is two operations per weight.
    main_reads = np.maximum(1.0, tokens * 2 / (weight_bytes * main.flop_per_s / main.bytes_per_s))
    near_reads = np.maximum(1.0, tokens * 2 / (weight_bytes * near.flop_per_s / near.bytes_per_s))
    near_reads = near_reads * (main.bytes_per_s / near.bytes_per_s)
    by_group = [
        np.add.reduceat(each, starts, axis=-1) for each in (tokens, main_reads, near_reads)
    ]  # [W, g]
    order = np.argsort(-by_group[0], axis=-1, kind="stable")
    moved, kept = (np.take_along_axis(each, order, axis=-1) for each in by_group[1:])
    none = np.zeros((len(tokens), 1))
    main_sum = np.concatenate([none, moved.cumsum(-1)], axis=-1)  # [W, g + 1] by spaces moved
    near_sum = np.concatenate([kept[:, ::-1].cumsum(-1)[:, ::-1], none], axis=-1)
    best = np.maximum(main_sum, near_sum).argmin(-1)
    on_near = np.empty(order.shape, bool)
    np.put_along_axis(on_near, order, np.arange(groups) >= best[:, None], axis=-1)
    return np.repeat(on_near, np.diff([*starts, experts]), axis=-1)
