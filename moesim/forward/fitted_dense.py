"""Dense products, attention and element-by-element calls by fitted kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.fitted_costs import ENGINES
from moesim.forward.fitted_scans import price_scans
from moesim.forward.machine import Machine
from moesim.forward.price import Price, prices_of
from moesim.forward.work import AttentionWork, GemmWork, MoveWork, Op, ScanWork
from moesim.operators.attention import (
    ELEMENT_BYTES,
    AttentionCalls,
    AttentionShape,
    attention_seconds,
    decode_variant,
    prefill_variant,
)
from moesim.operators.gemm import GemmKernel
from moesim.operators.shipped import find_fit

__all__ = ["price_attention", "price_gemms", "price_moves"]


MOVE_KERNEL = "torch_ops"
"""The plain kernel among those measured; engines' own conversions do more than move."""


HOST_BOUND_S = 40e-6
"""Fixed time of a product that no device needs: kernels that are not held up by their host are
fitted with 1 to 14 µs, those that are with 60 µs and more."""


def price_gemms(ops: Sequence[Op], machine: Machine) -> list[Price | None]:
    """Prices of all products; those of one format go through their kernel together."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    works = [op.work for op in ops if isinstance(op.work, GemmWork)]
    for place, work in enumerate(works):
        # Products per head are what absorbed MLA does; nothing else is batched.
        groups["mla_bmm" if work.batch > 1 else "gemm", work.dtype].append(place)
    prices: list[Price | None] = [None] * len(works)
    for (operator, dtype), places in groups.items():
        fit = _gemm_fit(machine, operator, dtype)
        if fit is None:
            continue
        shapes = np.array([_sizes(works[place]) for place in places], float)
        found = prices_of(fit.time(*shapes.T), fit)
        for place, price in zip(places, found, strict=True):
            prices[place] = price
    return prices


@lru_cache(maxsize=256)
def _gemm_fit(machine: Machine, operator: str, dtype: str) -> GemmKernel | None:
    """The engine's kernel without the time that the host needs per call.

    That is part of what was measured call by call; in a step the host has queued the calls before
    (engines replay decode from CUDA graphs, and run ahead of the device in prefill). Where the host
    was all that was measured (vLLM's FP8 by blocks), another engine's kernel for the format stands
    in: they share their libraries.
    """
    engines = (machine.engine, *(engine for engine in ENGINES if engine != machine.engine))
    fits: list[GemmKernel] = []
    for engine in engines:
        try:
            fits.append(find_fit(operator, machine.device, engine=engine, dtype=dtype))
        except InputError:
            return None
    own = next((fit for fit in fits if not _host_bound(fit)), fits[0])
    coefficients = own.coefficients.model_copy(update={"host_s": 0.0})
    return own.model_copy(update={"coefficients": coefficients})


def _host_bound(fit: GemmKernel) -> bool:
    return max(fit.coefficients.host_s, fit.coefficients.launch_s) > HOST_BOUND_S


def _sizes(work: GemmWork) -> tuple[int, int, int, int]:
    return work.m, work.n, work.k, work.batch


def price_attention(ops: Sequence[Op], machine: Machine) -> list[Price | None]:
    """Prices of all attention calls; those of one kernel and head go through it together."""
    groups: dict[tuple[int, AttentionShape], list[int]] = defaultdict(list)
    works = [op.work for op in ops if isinstance(op.work, AttentionWork)]
    fits: dict[int, Any] = {}
    for place, work in enumerate(works):
        try:
            fit = _attention_fit(work, machine)
        except InputError:
            continue
        fits[id(fit)] = fit
        shape = AttentionShape(
            work.key_dim,
            work.value_dim,
            ELEMENT_BYTES[work.dtype],
            work.cache_elements * ELEMENT_BYTES[work.kv_dtype],
        )
        groups[id(fit), shape].append(place)
    prices: list[Price | None] = [None] * len(works)
    for (key, shape), places in groups.items():
        fit = fits[key]
        coefficients = fit.attention if hasattr(fit, "attention") else fit.coefficients
        calls = _calls([works[place] for place in places])
        seconds = attention_seconds(calls, shape, coefficients, fit.processor)
        for place, price in zip(places, prices_of(fit.estimate(seconds), fit), strict=True):
            prices[place] = price
    return prices


def _attention_fit(work: AttentionWork, machine: Machine) -> Any:
    """The kernel that does what comes nearest to the call."""
    named: dict[str, Any] = {
        "engine": machine.engine, "dtype": work.dtype, "kv_dtype": work.kv_dtype
    }  # fmt: skip
    decode = work.phase == "decode"
    if work.latent and decode:
        return find_fit("generation_mla", machine.device, **named)
    if work.expanded:
        return find_fit("context_mla", machine.device, **named)
    if decode:
        variant = decode_variant(work.heads, work.kv_heads, work.window_tokens)
        operator = "generation_attention"
    else:
        variant, operator = prefill_variant(work.window_tokens), "context_attention"
    return find_fit(operator, machine.device, variant=variant, head_dim=work.key_dim, **named)


def price_moves(ops: Sequence[Op], machine: Machine) -> list[Price | None]:
    """Prices of element-by-element calls.

    Recurrences have kernels of their own. Of the others, the kernel that was measured stands for
    all of the kind; how far they differ is taken from how far the engines' kernels for the same
    conversion do.
    """
    works = [op.work for op in ops if isinstance(op.work, MoveWork)]
    scans = [place for place, work in enumerate(works) if isinstance(work, ScanWork)]
    prices = _plain_moves(works, machine)
    found = price_scans([work for work in works if isinstance(work, ScanWork)], machine)
    for place, price in zip(scans, found, strict=True):
        prices[place] = price or prices[place]
    return prices


def _plain_moves(works: Sequence[MoveWork], machine: Machine) -> list[Price | None]:
    try:
        fit = find_fit("scale_matrix", machine.device, kernel=MOVE_KERNEL)
        others = [find_fit("scale_matrix", machine.device, engine=engine) for engine in ENGINES]
    except InputError:
        return [None] * len(works)
    moved, kernels = np.array([(work.bytes, work.kernels) for work in works], float).T
    found = fit.time(moved, kernels)
    times = np.stack([found.lo_s, found.hi_s, *(o.time(moved, kernels).time_s for o in others)])
    return prices_of(replace(found, lo_s=times.min(axis=0), hi_s=times.max(axis=0)), fit)


def _calls(works: Sequence[AttentionWork]) -> AttentionCalls:
    """The calls as the kernel's model takes them."""
    return AttentionCalls(*np.array([_call(work) for work in works]).T)


def _call(work: AttentionWork) -> tuple[int, ...]:
    """Sizes of a call; compressed entries count as tokens.

    Queries of one sequence that are verified together are packed like further heads: kernels read
    the cache once for them (FlashMLA, FlashAttention's packed heads).
    """
    past, window = work.past_tokens, work.window_tokens
    heads, queries = work.heads, work.query_tokens
    if work.phase == "decode":
        heads, queries = heads * queries, 1
    if work.stride > 1:
        # A query sees as many entries as on average, however its own tokens are pressed.
        window = max(1, round(work.pairs / work.query_tokens))
        past = max(past // work.stride, window)
    return work.sequences, queries, past, heads, work.kv_heads, window
