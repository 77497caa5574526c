"""Models and placements that the tests of the exporters share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from moesim.placement import EMPTY_SLOT, Placement


@dataclass(frozen=True)
class Shape:
    """As much of a model as exporters look at."""

    name: str
    layers: int
    moe_layers: tuple[int, ...]
    experts: int


DEEPSEEK_V3 = Shape("deepseek-v3", 61, tuple(range(3, 61)), 256)
"""config.json of deepseek-ai/DeepSeek-V3: first_k_dense_replace 3, 61 layers, 256 experts."""

SMALL = Shape("small", 4, (1, 3), 6)
"""Dense layers in front and in between."""

SMALL_PLACEMENT = Placement(
    np.array([[0, 1, 2, 3, 4, 5, 0, 2], [5, 4, 3, 2, 1, 0, 5, 1]]), 4, 6, SMALL.moe_layers
)
"""Two redundant slots, no two copies of an expert on one device."""


def random_placement(
    rng: np.random.Generator, shape: Shape, devices: int, redundant: int, *, spread: bool = False
) -> Placement:
    """Random experts twice or more; ``spread`` deals the copies of an expert to devices in turn."""
    rows = []
    for _ in shape.moe_layers:
        extra = rng.integers(0, shape.experts, redundant)
        row = np.concatenate([np.arange(shape.experts), extra])
        row = np.sort(row).reshape(-1, devices).T.ravel() if spread else rng.permutation(row)
        rows.append(row)
    return Placement(np.array(rows), devices, shape.experts, shape.moe_layers)


def free_placement(rng: np.random.Generator, shape: Shape, devices: int) -> Placement:
    """Every expert on any device, so that devices hold unequal numbers."""
    rows = []
    for _ in shape.moe_layers:
        row = np.full((devices, shape.experts), EMPTY_SLOT)
        for expert, device in enumerate(rng.integers(0, devices, shape.experts)):
            row[device, np.argmin(row[device])] = expert
        rows.append(row.ravel())
    return Placement(np.array(rows), devices, shape.experts, shape.moe_layers)


@st.composite
def cases(draw: st.DrawFn, *, replicas: bool = True) -> tuple[Placement, Shape]:
    """A placement of equal slots and the model it is for."""
    layers = draw(st.integers(1, 6))
    moe = draw(st.lists(st.integers(0, layers - 1), min_size=1, unique=True).map(sorted))
    devices = draw(st.integers(2, 5))
    slots = devices * draw(st.integers(1, 4))
    experts = draw(st.integers(1, slots)) if replicas else slots
    shape = Shape("random", layers, tuple(moe), experts)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random_placement(rng, shape, devices, slots - experts, spread=draw(st.booleans())), shape
