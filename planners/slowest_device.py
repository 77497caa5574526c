"""The slowest device of every batch, kept up to date while copies of experts change places.

A device is busy for the larger of its memory and arithmetic seconds, over its speed, and then its
links are busy with the tokens of its experts. All three add up over the copies that it holds, which
is what makes a swap cheap to price. (Sums of a calibrated cost are close, not exact: planners are
judged by the step evaluator, not by this.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled

__all__ = ["Busy", "add_up", "price_swap", "take_swap"]


class Busy(NamedTuple):
    """Seconds of one layer's devices in W batches.

    Attributes:
        copy_s: [W, 3, S] float32 seconds of memory, arithmetic and links that a copy adds.
        speed: [G] float64 relative speed of every device.
        device_s: [W, 3, G] float64 sums over the copies of a device.
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
    device_s = np.zeros((batches, 3, devices))
    peak_s, peak_at = np.full(batches, -1.0), np.zeros(batches, np.int64)
    for batch in range(batches):
        for part in range(3):
            for copy in range(device_of.shape[0]):
                device_s[batch, part, device_of[copy]] += copy_s[batch, part, copy]
        for device in range(devices):
            finish = _finish_s(device_s[batch], speed, device)
            if finish > peak_s[batch]:
                peak_s[batch], peak_at[batch] = finish, device
    return Busy(copy_s, speed, device_s, peak_s, peak_at, peak_s.copy(), peak_at.copy())


@compiled
def _finish_s(device_s: np.ndarray, speed: np.ndarray, device: int) -> float:
    return max(device_s[0, device], device_s[1, device]) / speed[device] + device_s[2, device]


@compiled
def price_swap(busy: Busy, i: int, f: int, x: int, y: int) -> float:
    """Mean change in seconds if copy i moves from device x to y, and copy f from y to x."""
    speed = busy.speed
    slower = 0.0
    for batch in range(busy.peak_s.shape[0]):
        row, seconds = busy.device_s[batch], busy.copy_s[batch]
        memory = seconds[0, i] - seconds[0, f]
        compute = seconds[1, i] - seconds[1, f]
        links = seconds[2, i] - seconds[2, f]
        at_x = max(row[0, x] - memory, row[1, x] - compute) / speed[x] + row[2, x] - links
        at_y = max(row[0, y] + memory, row[1, y] + compute) / speed[y] + row[2, y] + links
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
        for part in range(3):
            moved = busy.copy_s[batch, part, i] - busy.copy_s[batch, part, f]
            busy.device_s[batch, part, x] -= moved
            busy.device_s[batch, part, y] += moved
    busy.peak_s[:] = busy.new_peak_s
    busy.peak_at[:] = busy.new_peak_at
