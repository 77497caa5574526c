"""Copies for later: what the next layers are expected to need, and what the CPU computed."""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled_part
from moesim.offload.schedules import (
    CPU,
    GPU,
    LINK,
    ON_CPU,
    Answer,
    Costs,
    Work,
    heaviest_first,
    new_answer,
    schedule,
)
from moesim.offload.state import (
    DISK_FREE,
    LINK_FREE,
    NVME,
    READ,
    Memory,
    Record,
    Rules,
    take,
)

__all__ = ["fill", "prefetch"]


@compiled_part
def prefetch(
    step: int,
    layer: int,
    known: float,
    gate: float,
    tokens: np.ndarray,
    rules: Rules,
    costs: Costs,
    memory: Memory,
    record: Record,
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
        begin = max(clocks[LINK_FREE], known)
        if not memory.host[to_layer, expert]:
            if max(clocks[DISK_FREE], known) >= gate:
                continue
            clocks[DISK_FREE] = max(clocks[DISK_FREE], known) + rules.read_s
            record.busy_s[step, NVME] += rules.read_s
            record.counts[step, READ] += 1
            take(memory.host[to_layer], memory.host_slots[to_layer], score, expert)
            begin = max(begin, clocks[DISK_FREE])
        held, keep = memory.resident[to_layer], rules.predicted[to_step, to_layer]
        if begin >= gate or not _make_room(held, memory.slots[to_layer], score, keep):
            continue
        clocks[LINK_FREE] = begin + rules.copy_s
        record.busy_s[step, LINK] += rules.copy_s
        held[expert] = True
        memory.landed[to_layer, expert] = clocks[LINK_FREE]
        memory.fetched[to_layer, expert] = True
        begun += 1
    return begun


@compiled_part
def _candidates(
    step: int,
    layer: int,
    tokens: np.ndarray,
    rules: Rules,
    costs: Costs,
    memory: Memory,
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
def fill(
    step: int,
    layer: int,
    active: np.ndarray,
    answer: Answer,
    known: float,
    gate: float,
    rules: Rules,
    memory: Memory,
    record: Record,
) -> int:
    """Copy what the CPU computed into slots, highest score first, until the next gate is known."""
    held, score, clocks = memory.resident[layer], rules.scores[step + 1, layer], memory.clocks
    begun = 0
    for i in heaviest_first(score[active]):
        expert = active[i]
        begin = max(clocks[LINK_FREE], known)
        if answer.place[i] != ON_CPU or held[expert] or begin >= gate:
            continue
        least = np.inf
        for other in range(held.size):
            if held[other]:
                least = min(least, score[other])
        if held.sum() >= memory.slots[layer] and score[expert] <= least:
            continue
        take(held, memory.slots[layer], score, expert)
        clocks[LINK_FREE] = begin + rules.copy_s
        record.busy_s[step, LINK] += rules.copy_s
        memory.landed[layer, expert] = clocks[LINK_FREE]
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
    rules: Rules,
    costs: Costs,
    memory: Memory,
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
