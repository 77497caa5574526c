"""Synthetic traces like real models: the fit of their parameters, and what they show.

    python -m tests.benchmarks.likeness [--model NAME] [--json]
    python -m tests.benchmarks.likeness --fit [--write] [--model NAME]

Without --fit, every model of traces/likeness.json is generated with the parameters that it has and
its statistics stand beside the published ones. --fit finds the parameters anew: least squares on
all figures marked as fitted, in their own units, SRP and SCH at 16 tokens with three times the
weight, load deviation with four. The fit runs on few layers; what all layers show differs a little
where layers share a cache, so the difference is measured on all layers and the fit repeated against
targets moved by it. --write stores parameters and generated figures, and makes traces/likeness.md.
The exit status is 6 if SRP or SCH at 16 tokens is off by more than 1.5 points, or a fitted hit rate
by more than 2.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moesim.traces import likeness
from moesim.traces.generate import generate
from moesim.traces.likeness import Figure, Likeness, find_likeness, likenesses
from moesim.traces.synthetic_spec import GeneratorSpec
from tests.benchmarks import likeness_table
from tests.benchmarks.routing_statistics import statistic

FIT_LAYERS, FIT_TOKENS = 6, 24_576
TOKENS = 16_384
SEEDS = (0, 1)  # other than the fit's
FIT_SEED = 7
DOMAIN_SHARE = 0.4  # of the affinity: assumptions in likeness.json
WEIGHTS = {"srp-16": 3.0, "sch-16": 3.0, "load-deviation": 4.0, "rank-imbalance": 100.0}
STEP = 0.15  # of the transformed parameters, for the derivatives
ITERATIONS = 6
POINTS = {"srp-16": 1.5, "sch-16": 1.5}  # allowed; 2 for fitted hit rates
HIT_RATES = ("lfu", "lru", "oracle")


def to_free(name: str, value: float, topics: int) -> float:
    """A parameter on a scale without bounds."""
    if name == "skew":
        return float(np.log(value))
    share = (value - 1) / (topics - 1) if name == "request_topics" else value
    share = min(max(share, 1e-3), 1 - 1e-3)
    return float(np.log(share / (1 - share)))


def from_free(name: str, value: float, topics: int) -> float:
    if name == "skew":
        return float(np.exp(min(value, 1.3)))
    share = float(1 / (1 + np.exp(-np.clip(value, -7, 7))))
    return 1 + share * (topics - 1) if name == "request_topics" else share


def start(name: str, topics: int) -> float:
    if name == "request_topics":
        return min(4.0, (1 + topics) / 2)
    return {"skew": 0.5, "affinity": 0.8, "locality": 0.8, "domain_shift": 0.8}[name]


def completed(found: dict[str, float]) -> dict[str, float]:
    """With the parameters that are assumed."""
    return {"domains": 4, "domain_shift": DOMAIN_SHARE * found["affinity"], **found}


def measure(spec: GeneratorSpec, names: list[str], seed: int) -> np.ndarray:
    """[statistics] of one trace."""
    with tempfile.TemporaryDirectory() as folder:
        trace = generate(spec, Path(folder) / "trace", seed=seed).trace
        return np.array([statistic(name, trace, spec, seed) for name in names])


def least_squares(residuals: Callable[[np.ndarray], np.ndarray], free: np.ndarray) -> np.ndarray:
    """Damped Gauss–Newton with wide difference quotients: the statistics are random variables."""
    now = residuals(free)
    damping = 0.01
    for _ in range(ITERATIONS):
        shifted = [residuals(free + STEP * unit) for unit in np.eye(free.size)]
        slope = (np.array(shifted) - now).T / STEP
        square = slope.T @ slope
        ridge = np.diag(np.diag(square)) + 1e-3 * np.eye(free.size)
        for _ in range(4):
            move = -np.linalg.solve(square + damping * ridge, slope.T @ now)
            new = free + np.clip(move, -1.5, 1.5)
            after = residuals(new)
            if after @ after < now @ now:
                break
            damping *= 5
        else:
            return free
        gain = 1 - (after @ after) / (now @ now)
        free, now, damping = new, after, damping / 5
        if gain < 0.02:
            return free
    return free


def fit(name: str, like: Likeness, say: Callable[[str], None]) -> dict[str, float]:
    """The parameters of a model, found anew."""
    base = dict(find_likeness(like.borrow).parameters) if like.borrow else {}
    fitted = [f for f in like.figures if f.role == "fitted"]
    names = [f.statistic for f in fitted]
    weights = np.array([WEIGHTS.get(n, 1.0) for n in names])
    topics = like.model_copy(update={"parameters": {"affinity": 0.5}}).spec(name).topic_count
    if like.borrow:  # as many of the topics as there
        other = find_likeness(like.borrow)
        base["request_topics"] *= topics / other.spec(like.borrow).topic_count
    begin = np.array([to_free(p, start(p, topics), topics) for p in like.fit])

    def spec(free: np.ndarray, layers: int, tokens: int) -> GeneratorSpec:
        found = base | {p: from_free(p, x, topics) for p, x in zip(like.fit, free, strict=True)}
        few = {"layers": layers, "moe_layers": (), "parameters": completed(found)}
        return like.model_copy(update=few).spec(name).model_copy(update={"tokens": tokens})

    few_layers = min(like.layers, FIT_LAYERS)
    targets = np.array([f.published for f in fitted])
    moved = targets.copy()
    best = begin
    for round_ in range(2):

        def residuals(free: np.ndarray, aim: np.ndarray = moved) -> np.ndarray:
            shown = measure(spec(free, few_layers, FIT_TOKENS), names, FIT_SEED)
            # A weak pull to the start decides where the figures do not.
            return np.concatenate([(shown - aim) * weights, 0.05 * (free - begin)])

        best = least_squares(residuals, best)
        if few_layers == like.layers or round_:
            break
        few = measure(spec(best, few_layers, FIT_TOKENS), names, FIT_SEED)
        full = measure(spec(best, like.layers, FIT_TOKENS), names, FIT_SEED)
        moved = targets - (full - few)
        say(f"{name}: all layers differ by {np.round(full - few, 2)}")
    found = base | {p: from_free(p, x, topics) for p, x in zip(like.fit, best, strict=True)}
    return {p: round(v, 4) for p, v in completed(found).items()}


def shown(name: str, like: Likeness) -> Likeness:
    """The same with the figures generated anew."""
    names = [f.statistic for f in like.figures]
    spec = like.spec(name).model_copy(update={"tokens": TOKENS})
    values = np.array([measure(spec, names, seed) for seed in SEEDS])
    figures = tuple(
        f.model_copy(
            update={"generated": round(float(v.mean()), 3), "spread": round(float(np.ptp(v)), 3)}
        )
        for f, v in zip(like.figures, values.T, strict=True)
    )
    return like.model_copy(update={"figures": figures})


def allowed(figure: Figure) -> float | None:
    """Largest residual, or None if nothing is asked."""
    if figure.role == "fitted" and figure.statistic.partition("-")[0] in HIT_RATES:
        return 2.0
    return POINTS.get(figure.statistic)


def ok(like: Likeness) -> bool:
    limits = [(abs(f.residual), allowed(f)) for f in like.figures]
    return all(residual <= limit for residual, limit in limits if limit is not None)


def write(document: dict[str, Any]) -> None:
    """Store the file with one line per figure."""
    marks: dict[str, str] = {}

    def line(value: Any) -> str:
        marks[mark] = json.dumps(value)
        return mark

    document = json.loads(json.dumps(document))
    for model in document["models"].values():
        for key in ("moe_layers", "fit", "parameters"):
            mark = f"@{len(marks)}@"
            model[key] = line(model[key])
        rows = []
        for figure in model["figures"]:
            mark = f"@{len(marks)}@"
            rows.append(line(figure))
        model["figures"] = rows
    text = json.dumps(document, indent=1)
    for mark, value in marks.items():
        text = text.replace(f'"{mark}"', value, 1)
    path = Path(likeness.__file__).with_name(likeness.FILE)
    path.write_text(text + "\n", encoding="utf-8")


def store(name: str, like: Likeness) -> None:
    # Read anew: another run may have written another model.
    likenesses.cache_clear()
    known = likenesses()
    data = known.model_copy(update={"models": {**known.models, name: like}})
    write(data.to_dict())
    likenesses.cache_clear()
    if all(like.parameters for like in likenesses().models.values()):
        likeness_table.main()


def table(name: str, like: Likeness) -> str:
    kept = ", ".join(f"{p} {v:.4g}" for p, v in like.parameters.items())
    lines = [f"{name}: {kept}"]
    for f in like.figures:
        limit = allowed(f)
        late = "  OFF" if limit is not None and abs(f.residual) > limit else ""
        lines.append(
            f"  {f.statistic:16} published {f.published:8.3f}  generated {f.generated or 0:8.3f} "
            f"± {f.spread or 0:.3f}  residual {f.residual:+7.3f}  {f.role}{late}"
        )
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=[*likenesses().models], action="append", help="only it")
    parser.add_argument("--fit", action="store_true", help="find the parameters anew")
    parser.add_argument("--write", action="store_true", help="store what was found and generated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(words)
    results = {}
    for name in options.model or likenesses().models:
        like = find_likeness(name)
        if options.fit:
            found = fit(name, like, lambda text: print(text, file=sys.stderr, flush=True))
            like = like.model_copy(update={"parameters": found})
        results[name] = like = shown(name, like)
        if options.write:
            store(name, like)
        if not options.json:
            print(table(name, like), flush=True)
    fine = all(map(ok, results.values()))
    if options.json:
        models = {name: like.model_dump(mode="json") for name, like in results.items()}
        schema = "moesim.benchmark-likeness/1"
        print(json.dumps({"schema": schema, "ok": fine, "models": models}))
    return 0 if fine else 6


if __name__ == "__main__":
    sys.exit(main())
