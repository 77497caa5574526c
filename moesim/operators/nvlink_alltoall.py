"""Seconds of TensorRT-LLM's NVLink all-to-all for experts (GB200 NVL72).

Its kernels copy token vectors between the GPUs of one NVLink domain, once for every rank that a
token has experts on, through one queue per peer (two-sided) or straight into the peer's memory
(one-sided); see tensorrt_llm/_torch/modules/fused_moe in https://github.com/NVIDIA/TensorRT-LLM.
The busier of the whole link and the queue of one peer decides, as a p-norm.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from moesim.operators.deepep import p_norm
from moesim.schema import Document

__all__ = ["NvlinkAllToAllCoefficients", "Stage", "balanced_ranks", "nvlink_alltoall_s"]

Stage = Literal["prepare", "dispatch", "combine", "combine_low_precision"]
NonNegative = Annotated[float, Field(ge=0)]
Exponent = Annotated[float, Field(gt=0)]


class NvlinkAllToAllCoefficients(Document):
    """One stage of one kernel and type.

    Attributes:
        stage: Counting and exchanging indices, or moving vectors.
        launch_s: Fixed time.
        doubling_s: Further fixed time whenever the ranks double.
        token_s: Time per token of a rank.
        copy_s: Time per copy sent to another rank.
        peer_copy_s: Time of one peer's queue per copy sent to that peer.
        flow_overlap: Exponent p of the flows' p-norm.
        latency_overlap: The same for the fixed time and the flows.
        on_bounds: Coefficients that the fit left on a bound of theirs.
    """

    stage: Stage
    launch_s: NonNegative
    doubling_s: NonNegative
    token_s: NonNegative
    copy_s: NonNegative
    peer_copy_s: NonNegative
    flow_overlap: Exponent
    latency_overlap: Exponent
    on_bounds: tuple[str, ...] = ()


def balanced_ranks(top_k: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Ranks that a token reaches under balanced routing: its experts lie on different ranks."""
    return np.minimum(np.asarray(top_k, float), np.asarray(ranks, float))


def nvlink_alltoall_s(
    coefficients: NvlinkAllToAllCoefficients,
    tokens: np.ndarray,
    reached_ranks: np.ndarray,
    ranks: np.ndarray,
) -> np.ndarray:
    """Seconds of a stage, for vectors of the width that was measured.

    Args:
        coefficients: Of the stage.
        tokens: Of one rank.
        reached_ranks: Ranks that a token goes to, its own share of them included:
            ``balanced_ranks``, or ``deepep.expected_parts`` for random routing.
        ranks: In the domain, at least 2.
    """
    c = coefficients
    tokens, ranks = np.asarray(tokens, float), np.asarray(ranks, float)
    copies = tokens * np.asarray(reached_ranks, float) * (1 - 1 / ranks)
    link_s = tokens * c.token_s + copies * c.copy_s
    peer_s = copies / (ranks - 1) * c.peer_copy_s
    launch_s = c.launch_s + c.doubling_s * np.log2(ranks)
    return p_norm(c.latency_overlap, launch_s, p_norm(c.flow_overlap, link_s, peer_s))
