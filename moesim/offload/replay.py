"""Steps and layers one after another: caches, prefetch, and one clock per resource.

A step is one forward pass, an event one expert layer of it. At an event the gate is known, the
experts are divided by a schedule (:mod:`moesim.offload.schedules`), and what was copied is
admitted to the layer's slots, where the expert of least score goes. While the link is idle until
the next gate, experts of the next layers are prefetched; a copy that has begun is not broken off.

Misses are judged against the slots as they were before the event (the event-atomic contract).
Admissions within an event follow one another in the order of expert ids, and each is forced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled, compiled_part
from moesim.offload.schedules import (
    COPIED,
    CPU,
    GPU,
    LINK,
    ON_CPU,
    SCHEDULES,
    Answer,
    Costs,
    Work,
    heaviest_first,
    new_answer,
    schedule,
)

__all__ = ["COUNTED", "RESOURCES", "Plan", "Replay", "Timing", "replay", "time_of_hits"]

RESOURCES = ("GPU", "CPU", "PCIe", "NVMe")
NVME = 3

COUNTED = ("active", "resident", "prefetched", "late", "copied", "on_cpu", "prefetches", "read")
"""What is counted per step: active experts; of them those in their slot by an earlier event, by a
prefetch that has landed, by one still under way; copied on demand; computed on the CPU although
not in a slot. Beside these, prefetches begun and experts read from the disk."""
_ACTIVE, _RESIDENT, _PREFETCHED, _LATE, _COPIED, _ON_CPU, _PREFETCHES, _READ = range(8)

NO_SLOT = -1


@dataclass(frozen=True)
class Timing:
    """Seconds of one expert by place and tokens.

    Attributes:
        gpu_s: [N + 1] on the GPU, with 0 … N tokens.
        cpu_s: [N + 1] on the CPU; ∞ where there is none.
        cpu_first_s: What the first expert of a layer on the CPU takes longer.
        copy_s: Over the link.
        copy_narrow_s: Over the link in the narrow format for unpopular experts.
        read_s: From disk to host memory.
        other_s: [S] everything that is not routed experts, per MoE layer of each step.
    """

    gpu_s: np.ndarray
    cpu_s: np.ndarray
    cpu_first_s: float
    copy_s: float
    copy_narrow_s: float
    read_s: float
    other_s: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What a system does with the experts.

    Attributes:
        schedule: One of :data:`~moesim.offload.schedules.SCHEDULES`.
        scores: [S + 1, L, E] the score by which experts stay in their slots; row 0 before the
            first step, row s + 1 after step s.
        slots: [L] slots per layer in GPU memory.
        resident: [L, E] bool, what is in them at the start; at most ``slots`` per layer.
        admit: Whether copied experts enter the slots; otherwise the start never changes.
        predicted: [S, L, P] experts that are expected at each event, most wanted first; −1 fills
            up. None without prefetch.
        lookahead: How many layers ahead is prefetched.
        impact: Order prefetches by the time that each would save (HybriMoE).
        narrow: [S] bool, steps in which experts with fewer tokens than the mean of the active
            ones travel in the narrow format (Fate); those are not kept.
        fill: Experts that the CPU computed are copied too while the link is idle, if they score
            higher than what they replace (a cache beside a split schedule).
        prefill: [S] bool, steps that take ``prefill_schedule`` instead, if there is one.
        prefill_schedule: See ``prefill``.
        host: [L, E] bool, what is in host memory at the start; everything if None. What is read
            from the disk takes the place of the expert of least score.
    """

    schedule: str
    scores: np.ndarray
    slots: np.ndarray
    resident: np.ndarray
    admit: bool = True
    predicted: np.ndarray | None = None
    lookahead: int = 1
    impact: bool = False
    narrow: np.ndarray | None = None
    fill: bool = False
    prefill: np.ndarray | None = None
    prefill_schedule: str | None = None
    host: np.ndarray | None = None


@dataclass(frozen=True)
class Replay:
    """What happened.

    Attributes:
        step_s: [S] seconds of each step.
        busy_s: [S, 4] work begun in each step on each of :data:`RESOURCES`.
        counts: [S, 8] by :data:`COUNTED`.
        place: [S, L, E] uint8 who ran each active expert (see ``schedules``); 255 for the others.
    """

    step_s: np.ndarray
    busy_s: np.ndarray
    counts: np.ndarray
    place: np.ndarray

    def total(self, name: str, steps: slice | np.ndarray = slice(None)) -> int:
        """Sum of one of :data:`COUNTED` over steps."""
        return int(self.counts[steps, COUNTED.index(name)].sum())

    def hit_rate(self, steps: slice | np.ndarray = slice(None)) -> float:
        """Active experts that were in GPU memory when their gate was known, of all."""
        active = self.total("active", steps)
        there = self.total("resident", steps) + self.total("prefetched", steps)
        return there / active if active else 1.0


def replay(tokens: np.ndarray, plan: Plan, timing: Timing) -> Replay:
    """Walk through the steps.

    Args:
        tokens: [S, L, E] tokens of every expert at every event.
        plan: What the system does.
        timing: What it costs.
    """
    steps, layers, experts = tokens.shape
    predicted = plan.predicted
    if predicted is None:
        predicted = np.full((steps, layers, 1), NO_SLOT, np.int16)
    narrow = np.zeros(steps, bool) if plan.narrow is None else plan.narrow
    host = np.ones((layers, experts), bool) if plan.host is None else plan.host
    step_s, busy_s = np.zeros(steps), np.zeros((steps, len(RESOURCES)))
    counts = np.zeros((steps, len(COUNTED)), np.int64)
    place = np.full(tokens.shape, 255, np.uint8)
    shape = (layers, experts)
    which = np.full(steps, SCHEDULES[plan.schedule])
    if plan.prefill is not None and plan.prefill_schedule is not None:
        which[plan.prefill] = SCHEDULES[plan.prefill_schedule]
    memory = _Memory(
        plan.resident.copy(), np.zeros(shape), np.zeros(shape, bool), host.copy(),
        plan.slots.astype(np.int64), host.sum(axis=1), np.zeros(3),
    )  # fmt: skip
    rules = _Rules(
        which, plan.admit, plan.fill, plan.lookahead, plan.impact,
        np.ascontiguousarray(plan.scores, np.float64), predicted.astype(np.int64), narrow,
        timing.copy_s, timing.copy_narrow_s, timing.read_s, timing.other_s,
    )  # fmt: skip
    costs = Costs(timing.gpu_s, timing.cpu_s, timing.cpu_first_s)
    record = _Record(step_s, busy_s, counts, place)
    _replay(np.ascontiguousarray(tokens, np.int64), rules, costs, memory, record)
    return Replay(step_s, busy_s, counts, place)


def time_of_hits(
    tokens: np.ndarray, there: np.ndarray, schedule: str, timing: Timing
) -> tuple[np.ndarray, np.ndarray]:
    """Time steps of which it is known what was in the slots; nothing is prefetched.

    Args:
        tokens: [S, L, E] tokens of every expert at every event.
        there: [S, L, E] bool, what was in GPU memory when the gate was known.
        schedule: One of :data:`~moesim.offload.schedules.SCHEDULES`.
        timing: What it costs.

    Returns:
        [S] seconds of each step, and [S, 4] work on each of :data:`RESOURCES`.
    """
    step_s, busy_s = np.zeros(len(tokens)), np.zeros((len(tokens), len(RESOURCES)))
    costs = Costs(timing.gpu_s, timing.cpu_s, timing.cpu_first_s)
    _time_hits(
        tokens, there, SCHEDULES[schedule], costs, timing.copy_s, timing.other_s, step_s, busy_s
    )
    return step_s, busy_s


class _Rules(NamedTuple):
    """Of :class:`Plan` and :class:`Timing`, what the loops read."""

    schedule: np.ndarray
    admit: bool
    fill: bool
    lookahead: int
    impact: bool
    scores: np.ndarray
    predicted: np.ndarray
    narrow: np.ndarray
    copy_s: float
    copy_narrow_s: float
    read_s: float
    other_s: np.ndarray


class _Memory(NamedTuple):
    """Where experts are, by layer and expert, and when link and disk are free."""

    resident: np.ndarray
    landed: np.ndarray
    """When the weights of what is in a slot are there."""
    fetched: np.ndarray
    """Whether a prefetch brought them and nothing has used them yet."""
    host: np.ndarray
    slots: np.ndarray
    host_slots: np.ndarray
    clocks: np.ndarray
    """[3] now, and when the link and the disk are free."""


class _Record(NamedTuple):
    """Arrays of :class:`Replay`."""

    step_s: np.ndarray
    busy_s: np.ndarray
    counts: np.ndarray
    place: np.ndarray


_NOW, _LINK_FREE, _DISK_FREE = 0, 1, 2


@compiled
def _replay(
    tokens: np.ndarray, rules: _Rules, costs: Costs, memory: _Memory, record: _Record
) -> None:
    steps, layers, experts = tokens.shape
    clocks = memory.clocks
    active_of, load_of = np.empty(experts, np.int64), np.empty(experts, np.int64)
    for step in range(steps):
        begin = clocks[_NOW]
        for layer in range(layers):
            clocks[_NOW] += rules.other_s[step]
            record.busy_s[step, GPU] += rules.other_s[step]
            size = 0
            for expert in range(experts):
                if tokens[step, layer, expert] > 0:
                    active_of[size] = expert
                    load_of[size] = tokens[step, layer, expert]
                    size += 1
            active, load = active_of[:size], load_of[:size]
            known = clocks[_NOW]
            work = _work(step, layer, active, load, rules, memory, record)
            answer = new_answer(size)
            schedule(rules.schedule[step], work, costs, answer)
            record.busy_s[step, :3] += answer.busy
            if answer.busy[LINK] > 0:
                clocks[_LINK_FREE] = known + answer.clocks[LINK]
            clocks[_NOW] = known + max(answer.clocks[GPU], answer.clocks[CPU])
            _admit(step, layer, active, work, answer, rules, memory, record)
            next_step = min(step + (layer + 1) // layers, steps - 1)
            gate = clocks[_NOW] + rules.other_s[next_step]
            begun = _prefetch(step, layer, known, gate, tokens, rules, costs, memory, record)
            if rules.fill:
                begun += _fill(step, layer, active, answer, known, gate, rules, memory, record)
            record.counts[step, _PREFETCHES] += begun
        record.step_s[step] = clocks[_NOW] - begin


@compiled_part
def _work(
    step: int,
    layer: int,
    active: np.ndarray,
    load: np.ndarray,
    rules: _Rules,
    memory: _Memory,
    record: _Record,
) -> Work:
    """Where the active experts are; what is on the disk is read, heaviest first."""
    now = memory.clocks[_NOW]
    ready, host = np.empty(active.size), np.zeros(active.size)
    for i in heaviest_first(load):
        expert = active[i]
        ready[i] = np.inf
        if memory.resident[layer, expert]:
            ready[i] = max(0.0, memory.landed[layer, expert] - now)
        elif not memory.host[layer, expert]:
            memory.clocks[_DISK_FREE] = max(memory.clocks[_DISK_FREE], now) + rules.read_s
            record.busy_s[step, NVME] += rules.read_s
            host[i] = memory.clocks[_DISK_FREE] - now
    copy_s = np.full(active.size, rules.copy_s)
    if rules.narrow[step]:
        for i in range(active.size):
            if load[i] * active.size < load.sum():
                copy_s[i] = rules.copy_narrow_s
    return Work(load, ready, host, copy_s, max(0.0, memory.clocks[_LINK_FREE] - now))


@compiled_part
def _admit(
    step: int,
    layer: int,
    active: np.ndarray,
    work: Work,
    answer: Answer,
    rules: _Rules,
    memory: _Memory,
    record: _Record,
) -> None:
    """Count where each expert was found, and keep what came."""
    score, counts = rules.scores[step + 1, layer], record.counts[step]
    counts[_ACTIVE] += active.size
    for i in range(active.size):
        expert = active[i]
        record.place[step, layer, expert] = answer.place[i]
        if not np.isinf(work.ready[i]):
            if not memory.fetched[layer, expert]:
                counts[_RESIDENT] += 1
            elif work.ready[i] <= 0:
                counts[_PREFETCHED] += 1
            else:
                counts[_LATE] += 1
            memory.fetched[layer, expert] = False
        elif answer.place[i] == COPIED:
            counts[_COPIED] += 1
        else:
            counts[_ON_CPU] += 1
    for i in range(active.size):
        expert = active[i]
        if np.isinf(work.ready[i]) and not memory.host[layer, expert]:
            counts[_READ] += 1
            _take(memory.host[layer], memory.host_slots[layer], score, expert)
        # What came in the narrow format is used and dropped.
        kept = answer.place[i] == COPIED and work.copy_s[i] == rules.copy_s
        if rules.admit and kept:
            _take(memory.resident[layer], memory.slots[layer], score, expert)
            memory.landed[layer, expert] = 0.0
            memory.fetched[layer, expert] = False


@compiled_part
def _take(held: np.ndarray, slots: int, score: np.ndarray, expert: int) -> None:
    """Put an expert into a slot; the one of least score makes room, the first of equals."""
    if slots == 0:
        return
    if held.sum() >= slots:
        victim = -1
        for other in range(held.size):
            if held[other] and (victim < 0 or score[other] < score[victim]):
                victim = other
        held[victim] = False
    held[expert] = True


@compiled_part
def _prefetch(
    step: int,
    layer: int,
    known: float,
    gate: float,
    tokens: np.ndarray,
    rules: _Rules,
    costs: Costs,
    memory: _Memory,
    record: _Record,
) -> int:
    """Copy what the next layers are expected to need, until their gate is known.

    Predictions are there when this layer's gate is (``known``); copies begin before ``gate``.
    """
    width = rules.predicted.shape[2]
    wanted = np.empty((rules.lookahead * width, 3), np.int64)
    gain = np.empty(rules.lookahead * width)
    found = _candidates(step, layer, tokens, rules, costs, memory, wanted, gain)
    clocks = memory.clocks
    begun = 0
    for i in heaviest_first(gain[:found]):
        to_step, to_layer, expert = wanted[i]
        score = rules.scores[to_step, to_layer]
        begin = max(clocks[_LINK_FREE], known)
        if not memory.host[to_layer, expert]:
            if max(clocks[_DISK_FREE], known) >= gate:
                continue
            clocks[_DISK_FREE] = max(clocks[_DISK_FREE], known) + rules.read_s
            record.busy_s[step, NVME] += rules.read_s
            _take(memory.host[to_layer], memory.host_slots[to_layer], score, expert)
            begin = max(begin, clocks[_DISK_FREE])
        held, keep = memory.resident[to_layer], rules.predicted[to_step, to_layer]
        if begin >= gate or not _make_room(held, memory.slots[to_layer], score, keep):
            continue
        clocks[_LINK_FREE] = begin + rules.copy_s
        record.busy_s[step, LINK] += rules.copy_s
        held[expert] = True
        memory.landed[to_layer, expert] = clocks[_LINK_FREE]
        memory.fetched[to_layer, expert] = True
        begun += 1
    return begun


@compiled_part
def _candidates(
    step: int,
    layer: int,
    tokens: np.ndarray,
    rules: _Rules,
    costs: Costs,
    memory: _Memory,
    wanted: np.ndarray,
    gain: np.ndarray,
) -> int:
    """Predicted experts that are not in a slot: step, layer and id, and how much they are wanted.

    Without the order by impact, the nearest layer comes first and the most wanted of it.
    """
    steps, layers, _ = tokens.shape
    found = 0
    for ahead in range(1, rules.lookahead + 1):
        at = step * layers + layer + ahead
        if at >= steps * layers:
            break
        to_step, to_layer = at // layers, at % layers
        base_s = 0.0
        if rules.impact:
            base_s = _expected_s(to_step, to_layer, -1, tokens, rules, costs, memory)
        for expert in rules.predicted[to_step, to_layer]:
            if expert < 0:
                break
            if memory.resident[to_layer, expert]:
                continue
            gain[found] = -found
            if rules.impact:
                with_it_s = _expected_s(to_step, to_layer, expert, tokens, rules, costs, memory)
                gain[found] = base_s - with_it_s
                if gain[found] <= 0:
                    continue
            wanted[found, 0], wanted[found, 1], wanted[found, 2] = to_step, to_layer, expert
            found += 1
    return found


@compiled_part
def _fill(
    step: int,
    layer: int,
    active: np.ndarray,
    answer: Answer,
    known: float,
    gate: float,
    rules: _Rules,
    memory: _Memory,
    record: _Record,
) -> int:
    """Copy what the CPU computed into slots, highest score first, until the next gate is known."""
    held, score, clocks = memory.resident[layer], rules.scores[step + 1, layer], memory.clocks
    begun = 0
    for i in heaviest_first(score[active]):
        expert = active[i]
        begin = max(clocks[_LINK_FREE], known)
        if answer.place[i] != ON_CPU or held[expert] or begin >= gate:
            continue
        least = np.inf
        for other in range(held.size):
            if held[other]:
                least = min(least, score[other])
        if held.sum() >= memory.slots[layer] and score[expert] <= least:
            continue
        _take(held, memory.slots[layer], score, expert)
        clocks[_LINK_FREE] = begin + rules.copy_s
        record.busy_s[step, LINK] += rules.copy_s
        memory.landed[layer, expert] = clocks[_LINK_FREE]
        memory.fetched[layer, expert] = False
        begun += 1
    return begun


@compiled_part
def _make_room(held: np.ndarray, slots: int, score: np.ndarray, keep: np.ndarray) -> bool:
    """Free a slot, but not one whose expert is expected itself; False if there is none."""
    if held.sum() < slots:
        return True
    victim = -1
    for other in range(held.size):
        if not held[other] or (victim >= 0 and score[other] >= score[victim]):
            continue
        expected = False
        for expert in keep:
            if expert == other:
                expected = True
        if not expected:
            victim = other
    if victim < 0:
        return False
    held[victim] = False
    return True


@compiled_part
def _expected_s(
    step: int,
    layer: int,
    extra: int,
    tokens: np.ndarray,
    rules: _Rules,
    costs: Costs,
    memory: _Memory,
) -> float:
    """Seconds of a layer with the predicted experts, ``extra`` being resident too.

    A predicted expert that is active has its true load, another one a single token.
    """
    predicted = rules.predicted[step, layer]
    size = 0
    while size < predicted.size and predicted[size] >= 0:
        size += 1
    load, ready = np.empty(size, np.int64), np.empty(size)
    for i in range(size):
        expert = predicted[i]
        load[i] = max(1, tokens[step, layer, expert])
        there = memory.resident[layer, expert] or expert == extra
        ready[i] = 0.0 if there else np.inf
    answer = new_answer(size)
    work = Work(load, ready, np.zeros(size), np.full(size, rules.copy_s), 0.0)
    schedule(rules.schedule[step], work, costs, answer)
    return max(answer.clocks[GPU], answer.clocks[CPU])


@compiled
def _time_hits(
    tokens: np.ndarray,
    there: np.ndarray,
    which: int,
    costs: Costs,
    copy_s: float,
    other_s: np.ndarray,
    step_s: np.ndarray,
    busy_s: np.ndarray,
) -> None:
    steps, layers, experts = tokens.shape
    load, ready = np.empty(experts, np.int64), np.empty(experts)
    at_host, copies = np.zeros(experts), np.full(experts, copy_s)
    for step in range(steps):
        for layer in range(layers):
            size = 0
            for expert in range(experts):
                if tokens[step, layer, expert] > 0:
                    load[size] = tokens[step, layer, expert]
                    ready[size] = 0.0 if there[step, layer, expert] else np.inf
                    size += 1
            answer = new_answer(size)
            work = Work(load[:size], ready[:size], at_host[:size], copies[:size], 0.0)
            schedule(which, work, costs, answer)
            busy_s[step, :3] += answer.busy
            busy_s[step, GPU] += other_s[step]
            step_s[step] += other_s[step] + max(answer.clocks[GPU], answer.clocks[CPU])
