"""Cache replays as one would write them without a thought of speed: one size, one access at a time.

A rule says, for a full cache, which resident goes when an expert is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

Event = list[int]


class Rule:
    """What a policy remembers. ``events`` is all of a segment: only oracles look ahead."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.uses: Counter[int] = Counter()
        self.last_use: dict[int, int] = {}
        self.clock = 0

    def begin(self, event: int) -> None:
        """Before the accesses of an event."""

    def used(self, item: int, event: int) -> None:
        self.clock += 1
        self.uses[item] += 1
        self.last_use[item] = self.clock

    def keep(self, item: int, event: int, place: int) -> object:
        """How much a resident is wanted, while the access ``place`` of an event is served."""
        raise NotImplementedError


class LRU(Rule):
    def keep(self, item, event, place):
        return self.last_use[item]


class LFU(Rule):
    def keep(self, item, event, place):
        return self.uses[item], self.last_use[item]


class Belady(Rule):
    def keep(self, item, event, place):
        # Uses that are still to come: the rest of this event, then the events after it.
        if item in self.events[event][place + 1 :]:
            return 0, -self.events[event].index(item)
        for later in range(event + 1, len(self.events)):
            if item in self.events[later]:
                return event - later, -self.events[later].index(item)
        return -len(self.events), 0


class SCH(Rule):
    def __init__(self, events, window):
        super().__init__(events)
        self.window = window

    def keep(self, item, event, place):
        coming = [self.events[event][place + 1 :], *self.events[event + 1 : event + self.window]]
        return sum(item in other for other in coming), self.last_use[item]


def plain_hits(
    events: list[Event],
    slots: int,
    rule: Callable[[list[Event]], Rule],
    *,
    atomic: bool,
    cold: str = "miss",
) -> list[bool]:
    """Hit or miss of every access of one segment, from an empty cache."""
    state, resident, seen, hits = rule(events), set(), [], []
    for number, event in enumerate(events):
        state.begin(number)
        before = set(resident)
        for place, item in enumerate(event):
            hit = item in (before if atomic else resident)
            if item not in seen:
                seen.append(item)
                hit = cold == "hit" and len(seen) <= slots
            hits.append(hit)
            if item not in resident and len(resident) == slots:
                resident.remove(min(resident, key=lambda r: state.keep(r, number, place)))
            resident.add(item)
            state.used(item, number)
    return hits


def events_of(accesses) -> list[list[Event]]:
    """Segments of events of :class:`moesim.cache.accesses.Accesses`."""
    split = np.split(accesses.ids, accesses.starts[1:-1])
    events = [part.tolist() for part in split] if accesses.events else []
    return [events[a:b] for a, b in zip(accesses.resets, accesses.resets[1:], strict=False)]
