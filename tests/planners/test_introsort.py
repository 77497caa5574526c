"""The order of ties against torch's own sort."""

import numpy as np
import pytest
import torch

from moesim.planners import introsort
from moesim.planners.introsort import STABLE_UP_TO, descending_order


def torch_order(keys):
    return torch.tensor(keys, dtype=torch.float32).sort(-1, descending=True).indices.tolist()


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 18, 31, 72, 256, 288, 513])
def test_ties_fall_as_in_torch(size):
    generator = np.random.default_rng(size)
    for distinct in (1, 2, 3, 10, 100, 10_000):
        for _ in range(20):
            keys = generator.integers(0, distinct, size).astype(float).tolist()
            assert descending_order(keys).tolist() == torch_order(keys)


def test_the_cases_are_not_all_stable():
    keys = np.random.default_rng(0).integers(0, 3, 64).astype(float)
    stable = np.argsort(-keys, kind="stable").tolist()
    assert descending_order(keys).tolist() != stable
    short = keys[:STABLE_UP_TO]
    assert descending_order(short).tolist() == np.argsort(-short, kind="stable").tolist()


def quicksort_killer(size):
    """Keys on which every median of three is the second largest (after Musser, 1997)."""
    keys, half = [0.0] * size, size // 2
    for index in range(half):
        keys[index] = index + 1.0 if index % 2 == 0 else half + index + (half % 2)
        keys[half + index] = 2.0 * (index + 1)
    return [-key for key in keys]


@pytest.mark.parametrize("size", [64, 100, 256, 1000, 1022, 2000])
def test_deep_recursion_ends_in_the_same_heapsort(size, monkeypatch):
    called = []

    def spy(*arguments):
        called.append(arguments)
        return heapsort(*arguments)

    heapsort, split = introsort._heapsort, introsort._split
    # Coarser keys add ties to the pattern.
    for coarseness in (1, 2, 4, 8):
        keys = [key // coarseness for key in quicksort_killer(size)]
        assert descending_order(keys).tolist() == torch_order(keys)
        with monkeypatch.context() as patch:  # the same loops, not compiled
            patch.setattr(introsort, "_heapsort", spy)
            patch.setattr(introsort, "_split", split.py_func)
            assert descending_order(keys).tolist() == torch_order(keys)
    assert called or size < 256
