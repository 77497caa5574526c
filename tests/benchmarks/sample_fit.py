"""The generator's default of reuse: what the bundled trace of a small real model shows.

    python -m tests.benchmarks.sample_fit [--seeds 5]

Without topics (no affinity, one topic per request), each parameter is bisected to its own statistic
of the sample, which rises with it, in turn and over again until all are met: skew to the load
deviation, domain shift to the distance between domains, reuse to the overlap of adjacent tokens.
The exit status is 6 if the default of reuse is not within two standard errors and rounding.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.traces.bundle import open_trace, sample_path
from moesim.traces.generate import generate
from moesim.traces.synthetic_measures import adjacent_overlap, domain_distance
from moesim.traces.synthetic_spec import GeneratorSpec

SWEEPS, STEPS = 8, 12
TOLERANCE = 0.002  # of the target
UPPER = {"skew": 2.0}  # of the bisection; 1 otherwise


@dataclass(frozen=True)
class Routing:
    """Whole requests of one length: experts [L, T, K], domain [T] int64, E."""

    experts: np.ndarray
    domain: np.ndarray
    request_tokens: int
    width: int

    def loads(self) -> np.ndarray:
        """[L, D, E] int64 token assignments."""
        bins = (int(self.domain.max()) + 1) * self.width
        cells = self.domain[:, None] * self.width + self.experts
        return np.stack([np.bincount(c.ravel(), minlength=bins) for c in cells]).reshape(
            len(cells), -1, self.width
        )


def load_deviation(routing: Routing) -> float:
    """Standard deviation of the experts' activation frequency (mean K/E), in per cent."""
    frequency = routing.loads().sum(axis=1) / routing.experts.shape[1]
    return float(100 * frequency.std())


def overlap(routing: Routing) -> float:
    first = np.arange(routing.experts.shape[1]) % routing.request_tokens == 0
    return 100 * adjacent_overlap(routing.experts, first, routing.width)


STATISTICS: dict[str, Callable[[Routing], float]] = {
    "skew": load_deviation,
    "domain_shift": lambda r: domain_distance(r.loads()),
    "reuse": overlap,
}


def sample() -> tuple[GeneratorSpec, dict[str, float]]:
    """A trace of the sample's shape, and by parameter what the sample itself shows."""
    trace = open_trace(sample_path())
    of, requests = trace.manifest, trace.requests()
    assert requests is not None
    length = int(requests["position"].max()) + 1
    domain = requests["domain"].astype(str).factorize(sort=True)[0]
    real = Routing(np.asarray(trace.routing), domain.astype(np.int64), length, of.experts)
    shape = {"layers": of.layers, "experts": of.experts, "top_k": of.top_k, "tokens": of.tokens}
    shape |= {"domains": len(of.domains), "request_tokens": length, "length_spread": 0}
    begin = dict.fromkeys(STATISTICS, 0.5) | {"locality": 1.0}
    return GeneratorSpec.parse({**shape, **begin}), {p: f(real) for p, f in STATISTICS.items()}


def routing(spec: GeneratorSpec, seed: int) -> Routing:
    with tempfile.TemporaryDirectory() as folder:
        experts = np.array(generate(spec, Path(folder) / "trace", seed=seed).trace.routing)
    domain = np.arange(spec.tokens) // spec.request_tokens % spec.domains
    return Routing(experts, domain, spec.request_tokens, spec.experts)


def fit(spec: GeneratorSpec, targets: dict[str, float], seed: int) -> dict[str, float]:
    """The parameters at which the statistics are as in ``targets``, for one seed."""
    found = {name: getattr(spec, name) for name in targets}

    def excess(name: str) -> float:
        made = routing(spec.model_copy(update=found), seed)
        return STATISTICS[name](made) / targets[name] - 1

    for sweep in range(SWEEPS):
        unmet = False
        for name in targets:
            if abs(excess(name)) < TOLERANCE:
                continue
            unmet = True
            upper = UPPER.get(name, 1.0)
            reach = upper / 3**sweep  # what the others' moves can change gets less
            low, high = max(0.0, found[name] - reach), min(upper, found[name] + reach)
            for _ in range(STEPS):
                found[name] = (low + high) / 2
                over = excess(name)
                if abs(over) < TOLERANCE:
                    break
                low, high = (low, found[name]) if over > 0 else (found[name], high)
        if not unmet:
            break
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(words)
    spec, targets = sample()
    found = [fit(spec, targets, seed) for seed in range(options.seeds)]
    for name in targets:
        values = [f[name] for f in found]
        print(f"{name:12} {np.mean(values):.3f} ± {np.std(values):.3f}")
    reuse = [f["reuse"] for f in found]
    held = GeneratorSpec.model_fields["reuse"].default
    margin = 2 * np.std(reuse) / np.sqrt(options.seeds) + 0.005
    agrees = abs(np.mean(reuse) - held) <= margin
    print(f"default of reuse {held}: {'agrees' if agrees else 'DIFFERS'}")
    return 0 if agrees else 6


if __name__ == "__main__":
    sys.exit(main())
