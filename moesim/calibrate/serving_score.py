"""Predictions of measured serving runs, held out or by the shipped fit, and how good they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from typing import Literal

import numpy as np

from moesim.calibrate.harness import complete_runs
from moesim.calibrate.serving_fit import fit_serving
from moesim.calibrate.serving_model import Predicted, ServingModel
from moesim.calibrate.serving_rows import MeasuredRun, Refused
from moesim.calibrate.serving_setups import RunParts, describe_run
from moesim.serving.coefficients import family_of

__all__ = ["Quantity", "Scored", "describe_runs", "held_out", "predict_runs", "score_lines"]

Quantity = Literal["tpot", "ttft"]

CHUNK = 24
"""Runs per task of the pool: neighbours share their step tables."""


@dataclass(frozen=True)
class Scored:
    """A run with its prediction."""

    parts: RunParts
    predicted: Predicted

    def error(self, quantity: Quantity) -> float:
        """Predicted over measured, less 1."""
        if quantity == "tpot":
            return self.predicted.tpot_s / self.parts.run.tpot_s - 1
        return self.predicted.ttft_s / self.parts.run.ttft_s - 1

    def inside(self, quantity: Quantity) -> bool:
        """Whether the measurement lies in the 80 % interval."""
        of, run = self.predicted, self.parts.run
        if quantity == "tpot":
            return of.tpot_lo_s <= run.tpot_s <= of.tpot_hi_s
        return of.ttft_lo_s <= run.ttft_s <= of.ttft_hi_s


def describe_runs(
    runs: Sequence[MeasuredRun], say: Callable[[str], object] = lambda _: None
) -> tuple[list[RunParts], list[Refused]]:
    """Parts of all runs, in their order; equal set-ups are simulated once, on all cores.

    Args:
        runs: As read.
        say: Told how far it has come.
    """
    runs = complete_runs(runs)
    wanted = {(run.configuration, run.date): run for run in runs}
    order = sorted(wanted.values(), key=lambda r: (r.system, r.model, r.engine, str(r.layout)))
    found: dict[object, RunParts | str] = {}
    with ProcessPoolExecutor(min(cpu_count() or 1, max(1, len(order) // CHUNK))) as pool:
        for run, parts in zip(order, pool.map(describe_run, order, chunksize=CHUNK), strict=True):
            found[run.configuration, run.date] = parts
            if len(found) % 50 == 0:
                say(f"simulating measured set-ups: {len(found)} of {len(order)}")
    described, refused = [], []
    for run in runs:
        parts = found[run.configuration, run.date]
        if isinstance(parts, str):
            refused.append(Refused(run.id, parts))
        else:
            described.append(replace(parts, run=run))
    return described, refused


def predict_runs(
    runs: Sequence[RunParts], model: ServingModel, *, residual: bool = True
) -> list[Predicted]:
    """Predictions in the order of the runs."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for place, run in enumerate(runs):
        groups[run.run.engine, family_of(run.run.system), run.run.mode].append(place)
    found: dict[int, Predicted] = {}
    for key, places in groups.items():
        fit = model.find(*key)
        own = [runs[place] for place in places]
        known = [fit.drafts(run) for run in own]
        other = [
            not drafting if judged_by_residual(run) else drafting
            for run, drafting in zip(own, known, strict=True)
        ]
        for place, run, *ways in zip(
            places, own, *(fit.predict(own, residual, way) for way in (known, other)), strict=True
        ):
            found[place] = min(ways, key=lambda way: abs(np.log(way.tpot_s / run.run.tpot_s)))
    return [found[place] for place in range(len(runs))]


def judged_by_residual(run: RunParts) -> bool:
    """Whether only the measured time tells if a run drafted: its recipes say either."""
    return run.drafts and run.run.mode == "disagg" and run.run.drafting is None


def open_layout(run: RunParts) -> bool:
    """Whether numbers of workers are assumed, or those of one of several recipes."""
    return run.run.setup in ("assumed", "recipes")


def known_setup(run: RunParts) -> bool:
    """Whether nothing of a run's set-up is assumed or told by its own measurement."""
    return not judged_by_residual(run) and not open_layout(run)


def held_out(
    runs: Sequence[RunParts],
    parts: Sequence[object],
    *,
    residual: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> list[Predicted]:
    """Each part predicted by a fit to all others.

    Args:
        runs: Measured.
        parts: By run, which part it belongs to.
        residual: See :meth:`~moesim.calibrate.serving_model.GroupFit.predict`.
        say: Told which part is fitted.
    """
    found: list[Predicted | None] = [None] * len(runs)
    names = sorted(set(parts), key=str)
    for number, name in enumerate(names, 1):
        say(f"fitting without part {number} of {len(names)}")
        rest = [run for run, part in zip(runs, parts, strict=True) if part != name]
        own = [place for place, part in enumerate(parts) if part == name]
        model = fit_serving(rest)
        predicted = predict_runs([runs[place] for place in own], model, residual=residual)
        for place, one in zip(own, predicted, strict=True):
            found[place] = one
    return [one for one in found if one is not None]


def folds_of(runs: Sequence[RunParts], folds: int, seed: int) -> list[int]:
    """A fold for every run; runs of one configuration share it."""
    names = sorted({str(run.run.configuration) for run in runs})
    dealt = np.random.default_rng(seed).permutation(len(names)) % folds
    by_name = dict(zip(names, dealt.tolist(), strict=True))
    return [by_name[str(run.run.configuration)] for run in runs]


def models_of(runs: Sequence[RunParts]) -> list[str]:
    """The model of every run, by its published name without maker and number format."""
    return [run.run.model.rsplit("/", 1)[-1].split("-FP8")[0].split("-NVFP4")[0] for run in runs]


CLASSES: tuple[tuple[str, Quantity, str, bool | None, dict[str, float]], ...] = (
    ("tpot, one pool, MoE", "tpot", "agg", False, {"median": 0.065, "mape": 0.11, "p90": 0.24}),
    ("ttft, one pool", "ttft", "agg", None, {"median": 0.20, "mape": 0.30}),
    ("tpot, prefill and decode workers", "tpot", "disagg", None, {"median": 0.10}),
    ("ttft, prefill and decode workers", "ttft", "disagg", None, {"median": 0.25}),
    ("tpot, dense models", "tpot", "agg", True, {"median": 0.08}),
)
"""Name, quantity, mode, dense or not, and the goals for shares of error."""


PARTS: tuple[tuple[str, Callable[[Scored], bool]], ...] = (
    ("runs that do not draft", lambda one: not one.predicted.drafts),
    ("set-up known beside the measurement", lambda one: known_setup(one.parts)),
    ("drafting told by the measured time", lambda one: judged_by_residual(one.parts)),
    ("layout assumed, or one of several", lambda one: open_layout(one.parts)),
)
"""What is counted apart within a class as well."""


UNSEEN_MODEL_GOALS = {"tpot, one pool, MoE": {"median": 0.10, "mape": 0.14}}
"""By class, where the fit has seen no run of the model."""


def score_lines(scored: Sequence[Scored], *, unseen_model: bool = False) -> list[dict[str, object]]:
    """Errors by class of runs, by engine and system within, and by model.

    Args:
        scored: Runs with their predictions.
        unseen_model: Whether these come from fits without a run's model: other goals.
    """
    lines = []
    for name, quantity, mode, dense, goals in CLASSES:
        own = [
            one
            for one in scored
            if one.parts.run.mode == mode and (dense is None or _dense(one) == dense)
        ]
        if not own:
            continue
        line = _line(name, quantity, own)
        goals = UNSEEN_MODEL_GOALS.get(name, {}) if unseen_model else goals
        line["goals"] = goals
        line["ok"] = all(float(str(line[key])) <= limit for key, limit in goals.items())
        line["parts"] = [
            _line(title, quantity, part)
            for title, of in PARTS
            if 0 < len(part := [one for one in own if of(one)]) < len(own)
        ]
        line["by"] = [
            _line(key, quantity, [one for one in own if _names(one, which) == key])
            for which in ("engine and system", "model")
            for key in sorted({_names(one, which) for one in own})
        ]
        lines.append(line)
    return lines


def repeat_noise(runs: Sequence[RunParts]) -> dict[str, float]:
    """How far repeats of one configuration lie from their median, as shares of TPOT."""
    by: dict[object, set[float]] = defaultdict(set)
    for run in runs:
        by[run.run.configuration].add(run.run.tpot_s)
    off = [
        abs(value / float(np.median(list(values))) - 1)
        for values in by.values()
        if len(values) > 1
        for value in values
    ]
    if not off:
        return {"n": 0}
    return {
        "n": len(off),
        "median": float(np.median(off)),
        "mean": float(np.mean(off)),
        "worst": float(max(off)),
    }


def _dense(one: Scored) -> bool:
    return not any(one.parts.tpot[2:4])


def _names(one: Scored, which: str) -> str:
    run = one.parts.run
    return f"{run.engine} {run.system}" if which != "model" else models_of([one.parts])[0]


def _line(name: str, quantity: Quantity, own: Sequence[Scored]) -> dict[str, object]:
    off = np.abs([one.error(quantity) for one in own])
    return {
        "name": name,
        "quantity": quantity,
        "n": len(own),
        "median": float(np.median(off)),
        "mape": float(off.mean()),
        "p90": float(np.quantile(off, 0.9)),
        "bias": float(np.median([one.error(quantity) for one in own])),
        "interval_coverage": float(np.mean([one.inside(quantity) for one in own])),
    }
