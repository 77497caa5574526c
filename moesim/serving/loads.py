"""Streams of requests: lengths drawn from a distribution, arrivals in a closed or an open loop."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log, sqrt
from typing import Literal

import numpy as np

from moesim.errors import UsageError
from moesim.serving.requests import Requests

__all__ = ["LENGTHS", "Lengths", "closed_loop", "open_loop", "parse_lengths"]

LENGTHS = ("constant", "uniform", "lognormal")

REQUESTS_PER_SLOT = 10
"""The public serving benchmark (InferenceX) sends ten requests per slot of its closed loop."""


@dataclass(frozen=True)
class Lengths:
    """How numbers of tokens are distributed.

    Attributes:
        name: ``constant``; ``uniform`` between ``parameter`` times the nominal length and that
            length, as the benchmarks' ``--random-range-ratio``; ``lognormal`` with the nominal
            length as mean and ``parameter`` as coefficient of variation.
        parameter: See above.
    """

    name: Literal["constant", "uniform", "lognormal"]
    parameter: float = 0.0

    def __str__(self) -> str:
        return self.name if self.name == "constant" else f"{self.name}:{self.parameter:g}"

    def draw(self, nominal: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count] tokens, at least one each."""
        if self.name == "constant":
            return np.full(count, nominal, np.int64)
        if self.name == "uniform":
            low = max(1, floor(nominal * self.parameter))
            return rng.integers(low, nominal + 1, count)
        spread = sqrt(log(1 + self.parameter**2))
        drawn = rng.lognormal(log(nominal) - spread**2 / 2, spread, count)
        return np.maximum(1, np.rint(drawn)).astype(np.int64)


def parse_lengths(text: str) -> Lengths:
    """``constant``, ``uniform:LOW`` or ``lognormal:CV``.

    Raises:
        UsageError: If it is none of these.
    """
    name, _, number = text.partition(":")
    try:
        parameter = float(number) if number else 0.0
    except ValueError:
        parameter = -1.0
    most = {"constant": 0.0, "uniform": 1.0, "lognormal": 10.0}
    if name not in most or (name != "constant") != bool(number) or not 0 <= parameter <= most[name]:
        raise UsageError(
            f"--lengths {text!r} is no distribution we know\n"
            "fix: pass constant, uniform:0.8 (0 to 1 of the nominal length) or lognormal:0.5 "
            "(coefficient of variation, 0 to 10)"
        )
    if name == "uniform":
        return Lengths("uniform", parameter)
    return Lengths("lognormal", parameter) if name == "lognormal" else Lengths("constant")


def closed_loop(
    concurrency: int,
    isl: int,
    osl: int,
    lengths: Lengths,
    *,
    count: int | None = None,
    hit_ratio: float = 0.0,
    seed: int = 0,
) -> Requests:
    """What serving benchmarks do: all slots are filled at once, and a request follows each end.

    Args:
        concurrency: Requests in flight.
        isl: Nominal input tokens.
        osl: Nominal output tokens.
        lengths: Their distribution.
        count: Requests; ten per slot if left out.
        hit_ratio: Share of each prompt that a prefix cache holds.
        seed: Of the lengths.
    """
    count = REQUESTS_PER_SLOT * concurrency if count is None else count
    prompts, outputs, cached = _sizes(isl, osl, lengths, count, hit_ratio, seed)
    return Requests(prompts, outputs, cached, None, concurrency)


def open_loop(
    rate_per_s: float,
    isl: int,
    osl: int,
    lengths: Lengths,
    *,
    count: int,
    burstiness: float = 1.0,
    hit_ratio: float = 0.0,
    seed: int = 0,
) -> Requests:
    """Requests that come by themselves.

    Args:
        rate_per_s: Mean.
        isl: Nominal input tokens.
        osl: Nominal output tokens.
        lengths: Their distribution.
        count: Requests.
        burstiness: Shape of the gamma distribution of the times between arrivals, as in vLLM's
            ``--burstiness``: 1 is a Poisson process, less is burstier, infinite is regular.
        hit_ratio: Share of each prompt that a prefix cache holds.
        seed: Of lengths and arrivals.
    """
    prompts, outputs, cached = _sizes(isl, osl, lengths, count, hit_ratio, seed)
    gaps: np.ndarray = np.full(count, 1 / rate_per_s)
    if burstiness != float("inf"):
        rng = np.random.default_rng([seed, 1])
        gaps = rng.gamma(burstiness, 1 / (rate_per_s * burstiness), count)
    return Requests(prompts, outputs, cached, np.cumsum(gaps))


def _sizes(
    isl: int, osl: int, lengths: Lengths, count: int, hit_ratio: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    prompts, outputs = lengths.draw(isl, count, rng), lengths.draw(osl, count, rng)
    return prompts, outputs, np.minimum(np.floor(hit_ratio * prompts).astype(np.int64), prompts - 1)
