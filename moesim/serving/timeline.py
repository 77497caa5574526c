"""A run as a timeline for Perfetto (https://ui.perfetto.dev) or chrome://tracing.

The file is a JSON object in the Trace Event Format: a process for each worker with its steps
(complete events) and counters, and a process with the requests (nestable asynchronous events).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesim.safe_io import write_atomic
from moesim.serving.schedule import Schedule

__all__ = ["MOST_STEPS", "timeline", "write_timeline"]

MOST_STEPS = 20_000
"""Steps that are written at most: viewers become slow beyond some ten megabytes."""

_REQUESTS = 0
_KINDS = ("decode", "prefill")


def timeline(schedule: Schedule, most_steps: int = MOST_STEPS) -> dict[str, Any]:
    """The run, or its first steps, as a trace.

    Args:
        schedule: What happened.
        most_steps: Later steps, and what only they concern, are left out.
    """
    steps = min(schedule.steps, most_steps)
    end_s = float((schedule.start_s + schedule.duration_s)[:steps].max())
    events = [*_names(schedule), *_steps(schedule, steps), *_requests(schedule, end_s)]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"steps": schedule.steps, "steps_written": steps},
    }


def write_timeline(path: str | Path, schedule: Schedule) -> Path:
    """Write the trace.

    Raises:
        InputError: If the place cannot be written to.
    """
    return write_atomic(path, json.dumps(timeline(schedule), separators=(",", ":")))


def _names(schedule: Schedule) -> Iterator[dict[str, Any]]:
    names = ["requests", *(f"worker {worker}" for worker in range(schedule.workers))]
    for process, name in enumerate(names):
        yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    for worker in range(schedule.workers):
        args = {"name": "steps"}
        yield {"ph": "M", "name": "thread_name", "pid": worker + 1, "tid": 1, "args": args}


def _steps(schedule: Schedule, steps: int) -> Iterator[dict[str, Any]]:
    for s in range(steps):
        process = int(schedule.worker[s]) + 1
        start_us = float(schedule.start_s[s]) * 1e6
        yield {
            "ph": "X",
            "name": _KINDS[schedule.kind[s]],
            "cat": "step",
            "pid": process,
            "tid": 1,
            "ts": start_us,
            "dur": float(schedule.duration_s[s]) * 1e6,
            "args": {
                "step": s,
                "decode_sequences": int(schedule.all_decode_sequences[s]),
                "prefill_tokens": int(schedule.all_prefill_tokens[s]),
                "context": int(schedule.context[s]),
            },
        }
        for name, values in (
            ("requests", {"running": schedule.running[s], "waiting": schedule.waiting[s]}),
            ("KV blocks", {"held": schedule.kv_blocks[s]}),
        ):
            args = {key: int(value) for key, value in values.items()}
            yield {"ph": "C", "name": name, "pid": process, "tid": 0, "ts": start_us, "args": args}


def _requests(schedule: Schedule, end_s: float) -> Iterator[dict[str, Any]]:
    """Three phases of each request that ends in time, nested in one."""
    for r in range(schedule.requests):
        if schedule.finish_s[r] > end_s:
            continue
        arrival, admitted, first, finish = (
            float(times[r]) * 1e6
            for times in (
                schedule.arrival_s,
                schedule.admitted_s,
                schedule.first_s,
                schedule.finish_s,
            )
        )
        sizes = {"input": int(schedule.input_tokens[r]), "output": int(schedule.output_tokens[r])}
        for name, begin, stop, args in (
            (f"request {r}", arrival, finish, sizes),
            ("queue", arrival, admitted, {}),
            ("prefill", admitted, first, {}),
            ("decode", first, finish, {}),
        ):
            common = {"name": name, "cat": "request", "id": r, "pid": _REQUESTS, "tid": 0}
            yield {"ph": "b", "ts": begin, "args": args} | common
            yield {"ph": "e", "ts": stop} | common
