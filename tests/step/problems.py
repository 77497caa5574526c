"""Random small workloads and placements."""

import numpy as np

from moesim.placement import Placement
from moesim.workload import Batches


def random_batches(
    rng, *, batches=2, layers=2, devices=4, per_device=3, experts=8, top_k=2, ragged=False
):
    """Batches with distinct experts per token."""
    shape = (batches, layers, devices * per_device)
    routing = np.argsort(rng.random((*shape, experts)), axis=-1)[..., :top_k].astype(np.uint8)
    valid_k = rng.integers(0, top_k + 1, shape).astype(np.uint8) if ragged else None
    return Batches(routing, valid_k, experts, devices, per_device)


def random_placement(rng, *, layers=2, devices=4, experts=8, redundant=0):
    """Every expert at least once, copies at random, slots in random order."""
    rows = []
    for _ in range(layers):
        extra = rng.integers(0, experts, redundant)
        rows.append(rng.permutation(np.concatenate((np.arange(experts), extra))))
    return Placement(np.array(rows), devices, experts, tuple(range(layers)))
