"""Predicts the figures of offloading papers: make up routing, replay the systems, compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from moesim.model import ModelSpec, load_model
from moesim.offload.replay import replay
from moesim.offload.router_process import (
    RouterProcess,
    fit_to_lru,
    hit_rate,
    router_scores,
    top_k_of,
)
from moesim.offload.scores import lru
from moesim.offload.steps import Steps
from moesim.offload.systems import System, find_system, make_plan
from moesim.offload.tiers import Formats, load_machine
from moesim.offload.token_scheduler import scheduling_gain
from moesim.reports.offload_scenario import OffloadFigure, OffloadScenario, PaperModel, PaperSystem
from moesim.reports.validation import ValidationRow
from moesim.schema import Evidence

__all__ = ["OffloadPaper", "run_offload_scenario"]

Say = Callable[[str], object]


@dataclass(frozen=True)
class OffloadPaper:
    """What was predicted for a scenario.

    Attributes:
        scenario: As read.
        rows: One per published figure.
    """

    scenario: OffloadScenario
    rows: tuple[ValidationRow, ...]


@dataclass(frozen=True)
class _Times:
    """One system on one prompt: seconds of the prefill and of a decode step, hit rate of decode."""

    prefill_s: float
    decode_s: float
    hit_rate: float


class _Runner:
    def __init__(self, scenario: OffloadScenario, seed: int) -> None:
        self.scenario = scenario
        self.seed = seed
        self.machine = load_machine(scenario.hardware)
        self.times = cache(self._times)
        self.process = cache(self._process)
        self.steps = cache(self._steps)

    def model_of(self, model: PaperModel) -> ModelSpec | None:
        return None if model.layers is not None else load_model(model.model)

    def _process(self, model: PaperModel) -> RouterProcess:
        spec = self.model_of(model)
        if spec is not None:
            shape = (len(spec.moe_layers), spec.experts, spec.top_k)
        else:
            shape = (model.layers or 1, model.experts or 2, model.top_k or 1)
        slots = max(1, round(shape[1] * model.fit_share))
        return fit_to_lru(
            *shape, slots, model.fit_lru_hit_rate, batch=model.fit_batch, seed=self.seed
        )

    def _steps(self, model: PaperModel, prompt: int) -> tuple[Steps, Steps]:
        """What systems learn from, and a prefill step with its decode steps."""
        process, before = self.process(model), self.scenario.learned_tokens
        tokens = before + prompt + self.scenario.decode_tokens
        scores = router_scores(process, tokens, self.seed + 1)
        chosen = top_k_of(scores, process.top_k)
        end = before + prompt

        def merged(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values[before:end].sum(axis=0)[None], values[end:]])

        first, rest = np.zeros(before, bool), np.arange(tokens - end + 1)
        learned = Steps(chosen[:before].astype(int), scores[:before], first, 1, np.ones(before), 1)
        served = Steps(
            merged(chosen.astype(int)), merged(scores), rest == 0, 1,
            prompt + np.maximum(rest - 1, 0), 1,
        )  # fmt: skip
        return learned, served

    def _times(self, model: PaperModel, name: str, share: float, prompt: int) -> _Times:
        spec = self.model_of(model)
        assert spec is not None  # noqa: S101 - checked by _value
        asked = self.scenario.systems[name]
        learned, served = self.steps(model, prompt)
        system = _system(asked)
        share = share if asked.slots_share is None else asked.slots_share
        slots = round(spec.experts * share)
        plan = make_plan(system, served, learned, slots, top_k=spec.top_k, seed=self.seed)
        bits = asked.bits or self.scenario.bits
        formats = replace(Formats.same(bits), narrow=asked.narrow_bits)
        run = replay(served.tokens, plan, self.machine.timing(spec, formats, served))
        decode = ~served.prefill
        return _Times(float(run.step_s[0]), float(run.step_s[decode].mean()), run.hit_rate(decode))

    def batch_of_requests(self, model: PaperModel, requests: int, tokens: int) -> np.ndarray:
        """[R, T, L, E] bool, the experts of requests of the same model."""
        process = self.process(model)
        runs = [
            top_k_of(router_scores(process, tokens, self.seed + 1, n), process.top_k)
            for n in range(requests)
        ]
        return np.stack(runs)


def _system(asked: PaperSystem) -> System:
    changes = asked.model_dump(
        exclude={"system", "bits", "narrow_bits", "slots_share"}, exclude_none=True
    )
    return find_system(asked.system, **changes)


def run_offload_scenario(
    path: str | Path, *, seed: int = 0, say: Say = lambda _: None
) -> OffloadPaper:
    """Predict the figures of a scenario file.

    Raises:
        InputError: If the scenario cannot be used.
    """
    scenario = OffloadScenario.load(path)
    runner = _Runner(scenario, seed)
    rows = []
    for figure in scenario.figures:
        say(f"{scenario.id}: {figure.id}")
        values = _values(runner, figure)
        predicted = float(values.max() if figure.most else values.mean()) if values.size else None
        spread = ""
        if values.size > 1:
            spread = f"{values.min():.3g} … {values.max():.3g} over {values.size} set-ups"
        note = f"made-up routing; {spread}" if spread else "made-up routing"
        if figure.not_covered is not None:
            ours = "" if predicted is None else f"; our set-up gives {predicted:.3g}"
            note, predicted = f"not covered: {figure.not_covered}{ours}", None
        rows.append(
            ValidationRow(
                id=f"{scenario.id}:{figure.id}",
                reference=figure.reference,
                predicted=predicted,
                tolerance=figure.tolerance,
                error_kind="relative",
                evidence=None if predicted is None else Evidence.ASSUMED,
                source=f"{scenario.source.url}, {figure.where}",
                note=note,
            )
        )
    return OffloadPaper(scenario, tuple(rows))


def _values(runner: _Runner, figure: OffloadFigure) -> np.ndarray:
    """The figure in every set-up that it is a mean over."""
    models = {model.id: model for model in runner.scenario.models}
    found = []
    for name in figure.models:
        for share in figure.shares:
            for prompt in figure.prompts:
                value = _value(runner, figure, models[name], share, prompt)
                if value is not None:
                    found.append(value)
    return np.array(found)


def _value(
    runner: _Runner, figure: OffloadFigure, model: PaperModel, share: float, prompt: int
) -> float | None:
    process = runner.process(model)
    slots = max(1, round(process.experts * share))
    if figure.kind == "lru-hit-rate":
        tokens = runner.scenario.decode_tokens
        each = runner.batch_of_requests(model, figure.batch, tokens)
        union: np.ndarray = np.asarray(each.any(axis=0))
        return hit_rate(union, lru(union), slots)
    if figure.kind == "scheduler-gain":
        each = runner.batch_of_requests(model, 8 * figure.batch, 1)[:, 0]
        return scheduling_gain(each.reshape(len(each), -1), figure.batch)
    if runner.model_of(model) is None:
        return None
    assert figure.system is not None  # noqa: S101 - checked by the document
    run = runner.times(model, figure.system, share, prompt)
    if figure.kind == "hit-rate":
        return run.hit_rate
    if figure.kind == "hit-if-landed":
        return 1 - (1 - run.hit_rate) * (1 - (figure.recall or 0.0))
    seconds = run.prefill_s if figure.phase == "prefill" else run.decode_s
    if figure.kind == "seconds":
        return seconds
    assert figure.baseline is not None  # noqa: S101 - checked by the document
    base = runner.times(model, figure.baseline, share, prompt)
    return (base.prefill_s if figure.phase == "prefill" else base.decode_s) / seconds
