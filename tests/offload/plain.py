"""Plain references of the schedules and of the replay, written to be read and not to be fast."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from moesim.offload.replay import Plan, Timing


@dataclass
class Layer:
    """Experts of one layer: tokens, and whether each is in GPU memory."""

    tokens: list[int]
    there: list[bool]
    gpu_s: list[float]
    cpu_s: list[float]
    cpu_first_s: float
    copy_s: float


@dataclass
class Answer:
    """Who ran what until when."""

    gpu: dict[int, tuple[float, float]] = field(default_factory=dict)
    cpu: dict[int, tuple[float, float]] = field(default_factory=dict)
    copies: dict[int, float] = field(default_factory=dict)

    @property
    def end(self) -> float:
        return max((end for _, end in (*self.gpu.values(), *self.cpu.values())), default=0.0)


def _gpu_line(layer: Layer, available: dict[int, float]) -> dict[int, tuple[float, float]]:
    """One after another, the heaviest of what is there."""
    now, left, spans = 0.0, dict(available), {}
    while left:
        here = [i for i, time in left.items() if time <= now]
        if not here:
            now = min(left.values())
            here = [i for i, time in left.items() if time == now]
        pick = min(here, key=lambda i: (-layer.tokens[i], i))
        del left[pick]
        spans[pick] = (now, now + layer.gpu_s[layer.tokens[pick]])
        now = spans[pick][1]
    return spans


def on_demand(layer: Layer) -> Answer:
    answer, link = Answer(), 0.0
    available = {i: 0.0 for i, there in enumerate(layer.there) if there}
    for i in sorted(range(len(layer.tokens)), key=lambda i: (-layer.tokens[i], i)):
        if not layer.there[i]:
            link += layer.copy_s
            answer.copies[i] = available[i] = link
    answer.gpu = _gpu_line(layer, available)
    return answer


def split(layer: Layer) -> Answer:
    answer, cpu = Answer(), 0.0
    for i in sorted(range(len(layer.tokens)), key=lambda i: (-layer.tokens[i], i)):
        if not layer.there[i]:
            begin = cpu
            cpu += layer.cpu_s[layer.tokens[i]] + (0.0 if answer.cpu else layer.cpu_first_s)
            answer.cpu[i] = (begin, cpu)
    answer.gpu = _gpu_line(layer, {i: 0.0 for i, there in enumerate(layer.there) if there})
    return answer


def hybrid(layer: Layer) -> Answer:
    """HybriMoE's rule as a list of possible next moves, the earliest end wins."""
    answer = Answer()
    gpu = cpu = link = 0.0
    queue = {i: 0.0 for i, there in enumerate(layer.there) if there}
    missing = [i for i in range(len(layer.tokens)) if not layer.there[i]]
    missing.sort(key=lambda i: (layer.tokens[i], -i))
    while queue or missing:
        moves = []
        if queue:
            here = [i for i, time in queue.items() if time <= gpu]
            pick = (
                min(here, key=lambda i: (-layer.tokens[i], i))
                if here
                else min(queue, key=lambda i: (queue[i], i))
            )
            begin = max(gpu, queue[pick])
            moves.append((begin + layer.gpu_s[layer.tokens[pick]], 0, pick, begin))
        if missing:
            first = 0.0 if answer.cpu else layer.cpu_first_s
            moves.append((cpu + layer.cpu_s[layer.tokens[missing[0]]] + first, 1, missing[0], cpu))
            moves.append((link + layer.copy_s, 2, missing[-1], link))
        end, kind, pick, begin = min(moves)
        if kind == 0:
            del queue[pick]
            answer.gpu[pick], gpu = (begin, end), end
        elif kind == 1:
            missing.remove(pick)
            answer.cpu[pick], cpu = (begin, end), end
        else:
            missing.remove(pick)
            answer.copies[pick] = queue[pick] = link = end
    return answer


def hybrid_code(layer: Layer) -> Answer:
    order = sorted(
        range(len(layer.tokens)), key=lambda i: (not layer.there[i], -layer.tokens[i], i)
    )
    answer, gpu, cpu, moved = Answer(), 0.0, 0.0, 0.0
    while order:
        head, tail = order[0], order[-1]
        wait = 0.0 if layer.there[head] else max(0.0, moved + layer.copy_s - gpu)
        gpu_end = gpu + wait + layer.gpu_s[layer.tokens[head]]
        first = 0.0 if answer.cpu else layer.cpu_first_s
        cpu_end = cpu + layer.cpu_s[layer.tokens[tail]] + first
        if gpu_end <= cpu_end:
            if not layer.there[head]:
                moved += layer.copy_s
                answer.copies[head] = moved
            answer.gpu[head], gpu = (gpu + wait, gpu_end), gpu_end
            order.pop(0)
        else:
            answer.cpu[tail], cpu = (cpu, cpu_end), cpu_end
            order.pop()
    return answer


def optimum(layer: Layer) -> float:
    """Least end over every division of the missing experts and every order of the copies."""
    missing = [i for i, there in enumerate(layer.there) if not there]
    there = {i: 0.0 for i, there in enumerate(layer.there) if there}
    best = math.inf
    for on_cpu in itertools.product((False, True), repeat=len(missing)):
        cpu = [i for i, chosen in zip(missing, on_cpu, strict=True) if chosen]
        copied = [i for i, chosen in zip(missing, on_cpu, strict=True) if not chosen]
        cpu_end = sum(layer.cpu_s[layer.tokens[i]] for i in cpu)
        cpu_end += layer.cpu_first_s if cpu else 0.0
        if cpu_end >= best:
            continue
        for order in itertools.permutations(copied):
            arrive = {i: layer.copy_s * (rank + 1) for rank, i in enumerate(order)}
            spans = _gpu_line(layer, there | arrive)
            best = min(best, max(cpu_end, *(end for _, end in spans.values()), 0.0))
    return best


def replay(tokens: np.ndarray, plan: Plan, timing: Timing) -> tuple[np.ndarray, np.ndarray]:
    """Step times and hits [S, L, E] without prefetch and disk; every part is a dictionary."""
    schedules = {
        "on-demand": on_demand, "split": split, "hybrid": hybrid, "hybrid-code": hybrid_code,
    }  # fmt: skip
    run = schedules[plan.schedule]
    held = [set(np.flatnonzero(row)) for row in plan.resident]
    hits = np.zeros(tokens.shape, bool)
    step_s = np.zeros(len(tokens))
    for step, layers in enumerate(tokens):
        for at, row in enumerate(layers):
            active = np.flatnonzero(row)
            hits[step, at, active] = [expert in held[at] for expert in active]
            layer = Layer(
                [int(row[e]) for e in active], [e in held[at] for e in active],
                list(timing.gpu_s), list(timing.cpu_s), timing.cpu_first_s, timing.copy_s,
            )  # fmt: skip
            answer = run(layer)
            step_s[step] += timing.other_s[step] + answer.end
            for i, expert in enumerate(active):
                if i not in answer.copies or not plan.admit or plan.slots[at] == 0:
                    continue
                if len(held[at]) >= plan.slots[at]:
                    score = plan.scores[step + 1, at]
                    held[at].remove(min(held[at], key=lambda e: (score[e], e)))
                held[at].add(expert)
    return step_s, hits
