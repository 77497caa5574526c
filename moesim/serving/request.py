"""Serving as a person asks for it: names and numbers, checked and looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moesim.cost_model import CostModel
from moesim.errors import UsageError
from moesim.forward.layout import Dispatch
from moesim.forward.overlap import Overlap
from moesim.serving.deployment import Router
from moesim.serving.loads import closed_loop, open_loop, parse_lengths
from moesim.serving.metrics import Targets
from moesim.serving.request_files import read_requests
from moesim.serving.requests import Requests

__all__ = ["LoadRequest", "PoolRequest", "ServingRequest"]

OPEN_LOOP_REQUESTS = 2000
"""Requests in an open loop, where nothing is said: at load 0.8 the mean wait of a single server is
then within some 10 % of its limit."""

MOST_REQUESTS = 2_000_000


@dataclass(frozen=True)
class PoolRequest:
    """Workers of one kind.

    Attributes:
        cluster: Short name or file of one worker's devices; all are used.
        workers: How many.
        tp: See :class:`~moesim.forward.layout.Layout`; so are the next six.
        dp: Same.
        ep: Same.
        moe_tp: Same.
        pp: Same.
        dispatch: Same.
        redundant: Same.
    """

    cluster: str
    workers: int = 1
    tp: int | None = None
    dp: int | None = None
    ep: int | None = None
    moe_tp: int | None = None
    pp: int = 1
    dispatch: Dispatch | None = None
    redundant: int = 0


@dataclass(frozen=True)
class LoadRequest:
    """What comes.

    Attributes:
        concurrency: Requests in flight in a closed loop.
        rps: Requests per second in an open loop.
        file: Recorded requests instead.
        speed: A recording is played so many times faster.
        requests: How many; ten per slot in a closed loop, :data:`OPEN_LOOP_REQUESTS` in an open
            one, all of a file.
        isl: Nominal input tokens.
        osl: Nominal output tokens.
        lengths: Their distribution.
        burstiness: Of arrivals in an open loop.
        hit_ratio: Share of prompts that a prefix cache holds.
    """

    concurrency: int | None = None
    rps: float | None = None
    file: Path | None = None
    speed: float = 1.0
    requests: int | None = None
    isl: int = 1024
    osl: int = 1024
    lengths: str = "uniform:0.8"
    burstiness: float = 1.0
    hit_ratio: float = 0.0

    def make(self, seed: int) -> Requests:
        """Draw or read the requests.

        Raises:
            UsageError: If options contradict each other.
            InputError: If the file cannot be used.
        """
        given = [self.concurrency is not None, self.rps is not None, self.file is not None]
        if sum(given) != 1:
            raise UsageError(
                "--concurrency, --rps and --requests-file each say when requests come\n"
                "fix: pass exactly one of them"
            )
        self._check()
        lengths = parse_lengths(self.lengths)
        if self.file is not None:
            return read_requests(self.file, most=self.requests, speed=self.speed)
        if self.concurrency is not None:
            return closed_loop(
                self.concurrency,
                self.isl,
                self.osl,
                lengths,
                count=self.requests,
                hit_ratio=self.hit_ratio,
                seed=seed,
            )
        return open_loop(
            self.rps or 0.0,
            self.isl,
            self.osl,
            lengths,
            count=self.requests or OPEN_LOOP_REQUESTS,
            burstiness=self.burstiness,
            hit_ratio=self.hit_ratio,
            seed=seed,
        )

    def _check(self) -> None:
        for option, value, least, most in (
            ("--concurrency", self.concurrency, 1, 10**6),
            ("--rps", self.rps, 1e-6, 1e6),
            ("--requests", self.requests, 1, MOST_REQUESTS),
            ("--isl", self.isl, 1, 2**22),
            ("--osl", self.osl, 1, 2**22),
            ("--speed", self.speed, 1e-6, 1e6),
            ("--prefix-hit", self.hit_ratio, 0.0, 1.0),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(
                    f"{option} must be {least} … {most}; found {value}\nfix: pass another {option}"
                )
        if not self.burstiness > 0:
            raise UsageError(
                f"--burstiness must be above 0; found {self.burstiness}\n"
                "fix: pass 1 for a Poisson process, less for bursts"
            )


@dataclass(frozen=True)
class ServingRequest:
    """What to simulate.

    Attributes:
        model: Registry name, file or folder.
        pool: Workers that do everything, or that decode.
        prefill: Workers that prefill for those.
        load: What comes.
        router: How requests find a worker.
        transfer: Rate at which a prefill worker sends caches, like ``400 GB/s``; its network cards
            together if left out.
        engine: Whose policy and kernels.
        policy: Parts of the policy that are other than the engine's defaults.
        draft_tokens: Proposed per sequence and step.
        acceptance: Probability that a draft is accepted if those before it were.
        overlap: What runs beside what in a step, on top of what measured engines overlap anyway.
        cost: Fitted coefficients, or rooflines alone.
        gemm_dtype: Of projections and dense layers; the model's own if not given.
        expert_dtype: Of routed experts; same.
        kv_dtype: Of the cache; bfloat16 if not given.
        routing: Named distribution of tokens over experts.
        targets: What a good request keeps.
        warmup: Requests that do not count.
        transforms: Of the model, as given to ``--transform``.
        seed: Of everything random.
    """

    model: str
    pool: PoolRequest
    load: LoadRequest
    prefill: PoolRequest | None = None
    router: Router = "least-loaded"
    transfer: str | None = None
    engine: str = "sglang"
    policy: Mapping[str, object] = field(default_factory=dict)
    draft_tokens: int = 0
    acceptance: float = 0.0
    overlap: Overlap = "none"
    cost: CostModel = "fitted"
    gemm_dtype: str | None = None
    expert_dtype: str | None = None
    kv_dtype: str | None = None
    routing: str = "uniform"
    targets: Targets = field(default_factory=Targets)
    warmup: int = 0
    transforms: tuple[str, ...] = ()
    seed: int = 0

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            UsageError: Naming the option.
        """
        for option, value, least, most in (
            ("--replicas", self.pool.workers, 1, 1024),
            ("--prefill-workers", self.prefill.workers if self.prefill else 1, 1, 1024),
            ("--draft-tokens", self.draft_tokens, 0, 16),
            ("--acceptance", self.acceptance, 0, 1),
            ("--warmup", self.warmup, 0, MOST_REQUESTS),
            ("--ttft", self.targets.ttft_s, 0, 1e9),
            ("--tpot", self.targets.tpot_s, 0, 1e9),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(
                    f"{option} must be {least} … {most}; found {value}\nfix: pass another {option}"
                )
        if self.acceptance and not self.draft_tokens:
            raise UsageError(
                "--acceptance is about drafts, and there are none\nfix: pass --draft-tokens with it"
            )
        if self.transfer is not None and self.prefill is None:
            raise UsageError(
                "--transfer is the way from prefill workers, and there are none\n"
                "fix: pass --prefill-workers with it"
            )

    @property
    def tokens_per_step(self) -> float:
        """That a sequence gains in a decode step: 1 + a + a² + … (arXiv 2211.17192, eq. 1)."""
        return sum(self.acceptance**place for place in range(self.draft_tokens + 1))
