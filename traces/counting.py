"""Compiled counting loops: the fast twin of :mod:`moesim.traces.reference`.

Every function has the name, arguments and result of its plain numpy reference, and is tested
against it. Ids must be below the width of the table they are counted into; nothing is checked here
(:mod:`moesim.traces.chunks` does that).

A counting loop is bound by one read-modify-write per count, so all that matters is that counters
stay in the L1 cache and that an increment need not wait for the one before it.
"""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled

__all__ = ["count_groups", "count_ids", "count_pairs"]

_COUNTER_TYPES = (np.uint8, np.uint16, np.uint64)
_FIRST_BLOCK_TOKENS = 1024
_WORTHWHILE_BLOCK_TOKENS = 8192
_LARGEST_BLOCK_TOKENS = 65536


def count_ids(ids: np.ndarray, bins: int) -> np.ndarray:
    """How often each id occurs.

    Args:
        ids: [T, K] unsigned integers below ``bins``; fewer than 2³² of them.
        bins: Width of the result.

    Returns:
        [bins] int64.
    """
    flat = _plain(ids).reshape(-1)
    if flat.dtype == np.uint8:
        return _count_bytes(flat, bins)
    tables = np.zeros((4, bins), np.uint32)
    _count_ids(flat, tables)
    counts: np.ndarray = tables.sum(axis=0, dtype=np.int64)
    return counts


def _count_bytes(ids: np.ndarray, bins: int) -> np.ndarray:
    """As :func:`count_ids` of uint8, eight ids to a load; what is not aligned to 8 is left over."""
    head = -ids.ctypes.data % 8
    end = head + max(ids.size - head, 0) // 8 * 8
    tables = np.zeros((8, 256), np.uint32)
    if end > head:
        _count_words(ids[head:end].view(np.uint64), tables)
        rest = np.concatenate((ids[:head], ids[end:]))
    else:
        rest = ids
    counts = tables.sum(axis=0, dtype=np.int64) + np.bincount(rest, minlength=256)
    return counts[:bins] if bins <= 256 else np.pad(counts, (0, bins - 256))


def count_groups(ids: np.ndarray, groups: np.ndarray, table: np.ndarray) -> None:
    """Add every token's ids to the row of its group.

    Args:
        ids: [T, K] unsigned integers below ``bins``.
        groups: [T] int64 row of each token.
        table: [rows, bins] int64, added to in place.
    """
    _count_groups(_plain(ids), _plain(groups), table)


def count_pairs(first: np.ndarray, second: np.ndarray, table: np.ndarray) -> None:
    """Add every ordered pair (id of ``first``, id of ``second``) of the same token.

    With 256 experts a table of 32-bit counters takes 256 KiB and lives in the L2 cache, at a third
    of the speed of one of 8-bit counters. So tokens are counted in the narrowest counters that hold
    a block worth the moving to ``table``; the fullest counter of each block tells how many tokens
    the next may have. A counter that wraps nevertheless shows, since the counters then add up to
    fewer pairs than went in, and the block is counted again in wider ones.

    Args:
        first: [T, K] unsigned integers below ``bins``.
        second: [T, K] unsigned integers below ``bins``.
        table: [bins, bins] int64, added to in place.
    """
    first, second = _plain(first), _plain(second)
    tokens, top_k = first.shape
    count = _count_pairs_of_8 if top_k == 8 else _count_pairs
    start = 0
    for dtype in _COUNTER_TYPES:
        counters = np.zeros(table.shape, dtype)
        block = _FIRST_BLOCK_TOKENS
        while start < tokens and block >= _FIRST_BLOCK_TOKENS:
            stop = min(start + block, tokens)
            count(first[start:stop], second[start:stop], counters)
            fullest = _move(counters, table, (stop - start) * top_k**2)
            if fullest == 0:
                break
            room_tokens = int(np.iinfo(dtype).max) * (stop - start) // fullest
            block = 0 if room_tokens < _WORTHWHILE_BLOCK_TOKENS else room_tokens * 7 // 8
            block = min(block, _LARGEST_BLOCK_TOKENS)
            start = stop


def _plain(array: np.ndarray) -> np.ndarray:
    # Contiguous, aligned and read-only: numba compiles a loop anew for every other combination.
    view = np.require(array, requirements=["C", "A"]).view(np.ndarray)
    view.flags.writeable = False
    return view


@compiled
def _count_words(words: np.ndarray, tables: np.ndarray) -> None:
    # Eight tables: no increment waits for the one before, and eight ids cost one load.
    one, byte = np.uint32(1), np.uint64(255)
    t0, t1, t2, t3 = tables[0], tables[1], tables[2], tables[3]
    t4, t5, t6, t7 = tables[4], tables[5], tables[6], tables[7]
    for i in range(words.size):
        word = words[i]
        t0[word & byte] += one
        t1[(word >> np.uint64(8)) & byte] += one
        t2[(word >> np.uint64(16)) & byte] += one
        t3[(word >> np.uint64(24)) & byte] += one
        t4[(word >> np.uint64(32)) & byte] += one
        t5[(word >> np.uint64(40)) & byte] += one
        t6[(word >> np.uint64(48)) & byte] += one
        t7[word >> np.uint64(56)] += one


@compiled
def _count_ids(ids: np.ndarray, tables: np.ndarray) -> None:
    # Four tables in turn: the same expert twice in a row does not wait for its own last increment.
    one = np.uint32(1)
    whole = ids.size - ids.size % 4
    for i in range(0, whole, 4):
        tables[0, ids[i]] += one
        tables[1, ids[i + 1]] += one
        tables[2, ids[i + 2]] += one
        tables[3, ids[i + 3]] += one
    for i in range(whole, ids.size):
        tables[0, ids[i]] += one


@compiled
def _count_groups(ids: np.ndarray, groups: np.ndarray, table: np.ndarray) -> None:
    for t in range(ids.shape[0]):
        row = groups[t]
        for k in range(ids.shape[1]):
            table[row, ids[t, k]] += 1


@compiled
def _count_pairs(first: np.ndarray, second: np.ndarray, counters: np.ndarray) -> None:
    one = counters.dtype.type(1)
    for t in range(first.shape[0]):
        for i in range(first.shape[1]):
            a = first[t, i]
            for j in range(second.shape[1]):
                counters[a, second[t, j]] += one


@compiled
def _count_pairs_of_8(first: np.ndarray, second: np.ndarray, counters: np.ndarray) -> None:
    # Top-8 is what most large models use. Written out, the second ids stay in registers.
    one = counters.dtype.type(1)
    for t in range(first.shape[0]):
        b0, b1, b2, b3 = second[t, 0], second[t, 1], second[t, 2], second[t, 3]
        b4, b5, b6, b7 = second[t, 4], second[t, 5], second[t, 6], second[t, 7]
        for i in range(8):
            a = first[t, i]
            counters[a, b0] += one
            counters[a, b1] += one
            counters[a, b2] += one
            counters[a, b3] += one
            counters[a, b4] += one
            counters[a, b5] += one
            counters[a, b6] += one
            counters[a, b7] += one


@compiled
def _move(counters: np.ndarray, table: np.ndarray, pairs: int) -> int:
    """Empty the counters into the table; the fullest one, or 0 and no change if one has wrapped."""
    total = np.uint64(0)
    fullest = counters[0, 0]
    for row in range(counters.shape[0]):
        for column in range(counters.shape[1]):
            count = counters[row, column]
            fullest = max(fullest, count)
            total += np.uint64(count)
            table[row, column] += np.int64(count)
    wrapped = total != np.uint64(pairs)
    if wrapped:
        for row in range(counters.shape[0]):
            for column in range(counters.shape[1]):
                table[row, column] -= np.int64(counters[row, column])
    counters[:] = 0
    return 0 if wrapped else int(fullest)
