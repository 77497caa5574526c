"""What the experts have to do: loads, transitions, and the batches of single steps.

A planner reads statistics of the whole planning part of a trace. A step's cost needs more than a
mean: which experts are active and how uneven one batch is. So steps are priced on batches drawn
from the trace.

Axes: W batches, L MoE layers, B tokens of one step over all devices, K top-k, E logical experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.traces.bundle import Trace

__all__ = ["Batches", "Phase", "draw_batches", "sample_routing", "split_trace", "stretch"]

Phase = Literal["prefill", "decode"]

SPLIT_BLOCK_TOKENS = 256
"""Tokens that stay together when a trace is split: about one short request."""

MAX_BATCHES = 16
BATCH_BUDGET = 16_000_000
"""Assignments (batches × layers × tokens × top-k) that one evaluation may read: a fifth of a
second. On the bundled sample the mean over the batches is then known to 0.5 %."""

MAX_ASSIGNMENTS = 2**30
"""Of one step; more would take gigabytes and minutes. The largest step published is smaller:
DeepSeek's prefill unit has 58 layers × 32 devices × 4096 tokens × 8 experts = 6·10⁷."""


@dataclass(frozen=True)
class Batches:
    """The tokens of W steps; token ``b`` belongs to device ``b // tokens_per_device``.

    Attributes:
        routing: [W, L, B, K] uint8 or uint16.
        valid_k: [W, L, B] uint8 or None, entries that count.
        experts: E.
        devices: G.
        tokens_per_device: B / G.
        assumed_independent: True where only expert counts were known, so that routing was drawn
            independently per layer and token.
    """

    routing: np.ndarray
    valid_k: np.ndarray | None
    experts: int
    devices: int
    tokens_per_device: int
    assumed_independent: bool = False

    @property
    def count(self) -> int:
        """W."""
        return int(self.routing.shape[0])

    @property
    def layers(self) -> int:
        """L."""
        return int(self.routing.shape[1])

    @property
    def top_k(self) -> int:
        """K."""
        return int(self.routing.shape[3])

    def permute_experts(self, new_id: np.ndarray) -> Batches:
        """The same batches under other expert names.

        Args:
            new_id: [L, E] new id of every expert.
        """
        layer = np.arange(self.layers)[None, :, None, None]
        return replace(self, routing=new_id[layer, self.routing].astype(self.routing.dtype))


def split_trace(
    trace: Trace, holdout_fraction: float, max_tokens: int | None = None
) -> tuple[Trace, Trace | None]:
    """Split a trace by blocks of tokens into the part to plan on and the part to check on.

    Blocks are spread evenly over the trace, so that both parts see every domain and time.

    Args:
        trace: The whole trace.
        holdout_fraction: Share of the blocks that the plan must not see, in [0, 1).
        max_tokens: If the trace is longer, only this many tokens, evenly spread, are used.

    Returns:
        The planning part and the hold-out (None for a fraction of 0), both in memory.

    Raises:
        UsageError: If the fraction is out of range or leaves one part empty.
    """
    if not 0 <= holdout_fraction < 1:
        raise UsageError(
            f"--holdout must be at least 0 and less than 1; found {holdout_fraction}\n"
            "fix: pass e.g. --holdout 0.25"
        )
    tokens = trace.manifest.tokens
    block_count = -(-tokens // SPLIT_BLOCK_TOKENS)
    if holdout_fraction > 0 and block_count < 2:
        raise InputError(
            "the trace is too short to hold out a part",
            file=trace.path,
            field="tokens",
            found=tokens,
            allowed=f"more than {SPLIT_BLOCK_TOKENS}",
            fix="pass --holdout 0 or a longer trace",
        )
    blocks: np.ndarray = np.arange(block_count)
    if max_tokens is not None and tokens > max_tokens:
        keep = max(max_tokens // SPLIT_BLOCK_TOKENS, 2)
        blocks = np.unique(np.linspace(0, block_count - 1, keep).astype(np.int64))
    # Block i is held out where the running share crosses an integer: evenly spread, exact count.
    order = np.arange(len(blocks))
    held = np.floor((order + 1) * holdout_fraction) > np.floor(order * holdout_fraction)
    if holdout_fraction > 0 and not held.any():
        held[-1] = True
    if held.all():
        raise UsageError(
            f"--holdout {holdout_fraction} leaves nothing to plan on\nfix: pass a smaller share"
        )
    planning = _take(trace, blocks[~held])
    return planning, _take(trace, blocks[held]) if held.any() else None


def stretch(trace: Trace, start: int, stop: int) -> Trace:
    """Tokens ``start`` to ``stop`` of a trace, in memory, without gates."""
    return Trace(
        manifest=trace.manifest.model_copy(update={"tokens": stop - start}),
        routing=np.asarray(trace.routing[:, start:stop]),
        valid_k=None if trace.valid_k is None else np.asarray(trace.valid_k[:, start:stop]),
        path=trace.path,
    )


def _take(trace: Trace, blocks: np.ndarray) -> Trace:
    tokens = trace.manifest.tokens
    index = (blocks[:, None] * SPLIT_BLOCK_TOKENS + np.arange(SPLIT_BLOCK_TOKENS)).ravel()
    index = index[index < tokens]
    manifest = trace.manifest.model_copy(update={"tokens": len(index)})
    whole = len(index) == tokens
    return Trace(
        manifest=manifest,
        routing=trace.routing if whole else trace.routing[:, index],
        valid_k=trace.valid_k if whole or trace.valid_k is None else trace.valid_k[:, index],
        path=trace.path,
    )


def draw_batches(
    trace: Trace, *, devices: int, tokens_per_device: int, phase: Phase, seed: int
) -> Batches:
    """Draw the batches of W steps from a trace.

    In prefill a device works on a few whole requests, so its tokens are one run of consecutive
    tokens. In decode it works on one token of each of many requests, so they are scattered.
    Tokens are drawn with replacement, since a trace may be shorter than a large step.

    Args:
        trace: Routing to draw from.
        devices: G.
        tokens_per_device: Tokens that each device brings to a step.
        phase: ``prefill`` or ``decode``.
        seed: Same seed, same batches.
    """
    layers, tokens, top_k = trace.routing.shape
    batch_tokens = devices * tokens_per_device
    count = _batch_count(layers, batch_tokens, top_k)
    rng = np.random.default_rng(seed)
    if phase == "prefill":
        start = rng.integers(0, tokens, (count, devices, 1))
        index = (start + np.arange(tokens_per_device)) % tokens
    else:
        index = rng.integers(0, tokens, (count, devices, tokens_per_device))
    index = index.reshape(count, batch_tokens)
    routing = np.stack([trace.routing[:, row] for row in index])
    valid_k = None if trace.valid_k is None else np.stack([trace.valid_k[:, row] for row in index])
    experts = trace.manifest.experts
    if int(routing.max()) >= experts:
        raise InputError(
            "expert id out of range",
            file=trace.path,
            field="routing.npy",
            found=int(routing.max()),
            allowed=f"0 … {experts - 1}",
            fix="run: moesim trace validate",
        )
    return Batches(routing, valid_k, experts, devices, tokens_per_device)


def sample_routing(
    loads: np.ndarray, *, top_k: int, devices: int, tokens_per_device: int, seed: int
) -> Batches:
    """Batches for a workload of which only expert counts are known.

    Each token's K distinct experts are drawn by systematic sampling (Madow 1949), which gives
    every expert exactly the inclusion probability K·load/Σload (at most 1: an expert that would
    need more is in every token, and the rest is shared by the others). Layers and tokens are drawn
    independently, so neither inter-layer affinity nor co-activation is represented.

    Args:
        loads: [L, E] counts.
        top_k: K.
        devices: G.
        tokens_per_device: Tokens that each device brings to a step.
        seed: Same seed, same batches.

    Raises:
        InputError: If fewer than K experts of a layer have any load.
    """
    layers, experts = loads.shape
    batch_tokens = devices * tokens_per_device
    count = _batch_count(layers, batch_tokens, top_k)
    rng = np.random.default_rng(seed)
    dtype = np.uint8 if experts <= 256 else np.uint16
    routing = np.empty((count, layers, batch_tokens, top_k), dtype)
    for layer in range(layers):
        probability = _inclusion_probabilities(loads[layer], top_k, layer)
        for batch in range(count):
            # A new random order per batch keeps pairs of neighbours from being tied together.
            order = rng.permutation(experts)
            edges = np.cumsum(probability[order])
            points = rng.random((batch_tokens, 1)) + np.arange(top_k)
            # Rounding can leave the last edge a hair below K.
            chosen = np.searchsorted(edges, np.minimum(points, np.nextafter(edges[-1], 0)), "right")
            routing[batch, layer] = order[chosen]
    return Batches(routing, None, experts, devices, tokens_per_device, assumed_independent=True)


def _batch_count(layers: int, batch_tokens: int, top_k: int) -> int:
    """W: as many steps as the budget allows, at least one."""
    assignments = layers * batch_tokens * top_k
    if not 0 < assignments <= MAX_ASSIGNMENTS:
        raise UsageError(
            f"--tokens-per-device makes a step of {batch_tokens} tokens over all devices, which is "
            f"{assignments} assignments; allowed: 1 … {MAX_ASSIGNMENTS}\n"
            "fix: pass another --tokens-per-device (4096 is usual in prefill, 128 in decode)"
        )
    return int(np.clip(BATCH_BUDGET // assignments, 1, MAX_BATCHES))


def _inclusion_probabilities(load: np.ndarray, top_k: int, layer: int) -> np.ndarray:
    if np.count_nonzero(load) < top_k:
        raise InputError(
            "fewer experts have any load than a token needs",
            field=f"loads[{layer}]",
            found=f"{np.count_nonzero(load)} experts with load",
            allowed=f"at least top-k = {top_k}",
            fix="record more tokens",
        )
    certain = np.zeros(len(load), bool)
    while True:
        rest = top_k - int(certain.sum())
        free = np.where(certain, 0.0, load)
        total = free.sum()
        probability = np.where(certain, 1.0, free * (rest / total) if total > 0 else 0.0)
        over = (probability > 1) & ~certain
        if not over.any():
            return probability
        certain |= over
