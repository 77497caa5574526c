"""Cache replays as one would write them without a thought of speed: one size, one access at a time.

A plain cache knows which experts are resident and what an access does to them. Most are rules that
say which resident of a full cache goes when an expert is loaded.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import numpy as np

Event = list[int]


class PlainCache(Protocol):
    resident: set[int]

    def begin(self, event: int) -> None: ...
    def access(self, item: int, event: int, place: int) -> None: ...


MakeCache = Callable[[list[Event], int], PlainCache]
"""From the events of a segment (only oracles look at those to come) and the number of slots."""


class Rule:
    """Every missing expert is loaded; of a full cache, the resident wanted least goes."""

    def __init__(self, events: list[Event], slots: int) -> None:
        self.events, self.slots = events, slots
        self.resident: set[int] = set()
        self.uses: Counter[int] = Counter()
        self.last_use: dict[int, int] = {}
        self.clock = 0

    def begin(self, event):
        """Before the accesses of an event."""

    def access(self, item, event, place):
        if item not in self.resident:
            if len(self.resident) == self.slots:
                self.resident.remove(min(self.resident, key=lambda r: self.keep(r, event, place)))
            self.resident.add(item)
            self.loaded(item)
        self.clock += 1
        self.uses[item] += 1
        self.last_use[item] = self.clock

    def loaded(self, item):
        pass

    def keep(self, item, event, place):
        """How much a resident is wanted, while the access ``place`` of an event is served."""
        raise NotImplementedError


class LRU(Rule):
    def keep(self, item, event, place):
        return self.last_use[item]


class LFU(Rule):
    def keep(self, item, event, place):
        return self.uses[item], self.last_use[item]


class LFUResident(LFU):
    def loaded(self, item):
        self.uses[item] = 0


class FIFO(Rule):
    def loaded(self, item):
        self.order = getattr(self, "order", [])
        self.order.append(item)

    def keep(self, item, event, place):
        return len(self.order) - self.order[::-1].index(item)


class LFUWindow(Rule):
    window = 5

    def keep(self, item, event, place):
        past = self.events[max(0, event - self.window + 1) : event]
        past = [*past, self.events[event][:place]]
        return sum(item in other for other in past), self.last_use[item]


class LFUDecay(Rule):
    decay = 0.8

    def begin(self, event):
        for item in self.uses:
            self.uses[item] *= self.decay

    def keep(self, item, event, place):
        return self.uses[item], self.last_use[item]


class LFRU(Rule):
    def keep(self, item, event, place):
        before = (event, *self.events[event][:place])
        if item in before[1:]:
            last = event
        else:
            last = max(e for e in range(event) if item in self.events[e])
        return self.uses[item] / (event - last + 1), self.last_use[item]


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
    window = 4

    def keep(self, item, event, place):
        coming = [self.events[event][place + 1 :], *self.events[event + 1 : event + self.window]]
        return sum(item in other for other in coming), self.last_use[item]


class ARC:
    """Figure 4 of Megiddo and Modha 2003; fronts of the lists are the most recent."""

    def __init__(self, events, slots):
        self.c, self.p = slots, 0.0
        self.t1, self.t2, self.b1, self.b2 = [], [], [], []

    @property
    def resident(self):
        return {*self.t1, *self.t2}

    def begin(self, event):
        pass

    def replace(self, in_b2):
        if self.t1 and ((in_b2 and len(self.t1) == self.p) or len(self.t1) > self.p):
            self.b1.insert(0, self.t1.pop())
        else:
            self.b2.insert(0, self.t2.pop())

    def access(self, item, event, place):
        c = self.c
        if item in self.t1 or item in self.t2:
            (self.t1 if item in self.t1 else self.t2).remove(item)
            self.t2.insert(0, item)
        elif item in self.b1:
            self.p = min(c, self.p + max(len(self.b2) / len(self.b1), 1))
            self.replace(False)
            self.b1.remove(item)
            self.t2.insert(0, item)
        elif item in self.b2:
            self.p = max(0, self.p - max(len(self.b1) / len(self.b2), 1))
            self.replace(True)
            self.b2.remove(item)
            self.t2.insert(0, item)
        else:
            if len(self.t1) + len(self.b1) == c:
                if len(self.t1) < c:
                    self.b1.pop()
                    self.replace(False)
                else:
                    self.t1.pop()
            elif (total := len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2)) >= c:
                if total == 2 * c:
                    self.b2.pop()
                self.replace(False)
            self.t1.insert(0, item)


class S3FIFO:
    """Algorithm 1 of Yang et al. 2023, with libCacheSim's filling of an empty cache."""

    def __init__(self, events, slots):
        self.small_slots = max(1, slots // 10)
        self.main_slots, self.ghosts = slots - self.small_slots, int(0.9 * slots)
        self.small, self.main = OrderedDict(), OrderedDict()
        self.ghost: list[int] = []
        self.filling = True

    @property
    def resident(self):
        return {*self.small, *self.main}

    def begin(self, event):
        pass

    def access(self, item, event, place):
        for queue in (self.small, self.main):
            if item in queue:
                queue[item] = min(queue[item] + 1, 3)
                return
        remembered = item in self.ghost
        if remembered:
            self.ghost.remove(item)
        while len(self.resident) == self.small_slots + self.main_slots:
            self.filling = False
            self.evict()
        direct = self.filling and len(self.small) >= self.small_slots
        (self.main if remembered or direct else self.small)[item] = 0

    def evict(self):
        if len(self.main) > self.main_slots or not self.small:
            while True:
                item, uses = self.main.popitem(last=False)
                if not uses:
                    return
                self.main[item] = uses - 1
        while self.small:
            item, uses = self.small.popitem(last=False)
            if uses > 1:
                self.main[item] = 0
            else:
                self.ghost = [*self.ghost, item][-self.ghosts :] if self.ghosts else []
                return


class BeladyBypass:
    """After every event (or access), the nearest of the residents and what was just used stay."""

    def __init__(self, events, slots):
        self.events, self.slots = events, slots
        self.resident: set[int] = set()
        self.used: list[int] = []

    def begin(self, event):
        self.settle(event - 1)

    def access(self, item, event, place):
        self.used.append(item)

    def settle(self, event):
        def following(item):
            for later in range(event + 1, len(self.events)):
                if item in self.events[later]:
                    return later, self.events[later].index(item)
            return len(self.events), -item

        self.resident = set(sorted({*self.resident, *self.used}, key=following)[: self.slots])
        self.used = []


def plain_hits(
    events: list[Event], slots: int, make: MakeCache, *, atomic: bool, cold: str = "miss"
) -> list[bool]:
    """Hit or miss of every access of one segment, from an empty cache."""
    cache, seen, hits = make(events, slots), [], []
    for number, event in enumerate(events):
        cache.begin(number)
        before = set(cache.resident)
        for place, item in enumerate(event):
            hit = item in (before if atomic else cache.resident)
            if item not in seen:
                seen.append(item)
                hit = cold == "hit" and len(seen) <= slots
            hits.append(hit)
            cache.access(item, number, place)
    return hits


def events_of(accesses) -> list[list[Event]]:
    """Segments of events of :class:`moesim.cache.accesses.Accesses`."""
    split = np.split(accesses.ids, accesses.starts[1:-1])
    events = [part.tolist() for part in split] if accesses.events else []
    return [events[a:b] for a, b in pairwise(accesses.resets)]
