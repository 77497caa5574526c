"""Items to places with room for so many each, at the least total cost: the transportation problem.

Solved by successive shortest paths (Ahuja, Magnanti, Orlin, "Network Flows", 1993, §9.7) on the
graph of the places: items are put down one by one, and each pushes others along the cheapest chain
of places to one with room. With few places and many items that is far cheaper than an assignment
of items to single slots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled

__all__ = ["transport"]

_STEPS = 2.0**40
"""The largest cost in whole steps. Sums of whole numbers are exact, so that no cycle of moves ever
gains by rounding, which would end no search; and those of 2²⁰ moves fit into 64 bits."""

_NO_MOVE = 2**62
"""More than any chain of moves costs."""


class _State(NamedTuple):
    """Who is where, and the cheapest single moves.

    Attributes:
        cost: [items, places] in whole steps.
        room: [places].
        place_of: [items] −1 where an item is not down yet.
        used: [places] items that a place has.
        step: [places, places] what the cheapest move from one place to another adds.
        mover: [places, places] the item that would move.
    """

    cost: np.ndarray
    room: np.ndarray
    place_of: np.ndarray
    used: np.ndarray
    step: np.ndarray
    mover: np.ndarray


@compiled
def transport(cost: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The assignment of least total cost, each cost to 2⁻⁴¹ of the largest.

    Args:
        cost: [items, places] float64, finite.
        room: [places] int64, Σ ≥ items.

    Returns:
        [items] int64 place of every item.
    """
    items, places = cost.shape
    steps = _STEPS / max(1e-300, np.abs(cost).max())
    state = _State(
        np.round(cost * steps).astype(np.int64),
        room,
        np.full(items, -1, np.int64),
        np.zeros(places, np.int64),
        np.full((places, places), _NO_MOVE),
        np.full((places, places), -1, np.int64),
    )
    for item in range(items):
        distance, before = _shortest(state, state.cost[item])
        end = -1
        for place in range(places):
            if state.used[place] < room[place] and (end < 0 or distance[place] < distance[end]):
                end = place
        state.used[end] += 1
        place = end
        while before[place] >= 0:
            state.place_of[state.mover[before[place], place]] = place
            place = before[place]
        state.place_of[item] = place
        while end >= 0:
            _see_moves(state, end)
            end = before[end]
    return state.place_of


@compiled
def _shortest(state: _State, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cost of the cheapest chain of moves that ends at each place, and the place before it.

    Bellman-Ford: a move may lower the cost, but no cycle of moves does.
    """
    places = start.shape[0]
    distance, before = start.copy(), np.full(places, -1, np.int64)
    changed = True
    while changed:
        changed = False
        for a in range(places):
            if state.used[a] < state.room[a]:
                continue
            for b in range(places):
                step = state.step[a, b]
                if step < _NO_MOVE and distance[a] + step < distance[b]:
                    distance[b] = distance[a] + step
                    before[b] = a
                    changed = True
    return distance, before


@compiled
def _see_moves(state: _State, a: int) -> None:
    """Find the cheapest moves away from a place."""
    state.step[a, :] = _NO_MOVE
    for item in range(state.place_of.shape[0]):
        if state.place_of[item] == a:
            for b in range(state.step.shape[1]):
                added = state.cost[item, b] - state.cost[item, a]
                if b != a and added < state.step[a, b]:
                    state.step[a, b] = added
                    state.mover[a, b] = item
