"""One expert layer divided among GPU, CPU and the link between them.

A schedule takes the active experts of one layer (axis M) and decides who runs each of them when.
All times count from the moment that the layer's gate is known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.compiled import compiled, compiled_part

__all__ = [
    "COPIED",
    "CPU",
    "GPU",
    "LINK",
    "ON_CPU",
    "RESIDENT",
    "SCHEDULES",
    "Answer",
    "Costs",
    "Work",
    "heaviest_first",
    "new_answer",
    "schedule",
]

RESIDENT, COPIED, ON_CPU = 0, 1, 2
GPU, CPU, LINK = 0, 1, 2
STREAM, SERIAL, SPLIT, HYBRID, HYBRID_CODE = 0, 1, 2, 3, 4

SCHEDULES = {
    "on-demand": STREAM,
    "serial": SERIAL,
    "split": SPLIT,
    "hybrid": HYBRID,
    "hybrid-code": HYBRID_CODE,
}
"""Names of the schedules:

- ``on-demand``: missing experts are copied, heaviest first, while those that are there compute.
- ``serial``: the same without overlap: copy, compute, copy, compute.
- ``split``: experts in GPU memory run there, all others on the CPU (kTransformers).
- ``hybrid``: HybriMoE's three clocks as the paper describes them (arXiv 2504.05897, section 4).
- ``hybrid-code``: the two pointers of HybriMoE's released code (operators/experts.py).
"""


class Work(NamedTuple):
    """The active experts of a layer.

    Attributes:
        tokens: [M] int64 tokens of each.
        ready: [M] when its weights are in GPU memory; ∞ if they are not.
        host: [M] when they are in host memory; 0 unless they come from a disk.
        copy_s: [M] seconds of copying them over the link.
        link: When the link is free.
    """

    tokens: np.ndarray
    ready: np.ndarray
    host: np.ndarray
    copy_s: np.ndarray
    link: float


class Costs(NamedTuple):
    """Seconds of one expert.

    Attributes:
        gpu_s: [N + 1] on the GPU with 0 … N tokens.
        cpu_s: [N + 1] on the CPU; ∞ where there is none.
        cpu_first_s: What the first expert of a layer on the CPU takes longer.
    """

    gpu_s: np.ndarray
    cpu_s: np.ndarray
    cpu_first_s: float


class Answer(NamedTuple):
    """What a schedule writes.

    Attributes:
        place: [M] uint8 ``RESIDENT``, ``COPIED`` or ``ON_CPU``.
        span: [M, 2] start and end of the computation.
        copied: [M] end of the copy; NaN if there was none.
        clocks: [3] end of the last work on GPU, CPU and link.
        busy: [3] seconds of work on them.
    """

    place: np.ndarray
    span: np.ndarray
    copied: np.ndarray
    clocks: np.ndarray
    busy: np.ndarray


@compiled
def new_answer(size: int) -> Answer:
    """Room for the answer on ``size`` experts."""
    return Answer(
        np.zeros(size, np.uint8), np.zeros((size, 2)), np.empty(size), np.zeros(3), np.zeros(3)
    )


@compiled
def schedule(which: int, work: Work, costs: Costs, answer: Answer) -> None:
    """Run one of :data:`SCHEDULES`."""
    answer.clocks[:] = 0.0
    answer.busy[:] = 0.0
    answer.copied[:] = np.nan
    answer.clocks[LINK] = work.link
    if which == STREAM:
        _stream(work, costs, answer)
    elif which == SERIAL:
        _serial(work, costs, answer)
    elif which == SPLIT:
        _split(work, costs, answer)
    elif which == HYBRID:
        _hybrid(work, costs, answer)
    else:
        _hybrid_code(work, costs, answer)


@compiled_part
def heaviest_first(tokens: np.ndarray) -> np.ndarray:
    """[M] indices by falling number of tokens, equals as they come.

    Insertion: there are few, and numpy's sorts take seconds to compile.
    """
    order = np.arange(tokens.size)
    for i in range(1, tokens.size):
        j = i
        while j > 0 and tokens[order[j - 1]] < tokens[i]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    return order


@compiled_part
def _run_gpu(tokens: np.ndarray, available: np.ndarray, costs: Costs, answer: Answer) -> None:
    """Compute everything that becomes available, the heaviest of what is there first."""
    waiting = np.isfinite(available)
    while True:
        pick = _next_on_gpu(tokens, available, waiting, answer.clocks[GPU])
        if pick < 0:
            break
        _compute_on_gpu(pick, tokens, available, costs, answer)
        waiting[pick] = False


@compiled_part
def _next_on_gpu(tokens: np.ndarray, available: np.ndarray, waiting: np.ndarray, now: float) -> int:
    """The heaviest expert that is there, else the one that comes first; −1 if none will."""
    pick = -1
    for i in range(tokens.size):
        if waiting[i] and available[i] <= now and (pick < 0 or tokens[i] > tokens[pick]):
            pick = i
    if pick >= 0:
        return pick
    for i in range(tokens.size):
        if waiting[i] and (pick < 0 or available[i] < available[pick]):
            pick = i
    return pick


@compiled_part
def _compute_on_gpu(
    i: int, tokens: np.ndarray, available: np.ndarray, costs: Costs, answer: Answer
) -> None:
    seconds = costs.gpu_s[tokens[i]]
    answer.span[i, 0] = max(answer.clocks[GPU], available[i])
    answer.span[i, 1] = answer.span[i, 0] + seconds
    answer.clocks[GPU] = answer.span[i, 1]
    answer.busy[GPU] += seconds


@compiled_part
def _cpu_s(tokens: int, costs: Costs, answer: Answer) -> float:
    first_s = costs.cpu_first_s if answer.busy[CPU] == 0.0 else 0.0
    return costs.cpu_s[tokens] + first_s


@compiled_part
def _compute_on_cpu(i: int, work: Work, costs: Costs, answer: Answer) -> None:
    seconds = _cpu_s(work.tokens[i], costs, answer)
    answer.place[i] = ON_CPU
    answer.span[i, 0] = max(answer.clocks[CPU], work.host[i])
    answer.span[i, 1] = answer.span[i, 0] + seconds
    answer.clocks[CPU] = answer.span[i, 1]
    answer.busy[CPU] += seconds


@compiled_part
def _copy(i: int, work: Work, answer: Answer) -> None:
    answer.clocks[LINK] = max(answer.clocks[LINK], work.host[i]) + work.copy_s[i]
    answer.busy[LINK] += work.copy_s[i]
    answer.copied[i] = answer.clocks[LINK]
    answer.place[i] = COPIED


@compiled_part
def _stream(work: Work, costs: Costs, answer: Answer) -> None:
    available = work.ready.copy()
    for i in heaviest_first(work.tokens):
        answer.place[i] = RESIDENT
        if np.isinf(work.ready[i]):
            _copy(i, work, answer)
            available[i] = answer.copied[i]
    _run_gpu(work.tokens, available, costs, answer)


@compiled_part
def _serial(work: Work, costs: Costs, answer: Answer) -> None:
    available = work.ready.copy()
    _run_gpu(work.tokens, work.ready, costs, answer)
    for i in heaviest_first(work.tokens):
        answer.place[i] = RESIDENT
        if np.isinf(work.ready[i]):
            answer.clocks[LINK] = max(answer.clocks[LINK], answer.clocks[GPU])
            _copy(i, work, answer)
            available[i] = answer.copied[i]
            _compute_on_gpu(i, work.tokens, available, costs, answer)


@compiled_part
def _split(work: Work, costs: Costs, answer: Answer) -> None:
    for i in heaviest_first(work.tokens):
        answer.place[i] = RESIDENT
        if np.isinf(work.ready[i]):
            _compute_on_cpu(i, work, costs, answer)
    _run_gpu(work.tokens, work.ready, costs, answer)


@compiled_part
def _hybrid(work: Work, costs: Costs, answer: Answer) -> None:
    """GPU: what is there, heaviest first. CPU: the lightest missing. Link: the heaviest missing.

    Whichever of the three would finish its next work first does it.
    """
    tokens, clocks = work.tokens, answer.clocks
    available = work.ready.copy()
    waiting = np.isfinite(work.ready)
    missing = np.empty(tokens.size, np.int64)
    low, high = 0, -1
    for i in heaviest_first(tokens)[::-1]:
        answer.place[i] = RESIDENT
        if np.isinf(work.ready[i]):
            high += 1
            missing[high] = i
    while True:
        on_gpu = _next_on_gpu(tokens, available, waiting, clocks[GPU])
        gpu_end = cpu_end = copy_end = np.inf
        if on_gpu >= 0:
            gpu_end = max(clocks[GPU], available[on_gpu]) + costs.gpu_s[tokens[on_gpu]]
        light = heavy = 0
        if low <= high:
            light, heavy = missing[low], missing[high]
            cpu_end = max(clocks[CPU], work.host[light]) + _cpu_s(tokens[light], costs, answer)
            copy_end = max(clocks[LINK], work.host[heavy]) + work.copy_s[heavy]
        elif on_gpu < 0:
            break
        if gpu_end <= cpu_end and gpu_end <= copy_end:
            _compute_on_gpu(on_gpu, tokens, available, costs, answer)
            waiting[on_gpu] = False
        elif cpu_end <= copy_end:
            _compute_on_cpu(light, work, costs, answer)
            low += 1
        else:
            _copy(heavy, work, answer)
            available[heavy] = answer.copied[heavy]
            waiting[heavy] = True
            high -= 1


@compiled_part
def _hybrid_code(work: Work, costs: Costs, answer: Answer) -> None:
    """Two pointers over the experts, those in GPU memory first, each part heaviest first.

    The GPU takes from the head and the CPU from the tail, whichever would be done first. If the
    tail reaches experts that are in GPU memory, the CPU takes those too.
    """
    tokens, clocks = work.tokens, answer.clocks
    by_load = heaviest_first(tokens)
    order = np.empty(tokens.size, np.int64)
    head = 0
    for absent in (False, True):
        for i in by_load:
            if np.isinf(work.ready[i]) == absent:
                order[head] = i
                head += 1
    available = work.ready.copy()
    head, tail = 0, tokens.size - 1
    while head <= tail:
        first, last = order[head], order[tail]
        if np.isinf(work.ready[first]):
            available[first] = max(clocks[LINK], work.host[first]) + work.copy_s[first]
        gpu_end = max(clocks[GPU], available[first]) + costs.gpu_s[tokens[first]]
        cpu_end = max(clocks[CPU], work.host[last]) + _cpu_s(tokens[last], costs, answer)
        if gpu_end <= cpu_end:
            answer.place[first] = RESIDENT
            if np.isinf(work.ready[first]):
                _copy(first, work, answer)
            _compute_on_gpu(first, tokens, available, costs, answer)
            head += 1
        else:
            _compute_on_cpu(last, work, costs, answer)
            tail -= 1
