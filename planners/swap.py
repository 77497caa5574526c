"""Exchange pairs of experts between devices until the last device is done sooner no more."""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled

__all__ = ["swap_pairs"]

_MOVES_PER_SLOT = 16
"""Guard against endless creeping: so many swaps per slot and layer at most (a few are usual)."""

_RELATIVE_GAIN = 1e-12
"""A swap must gain more than rounding does."""


@compiled
def swap_pairs(expert: np.ndarray, load: np.ndarray, speeds: np.ndarray, bound: np.ndarray) -> None:
    """Improve every layer in place.

    A swap never brings a device a second copy of an expert.

    Args:
        expert: [L, G, n] int64 logical expert in every slot, changed in place.
        load: [L, G, n] float64 tokens of every slot, changed in place.
        speeds: [G] float64.
        bound: [L] float64 load over speed that no placement beats; a layer that reaches it is left.
    """
    layers, devices, room = expert.shape
    total = np.empty(devices)
    for layer in range(layers):
        name, weight = expert[layer], load[layer]
        for device in range(devices):
            total[device] = weight[device].sum()
        for _ in range(_MOVES_PER_SLOT * devices * room):
            last = int(np.argmax(total / speeds))
            finish = total[last] / speeds[last]
            if finish <= bound[layer] * (1 + _RELATIVE_GAIN):
                break
            best = finish * (1 - _RELATIVE_GAIN)
            best_device, best_out, best_in = -1, -1, -1
            for device in range(devices):
                if total[device] / speeds[device] >= best:
                    continue
                for out in range(room):
                    for into in range(room):
                        moved = weight[last, out] - weight[device, into]
                        if moved <= 0:
                            continue
                        later = max(
                            (total[last] - moved) / speeds[last],
                            (total[device] + moved) / speeds[device],
                        )
                        if later < best and _distinct(name, last, out, device, into):
                            best, best_device, best_out, best_in = later, device, out, into
            if best_device < 0:
                break
            leaving = name[last, best_out]
            name[last, best_out] = name[best_device, best_in]
            name[best_device, best_in] = leaving
            heavy = weight[last, best_out]
            weight[last, best_out] = weight[best_device, best_in]
            weight[best_device, best_in] = heavy
            # Added up afresh, so that rounding does not pile up over many swaps.
            total[last] = weight[last].sum()
            total[best_device] = weight[best_device].sum()


@compiled
def _distinct(name: np.ndarray, one: int, out: int, other: int, into: int) -> bool:
    """Whether the swap brings no device a second copy of an expert."""
    leaving, coming = name[one, out], name[other, into]
    for place in range(name.shape[1]):
        if place != into and name[other, place] == leaving:
            return False
        if place != out and name[one, place] == coming:
            return False
    return bool(leaving != coming)
