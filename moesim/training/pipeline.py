"""Pipeline schedules: how long all micro-batches take.

One forward, one backward (1F1B; PipeDream-Flush, arXiv 2006.09503), plain or interleaved with v
chunks of the model per stage (Narayanan et al., arXiv 2104.04473, section 2.2): of m micro-batches
on p equal stages that take t each, (p − 1)/v · t are lost to filling and draining.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.errors import UsageError

__all__ = ["bubble_fraction", "in_flight_chunks", "pipeline_s"]


def pipeline_s(stage_s: Sequence[float], micro_batches: int, chunks: int = 1) -> float:
    """Seconds of an iteration's passes.

    The slowest stage is never idle while it has work; filling and draining take a pass of the
    others, a chunk of each at a time. Exact for equal stages, and in plain 1F1B where the last
    stage is the slowest (it has the head).

    Args:
        stage_s: [p] forward and backward of one micro-batch on each stage.
        micro_batches: m.
        chunks: v.

    Raises:
        UsageError: If there is no stage, micro-batch or chunk.
    """
    if not stage_s or micro_batches < 1 or chunks < 1:
        raise UsageError(
            "a pipeline needs at least one stage, micro-batch and chunk\nfix: pass positive sizes"
        )
    slowest = max(stage_s)
    return micro_batches * slowest + (sum(stage_s) - slowest) / chunks


def bubble_fraction(stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Idle time over busy time of equal stages: (p − 1) / (v m)."""
    return (stages - 1) / (chunks * micro_batches)


def in_flight_chunks(stages: int, micro_batches: int, chunks: int = 1) -> int:
    """Chunks of micro-batches whose activations the first stage holds at once.

    1F1B: p micro-batches. Interleaved: Megatron-LM's warm-up of 2(p − 1) + (v − 1)p chunks and
    the one at work.
    """
    if chunks == 1:
        return min(stages, micro_batches)
    return min(2 * (stages - 1) + (chunks - 1) * stages + 1, chunks * micro_batches)
