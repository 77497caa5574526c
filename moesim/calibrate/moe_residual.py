"""The learned residual of the expert layer: what its measured time is beyond the physics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moesim.calibrate.boosting import Trees, boost
from moesim.operators.moe import BLOCK_COLUMNS, TILES, MoeDevice, MoeShapes, moe_time_s
from moesim.operators.moe_fits import MoeFit

__all__ = ["CorrectedMoe", "learn_residual"]

TREES = 200
LIMIT = 0.7
"""Log errors beyond this are taken as this: single disturbed rows teach nothing."""

FEATURES = (
    *("hidden", "width", "local_experts", "group_copies", "active", "copies", "tokens_per_expert"),
    *("spread", "tile_fill", "waves", "last_wave", "physics_s"),
)


@dataclass(frozen=True)
class CorrectedMoe:
    """A fit and the trees that correct it."""

    fit: MoeFit
    trees: Trees = field(repr=False)

    def time_s(self, shapes: MoeShapes, device: MoeDevice) -> np.ndarray:
        """Seconds, corrected inside the training range, ``[rows]``."""
        seconds = moe_time_s(shapes, device, self.fit.coefficients)
        return seconds * np.exp(self.trees.predict(_features(shapes, device, seconds)))

    def to_dict(self) -> dict[str, Any]:
        """The physics, and how large the correction is."""
        residual = {"trees": len(self.trees.value), "features": list(FEATURES)}
        return self.fit.to_dict() | {"residual": residual}


def learn_residual(
    fit: MoeFit, shapes: MoeShapes, device: MoeDevice, measured_s: np.ndarray
) -> CorrectedMoe:
    """Trees on the log error of a fit over rows that it may see."""
    seconds = moe_time_s(shapes, device, fit.coefficients)
    error = np.clip(np.log(measured_s / seconds), -LIMIT, LIMIT)
    return CorrectedMoe(fit, boost(_features(shapes, device, seconds), error, TREES))


def _features(shapes: MoeShapes, device: MoeDevice, seconds: np.ndarray) -> np.ndarray:
    """``FEATURES`` of each layer, ``[features, rows]``; sizes as logarithms."""
    each = shapes.copies / np.maximum(shapes.active, 1)
    middle = list(TILES).index(64)
    tiles = np.maximum(shapes.tiles[middle], 1e-3)
    blocks = np.ceil(shapes.input_matrices * shapes.width / BLOCK_COLUMNS)
    waves = tiles * blocks / device.cores
    spread = shapes.squared_copies / np.maximum(shapes.copies * each, 1e-3)
    logs = [
        np.log(np.maximum(values, 1e-9))
        for values in (
            *(shapes.hidden, shapes.width, shapes.local_experts, shapes.group_copies),
            *(shapes.active + 0.1, shapes.copies + 0.1, each + 0.1, spread + 0.1),
        )
    ]
    fill = shapes.copies / (tiles * TILES[middle])
    return np.stack([*logs, fill, np.log(waves), np.ceil(waves) / waves, np.log(seconds)])
