"""Seconds of any step of one replica, on grids, so that a step is looked up and not priced.

A serving run has tens of thousands of steps, each with its own number of decoding sequences,
contexts and prefill chunks. What a step costs splits into a part that depends on its number of new
tokens alone (projections, experts, collectives, norms), a part that depends on how many sequences
sample a token (the head), and attention, which depends on every sequence's context. Each part is
priced once on a grid of one or two variables; between grid points it is interpolated linearly.

Axes: C components, N token counts, B numbers of sequences, X contexts, Q chunk lengths, P cached
tokens before a chunk. All sizes are those of one attention group and, with pipeline stages, of one
micro-batch on its way through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from moesim.forward.calls import StepShape, step_ops
from moesim.forward.drafts import draft_shape
from moesim.forward.expert_load import Distribution, draw_layer_tokens
from moesim.forward.formats import Formats
from moesim.forward.layout import Layout, Sequences, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.memory import DeviceMemory, device_memory
from moesim.forward.mixers import MixerContext, cache_bytes_per_token, mixer_calls, state_bytes
from moesim.forward.overlap import Overlap, halves, hidden_s, micro_batch
from moesim.forward.price import Price
from moesim.forward.pricing import find_prices
from moesim.forward.variant import layer_model
from moesim.forward.work import AttentionWork, MoveWork, Op, Work
from moesim.intervals import add_intervals
from moesim.model import ModelSpec
from moesim.model.mixers import GroupedQueryAttention, Mixer
from moesim.schema import Evidence, weakest

__all__ = ["COMPONENTS", "Routing", "StepTables", "build_step_tables"]

COMPONENTS = ("gemm", "experts", "collective", "dispatch", "small")
"""Kinds of calls whose time depends on the number of tokens: those of ``OperatorName`` without
attention."""

TOKENS = (
    *(1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    *(768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
)
SEQUENCES = (1, 4, 16, 64, 256, 1024)
CONTEXT = (1, 512, 2048, 8192, 32768, 131072)
CHUNK = (1, 64, 256, 512, 1024, 2048, 4096, 8192)
PAST = (0, 1024, 4096, 16384, 65536)
"""Grids; attention is nearly bilinear between their points, the rest changes slope where kernels
change their tiles."""

COARSE = 4
"""A coarse table takes every so many points of the long grid, and every second of the others."""

USUAL_CONTEXT = 1024
"""Cached tokens where a call's time hardly depends on them (indexers, cache writes)."""

USUAL_SEQUENCES = 64
"""Of the decode step whose interval stands for all."""

SAMPLING = ("final.norm", "head", "sampling")
"""Calls that work on sequences rather than on tokens begin with these names."""

MEMORY_SHARE = 0.9
"""Of a device's memory that engines plan to use (vLLM ``--gpu-memory-utilization``, SGLang
``--mem-fraction-static`` and TensorRT-LLM ``free_gpu_memory_fraction`` default to 0.8 … 0.92)."""

Routing = Distribution | Callable[[int], np.ndarray]
"""A named distribution, or the [W, R, s] tokens of every slot for so many tokens of the group."""


@dataclass(frozen=True, eq=False)
class StepTables:
    """Seconds of the parts of a step of one replica, over all layers.

    Attributes:
        components: C names; see :data:`COMPONENTS`.
        tokens: [N] new tokens of the busiest attention group, ascending from 1.
        token_s: [2, C, N] what depends on them: in decode-only steps, and in steps with prefill.
        hidden_s: [2, N] of those and of attention to a usual cache, what runs beside other calls.
        sampled_s: [N] head and sampling for so many sequences of a group.
        kernels: [2] kernel launches of a step of either kind.
        decode_sequences: [B].
        decode_context: [X] mean of the cached tokens of those sequences.
        decode_attention_s: [B, X]; with drafts, of all tokens that a step verifies and of the
            drafting layer.
        chunk_tokens: [Q] new tokens of a prefill chunk.
        chunk_past: [P] tokens cached before it.
        chunk_attention_s: [Q, P].
        evidence: The weakest of all prices.
        lo: Lower end of the 80 % interval of a usual decode step, as a factor.
        hi: Upper end.
        memory: Of one device of the first stage, without cache, at the largest step.
        memory_bytes: That the device has.
        cache_bytes_per_token: That every further token takes on one device.
        state_bytes_per_sequence: That a sequence takes on one device whatever its length.
    """

    components: tuple[str, ...]
    tokens: np.ndarray
    token_s: np.ndarray
    hidden_s: np.ndarray
    sampled_s: np.ndarray
    kernels: np.ndarray
    decode_sequences: np.ndarray
    decode_context: np.ndarray
    decode_attention_s: np.ndarray
    chunk_tokens: np.ndarray
    chunk_past: np.ndarray
    chunk_attention_s: np.ndarray
    evidence: Evidence
    lo: float
    hi: float
    memory: DeviceMemory
    memory_bytes: float
    cache_bytes_per_token: float
    state_bytes_per_sequence: float

    def cache_bytes(self, memory_share: float = MEMORY_SHARE) -> float:
        """Bytes that a device has left for the cache; negative where the weights do not fit."""
        return self.memory_bytes * memory_share - self.memory.total

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that the cache of one attention group holds."""
        if self.cache_bytes_per_token <= 0:
            return 2**40
        return max(0, int(self.cache_bytes() / self.cache_bytes_per_token))


def build_step_tables(
    model: ModelSpec,
    machine: Machine,
    layout: Layout,
    formats: Formats,
    routing: Routing,
    *,
    max_tokens: int = 8192,
    seed: int = 0,
    drafts: int = 0,
    overlap: Overlap = "none",
    coarse: bool = False,
) -> StepTables:
    """Price all grids.

    Args:
        model: Sizes.
        machine: Devices, links, engine.
        layout: Of the replica.
        formats: Of weights and cache.
        routing: Where tokens go.
        max_tokens: Most new tokens of a group in a step (the engine's token budget).
        seed: Of the draws.
        drafts: That every decoding sequence verifies beside its one token.
        overlap: What runs beside what.
        coarse: Fewer grid points, in a third of the time, to compare many layouts by.
    """
    grid = _Grid(model, layout, formats, routing, seed, drafts, overlap)
    rows = 1 + drafts
    most = max(rows, max_tokens // rows * rows)
    by = 2 if coarse else 1
    counts = TOKENS[:: COARSE if coarse else 1]
    tokens = np.array([*(n * rows for n in counts if n * rows < most), most], np.int64)
    chunk = np.array([*(q for q in CHUNK[::by] if q < max_tokens), max_tokens], np.int64)
    contexts, pasts, batches = CONTEXT[::by], PAST[::by], SEQUENCES[::by]
    steps = [[grid.decode(int(n)) for n in tokens], [grid.prefill(int(n)) for n in tokens]]
    ops = [[step_ops(shape) for shape in shapes] for shapes in steps]
    decoding = [grid.attention(Sequences(b, rows, x, drafts)) for b in batches for x in contexts]
    chunks = [grid.attention(Sequences(1, int(q), p)) for q in chunk for p in pasts]
    usual = [
        *(op for op in ops[0][int(np.searchsorted(tokens, USUAL_SEQUENCES))] if not _attends(op)),
        *grid.attention(Sequences(USUAL_SEQUENCES, rows, USUAL_CONTEXT, drafts)).ops,
    ]
    cells = [cell.ops for cell in (*decoding, *chunks)]
    priced = _Prices(machine, [*ops[0], *ops[1], *cells, usual])
    per_token, per_sequence = _cache_bytes(model, layout, formats)
    low, high = priced.interval(usual)
    return StepTables(
        components=COMPONENTS,
        tokens=tokens,
        token_s=np.array([[priced.by_component(step) for step in kind] for kind in ops])
        .transpose(0, 2, 1)
        .copy(),
        hidden_s=np.array(
            [
                [
                    hidden_s(overlap, priced.calls(step), shape, _cores(machine))
                    for step, shape in zip(kind, shapes, strict=True)
                ]
                for kind, shapes in zip(ops, steps, strict=True)
            ]
        ),
        sampled_s=np.array([priced.seconds(filter(_samples, step)) for step in ops[0]]),
        kernels=np.array([float(sum(map(_launches, kind[-1]))) for kind in ops]),
        decode_sequences=np.array(batches),
        decode_context=np.array(contexts),
        decode_attention_s=priced.table(decoding, len(contexts)),
        chunk_tokens=chunk,
        chunk_past=np.array(pasts),
        chunk_attention_s=priced.table(chunks, len(pasts)),
        evidence=priced.evidence,
        lo=low,
        hi=high,
        memory=replace(device_memory(steps[1][-1]), cache=0.0),
        memory_bytes=float(machine.device.memory_bytes),
        cache_bytes_per_token=per_token,
        state_bytes_per_sequence=per_sequence,
    )


@dataclass(frozen=True, eq=False)
class _Grid:
    """Makes the steps of the grids."""

    model: ModelSpec
    layout: Layout
    formats: Formats
    routing: Routing
    seed: int
    drafts: int
    overlap: Overlap

    def decode(self, tokens: int) -> StepShape:
        """Every group decodes sequences with so many new tokens."""
        rows = 1 + self.drafts
        count = max(1, tokens // rows) * self.layout.dp
        return self._step(Sequences(count, rows, USUAL_CONTEXT, self.drafts))

    def prefill(self, tokens: int) -> StepShape:
        """Every group works on one chunk of so many tokens."""
        # A chunk of one token would pass for decode; its kernels are those of two.
        return self._step(Sequences(self.layout.dp, max(tokens, 2), 0))

    def attention(self, sequences: Sequences) -> _Cell:
        """What one group's sequences take because of what they have cached.

        Attention, and by how much longer other calls of the mixer take (latents expanded anew,
        indexers) than with the usual cache that the token-dependent part is priced with.
        """
        usual = USUAL_CONTEXT if sequences.phase == "decode" else 0
        mine, other = self._mixers(sequences), self._mixers(replace(sequences, cached_tokens=usual))
        pairs = list(zip(mine, other, strict=True))
        longer = [(own, base) for own, base in pairs if not _attends(own) and own != base]
        return _Cell(
            [*(op for op in mine if _attends(op)), *(own for own, _ in longer)],
            [base for _, base in longer],
        )

    def _mixers(self, sequences: Sequences) -> list[Op]:
        model = layer_model(self.model)
        found = [
            Op(name, work, len(mixer.layers))
            for mixer in model.mixers
            for name, work in self._calls(mixer, sequences)
        ]
        if sequences.drafts and model.mtp_layers:
            single = replace(sequences, new_tokens=1, drafts=0)
            found += [
                Op(f"mtp.{name}", work, sequences.drafts)
                for name, work in self._calls(model.mtp_mixer, single)
            ]
        return found

    def _calls(self, mixer: Mixer, sequences: Sequences) -> Iterable[tuple[str, Work]]:
        model, formats = layer_model(self.model), self.formats
        load = StepLoad((sequences,)).scaled(model.variant.token_share)
        context = MixerContext(model.hidden_size, self.layout.tp, load, formats.gemm, formats.kv)
        return mixer_calls(mixer, context)

    def _step(self, sequences: Sequences) -> StepShape:
        load = StepLoad((sequences,))
        shape = replace(self._shape(load), **draft_shape(self.model, load, self._shape))
        if halves(self.overlap):
            half = micro_batch(load.busiest(self.layout.dp), self.layout.dp)
            shape = replace(shape, half=None if half is None else self._shape(half))
        return shape

    def _shape(self, load: StepLoad) -> StepShape:
        model, layout = self.model, self.layout
        group = load.busiest(layout.dp).tokens * layout.dp
        if isinstance(self.routing, Distribution):
            slots = draw_layer_tokens(
                model, self.routing, group, layout.ep, self.seed, layout.redundant
            )
        else:
            slots = self.routing(group)
        return StepShape(model, layout, load, self.formats, slots)


@dataclass(frozen=True, eq=False)
class _Cell:
    """A cell of an attention grid: calls that it holds, and calls counted elsewhere already."""

    calls: list[Op]
    counted: list[Op]

    @property
    def ops(self) -> list[Op]:
        return self.calls + self.counted


class _Prices:
    """Prices of many calls, found together."""

    def __init__(self, machine: Machine, steps: Iterable[Sequence[Op]]) -> None:
        ops = [op for step in steps for op in step]
        self._found: dict[int, Price] = {
            id(op): price for op, price in zip(ops, find_prices(ops, machine), strict=True)
        }

    @property
    def evidence(self) -> Evidence:
        return weakest(*(price.evidence for price in self._found.values()))

    def seconds(self, ops: Iterable[Op]) -> float:
        return sum(self._found[id(op)].time_s * op.layers for op in ops)

    def calls(self, ops: Sequence[Op]) -> list[tuple[Op, float, float]]:
        """Calls with their seconds over all layers, and those in which they hold all cores."""
        prices = [self._found[id(op)] for op in ops]
        return [
            (op, price.time_s * op.layers, price.held_s * op.layers)
            for op, price in zip(ops, prices, strict=True)
        ]

    def table(self, cells: Sequence[_Cell], columns: int) -> np.ndarray:
        """Cells row by row."""
        found = [self.seconds(cell.calls) - self.seconds(cell.counted) for cell in cells]
        return np.array(found).reshape(-1, columns)

    def by_component(self, ops: Sequence[Op]) -> list[float]:
        """[C] of what depends on the number of tokens."""
        total = dict.fromkeys(COMPONENTS, 0.0)
        for op in ops:
            if not (_samples(op) or _attends(op)):
                total[op.operator] += self._found[id(op)].time_s * op.layers
        return list(total.values())

    def interval(self, ops: Sequence[Op]) -> tuple[float, float]:
        """Ends of the 80 % interval as factors."""
        time_s, low, high = add_intervals(
            (op.operator, price.time_s * op.layers, price.lo_s * op.layers, price.hi_s * op.layers)
            for op, price in ((op, self._found[id(op)]) for op in ops)
        )
        return low / time_s, high / time_s


def _samples(op: Op) -> bool:
    """Whether a call works on the sequences that sample, whatever their new tokens."""
    return op.name.startswith(SAMPLING)


def _attends(op: Op) -> bool:
    return isinstance(op.work, AttentionWork)


def _cores(machine: Machine) -> int | None:
    cores = machine.device.cores
    return None if cores is None else int(cores.value)


def _launches(op: Op) -> int:
    """Kernels that a call launches in the step."""
    return op.layers * (op.work.kernels if isinstance(op.work, MoveWork) else 1)


def _cache_bytes(model: ModelSpec, layout: Layout, formats: Formats) -> tuple[float, float]:
    """Bytes on one device per token of a long sequence, and per sequence whatever its length.

    A sliding window is full after its first tokens: it counts as a state.
    """
    per_token, per_sequence = 0.0, 0.0
    for mixer in model.mixers:
        one = cache_bytes_per_token(mixer, layout.tp, formats.kv) * len(mixer.layers)
        per_sequence += state_bytes(mixer, layout.tp, formats.kv) * len(mixer.layers)
        if isinstance(mixer, GroupedQueryAttention) and mixer.window_tokens is not None:
            per_sequence += one * mixer.window_tokens
        else:
            per_token += one
    share = ceil(model.layers / layout.pp) / model.layers
    share *= model.variant.token_share
    return per_token * share, per_sequence * share
