"""What the duration of every step is a weighted sum of."""

from __future__ import annotations

import numpy as np

from moesim.serving.costs import SHARED, interpolate, padded_tokens
from moesim.serving.deployment import Pool
from moesim.serving.schedule import Schedule

__all__ = ["interpolate_plane", "step_features"]


def step_features(schedule: Schedule, pool: Pool) -> dict[str, np.ndarray]:
    """Parts of the steps of a schedule, before weights and host times.

    With the pool's coefficients, a step of kind k takes ``Σ weights[part][k] · part`` over the
    components and ``sampled``, ``decode_attention``, ``chunk_attention``, plus ``step_host_s[k] +
    sequence_host_s · sequences + token_host_s · tokens + kernel_host_s · kernels``, less what is
    ``hidden`` beside other calls.

    Args:
        schedule: Steps of workers of one pool.
        pool: Its tables and policy.

    Returns:
        [S] by name: seconds of the parts, and numbers of ``sequences``, ``tokens``, ``kernels``.
    """
    tables, kind = pool.tables, schedule.kind
    most = int(schedule.tokens.max(initial=0))
    padded = padded_tokens(pool, most)[schedule.tokens]
    computed = np.where(kind == 0, padded, schedule.tokens).astype(float)
    shared = np.where(kind == 0, padded, schedule.shared_tokens).astype(float)
    features = {}
    for row, name in enumerate(tables.components):
        tokens = shared if name in SHARED else computed
        by_kind = interpolate(tables.tokens, tables.token_s[:, row], tokens)
        features[name] = by_kind[kind, np.arange(schedule.steps)]
    by_kind = interpolate(tables.tokens, tables.hidden_s, computed)
    features["hidden"] = by_kind[kind, np.arange(schedule.steps)]
    sampled = interpolate(tables.tokens, tables.sampled_s, schedule.sampled.astype(float))
    features["sampled"] = np.where(schedule.sampled > 0, sampled, 0.0)
    decodes = schedule.decode_sequences > 0
    mean = schedule.context / np.maximum(schedule.decode_sequences, 1)
    features["decode_attention"] = decodes * interpolate_plane(
        tables.decode_sequences,
        tables.decode_context,
        tables.decode_attention_s,
        schedule.decode_sequences,
        mean,
    )
    chunks = interpolate_plane(
        tables.chunk_tokens,
        tables.chunk_past,
        tables.chunk_attention_s,
        schedule.chunk_new,
        schedule.chunk_past,
    )
    summed = np.concatenate([[0.0], np.cumsum(chunks)])
    last = schedule.chunk_first + schedule.chunk_count
    features["chunk_attention"] = summed[last] - summed[schedule.chunk_first]
    features["sequences"] = schedule.sequences.astype(float)
    features["tokens"] = schedule.tokens.astype(float)
    features["kernels"] = tables.kernels[kind]
    return features


def interpolate_plane(
    rows: np.ndarray, columns: np.ndarray, table: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Values between the points of a plane, bilinear.

    Args:
        rows: [I] ascending.
        columns: [J] ascending.
        table: [I, J].
        x: [M] along the rows.
        y: [M] along the columns.

    Returns:
        [M].
    """
    along = interpolate(columns, np.asarray(table, float), np.asarray(y, float))  # [rows, M]
    if rows.size == 1:
        return along[0]
    cell = np.clip(np.searchsorted(rows, x, side="right") - 1, 0, rows.size - 2)
    share = np.maximum((x - rows[cell]) / (rows[cell + 1] - rows[cell]), 0.0)
    points = np.arange(np.size(x))
    return along[cell, points] * (1 - share) + along[cell + 1, points] * share
