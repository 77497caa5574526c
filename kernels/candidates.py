"""Configurations worth having, per target and type, before a compiler or a GPU has judged them.

The lists are short on purpose: the cost model looks at every one for every histogram, and a
measurement of all of them must fit into minutes. A tile of 128 × 256 keeps Hopper's and Blackwell's
matrix units busiest; smaller ones waste fewer rows of small groups. Few rows go to tiles of 16 or
32 rows, with the columns of the weights split where there would be too few tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moesim.kernels.config import GemmConfig
from moesim.kernels.wave_model import Speeds

__all__ = ["SPEEDS", "SPEED_SOURCES", "SPLITS", "candidate_configs"]

SPLITS = (1, 2, 4, 8)

# block_m, block_n, block_k, num_warps, num_stages
TILES = {
    ("sm_80", "bf16"): [(128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (64, 128, 64, 4, 4)],
    ("sm_90a", "bf16"): [
        (128, 256, 64, 8, 3),
        (128, 256, 64, 8, 4),
        (128, 128, 64, 4, 3),
        (64, 256, 64, 4, 4),
        (64, 128, 64, 4, 4),
    ],
    ("sm_90a", "fp8"): [(128, 128, 128, 8, 4), (64, 128, 128, 4, 3)],
    ("sm_100a", "bf16"): [(128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (64, 128, 64, 4, 4)],
    ("sm_100a", "fp8"): [(128, 128, 128, 8, 3), (64, 128, 128, 4, 4)],
    ("gfx942", "bf16"): [(128, 128, 64, 8, 2), (64, 128, 64, 4, 2)],
    ("gfx942", "fp8"): [(128, 128, 128, 8, 2), (64, 128, 128, 4, 2)],
}
ROWS = {
    ("sm_80", "bf16"): [(16, 128, 64, 4, 4), (16, 64, 128, 4, 4), (32, 128, 64, 4, 4)],
    ("sm_90a", "bf16"): [(16, 128, 128, 4, 4), (16, 64, 128, 4, 5), (32, 128, 128, 4, 4)],
    ("sm_90a", "fp8"): [(16, 128, 128, 4, 5), (32, 128, 128, 4, 5)],
    ("sm_100a", "bf16"): [(16, 128, 128, 4, 4), (32, 128, 128, 4, 4)],
    ("sm_100a", "fp8"): [(16, 128, 128, 4, 5), (32, 64, 128, 4, 5)],
    ("gfx942", "bf16"): [(16, 64, 128, 4, 2), (32, 64, 128, 4, 2)],
    ("gfx942", "fp8"): [(16, 128, 128, 4, 2), (32, 128, 128, 4, 2)],
}

SPEEDS = {
    "sm_80": {"bf16": Speeds(108, 312e12, 2.039e12, 40e6)},
    "sm_90a": {
        "bf16": Speeds(132, 989e12, 4.8e12, 50e6),
        "fp8": Speeds(132, 1979e12, 4.8e12, 50e6),
    },
    "sm_100a": {
        "bf16": Speeds(148, 2250e12, 8e12, 126e6),
        "fp8": Speeds(148, 4500e12, 8e12, 126e6),
    },
    "gfx942": {
        "bf16": Speeds(304, 1307e12, 5.3e12, 256e6),
        "fp8": Speeds(304, 2615e12, 5.3e12, 256e6),
    },
}
SPEED_SOURCES = {
    "sm_80": "data sheet of NVIDIA A100 80GB SXM; 40 MB of L2: A100 whitepaper",
    "sm_90a": "data sheet of NVIDIA H200 SXM, dense; 50 MB of L2: H100 whitepaper",
    "sm_100a": "data sheet of NVIDIA HGX B200, dense, per GPU; L2: Blackwell tuning guide",
    "gfx942": "data sheet of AMD Instinct MI300X, dense; 256 MB of Infinity Cache",
}


def candidate_configs(target: str, dtype: str) -> Iterator[GemmConfig]:
    """All candidates, with ``programs_per_core`` 1: that is for the compiler's facts to say."""
    for blocks in TILES.get((target, dtype), ()):
        yield GemmConfig("tile", *blocks)
    for blocks in ROWS.get((target, dtype), ()):
        config = GemmConfig("row", *blocks)
        yield from (replace(config, split_k=split) for split in SPLITS)
