"""What a capacity search is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from moesim.cost_model import CostModel
from moesim.errors import UsageError

__all__ = ["MODES", "OBJECTIVES", "Mode", "Objective", "Question"]

Objective = Literal["devices", "cost", "energy", "throughput"]
"""What the best deployment has least of (or, of throughput per device, most)."""
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

Mode = Literal["aggregated", "disaggregated"]
MODES: tuple[Mode, ...] = get_args(Mode)

PERCENTILES = (0, 50, 90, 99)
"""Of requests that keep a latency; 0 stands for the mean."""


@dataclass(frozen=True)
class Question:
    """A load, targets, and what may be used.

    Attributes:
        model: Registry name, file or folder.
        devices: Names of device profiles to choose from.
        max_devices: Most of them.
        concurrency: Requests in flight over the whole deployment, or
        rps: requests per second that arrive as a Poisson process.
        isl: Input tokens of a request.
        osl: Output tokens.
        lengths: Their distribution; see :func:`moesim.serving.loads.parse_lengths`.
        ttft_s: Target of the time to first token; None: any.
        tpot_s: Target of the time per output token; None: any.
        percentile: Share of requests in per cent that must keep each target; 0: their mean.
        objective: See :data:`Objective`.
        modes: One pool, prefill and decode workers, or both.
        engine: Whose policy and kernels.
        kv_dtypes: Formats of the cache to choose from.
        redundant: Numbers of redundant expert slots to choose from.
        routing: Named distribution of tokens over experts.
        cost: Fitted coefficients, or rooflines alone.
        prices: USD per hour of a device, by name, instead of its profile's.
        transforms: Of the model.
        seed: Of everything random.
    """

    model: str
    devices: tuple[str, ...]
    max_devices: int = 64
    concurrency: int | None = None
    rps: float | None = None
    isl: int = 1024
    osl: int = 1024
    lengths: str = "constant"
    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: int = 0
    objective: Objective = "devices"
    modes: tuple[Mode, ...] = MODES
    engine: str = "sglang"
    kv_dtypes: tuple[str, ...] = ("bfloat16",)
    redundant: tuple[int, ...] = (0,)
    routing: str = "uniform"
    cost: CostModel = "fitted"
    prices: Mapping[str, float] = field(default_factory=dict)
    transforms: tuple[str, ...] = ()
    seed: int = 0

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            UsageError: Naming the option.
        """
        if (self.concurrency is None) == (self.rps is None):
            raise UsageError(
                "the load is either --concurrency or --rps\nfix: pass exactly one of them"
            )
        for option, value, least, most in (
            ("--max-devices", self.max_devices, 1, 1024),
            ("--concurrency", self.concurrency, 1, 10**6),
            ("--rps", self.rps, 1e-6, 1e6),
            ("--isl", self.isl, 1, 2**22),
            ("--osl", self.osl, 1, 2**22),
            ("--ttft", self.ttft_s, 1e-6, 1e6),
            ("--tpot", self.tpot_s, 1e-6, 1e6),
            *(("--redundant", count, 0, 4096) for count in self.redundant),
            *((f"--price {name}", usd, 0, 1e6) for name, usd in self.prices.items()),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(
                    f"{option} must be {least:g} … {most:g}; found {value}\n"
                    f"fix: pass another {option}"
                )
        if self.percentile not in PERCENTILES:
            raise UsageError(
                f"--percentile {self.percentile} is not measured\n"
                f"fix: choose from {', '.join(map(str, PERCENTILES))} (0: the mean)"
            )
        if not self.devices:
            raise UsageError("--devices names no device\nfix: pass e.g. --devices h200_sxm")
        unpriced = set(self.prices) - set(self.devices)
        if unpriced:
            raise UsageError(
                f"--price is for {', '.join(sorted(unpriced))}, which --devices does not name\n"
                "fix: price a device of --devices"
            )
