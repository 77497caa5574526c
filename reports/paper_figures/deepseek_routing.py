"""Loads of DeepSeek-V3's experts as uneven as published, and what placements make of them.

Popularities are of the synthetic likeness of the model, whose unevenness over 32 ranks is what
TensorRT-LLM measured of DeepSeek-R1 on one dataset (examples/wide_ep/ep_load_balancer/README.md);
no figure that is predicted here went into it.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from moesim.planners.eplb import rebalance
from moesim.traces.generate import generate_counts
from moesim.traces.likeness import find_likeness

__all__ = ["slot_tokens"]

LAYERS = 8
"""Layers with popularities of their own; a step's layers are taken to be like these."""
REQUEST_TOKENS, TOKENS = 8, 65536
"""Many short requests: batches are of many users."""
GROUPS = 8


def slot_tokens(tokens: int, ranks: int, nodes: int, redundant: int, *, eplb: bool) -> np.ndarray:
    """[L, R, s] tokens of every slot in one batch, a row per layer.

    Args:
        tokens: Of all ranks.
        ranks: R.
        nodes: That they lie on; where these divide the routing groups, EPLB keeps groups whole.
        redundant: Slots beyond one for each expert.
        eplb: Slots placed by EPLB that knows the popularities; else experts in order, and further
            slots hold the first experts again.
    """
    loads = _popularity()
    layers, experts = loads.shape
    slots = experts + redundant
    if eplb:
        whole = GROUPS % nodes == 0
        table = rebalance(loads, slots, GROUPS if whole else 1, nodes if whole else 1, ranks)
    else:
        table = np.tile(np.arange(slots) % experts, (layers, 1))
    draw = np.random.default_rng((tokens, ranks))
    top_k = find_likeness("deepseek-v3").top_k
    share = loads / loads.sum(axis=1, keepdims=True)
    drawn = np.stack([draw.multinomial(tokens * top_k, row) for row in share])
    copies = np.stack([np.bincount(row, minlength=experts) for row in table])
    found: np.ndarray = np.take_along_axis(drawn / copies, table, 1).reshape(layers, ranks, -1)
    return found


@cache
def _popularity() -> np.ndarray:
    """[L, E] tokens of every expert in a long sample."""
    shape = {"layers": LAYERS, "moe_layers": (), "tokens": TOKENS, "request_tokens": REQUEST_TOKENS}
    spec = find_likeness("deepseek-v3").spec("deepseek-v3").model_copy(update=shape)
    with tempfile.TemporaryDirectory() as folder:
        loads = generate_counts(spec, Path(folder) / "counts", seed=0).loads
    return np.asarray(loads, float)
