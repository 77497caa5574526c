"""A second opinion on every placement, in plain Python.

It shares nothing with the planners or with moesim/placement.py: no numpy arithmetic, no helper,
not even the constant for an empty slot. Whatever moesim hands out has passed it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moesim.errors import MoesimError

if TYPE_CHECKING:
    import numpy as np

    from moesim.planners.problem import PlacementProblem

__all__ = ["copies_share_a_device", "largest_finish_load", "verify_placement"]


def verify_placement(
    physical_to_logical: np.ndarray,
    problem: PlacementProblem,
    *,
    distinct_copies: bool = False,
) -> None:
    """Check that a table is an answer to the problem.

    Every layer has a row; rows are equally long and divide by the devices; every entry is an
    expert; every expert has a slot in every layer; every device holds an expert in every layer.
    Rows have exactly the slots of the problem, all of them used; only if some slots are empty (−1)
    may rows be wider, as devices then hold unequally many experts. Whether those fit into the
    device's memory is not checked here.

    Args:
        physical_to_logical: [L, S] integers.
        problem: What was asked.
        distinct_copies: Also refuse two copies of an expert on one device, where S ≤ E · G.

    Raises:
        MoesimError: If a check fails. That is a bug of the planner, not of the input.
    """
    rows = physical_to_logical.tolist()
    devices = int(problem.devices)
    layers, experts = problem.loads.shape
    if len(rows) != layers:
        _fail(f"{len(rows)} rows for {layers} layers")
    padded = any(-1 in row for row in rows)
    for layer, row in enumerate(rows):
        where = f"layer {layer}"
        _check_row(row, rows[0], experts, devices, where)
        if not padded and len(row) != problem.slots:
            _fail(f"{where}: {len(row)} slots instead of {problem.slots}")
        for device, shelf in enumerate(_by_device(row, devices)):
            if not shelf:
                _fail(f"{where}: device {device} holds no expert")
            if distinct_copies and problem.slots <= experts * devices:
                expert, copies = Counter(shelf).most_common(1)[0]
                if copies > 1:
                    _fail(f"{where}: device {device} holds {copies} copies of expert {expert}")


def copies_share_a_device(physical_to_logical: np.ndarray, problem: PlacementProblem) -> bool:
    """Whether some device holds two copies of an expert in some layer.

    Args:
        physical_to_logical: [L, S] integers, −1 for an empty slot.
        problem: Gives the devices.
    """
    return any(
        len(shelf) > len(set(shelf))
        for row in physical_to_logical.tolist()
        for shelf in _by_device(row, int(problem.devices))
    )


def largest_finish_load(physical_to_logical: np.ndarray, problem: PlacementProblem) -> list[float]:
    """Largest load over speed of a device, per layer, with tokens split evenly over copies.

    Args:
        physical_to_logical: [L, S] integers, −1 for an empty slot.
        problem: Gives loads, devices and speeds.

    Returns:
        L token assignments of a device of nominal speed.
    """
    speeds = problem.speed_factors.tolist()
    result = []
    for row, loads in zip(physical_to_logical.tolist(), problem.loads.tolist(), strict=True):
        copies = Counter(row)
        shelves = _by_device(row, len(speeds))
        result.append(
            max(
                sum(loads[expert] / copies[expert] for expert in shelf) / speed
                for shelf, speed in zip(shelves, speeds, strict=True)
            )
        )
    return result


def _check_row(
    row: Sequence[object], first: Sequence[object], experts: int, devices: int, where: str
) -> None:
    if len(row) != len(first) or len(row) % devices:
        _fail(f"{where}: {len(row)} slots on {devices} devices, the first layer has {len(first)}")
    for slot, expert in enumerate(row):
        if not isinstance(expert, int) or not -1 <= expert < experts:
            _fail(f"{where}: slot {slot} holds {expert!r}, not an expert 0 … {experts - 1}")
    missing = sorted(set(range(experts)) - {expert for expert in row if isinstance(expert, int)})
    if missing:
        _fail(f"{where}: expert {missing[0]} has no slot")


def _by_device(row: Sequence[int], devices: int) -> list[list[int]]:
    room = len(row) // devices
    return [
        [expert for expert in row[device * room : (device + 1) * room] if expert != -1]
        for device in range(devices)
    ]


def _fail(problem: str) -> None:
    raise MoesimError(f"a planner returned no valid placement: {problem}")
