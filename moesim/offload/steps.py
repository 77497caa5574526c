"""The steps of a server, out of a routing trace: how many tokens each expert gets in each.

In decode a step holds one token of each request of the batch. Requests of the trace follow one
another in as many lanes as the batch has requests (continuous batching). In prefill a step holds
the whole prompts of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import InputError, MissingExtraError, UsageError
from moesim.traces.bundle import Trace
from moesim.traces.chunks import check_arrays, check_ids

__all__ = ["Steps", "decode_steps", "request_bounds", "serve_steps"]

BLOCK_TOKENS = 256
"""Tokens that count as one request where a trace does not say where requests begin."""

MOST_ENTRIES = 3_000_000
"""Steps × layers × experts of one replay: about 0.2 s of a core for one policy and size."""


@dataclass(frozen=True)
class Steps:
    """What the experts have to do, step by step.

    Attributes:
        tokens: [S, L, E] tokens of every expert.
        router: [S, L, E] router weights of the chosen experts, summed over the step's tokens; None
            if the trace has none.
        prefill: [S] bool.
        step_tokens: [S] tokens of each step.
        requests: How many requests they come from.
        note: What was left out or assumed; empty if nothing.
    """

    tokens: np.ndarray
    router: np.ndarray | None
    prefill: np.ndarray
    step_tokens: np.ndarray
    requests: int
    note: str = ""

    @property
    def union(self) -> np.ndarray:
        """[S, L] active experts of every event."""
        return np.count_nonzero(self.tokens, axis=2)


def request_bounds(trace: Trace) -> tuple[np.ndarray, str]:
    """Where requests begin and end.

    Returns:
        [R, 2] first token and the one behind the last, in the trace's order; and a note on what
        was assumed.
    """
    tokens = trace.manifest.tokens
    try:
        frame = trace.requests()
        note = "the trace does not say where requests begin"
    except MissingExtraError:
        frame, note = None, "reading where requests begin needs pyarrow"
    if frame is None or "request" not in frame:
        edges = np.append(np.arange(0, tokens, BLOCK_TOKENS), tokens)
        note += f", so that blocks of {BLOCK_TOKENS} tokens stand for them"
        return np.stack([edges[:-1], edges[1:]], axis=1), note
    change = np.flatnonzero(np.diff(frame["request"].to_numpy())) + 1
    edges = np.concatenate([[0], change, [tokens]])
    return np.stack([edges[:-1], edges[1:]], axis=1), ""


def decode_steps(trace: Trace, batch: int, most_entries: int = MOST_ENTRIES) -> Steps:
    """Every token of the trace as a decode step of its request, ``batch`` requests at a time.

    Args:
        trace: The routing.
        batch: Requests in flight.
        most_entries: Steps × layers × experts beyond which the rest of the trace is left out.

    Raises:
        UsageError: If the trace has fewer requests than the batch.
    """
    bounds, note = request_bounds(trace)
    manifest = trace.manifest
    if not 1 <= batch <= len(bounds):
        raise UsageError(
            f"--batch {batch} needs as many requests; the trace has {len(bounds)}\n"
            f"fix: pass --batch 1 … {len(bounds)}, or a longer trace"
        )
    lanes = [
        np.concatenate([np.arange(*bound) for bound in bounds[lane::batch]])
        for lane in range(batch)
    ]
    whole = min(map(len, lanes))
    steps = max(1, min(whole, most_entries // (manifest.layers * manifest.experts)))
    if steps < whole:
        cut = f"the first {steps:,} of {whole:,} steps are replayed"
        note = f"{note}; {cut}" if note else cut
    index = np.stack([lane[:steps] for lane in lanes], axis=1)
    return Steps(
        *_count(trace, index.ravel(), np.repeat(np.arange(steps), batch), steps),
        prefill=np.zeros(steps, bool),
        step_tokens=np.full(steps, batch),
        requests=len(bounds),
        note=note,
    )


def serve_steps(
    trace: Trace, batch: int, prompt: int, output: int, most_entries: int = MOST_ENTRIES
) -> Steps:
    """Requests in groups of ``batch``: one prefill step of their prompts, then decode steps.

    Args:
        trace: The routing.
        batch: Requests of a group.
        prompt: Tokens of each request that are its prompt.
        output: Decode steps after it.
        most_entries: Steps × layers × experts beyond which further groups are left out.

    Raises:
        UsageError: If fewer than ``batch`` requests are long enough.
    """
    bounds, note = request_bounds(trace)
    needed = prompt + output
    long_enough = bounds[np.diff(bounds, axis=1)[:, 0] >= needed]
    if prompt < 1 or output < 1 or len(long_enough) < batch or batch < 1:
        longest = int(np.diff(bounds, axis=1).max())
        raise UsageError(
            f"--prompt {prompt} and --output {output} need --batch {batch} requests of {needed} "
            f"tokens; the trace has {len(long_enough)}, its longest request has {longest} tokens\n"
            f"fix: pass positive lengths that add up to at most {longest}, or a smaller batch"
        )
    manifest = trace.manifest
    whole = len(long_enough) // batch
    per_group = (output + 1) * manifest.layers * manifest.experts
    groups = max(1, min(whole, most_entries // per_group))
    if groups < whole:
        cut = f"the first {groups * batch} of {whole * batch} requests are served"
        note = f"{note}; {cut}" if note else cut
    index: list[np.ndarray] = []
    step: list[np.ndarray] = []
    for group in range(groups):
        first = long_enough[group * batch : (group + 1) * batch, 0][:, None]
        base = group * (output + 1)
        index += [first + np.arange(prompt), (first + prompt + np.arange(output)).T]
        step += [np.full((batch, prompt), base)]
        step += [np.repeat(base + 1 + np.arange(output)[:, None], batch, axis=1)]
    steps = groups * (output + 1)
    prefill = np.arange(steps) % (output + 1) == 0
    return Steps(
        *_count(
            trace,
            np.concatenate([part.ravel() for part in index]),
            np.concatenate([part.ravel() for part in step]),
            steps,
        ),
        prefill=prefill,
        step_tokens=np.where(prefill, batch * prompt, batch),
        requests=groups * batch,
        note=note,
    )


def _count(
    trace: Trace, index: np.ndarray, step: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens and router weights of every expert, [S, L, E]."""
    check_arrays(trace)
    manifest = trace.manifest
    layers, experts, top_k = manifest.layers, manifest.experts, manifest.top_k
    tokens = np.empty((steps, layers, experts), np.int32)
    router = None if trace.gates is None else np.empty(tokens.shape, np.float32)
    whole = slice(0, manifest.tokens)
    for layer in range(layers):
        if trace.valid_k is None:
            check_ids(trace, layer, whole)
        ids = np.asarray(trace.routing[layer])[index]
        live = np.ones(ids.shape, bool)
        if trace.valid_k is not None:
            live = np.arange(top_k) < np.asarray(trace.valid_k[layer])[index][:, None]
            if int(ids[live].max(initial=0)) >= experts:
                raise InputError(
                    "expert id out of range",
                    file=trace.path and trace.path / "routing.npy",
                    found=int(ids[live].max()),
                    allowed=f"0 … {experts - 1}",
                    fix="run: moesim trace validate",
                )
        at = (step[:, None] * experts + ids)[live]
        tokens[:, layer] = np.bincount(at, minlength=steps * experts).reshape(steps, experts)
        if router is not None and trace.gates is not None:
            weight = np.asarray(trace.gates[layer])[index][live].astype(float)
            summed = np.bincount(at, weight, minlength=steps * experts)
            router[:, layer] = summed.reshape(steps, experts)
    return tokens, router
