"""Step times as the loops look them up, from tables, coefficients and an engine's policy."""

from __future__ import annotations

import numpy as np

from moesim.compiled import compiled_part
from moesim.serving.deployment import Pool
from moesim.serving.state import Costs

__all__ = ["SHARED", "attention_s", "interpolate", "make_costs", "padded_tokens"]


SHARED = ("experts", "collective", "dispatch")
"""Components whose time follows the tokens of all attention groups together."""


def interpolate(grid: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear between grid points, constant below the first, and along the last line above.

    Args:
        grid: [N] ascending.
        values: [..., N].
        at: [M].

    Returns:
        [..., M].
    """
    if grid.size == 1:
        return np.repeat(values, np.size(at), axis=-1)
    cell = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, grid.size - 2)
    share = np.maximum((at - grid[cell]) / (grid[cell + 1] - grid[cell]), 0.0)
    return values[..., cell] * (1 - share) + values[..., cell + 1] * share


def padded_tokens(pool: Pool, most: int) -> np.ndarray:
    """[most + 1] new tokens that a decode step computes for so many, up to the next CUDA graph."""
    rows = 1 + pool.draft_tokens
    needed = np.arange(most + 1)
    sizes = np.array(pool.policy.graph_sizes, np.int64) * rows
    if sizes.size == 0:
        return needed
    place = np.searchsorted(sizes, needed)
    return np.where(place < sizes.size, sizes[np.minimum(place, sizes.size - 1)], needed)


def make_costs(pool: Pool, most_tokens: int) -> Costs:
    """Weigh and add up everything that depends on one number alone.

    Args:
        pool: Tables, coefficients, policy.
        most_tokens: Most new tokens of a group in any step.
    """
    tables, fit = pool.tables, pool.coefficients
    needed = np.arange(most_tokens + 1, dtype=float)
    padded = padded_tokens(pool, most_tokens).astype(float)
    token_s, shared_s = np.zeros((2, 2, most_tokens + 1))
    sampled = interpolate(tables.tokens, tables.sampled_s, needed)
    sampled[0] = 0.0
    for kind, tokens in enumerate((padded, needed)):
        for row, component in enumerate(tables.components):
            seconds = shared_s if component in SHARED else token_s
            weight = fit.weight(component)[kind]
            seconds[kind] += weight * interpolate(tables.tokens, tables.token_s[kind, row], tokens)
        token_s[kind] -= interpolate(tables.tokens, tables.hidden_s[kind], tokens)
        token_s[kind] += fit.token_host_s * needed
        token_s[kind] += fit.step_host_s[kind] + fit.kernel_host_s * tables.kernels[kind]
    decode_sequences, decode_s = _two(tables.decode_sequences, tables.decode_attention_s, 0)
    decode_context, decode_s = _two(tables.decode_context, decode_s, 1)
    chunk_tokens, chunk_s = _two(tables.chunk_tokens, tables.chunk_attention_s, 0)
    chunk_past, chunk_s = _two(tables.chunk_past, chunk_s, 1)
    decode_weight = np.array(fit.weight("decode_attention"))
    return Costs(
        token_s,
        shared_s,
        np.array(fit.weight("sampled"))[:, None] * sampled,
        float(fit.sequence_host_s),
        decode_sequences,
        decode_context,
        decode_weight[:, None, None] * decode_s,
        chunk_tokens,
        chunk_past,
        np.ascontiguousarray(fit.weight("chunk_attention")[1] * chunk_s),
    )


def _two(grid: np.ndarray, values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A grid with at least two points."""
    grid, values = np.asarray(grid, float), np.asarray(values, float)
    if grid.size == 1:
        return np.append(grid, grid + 1), np.repeat(values, 2, axis)
    return grid, values


@compiled_part
def _cell(grid: np.ndarray, at: float) -> tuple[int, float]:
    """The cell of a value, and how far into it; above the last point, beyond 1."""
    low, high = 0, grid.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if grid[middle] <= at:
            low = middle
        else:
            high = middle
    return low, max(0.0, (at - grid[low]) / (grid[low + 1] - grid[low]))


@compiled_part
def _at(rows: np.ndarray, columns: np.ndarray, table: np.ndarray, x: float, y: float) -> float:
    i, u = _cell(rows, x)
    j, v = _cell(columns, y)
    low = table[i, j] * (1 - v) + table[i, j + 1] * v
    high = table[i + 1, j] * (1 - v) + table[i + 1, j + 1] * v
    return float(low * (1 - u) + high * u)


@compiled_part
def attention_s(costs: Costs, kind: int, sequences: int, context: int, chunks: np.ndarray) -> float:
    """Seconds of a group's attention.

    Args:
        costs: What times are looked up in.
        kind: Of the step.
        sequences: That decode.
        context: Tokens cached before the step, sum over them.
        chunks: [n, ≥ 3] rows of the log.
    """
    total = 0.0
    if sequences:
        total += _at(
            costs.decode_sequences,
            costs.decode_context,
            costs.decode_s[kind],
            float(sequences),
            context / sequences,
        )
    for row in range(chunks.shape[0]):
        total += _at(
            costs.chunk_tokens,
            costs.chunk_past,
            costs.chunk_s,
            float(chunks[row, 1]),
            float(chunks[row, 2]),
        )
    return total
