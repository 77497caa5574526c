"""The steps of a server, out of a routing trace: how many tokens each expert gets in each.

In decode a step holds one token of each request of the batch, in the order in which
:mod:`moesim.cache` replays them. In prefill a step holds the whole prompts of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moesim.cache.setting import CacheSetting
from moesim.cache.steps import batch_steps
from moesim.errors import InputError, MissingExtraError, UsageError
from moesim.offload.token_scheduler import divide
from moesim.traces.bundle import Trace
from moesim.traces.chunks import check_arrays, check_ids
from moesim.traces.sequences import Sequences, trace_sequences

__all__ = ["Steps", "decode_steps", "requests_of", "serve_steps"]

BLOCK_TOKENS = 256
"""Tokens that count as one request where a trace does not say where requests begin."""

MOST_ENTRIES = 1_000_000
"""Steps × layers × experts of one replay: about 0.1 s of a core for one policy and size."""


@dataclass(frozen=True)
class Steps:
    """What the experts have to do, step by step.

    Attributes:
        tokens: [S, L, E] tokens of every expert.
        router: [S, L, E] router weights of the chosen experts, summed over the step's tokens; None
            if the trace has none.
        prefill: [S] bool.
        batch: Requests of a step.
        context: [S] tokens of each request: new ones in prefill, cached ones in decode.
        requests: How many requests they come from.
        note: What was left out or assumed; empty if nothing.
        chosen: [S] which of all decode steps of the trace these are; None of served requests.
    """

    tokens: np.ndarray
    router: np.ndarray | None
    prefill: np.ndarray
    batch: int
    context: np.ndarray
    requests: int
    note: str = ""
    chosen: np.ndarray | None = None

    @property
    def union(self) -> np.ndarray:
        """[S, L] active experts of every event."""
        return np.count_nonzero(self.tokens, axis=2)

    def part(self, chosen: slice) -> Steps:
        """Some of the steps."""
        return replace(
            self,
            tokens=self.tokens[chosen],
            router=None if self.router is None else self.router[chosen],
            prefill=self.prefill[chosen],
            context=self.context[chosen],
        )


def requests_of(trace: Trace) -> tuple[Sequences, str]:
    """The requests of a trace, and a note on what was assumed.

    A trace that does not name any is cut into blocks.
    """
    try:
        sequences = trace_sequences(trace)
        note = "the trace does not say where requests begin"
    except MissingExtraError:
        sequences = Sequences(np.array([0, trace.manifest.tokens], np.int64))
        note = "reading where requests begin needs pyarrow"
    if sequences.count > 1:
        return sequences, ""
    edges = np.append(np.arange(0, trace.manifest.tokens, BLOCK_TOKENS), trace.manifest.tokens)
    note += f", so that blocks of {BLOCK_TOKENS} tokens stand for them"
    return Sequences(edges.astype(np.int64)), note


def decode_steps(
    trace: Trace,
    setting: CacheSetting,
    context: int,
    *,
    spread: bool = False,
    most_entries: int = MOST_ENTRIES,
) -> Steps:
    """Every token of the trace as a decode step of its request, ``setting.batch`` at a time.

    Args:
        trace: The routing.
        setting: Batch and resets.
        context: Cached tokens of each request.
        spread: If not all steps are taken, take them from all over the trace and not from its
            beginning.
        most_entries: Steps × layers × experts beyond which others are left out.

    Raises:
        UsageError: If the trace has fewer requests than the batch.
    """
    sequences, note = requests_of(trace)
    manifest, batch = trace.manifest, setting.batch
    if batch > sequences.count:
        raise UsageError(
            f"--batch {batch} needs as many requests; the trace has {sequences.count}\n"
            f"fix: pass --batch 1 … {sequences.count}, or a longer trace"
        )
    order = batch_steps(sequences, setting)
    whole = len(order.starts) - 1
    steps = max(1, min(whole, most_entries // (manifest.layers * manifest.experts)))
    chosen = np.linspace(0, whole - 1, steps).astype(np.int64) if spread else np.arange(steps)
    if steps < whole:
        which = "spread evenly" if spread else "from the beginning"
        cut = f"times are of {steps:,} of {whole:,} steps, {which}"
        note = f"{note}; {cut}" if note else cut
    sizes = np.diff(order.starts)[chosen]
    index = np.concatenate([np.arange(*order.starts[at : at + 2]) for at in chosen])
    return Steps(
        *_count(trace, order.tokens[index], np.repeat(np.arange(steps), sizes), steps),
        prefill=np.zeros(steps, bool),
        batch=batch,
        context=np.full(steps, context),
        requests=sequences.count,
        note=note,
        chosen=chosen,
    )


def serve_steps(
    trace: Trace,
    batch: int,
    prompt: int,
    output: int,
    *,
    group_alike: bool = False,
    most_entries: int = MOST_ENTRIES,
) -> Steps:
    """Requests in groups of ``batch``: one prefill step of their prompts, then decode steps.

    Args:
        trace: The routing.
        batch: Requests of a group.
        prompt: Tokens of each request that are its prompt.
        output: Decode steps after it.
        group_alike: Divide the requests of every two groups anew, so that those whose prompts use
            the same experts come together (:mod:`moesim.offload.token_scheduler`).
        most_entries: Steps × layers × experts beyond which further groups are left out.

    Raises:
        UsageError: If fewer than ``batch`` requests are long enough.
    """
    sequences, note = requests_of(trace)
    needed = prompt + output
    lengths = np.diff(sequences.bounds)
    long_enough = sequences.bounds[:-1][lengths >= needed]
    if prompt < 1 or output < 1 or len(long_enough) < batch or batch < 1:
        longest = int(lengths.max())
        raise UsageError(
            f"--prompt {prompt} and --output {output} need --batch {batch} requests of {needed} "
            f"tokens; the trace has {len(long_enough)}, its longest request has {longest} tokens\n"
            f"fix: pass positive lengths that add up to at most {longest}, or a smaller batch"
        )
    manifest = trace.manifest
    if group_alike:
        long_enough = _alike_together(trace, sequences, long_enough, batch, prompt)
    whole = len(long_enough) // batch
    per_group = (output + 1) * manifest.layers * manifest.experts
    groups = max(1, min(whole, most_entries // per_group))
    if groups < whole:
        cut = f"the first {groups * batch} of {whole * batch} requests are served"
        note = f"{note}; {cut}" if note else cut
    index: list[np.ndarray] = []
    step: list[np.ndarray] = []
    for group in range(groups):
        first = long_enough[group * batch : (group + 1) * batch][:, None]
        base = group * (output + 1)
        index += [first + np.arange(prompt), (first + prompt + np.arange(output)).T]
        step += [np.full((batch, prompt), base)]
        step += [np.repeat(base + 1 + np.arange(output)[:, None], batch, axis=1)]
    steps = groups * (output + 1)
    prefill = np.arange(steps) % (output + 1) == 0
    tokens = np.concatenate([part.ravel() for part in index])
    if sequences.order is not None:
        tokens = sequences.order[tokens]
    return Steps(
        *_count(trace, tokens, np.concatenate([part.ravel() for part in step]), steps),
        prefill=prefill,
        batch=batch,
        context=prompt + np.maximum(np.arange(steps) % (output + 1) - 1, 0),
        requests=groups * batch,
        note=note,
    )


def _alike_together(
    trace: Trace, sequences: Sequences, starts: np.ndarray, batch: int, prompt: int
) -> np.ndarray:
    """The requests' first tokens in an order in which alike requests of two groups are together."""
    index = (starts[:, None] + np.arange(prompt)).ravel()
    if sequences.order is not None:
        index = sequences.order[index]
    which = np.repeat(np.arange(len(starts)), prompt)
    used = _count(trace, index, which, len(starts))[0].reshape(len(starts), -1) > 0
    order = np.arange(len(starts))
    for begin in range(0, len(starts) - 2 * batch + 1, 2 * batch):
        pair = order[begin : begin + 2 * batch]
        second = divide(used[pair])
        order[begin : begin + 2 * batch] = np.concatenate([pair[~second], pair[second]])
    return starts[order]


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
