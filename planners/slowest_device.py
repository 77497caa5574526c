"""The slowest device of every batch, kept up to date while copies of experts change places.

A device is busy with its experts, the sooner done the faster it is, and then its links are busy
with their tokens. Both add up over the copies that it holds, which is what makes a swap cheap to
price. (Sums are close to a cost model, not exact: planners are judged by the step evaluator.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled

__all__ = ["Busy", "add_up", "price_swap", "take_swap"]


class Busy(NamedTuple):
    """Seconds of one layer's devices in W batches.

    Attributes:
        copy_s: [W, 2, S] float32 seconds that a copy adds, of the device and of its links.
        speed: [G] float64 relative speed of every device.
        device_s: [W, 2, G] float64 sums over the copies of a device.
        peak_s: [W] float64 of the slowest device.
        peak_at: [W] int64 which device that is.
        new_peak_s: [W] after the swap priced last.
        new_peak_at: [W]
    """

    copy_s: np.ndarray
    speed: np.ndarray
    device_s: np.ndarray
    peak_s: np.ndarray
    peak_at: np.ndarray
    new_peak_s: np.ndarray
    new_peak_at: np.ndarray


@compiled
def add_up(copy_s: np.ndarray, speed: np.ndarray, device_of: np.ndarray) -> Busy:
    """Seconds of a placement."""
    batches, devices = copy_s.shape[0], speed.shape[0]
    device_s = np.zeros((batches, 2, devices))
    peak_s, peak_at = np.full(batches, -1.0), np.zeros(batches, np.int64)
    for batch in range(batches):
        for part in range(2):
            for copy in range(device_of.shape[0]):
                device_s[batch, part, device_of[copy]] += copy_s[batch, part, copy]
        for device in range(devices):
            finish = _finish_s(device_s[batch], speed, device)
            if finish > peak_s[batch]:
                peak_s[batch], peak_at[batch] = finish, device
    return Busy(copy_s, speed, device_s, peak_s, peak_at, peak_s.copy(), peak_at.copy())


@compiled
def _finish_s(device_s: np.ndarray, speed: np.ndarray, device: int) -> float:
    return device_s[0, device] / speed[device] + device_s[1, device]


@compiled
def price_swap(busy: Busy, i: int, f: int, x: int, y: int) -> float:
    """Mean change in seconds if copy i moves from device x to y, and copy f from y to x."""
    speed = busy.speed
    slower = 0.0
    for batch in range(busy.peak_s.shape[0]):
        row, seconds = busy.device_s[batch], busy.copy_s[batch]
        device_s = seconds[0, i] - seconds[0, f]
        links_s = seconds[1, i] - seconds[1, f]
        at_x = (row[0, x] - device_s) / speed[x] + row[1, x] - links_s
        at_y = (row[0, y] + device_s) / speed[y] + row[1, y] + links_s
        high, at = busy.peak_s[batch], busy.peak_at[batch]
        if at in (x, y):
            high = -1.0
            for device in range(speed.shape[0]):
                finish = _finish_s(row, speed, device)
                if finish > high and device != x and device != y:
                    high, at = finish, device
        if at_x > high:
            high, at = at_x, x
        if at_y > high:
            high, at = at_y, y
        busy.new_peak_s[batch], busy.new_peak_at[batch] = high, at
        slower += high - busy.peak_s[batch]
    return slower / busy.peak_s.shape[0]


@compiled
def take_swap(busy: Busy, i: int, f: int, x: int, y: int) -> None:
    """Do the swap that was priced last."""
    for batch in range(busy.peak_s.shape[0]):
        for part in range(2):
            moved = busy.copy_s[batch, part, i] - busy.copy_s[batch, part, f]
            busy.device_s[batch, part, x] -= moved
            busy.device_s[batch, part, y] += moved
    busy.peak_s[:] = busy.new_peak_s
    busy.peak_at[:] = busy.new_peak_at
