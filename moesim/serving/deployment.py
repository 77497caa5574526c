"""Workers behind a router, and how keys and values get from one to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesim.forward.step_tables import StepTables
from moesim.serving.coefficients import NEUTRAL, ServingCoefficients
from moesim.serving.engines import EnginePolicy

__all__ = ["Deployment", "Pool", "Router", "Transfer"]

Router = Literal["round-robin", "least-loaded"]
"""To which group a request goes: in turn, or to the one with the fewest unfinished requests."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Workers of one kind.

    Attributes:
        tables: Times of one worker's steps.
        policy: How it forms them.
        workers: How many.
        groups: Attention groups of a worker (attention DP); they step together.
        lanes: Micro-batches of a worker, one for each pipeline stage; they step together too: a
            step takes as long as the slowest of them takes through all stages.
        kv_tokens: Tokens that the cache of one group's devices holds, over all lanes.
        draft_tokens: Tokens proposed and verified per sequence and step (speculative decoding).
            The tables price that they are verified, and drafted by the model's own layers.
        tokens_per_step: Tokens that a sequence gains in a decode step on average.
        coefficients: Weights and host times.
    """

    tables: StepTables
    policy: EnginePolicy
    kv_tokens: int
    workers: int = 1
    groups: int = 1
    lanes: int = 1
    draft_tokens: int = 0
    tokens_per_step: float = 1.0
    coefficients: ServingCoefficients = NEUTRAL


@dataclass(frozen=True)
class Transfer:
    """Keys and values on their way from a prefill to a decode worker.

    An attention group sends one request after the other.

    Attributes:
        bytes_per_token: Of all layers.
        bytes_per_request: Of states that do not grow.
        bytes_per_s: That one group sends.
        latency_s: Of each transfer.
    """

    bytes_per_token: float
    bytes_per_request: float
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, eq=False)
class Deployment:
    """All of it.

    Attributes:
        pool: Workers that do everything; with ``prefill``, those that decode.
        prefill: Workers that prefill, if others do than those that decode.
        transfer: Between them.
        router: See :data:`Router`.
    """

    pool: Pool
    prefill: Pool | None = None
    transfer: Transfer | None = None
    router: Router = "round-robin"
