"""Workload statistics over a routing trace, streamed: memory does not grow with the tokens.

Axes: L MoE layers, T tokens, K top-k, E logical experts, W windows. An entry beyond ``valid_k``
never counts, and an id of E or above is an :class:`~moesim.errors.InputError` that names layer,
token and id.

All functions take ``threads``: layers are counted in that many threads at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TypeVar

import numpy as np

from moesim.errors import UsageError
from moesim.traces.balance import Drift, Imbalance, drift, imbalance, mutual_information
from moesim.traces.bundle import Trace
from moesim.traces.chunks import (
    bin_count,
    check_arrays,
    check_ids,
    read_ids,
    release,
    result_table,
    token_slices,
)

__all__ = [
    "Drift",
    "Imbalance",
    "check_window",
    "coactivation",
    "domain_loads",
    "drift",
    "imbalance",
    "loads",
    "mutual_information",
    "transitions",
    "windowed_loads",
]

_R = TypeVar("_R")

# Loading numba takes about half a second, in which numpy counts a hundred million ids; a trace this
# small is done in some milliseconds either way.
_SMALL_COUNTS = 2**22


def loads(trace: Trace, *, threads: int = 1) -> np.ndarray:
    """Token assignments per expert.

    Returns:
        [L, E] int64.

    Raises:
        InputError: If an id is not below E.
    """
    check_arrays(trace)
    experts = trace.manifest.experts
    kernels = _kernels(trace, 1)
    # A table with room for every id that the type can hold needs no check before counting: what
    # lies beyond E shows afterwards.
    bins = 2 ** (8 * trace.routing.itemsize) if trace.valid_k is None else bin_count(trace)

    def of_layer(layer: int) -> np.ndarray:
        total = np.zeros(experts, np.int64)
        for tokens in token_slices(trace):
            counts = kernels.count_ids(read_ids(trace, layer, tokens, check=False), bins)
            if trace.valid_k is None and counts[experts:].any():
                check_ids(trace, layer, tokens)
            total += counts[:experts]
            _release(trace, layer, tokens)
        return total

    return np.stack(_map(of_layer, trace.manifest.layers, threads))


def windowed_loads(trace: Trace, window_tokens: int, *, threads: int = 1) -> np.ndarray:
    """Token assignments per expert in consecutive windows of tokens.

    Args:
        trace: The trace.
        window_tokens: Tokens per window; the last window may be short.
        threads: Layers counted at once.

    Returns:
        [W, L, E] int64.

    Raises:
        InputError: If an id is not below E.
        UsageError: If ``window_tokens`` is below 1, or so small that the result is beyond reason.
    """
    check_window(window_tokens)
    windows = -(-trace.manifest.tokens // window_tokens)
    return _grouped(
        trace,
        windows,
        lambda tokens: np.arange(tokens.start, tokens.stop) // window_tokens,
        threads,
        fix="choose a larger window",
    )


def check_window(window_tokens: int) -> None:
    """Refuse windows without tokens."""
    if window_tokens < 1:
        raise UsageError(f"window_tokens must be at least 1; found {window_tokens}")


def domain_loads(trace: Trace, *, threads: int = 1) -> dict[str, np.ndarray]:
    """Token assignments per expert and domain of the requests.

    Returns:
        Domain name to [L, E] int64, by name; empty if the trace names no domains.

    Raises:
        InputError: If an id is not below E, or the requests are not one row per token.
        MissingExtraError: If the trace has requests and pyarrow is not installed.
    """
    requests = trace.requests()
    if requests is None or "domain" not in requests:
        return {}
    codes, names = requests["domain"].astype(str).factorize(sort=True)
    codes = codes.astype(np.int64)
    counts = _grouped(trace, len(names), lambda tokens: codes[tokens], threads)
    return {str(name): counts[row] for row, name in enumerate(names)}


def transitions(trace: Trace, *, threads: int = 1) -> np.ndarray:
    """How often a token uses expert i in one MoE layer and expert j in the next.

    All K·K ordered pairs of a token count, as in ExFlow's inter-layer affinity
    (https://arxiv.org/abs/2401.08383).

    Returns:
        [L − 1, E, E] int64: layer, expert there, expert in the layer after it.

    Raises:
        InputError: If an id is not below E.
        UsageError: If the experts are too many for such a table.
    """
    return _paired(trace, trace.manifest.layers - 1, 1, threads)


def coactivation(trace: Trace, *, threads: int = 1) -> np.ndarray:
    """How often a token uses experts i and j in the same layer.

    Returns:
        [L, E, E] int64, symmetric; the diagonal holds the loads.

    Raises:
        InputError: If an id is not below E.
        UsageError: If the experts are too many for such a table.
    """
    return _paired(trace, trace.manifest.layers, 0, threads)


def _grouped(
    trace: Trace,
    groups: int,
    group_of: Callable[[slice], np.ndarray],
    threads: int,
    fix: str = "use fewer groups",
) -> np.ndarray:
    """[groups, L, E] int64 loads, where ``group_of`` gives the group of each token of a slice."""
    check_arrays(trace)
    layers, experts, bins = trace.manifest.layers, trace.manifest.experts, bin_count(trace)
    result = result_table((groups, layers, experts), fix)
    kernels = _kernels(trace, 1)

    def of_layer(layer: int) -> None:
        table = np.zeros((groups, bins), np.int64)
        for tokens in token_slices(trace):
            kernels.count_groups(read_ids(trace, layer, tokens), group_of(tokens), table)
            _release(trace, layer, tokens)
        result[:, layer] = table[:, :experts]

    _map(of_layer, layers, threads)
    return result


def _paired(trace: Trace, rows: int, distance: int, threads: int) -> np.ndarray:
    """[rows, E, E] int64 pairs of ids in layers l and l + distance."""
    check_arrays(trace)
    experts, top_k, bins = trace.manifest.experts, trace.manifest.top_k, bin_count(trace)
    result = result_table((rows, experts, experts), "count pairs of models with fewer experts only")
    kernels = _kernels(trace, top_k)

    def of_layer(layer: int) -> None:
        table = result[layer] if bins == experts else np.zeros((bins, bins), np.int64)
        for tokens in token_slices(trace):
            first = read_ids(trace, layer, tokens)
            second = read_ids(trace, layer + distance, tokens) if distance else first
            kernels.count_pairs(first, second, table)
            _release(trace, layer, tokens)
            _release(trace, layer + distance, tokens)
        if distance == 0:
            # Every use of an expert is paired with K entries. Setting the diagonal to the loads
            # keeps a token that names one expert twice from counting as co-activation.
            np.fill_diagonal(table, table.sum(axis=1) // top_k)
        if bins != experts:
            result[layer] = table[:experts, :experts]

    _map(of_layer, rows, threads)
    return result


def _kernels(trace: Trace, counts_per_id: int) -> ModuleType:
    counts = trace.routing.size * counts_per_id
    name = "reference" if counts < _SMALL_COUNTS else "counting"
    return importlib.import_module(f"moesim.traces.{name}")


def _map(function: Callable[[int], _R], layers: int, threads: int) -> list[_R]:
    if threads < 1:
        raise UsageError(f"threads must be at least 1; found {threads}")
    if threads == 1:
        return [function(layer) for layer in range(layers)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, range(layers)))


def _release(trace: Trace, layer: int, tokens: slice) -> None:
    release(trace.routing[layer, tokens])
    if trace.valid_k is not None:
        release(trace.valid_k[layer, tokens])
