"""Reading a routing array in pieces: ids checked, ignored entries marked, memory bounded."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.traces.bundle import Trace, routing_dtype

__all__ = [
    "bin_count",
    "check_arrays",
    "check_ids",
    "read_ids",
    "release",
    "result_table",
    "token_slices",
]

CHUNK_IDS = 2**23
"""Ids read at a time."""

RELEASE_BYTES = 256 * 2**20
"""Mapped arrays above this size are given back to the system behind the reader."""

MAX_RESULT_BYTES = 2**34
"""A larger result is a slip (``window_tokens`` of 1), not a wish."""


def check_arrays(trace: Trace) -> None:
    """Refuse arrays that are not what the manifest says (a trace can be made in memory).

    Raises:
        InputError: Naming the array.
    """
    manifest = trace.manifest
    shape: tuple[int, ...] = (manifest.layers, manifest.tokens, manifest.top_k)
    wanted = [("routing", trace.routing, shape, routing_dtype(manifest.experts))]
    if trace.valid_k is not None:
        wanted.append(("valid_k", trace.valid_k, shape[:2], np.dtype(np.uint8)))
    for name, array, allowed, dtype in wanted:
        if array.shape != allowed or array.dtype != dtype:
            raise InputError(
                "the array is not what the manifest says",
                file=trace.path,
                field=name,
                found=f"{array.shape} {array.dtype}",
                allowed=f"{allowed} {dtype}",
            )


def bin_count(trace: Trace) -> int:
    """Width of a table for the ids of :func:`read_ids`: E, and one more if some are ignored."""
    return trace.manifest.experts + (trace.valid_k is not None)


def token_slices(trace: Trace) -> Iterator[slice]:
    """The tokens in order, in pieces of about ``CHUNK_IDS`` ids of one layer."""
    step = max(1, CHUNK_IDS // trace.manifest.top_k)
    for start in range(0, trace.manifest.tokens, step):
        yield slice(start, min(start + step, trace.manifest.tokens))


def read_ids(trace: Trace, layer: int, tokens: slice, *, check: bool = True) -> np.ndarray:
    """Expert ids of some tokens in one layer.

    Args:
        trace: The trace.
        layer: Row of the routing.
        tokens: Which tokens.
        check: Whether to look for ids out of range. A caller who does not must make room for every
            id of the type and look himself. Entries beside ignored ones are checked always.

    Returns:
        [tokens, K] unsigned integers; E stands for an entry beyond ``valid_k``.

    Raises:
        InputError: If an id that counts is not below E, or ``valid_k`` exceeds top-k.
    """
    ids = trace.routing[layer, tokens]
    experts, top_k = trace.manifest.experts, trace.manifest.top_k
    if trace.valid_k is None:
        if check:
            check_ids(trace, layer, tokens)
        return ids
    valid = trace.valid_k[layer, tokens]
    if int(valid.max()) > top_k:
        token = int(np.argmax(valid > top_k))
        raise InputError(
            f"layer {layer}, token {tokens.start + token}: more entries count than there are",
            file=trace.path and trace.path / "valid_k.npy",
            field=f"[{layer}, {tokens.start + token}]",
            found=int(valid[token]),
            allowed=f"0 … {top_k}",
        )
    check_ids(trace, layer, tokens)
    return np.where(_live(trace, layer, tokens), ids.astype(np.min_scalar_type(experts)), experts)


def check_ids(trace: Trace, layer: int, tokens: slice) -> None:
    """Refuse ids of E and above among the entries that count.

    Raises:
        InputError: Naming layer, token and id of the first.
    """
    ids, experts = trace.routing[layer, tokens], trace.manifest.experts
    if experts > np.iinfo(ids.dtype).max or int(ids.max()) < experts:
        return
    bad = (ids >= experts) & _live(trace, layer, tokens)
    if not bad.any():
        return
    token, k = (int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
    raise InputError(
        f"layer {layer}, token {tokens.start + token}: expert id out of range",
        file=trace.path and trace.path / "routing.npy",
        field=f"[{layer}, {tokens.start + token}, {k}]",
        found=int(ids[token, k]),
        allowed=f"0 … {experts - 1}",
        fix="import the trace again with the model's number of experts, "
        "and with valid_k where entries are padding",
    )


def _live(trace: Trace, layer: int, tokens: slice) -> np.ndarray:
    """[tokens, K] bool, or one that broadcasts to it: which entries count."""
    if trace.valid_k is None:
        return np.ones((1, 1), bool)
    live: np.ndarray = np.arange(trace.manifest.top_k) < trace.valid_k[layer, tokens][:, None]
    return live


def release(array: np.ndarray) -> None:
    """Give the pages of a slice of a large mapped array back to the system.

    Pages of a mapped file count as resident until the system needs them for something else, so
    reading a file of 5 GB would look like, and under a memory limit act like, using 5 GB. They stay
    in the page cache: reading them again costs no disk access while there is memory for them.
    """
    mapping = getattr(array, "_mmap", None)
    if not isinstance(mapping, mmap.mmap) or not hasattr(mapping, "madvise"):
        return
    if len(mapping) <= RELEASE_BYTES or not array.flags.c_contiguous:
        return
    start = array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    page = start - start % mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, page, start + array.nbytes - page)


def result_table(shape: tuple[int, ...], fix: str) -> np.ndarray:
    """Zeros of int64.

    Raises:
        UsageError: If they would take more memory than anybody wants; it says ``fix``.
    """
    size_bytes = 8 * int(np.prod(shape, dtype=object))
    if size_bytes > MAX_RESULT_BYTES:
        raise UsageError(
            f"a result of shape {shape} would take {size_bytes} bytes; "
            f"allowed: {MAX_RESULT_BYTES}\nfix: {fix}"
        )
    return np.zeros(shape, np.int64)
