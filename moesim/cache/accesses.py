"""What one cache is asked for: the experts of every event, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from moesim.cache.setting import CacheSetting
from moesim.cache.steps import Steps, batch_steps
from moesim.compiled import compiled
from moesim.errors import UsageError
from moesim.traces.bundle import Trace, routing_dtype
from moesim.traces.chunks import check_arrays, read_ids, release, token_slices
from moesim.traces.distinct import distinct_ids
from moesim.traces.sequences import Sequences, trace_sequences

__all__ = ["Accesses", "cache_accesses"]

POOLED_ACCESSES = 2**24
"""A pooled cache is replayed in pieces of about so many accesses, cut at resets."""

LARGEST = 2**32 - 2
"""Accesses of one piece: positions are kept in 32 bits."""


@dataclass(frozen=True)
class Accesses:
    """The accesses of one cache, or of a piece of them that starts with an empty cache.

    Attributes:
        ids: [N] uint8 or uint16. Of a cache for one layer: the expert. Of a pooled cache:
            row · E + expert, where row counts the layers that share it.
        starts: [S + 1] int64; event s asks for ``ids[starts[s]:starts[s + 1]]``, all distinct.
        resets: [R + 1] int64; the cache is empty before the events ``resets[:-1]``, and
            ``resets[-1]`` is S.
        experts: E of each layer.
        layers: Rows of the routing that share the cache.
        events_per_step: Events of one step: 1, or L if every layer of a pooled cache is one.
        assignments: Token assignments behind the accesses: more than N where tokens of a batch
            share experts.
        weights: [N] float32 router weight of each access, summed over the tokens of the event, or
            None if they were not asked for.
        begins: [Q] int64 events with which a sequence begins, or several that run together; the
            resets if there are more sequences than that.
    """

    ids: np.ndarray
    starts: np.ndarray
    resets: np.ndarray
    experts: int
    layers: tuple[int, ...] = (0,)
    events_per_step: int = 1
    assignments: int = 0
    weights: np.ndarray | None = None
    begins: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    @property
    def objects(self) -> int:
        """Different experts that the cache can be asked for."""
        return self.experts * len(self.layers)

    @property
    def count(self) -> int:
        """N."""
        return int(self.ids.size)

    @property
    def events(self) -> int:
        """S."""
        return len(self.starts) - 1

    @cached_property
    def segments(self) -> np.ndarray:
        """[R + 1] int64, the accesses at which the cache is empty, and N."""
        return self.starts[self.resets]

    @cached_property
    def first_touches(self) -> np.ndarray:
        """[n] int64, ascending: the accesses that are the first to their expert since a reset."""
        room = np.minimum(np.diff(self.segments), self.objects).sum()
        found = np.empty(room, np.int64)
        return found[: _first_touches(self.ids, self.segments, self.objects, found)]


def cache_accesses(
    trace: Trace,
    setting: CacheSetting,
    *,
    sequences: Sequences | None = None,
    layers: Sequence[int] | None = None,
    weights: bool = False,
) -> Iterator[Accesses]:
    """The accesses of every cache of a trace: one per layer, or one that is shared.

    A pooled cache may come in several pieces, cut at resets.

    Args:
        trace: The trace.
        setting: Scope, batch and resets.
        sequences: Some of the trace's sequences; all by default.
        layers: Rows of the routing; all by default.
        weights: Whether to bring the router weights.

    Raises:
        InputError: If an id is not below E, or the bundle contradicts itself.
        UsageError: If weights are asked for and the trace has none, or the trace is too large.
    """
    check_arrays(trace)
    if weights and trace.gates is None:
        raise UsageError(
            "this policy needs router weights, and the trace has none"
            "\nfix: record the trace with gates, or choose another policy"
        )
    rows = tuple(range(trace.manifest.layers)) if layers is None else tuple(layers)
    if sequences is None:
        sequences = trace_sequences(trace, setting.sample_tokens)
    whole = (
        setting.batch == 1
        and setting.step_tokens == 1
        and sequences.order is None
        and trace.valid_k is None
        and sequences.tokens == trace.manifest.tokens
    )
    steps = None if whole else batch_steps(sequences, setting)
    bounds = sequences.bounds if setting.reset == "sequence" else sequences.bounds[[0, -1]]
    if setting.scope == "per-layer":
        event_starts = None
        for row in rows:
            _check_ids(trace, row)
            if steps is None:
                piece, event_starts = _plain_layer(trace, row, bounds, event_starts, weights)
                piece = replace(piece, begins=sequences.bounds[:-1])
                if distinct_ids(piece.ids, piece.starts, piece.experts)[0] is not piece.ids:
                    piece = _collected(trace, (row,), batch_steps(sequences, setting), 1, weights)
            else:
                piece = _collected(trace, (row,), steps, 1, weights)
            yield piece
            release(trace.routing[row])
        return
    if trace.manifest.experts * len(rows) > 2**16:
        raise UsageError(
            f"a pooled cache can hold at most {2**16} different experts; found "
            f"{trace.manifest.experts * len(rows)}\nfix: use the scope per-layer"
        )
    for row in rows:
        _check_ids(trace, row)
    steps = batch_steps(sequences, setting) if steps is None else steps
    per_step = len(rows) if setting.scope == "pooled" else 1
    for part in _pieces(steps, trace.manifest.top_k * len(rows)):
        yield _collected(trace, rows, part, per_step, weights)


def _check_ids(trace: Trace, row: int) -> None:
    for tokens in token_slices(trace):
        read_ids(trace, row, tokens)


def _plain_layer(
    trace: Trace, row: int, bounds: np.ndarray, starts: np.ndarray | None, weights: bool
) -> tuple[Accesses, np.ndarray]:
    """A layer whose tokens are its events: nothing is copied."""
    ids = _plain(trace.routing[row]).reshape(-1)
    top_k = trace.manifest.top_k
    if starts is None:
        starts = np.arange(0, ids.size + 1, top_k)
    gates = None if trace.gates is None or not weights else trace.gates[row]
    accesses = Accesses(
        ids=ids,
        starts=starts,
        resets=bounds,
        experts=trace.manifest.experts,
        layers=(row,),
        assignments=ids.size,
        weights=None if gates is None else gates.astype(np.float32).reshape(-1),
    )
    return _checked(accesses), starts


def _collected(
    trace: Trace, rows: tuple[int, ...], steps: Steps, events_per_step: int, weights: bool
) -> Accesses:
    """The distinct experts of every step, in the order in which its tokens name them."""
    manifest = trace.manifest
    tokens = steps.tokens[steps.starts[0] : steps.starts[-1]]
    routing = np.stack([trace.routing[row][tokens] for row in rows])
    nothing = np.zeros((0, 0), np.uint8)
    valid = nothing
    if trace.valid_k is not None:
        valid = np.stack([trace.valid_k[row][tokens] for row in rows])
    gates: np.ndarray = np.zeros((0, 0, 0), np.float32)
    if weights and trace.gates is not None:
        gates = np.stack([trace.gates[row][tokens] for row in rows]).astype(np.float32)
    objects = manifest.experts * len(rows)
    ids = np.empty(routing.size, routing_dtype(objects))
    starts = np.empty((len(steps.starts) - 1) * events_per_step + 1, np.int64)
    sums = np.zeros(routing.size if weights else 0, np.float32)
    written, assignments = _collect(
        routing,
        valid,
        gates,
        steps.starts - steps.starts[0],
        manifest.experts,
        events_per_step == len(rows),
        ids,
        starts,
        sums,
    )
    return _checked(
        Accesses(
            ids=_plain(ids[:written]),
            starts=starts,
            resets=(steps.resets - steps.resets[0]) * events_per_step,
            experts=manifest.experts,
            layers=rows,
            events_per_step=events_per_step,
            assignments=assignments,
            weights=sums[:written] if weights else None,
            begins=(steps.begins - steps.resets[0]) * events_per_step,
        )
    )


def _pieces(steps: Steps, accesses_per_token: int) -> Iterator[Steps]:
    """The steps in pieces that begin and end at resets."""
    first = 0
    segments = len(steps.resets) - 1
    ends = steps.starts[steps.resets] * accesses_per_token
    while first < segments:
        last = int(np.searchsorted(ends, ends[first] + POOLED_ACCESSES, side="right")) - 1
        last = min(max(last, first + 1), segments)
        resets = steps.resets[first : last + 1]
        begins = steps.begins[(steps.begins >= resets[0]) & (steps.begins < resets[-1])]
        yield Steps(steps.tokens, steps.starts[resets[0] : resets[-1] + 1], resets, begins)
        first = last


def _checked(accesses: Accesses) -> Accesses:
    if accesses.count > LARGEST:
        raise UsageError(
            f"{accesses.count} accesses without a reset are too many; allowed: {LARGEST}"
            "\nfix: reset the cache before every sequence, or pass a part of the trace"
        )
    return accesses


def _plain(array: np.ndarray) -> np.ndarray:
    # Contiguous, aligned and read-only: numba compiles a loop anew for every other combination.
    view = np.require(array, requirements=["C", "A"]).view(np.ndarray)
    view.flags.writeable = False
    return view


@compiled
def _collect(
    routing: np.ndarray,
    valid: np.ndarray,
    gates: np.ndarray,
    step_starts: np.ndarray,
    experts: int,
    event_per_layer: bool,
    ids: np.ndarray,
    starts: np.ndarray,
    sums: np.ndarray,
) -> tuple[int, int]:
    """Fill ids, starts and sums; the accesses and the assignments behind them."""
    layers, _, top_k = routing.shape
    stamp = np.full(layers * experts, -1, np.int64)
    place = np.empty(layers * experts, np.int64)
    written, events, assignments = 0, 0, 0
    for step in range(step_starts.size - 1):
        for layer in range(layers):
            if event_per_layer or layer == 0:
                starts[events] = written
                events += 1
            for token in range(step_starts[step], step_starts[step + 1]):
                live = top_k if valid.size == 0 else min(top_k, np.int64(valid[layer, token]))
                assignments += live
                for k in range(live):
                    item = layer * experts + np.int64(routing[layer, token, k])
                    if stamp[item] != step:
                        stamp[item] = step
                        place[item] = written
                        ids[written] = item
                        written += 1
                    if sums.size > 0:
                        sums[place[item]] += gates[layer, token, k]
    starts[events] = written
    return written, assignments


@compiled
def _first_touches(ids: np.ndarray, segments: np.ndarray, objects: int, found: np.ndarray) -> int:
    stamp = np.full(objects, -1, np.int64)
    count = 0
    for segment in range(segments.size - 1):
        left = objects
        for i in range(segments[segment], segments[segment + 1]):
            if stamp[ids[i]] != segment:
                stamp[ids[i]] = segment
                found[count] = i
                count += 1
                left -= 1
                if left == 0:
                    break
    return count
