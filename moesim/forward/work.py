"""What a device has to do in a step, without saying how long that takes.

An :class:`Op` is one kind of kernel call of a step with its work: shapes, from which FLOPs and
bytes follow. Pricing (:mod:`moesim.forward.pricing`) turns works into seconds; keeping the two
apart lets a step be priced by a roofline or by fitted kernels, all calls of a kind at once.

FLOPs count a multiply-add as two and are those of the mathematics: nothing padded. Bytes are what
must move between the device and its memory at least, each operand once; of communication, what
the busiest device sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from moesim.model.mixers import StateHeads
from moesim.operators.attention import ELEMENT_BYTES
from moesim.operators.collectives import Collective, wire_bytes
from moesim.operators.gemm import FORMATS
from moesim.operators.streaming import Role
from moesim.workload import Phase

__all__ = [
    "AttentionWork",
    "CollectiveWork",
    "ExpertWork",
    "GemmWork",
    "MoveWork",
    "Op",
    "OperatorName",
    "ScanKind",
    "ScanWork",
    "Stream",
    "TransferWork",
    "Work",
]

OperatorName = Literal["gemm", "attention", "experts", "collective", "dispatch", "small"]
"""Calls of one operator err together; those of different operators do not."""

Stream = Literal["main", "shared"]
"""Calls of a stream follow one another; shared experts may run beside the rest."""

ScanKind = Literal["gdn", "kda", "mamba2"]
"""Gated delta net, Kimi delta attention, Mamba-2: recurrences with measured kernels."""

OUTPUT_BYTES = 2
"""Per element of activations between kernels: bfloat16."""


@dataclass(frozen=True)
class GemmWork:
    """``batch`` products [m, k] × [k, n] in one launch; dtype as in ``gemm.FORMATS``."""

    m: int
    n: int
    k: int
    dtype: str
    batch: int = 1

    @cached_property
    def flops(self) -> float:
        """2·m·n·k each."""
        return 2.0 * self.batch * self.m * self.n * self.k

    @cached_property
    def bytes(self) -> float:
        """Both operands read once, the result written once."""
        number = FORMATS[self.dtype]
        read = self.m * self.k * number.input_bytes + self.n * self.k * number.weight_bytes
        return self.batch * (read + self.m * self.n * OUTPUT_BYTES)

    @property
    def arithmetic(self) -> str:
        """Number type of the multiplications."""
        return FORMATS[self.dtype].arithmetic


@dataclass(frozen=True)
class AttentionWork:
    """Attention of like sequences to their caches, on one device.

    Attributes:
        phase: Decides the kernel.
        sequences: How many.
        query_tokens: New tokens of each.
        past_tokens: Cached tokens of each before the step.
        heads: Query heads on the device.
        kv_heads: Key-value heads on the device.
        key_dim: Elements of a query and a key.
        value_dim: Elements of a value.
        cache_elements: Cached elements per token of one key-value head.
        dtype: Of queries.
        kv_dtype: Of the cache.
        window_tokens: Cached entries that a query sees at most; 0: all.
        stride: Tokens that share one cached entry (compressed attention).
        latent: Attention of all heads over one cached latent (absorbed MLA).
        expanded: Attention over keys and values expanded from the latent (MLA in prefill).
    """

    phase: Phase
    sequences: int
    query_tokens: int
    past_tokens: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    cache_elements: float
    dtype: str
    kv_dtype: str
    window_tokens: int = 0
    stride: int = 1
    latent: bool = False
    expanded: bool = False

    @cached_property
    def pairs(self) -> float:
        """Pairs of query and cached entry of one head of one sequence, causal."""
        q, past, window = self.query_tokens, self.past_tokens, self.window_tokens * self.stride
        if not window or past + q <= window:
            return (q * past + q * (q + 1) / 2) / self.stride
        # Queries that still see all keys, then those that see a full window.
        growing = max(0, min(q, window - past))
        seen = growing * past + growing * (growing + 1) / 2 + (q - growing) * window
        return seen / self.stride

    @cached_property
    def keys(self) -> float:
        """Cached entries of a sequence that the queries of the step read."""
        total = self.past_tokens + self.query_tokens
        window = self.window_tokens * self.stride
        if window:
            total = min(total, window + self.query_tokens - 1)
        return total / self.stride

    @cached_property
    def flops(self) -> float:
        """Scores and the weighted sum of values."""
        return 2.0 * self.sequences * self.heads * self.pairs * (self.key_dim + self.value_dim)

    @cached_property
    def bytes(self) -> float:
        """Queries and cached keys and values read, outputs written."""
        queries = self.sequences * self.query_tokens * self.heads
        moved = queries * (self.key_dim * ELEMENT_BYTES[self.dtype] + self.value_dim * OUTPUT_BYTES)
        per_token = self.cache_elements * ELEMENT_BYTES[self.kv_dtype]
        return moved + self.sequences * self.keys * self.kv_heads * per_token

    @property
    def arithmetic(self) -> str:
        """Number type of the multiplications."""
        return "fp8" if self.dtype.startswith("fp8") else "bf16"


@dataclass(frozen=True, eq=False)
class ExpertWork:
    """Routed experts of one layer on every device of a stage, in some draws of the routing.

    Attributes:
        slot_tokens: [W, R, s] tokens of the s expert slots of each of R expert-parallel ranks.
        hidden: Elements of a token that reach an expert.
        width: Elements between an expert's GEMMs on one device.
        matrices: 3 if gated, 2 if plain.
        dtype: As the measured tables name it.
        weight_bytes: Per weight, scales included.
        activation_bytes: Per element of a GEMM's input.
        arithmetic: Number type of the multiplications.
        group_tokens: Tokens of the expert-parallel group.
        top_k: Experts per token, mean.
        sees_group: Whether every device is given all tokens of the group, and leaves out those of
            others' experts; otherwise it is sent its own alone.
    """

    slot_tokens: np.ndarray
    hidden: int
    width: int
    matrices: int
    dtype: str
    weight_bytes: float
    activation_bytes: float
    arithmetic: str
    group_tokens: int
    top_k: float
    sees_group: bool = True

    @cached_property
    def busiest_copies(self) -> float:
        """Token copies of the busiest device, mean over draws."""
        return float(self.slot_tokens.sum(axis=-1).max(axis=-1).mean())

    @cached_property
    def flops(self) -> float:
        """Of the device with the most token copies."""
        return 2.0 * self.matrices * self.hidden * self.width * self.busiest_copies

    @cached_property
    def bytes(self) -> float:
        """Of that device: weights of its active experts, inputs, intermediates, outputs."""
        copies = self.slot_tokens.sum(axis=-1)
        active = np.count_nonzero(self.slot_tokens, axis=-1)
        moved = active * (self.matrices * self.hidden * self.width * self.weight_bytes)
        per_copy = (self.hidden + 2 * self.width) * self.activation_bytes
        moved = moved + copies * (per_copy + self.hidden * OUTPUT_BYTES)
        busiest = copies.argmax(axis=-1)[:, None]
        return float(np.take_along_axis(moved, busiest, -1).mean())


@dataclass(frozen=True)
class CollectiveWork:
    """A collective of ``ranks`` devices of a stage; ``size_bytes`` is nccl-tests' size."""

    collective: Collective
    size_bytes: float
    ranks: int

    @cached_property
    def flops(self) -> float:
        """Additions do not count."""
        return 0.0

    @cached_property
    def bytes(self) -> float:
        """Bytes that each device sends."""
        return float(wire_bytes(self.collective, np.array(self.size_bytes), np.array(self.ranks)))


@dataclass(frozen=True)
class TransferWork:
    """Token vectors to their experts and back.

    Attributes:
        direction: Dispatch or combine.
        phase: Decode uses low-latency kernels.
        tokens: Of one device.
        hidden: Elements of a vector.
        vector_bytes: Bytes of a vector on the way.
        top_k: Experts per token, mean.
        experts: Expert slots over all devices.
        ranks: Devices.
        skew: Copies that the busiest device receives over the mean.
        kernel: What carries them; ``send`` passes activations to the next pipeline stage.
        groups: Groups of experts, and how many of them a token chooses.
    """

    direction: Literal["dispatch", "combine"]
    phase: Phase
    tokens: int
    hidden: int
    vector_bytes: float
    top_k: float
    experts: int
    ranks: int
    skew: float
    kernel: Literal["deepep", "nvlink", "send"] = "deepep"
    groups: tuple[int, int] = (1, 1)

    @cached_property
    def flops(self) -> float:
        """Nothing is computed."""
        return 0.0

    @cached_property
    def bytes(self) -> float:
        """Bytes that the busiest device receives or sends: of copies whose expert is elsewhere."""
        copies = self.tokens * self.top_k * (1 - 1 / self.ranks)
        return copies * self.vector_bytes * self.skew


@dataclass(frozen=True)
class MoveWork:
    """Element by element: norms, activations, gathers, cache writes, states of recurrences."""

    bytes: float
    flops: float = 0.0
    kernels: int = 1

    @property
    def arithmetic(self) -> str:
        """Number type of what little is computed."""
        return "bf16"


@dataclass(frozen=True, kw_only=True)
class ScanWork(MoveWork):
    """A recurrence over its sequences' tokens, or the short convolution before it.

    Attributes:
        kind: ``gdn``, ``kda`` or ``mamba2``.
        role: Which of the two.
        phase: Of the sequences.
        sequences: Of one length.
        query_tokens: New tokens of each.
        heads: On one device.
    """

    kind: ScanKind
    role: Role
    phase: Phase
    sequences: int
    query_tokens: int
    heads: StateHeads


Work = GemmWork | AttentionWork | ExpertWork | CollectiveWork | TransferWork | MoveWork

_OPERATORS: dict[type, OperatorName] = {
    GemmWork: "gemm",
    AttentionWork: "attention",
    ExpertWork: "experts",
    CollectiveWork: "collective",
    TransferWork: "dispatch",
    MoveWork: "small",
    ScanWork: "small",
}


_OUTSIDE = ("embedding", "stage.", "final.", "head", "sampling", "mtp.")
"""Calls before and behind the layers begin with these names."""


@dataclass(frozen=True)
class Op:
    """One call, and in how many layers it comes back.

    Attributes:
        name: Such as ``attention.output``.
        work: Of one call on the busiest device.
        layers: Calls in the step.
        stream: Where it queues.
    """

    name: str
    work: Work
    layers: int = 1
    stream: Stream = "main"

    @property
    def in_layer(self) -> bool:
        """Whether it belongs to the layers between embedding and head."""
        return not self.name.startswith(_OUTSIDE)

    @property
    def operator(self) -> OperatorName:
        """Whose errors it shares."""
        return _OPERATORS[type(self.work)]
