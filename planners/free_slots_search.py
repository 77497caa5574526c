"""Moves and swaps of experts where devices hold unequally many (compiled loops of free_slots.py).

Axes: L MoE layers, S copies per layer, G devices. ``device_of: [S] int64`` is changed in place.
"""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled
from moesim.planners.compiled_random import below

__all__ = ["fill_layer", "keep_to_memory", "polish_layer", "shake_layer"]

RELATIVE_GAIN = 1e-12
"""A move must gain more than rounding does."""

MOVES_PER_COPY = 16
"""Guard against endless creeping, as in swap.py."""


@compiled
def fill_layer(
    load: np.ndarray, expert: np.ndarray, speeds: np.ndarray, device_of: np.ndarray
) -> None:
    """LPT: every copy, heavy first, onto the device that is done with it first.

    Every device gets one copy at least, and none two of an expert.

    Args:
        load: [S] float64, descending, copies of an expert side by side.
        expert: [S] int64.
        speeds: [G].
        device_of: [S], filled.
    """
    copies, devices = len(load), len(speeds)
    total, size = np.zeros(devices), np.zeros(devices, np.int64)
    empty = devices
    for copy in range(copies):
        best, chosen = np.inf, -1
        for device in range(devices):
            if size[device] > 0 and copies - copy <= empty:
                continue
            if _holds(expert, device_of, copy, device, expert[copy]):
                continue
            finish = (total[device] + load[copy]) / speeds[device]
            if finish < best:
                best, chosen = finish, device
        device_of[copy] = chosen
        empty -= size[chosen] == 0
        total[chosen] += load[copy]
        size[chosen] += 1


@compiled
def polish_layer(
    load: np.ndarray,
    expert: np.ndarray,
    speeds: np.ndarray,
    device_of: np.ndarray,
    left: np.ndarray,
) -> None:
    """Relieve the device that finishes last by a move or a swap, as long as that helps.

    Args:
        load: [S].
        expert: [S].
        speeds: [G].
        device_of: [S], changed.
        left: [G] int64 copies that every device has memory for yet, changed.
    """
    copies, devices = len(load), len(speeds)
    total, size = np.zeros(devices), np.zeros(devices, np.int64)
    for copy in range(copies):
        total[device_of[copy]] += load[copy]
        size[device_of[copy]] += 1
    for _ in range(MOVES_PER_COPY * copies):
        last = int(np.argmax(total / speeds))
        out, to, into = _relief(load, expert, speeds, device_of, left, total, size, last)
        if out < 0:
            break
        device_of[out] = to
        if into >= 0:
            device_of[into] = last
        else:
            size[last] -= 1
            size[to] += 1
            left[last] += 1
            left[to] -= 1
        # Added up afresh, so that rounding does not pile up.
        total[:] = 0.0
        for copy in range(copies):
            total[device_of[copy]] += load[copy]


@compiled
def shake_layer(
    load: np.ndarray,
    expert: np.ndarray,
    speeds: np.ndarray,
    device_of: np.ndarray,
    left: np.ndarray,
    enough: float,
    kicks: int,
    state: np.ndarray,
) -> None:
    """Iterated local search: disturb the layer, relieve it again, keep what is done sooner.

    Args:
        load: [S].
        expert: [S].
        speeds: [G].
        device_of: [S], changed.
        left: [G] int64 copies that every device has memory for yet, changed.
        enough: Load over speed of the last device that ends the search.
        kicks: How often at most.
        state: Of compiled_random.py.
    """
    copies, devices = len(load), len(speeds)
    best = _finish(load, speeds, device_of)
    for _ in range(kicks):
        if best <= enough or devices < 2:
            break
        tried, room = device_of.copy(), left.copy()
        for _ in range(2):
            one, to = below(state, copies), below(state, devices)
            source, other = tried[one], below(state, copies)
            if to == source or _holds(expert, tried, copies, to, expert[one]):
                continue
            if room[to] > 0 and (tried == source).sum() > 1:
                tried[one] = to
                room[source] += 1
                room[to] -= 1
            elif tried[other] == to and not _holds(expert, tried, copies, source, expert[other]):
                tried[one], tried[other] = to, source
        polish_layer(load, expert, speeds, tried, room)
        finish = _finish(load, speeds, tried)
        if finish < best * (1 - RELATIVE_GAIN):
            best = finish
            device_of[:] = tried
            left[:] = room


@compiled
def _finish(load: np.ndarray, speeds: np.ndarray, device_of: np.ndarray) -> float:
    total = np.zeros(len(speeds))
    for copy in range(len(load)):
        total[device_of[copy]] += load[copy]
    return (total / speeds).max()


@compiled
def _relief(
    load: np.ndarray,
    expert: np.ndarray,
    speeds: np.ndarray,
    device_of: np.ndarray,
    left: np.ndarray,
    total: np.ndarray,
    size: np.ndarray,
    last: int,
) -> tuple[int, int, int]:
    """Copy that leaves the last device, where it goes, and what comes back (−1: nothing)."""
    copies, devices = len(load), len(speeds)
    best = total[last] / speeds[last] * (1 - RELATIVE_GAIN)
    found = (-1, -1, -1)
    for out in range(copies):
        if device_of[out] != last:
            continue
        for to in range(devices):
            if to == last or left[to] <= 0 or size[last] < 2:
                continue
            later = _later(total, speeds, last, to, load[out])
            if later < best and not _holds(expert, device_of, copies, to, expert[out]):
                best, found = later, (out, to, -1)
        for into in range(copies):
            to = device_of[into]
            moved = load[out] - load[into]
            if to == last or moved <= 0 or expert[out] == expert[into]:
                continue
            later = _later(total, speeds, last, to, moved)
            if later >= best or _holds(expert, device_of, copies, to, expert[out]):
                continue
            if not _holds(expert, device_of, copies, last, expert[into]):
                best, found = later, (out, to, into)
    return found


@compiled
def _later(total: np.ndarray, speeds: np.ndarray, source: int, to: int, moved: float) -> float:
    """When the later of two devices is done after load has moved between them."""
    return max((total[source] - moved) / speeds[source], (total[to] + moved) / speeds[to])


@compiled
def keep_to_memory(
    load: np.ndarray,
    expert: np.ndarray,
    speeds: np.ndarray,
    device_of: np.ndarray,
    budget: np.ndarray,
) -> bool:
    """Move copies away from devices that hold more than their memory, delaying layers least.

    Args:
        load: [L, S].
        expert: [L, S].
        speeds: [G].
        device_of: [L, S], changed.
        budget: [G] int64 copies over all layers.

    Returns:
        Whether every device keeps to its memory in the end.
    """
    layers, copies = load.shape
    devices = len(speeds)
    total, size = np.zeros((layers, devices)), np.zeros((layers, devices), np.int64)
    held = np.zeros(devices, np.int64)
    for layer in range(layers):
        for copy in range(copies):
            device = device_of[layer, copy]
            total[layer, device] += load[layer, copy]
            size[layer, device] += 1
            held[device] += 1
    for _ in range(layers * copies):
        if (held <= budget).all():
            return True
        best, layer, copy, source, to = np.inf, -1, -1, -1, -1
        for one in range(layers):
            delay, moved, giver, taker = _transfer(
                load[one], expert[one], speeds, device_of[one], total[one], size[one], budget - held
            )
            if delay < best:
                best, layer, copy, source, to = delay, one, moved, giver, taker
        if layer < 0:
            return False
        _take(device_of[layer], copy, source, to)
        # Hot copies change places with cold ones at once, so that the next delays are real.
        polish_layer(
            load[layer], expert[layer], speeds, device_of[layer], np.zeros(devices, np.int64)
        )
        total[layer] = 0.0
        held -= size[layer]
        size[layer] = 0
        for place in range(copies):
            total[layer, device_of[layer, place]] += load[layer, place]
            size[layer, device_of[layer, place]] += 1
        held += size[layer]
    return bool((held <= budget).all())


@compiled
def _transfer(
    load: np.ndarray,
    expert: np.ndarray,
    speeds: np.ndarray,
    device_of: np.ndarray,
    total: np.ndarray,
    size: np.ndarray,
    left: np.ndarray,  # negative where a device holds too much
) -> tuple[float, int, int, int]:
    """The transfer between devices of a layer that delays it least per copy of memory.

    Returns:
        Delay, the copy (−1: the devices exchange all they hold), from where, and where to (−1:
        there is none).
    """
    best, found = np.inf, (-1, -1, -1)
    finish = (total / speeds).max()
    for source in np.flatnonzero(left < 0):
        for to in np.flatnonzero(left > 0):
            others = 0.0
            for device in range(len(speeds)):
                if device not in (source, to):
                    others = max(others, total[device] / speeds[device])
            freed = size[source] - size[to]
            if 0 < freed <= left[to]:
                later = max(total[source] / speeds[to], total[to] / speeds[source])
                delay = (max(others, later) - finish) / freed
                if delay < best:
                    best, found = delay, (-1, source, to)
            if size[source] < 2:
                continue
            for copy in np.flatnonzero(device_of == source):
                delay = max(others, _later(total, speeds, source, to, load[copy])) - finish
                if delay < best and not _holds(expert, device_of, len(load), to, expert[copy]):
                    best, found = delay, (copy, source, to)
    return best, found[0], found[1], found[2]


@compiled
def _take(device_of: np.ndarray, moved: int, source: int, to: int) -> None:
    """Move one copy; −1: exchange what the two devices hold."""
    if moved >= 0:
        device_of[moved] = to
        return
    for copy in range(len(device_of)):
        if device_of[copy] == source:
            device_of[copy] = to
        elif device_of[copy] == to:
            device_of[copy] = source


@compiled
def _holds(expert: np.ndarray, device_of: np.ndarray, upto: int, device: int, wanted: int) -> bool:
    """Whether the device holds a copy of the expert among the first ``upto`` copies."""
    for copy in range(upto):  # noqa: SIM110 - numba compiles no generator expressions
        if device_of[copy] == device and expert[copy] == wanted:
            return True
    return False
