"""What the public serving benchmark ran, where a table of its results does not say it.

Tables of measured runs name engine, lengths, concurrency and image of a run. How many prefill and
decode workers there were, whether attention ran data-parallel and whether the engine drafted is
often left out; the benchmark's recipes say it (:mod:`moesim.calibrate.harness_extract`), and its
launch scripts the engine's limits. Nothing of it is measured.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from typing import ClassVar, Literal

from pydantic import Field

from moesim.calibrate.serving_rows import MeasuredRun, RunLayout, Setup
from moesim.hardware import profiles_folder
from moesim.safe_io import read_text
from moesim.schema import Document

__all__ = ["COLUMNS", "ENGINE_OF", "EngineFlags", "Recipe", "complete_run", "shipped_recipes"]

COLUMNS = (
    *("engine", "system", "model", "precision", "image", "isl", "osl", "concurrency"),
    *("prefill", "decode", "drafts", "first_day", "last_day"),
)

ENGINE_OF = {
    "trt": "trtllm",
    "dynamo-trt": "trtllm",
    "sglang": "sglang",
    "dynamo-sglang": "sglang",
    "vllm": "vllm",
    "dynamo-vllm": "vllm",
}
"""Engines by the name of the benchmark's framework."""

MODELS = {
    "dsr1": r"deepseek-(r1|v3)(-\d{4})?",
    "gptoss": r"gpt-oss-120b",
    "minimaxm2.5": r"minimax-m2\.5",
    "qwen3.5": r"qwen3\.5-397b-a17b",
    "kimik2.5": r"kimi-k2\.5",
    "glm5": r"glm-5",
    "70b": r"llama-3\.[13]-70b(-instruct)?",
}
"""By the benchmark's short name, what names of checkpoints begin with."""


@dataclass(frozen=True)
class Recipe:
    """A set-up that was in force between two days."""

    prefill: tuple[int, RunLayout] | None
    decode: tuple[int, RunLayout]
    drafts: bool
    first_day: str
    last_day: str


class Limit(Document):
    """The larger of a number and a sum over a run's lengths and concurrency."""

    least: int = 1
    isl: int = 0
    concurrency: int = 0
    extra: int = 0

    def of(self, run: MeasuredRun) -> int:
        """The limit of a run."""
        sum_of = self.isl * run.isl + self.concurrency * run.concurrency + self.extra
        return max(self.least, sum_of)


class EngineFlags(Document):
    """Limits that a launch script passes to an engine; None where it leaves the default.

    Attributes:
        engine: The engine.
        systems: Device names without form factor.
        model: Short name, as in :data:`MODELS`.
        precision: Of the checkpoint; any if empty.
        mode: One pool, or prefill and decode workers.
        drafts: Whether it is the launch script of a set-up that drafts.
        tp: Devices; any if 0.
        isl: Input tokens; any if 0.
        kv: Number format of keys and values.
        token_budget: Tokens of a step.
        max_sequences: In flight.
        memory_share: Of the device's memory for weights and cache.
        poll_steps: Decode steps between two looks at the queue.
        script: Where it is set.
    """

    engine: str
    systems: tuple[str, ...]
    model: str
    precision: str = ""
    mode: Literal["agg", "disagg"] = "agg"
    drafts: bool = False
    tp: int = 0
    isl: int = 0
    kv: Literal["", "fp8", "bfloat16"] = ""
    token_budget: Limit | None = None
    max_sequences: Limit | None = None
    memory_share: float | None = Field(default=None, gt=0, le=1)
    poll_steps: int = Field(default=1, ge=1)
    script: str


class HarnessFlags(Document):
    """All of them; the first that fits a run counts."""

    schema_id: ClassVar[str] = "moesim.harness-flags/1"

    source: str
    flags: tuple[EngineFlags, ...]


_Key = tuple[str, str, str, str, int, int, int, bool]


@cache
def shipped_recipes() -> Mapping[_Key, Sequence[tuple[str, Recipe]]]:
    """Images and recipes by what a run states of itself."""
    text = read_text(profiles_folder() / "harness" / "inferencex_recipes.csv")
    found: dict[_Key, list[tuple[str, Recipe]]] = defaultdict(list)
    for row in csv.DictReader(StringIO(text)):
        recipe = Recipe(
            _parsed(row["prefill"]) if row["prefill"] else None,
            _parsed(row["decode"]),
            row["drafts"] == "1",
            row["first_day"],
            row["last_day"],
        )
        for concurrency in row["concurrency"].split():
            key: _Key = (
                *(row["engine"], row["system"], row["model"], row["precision"]),
                *(int(row["isl"]), int(row["osl"]), int(concurrency), bool(row["prefill"])),
            )
            found[key].append((row["image"], recipe))
    return found


@cache
def shipped_flags() -> tuple[EngineFlags, ...]:
    """Limits of the launch scripts."""
    return HarnessFlags.load(profiles_folder() / "harness" / "inferencex_flags.yaml").flags


def _parsed(text: str) -> tuple[int, RunLayout]:
    count, _, sizes = text.partition("xtp")
    first, _, rest = sizes.partition("ep")
    workers, devices, ep = int(count), int(first), int(rest.removesuffix("dp"))
    tp, dp = (1, devices) if rest.endswith("dp") else (devices, 1)
    return workers, RunLayout(tp, dp, max(1, devices // ep), min(ep, devices), 1, "recipe")


def _model_of(run: MeasuredRun) -> str:
    name = run.model.rsplit("/", 1)[-1].lower()
    for short, pattern in MODELS.items():
        if re.match(pattern + r"(?![\w.])", name):
            return short
    return ""


def complete_run(run: MeasuredRun) -> MeasuredRun:
    """A run with what its recipe says of it; as it was, if there is none.

    Where several recipes fit, a run keeps those parts that they share. Whether it drafted stays
    open if one of them does and another does not.
    """
    model = _model_of(run)
    recipes = _recipes_of(run, model)
    draft = {recipe.drafts for recipe in recipes}
    run = replace(run, drafting=draft.pop() if len(draft) == 1 else None)
    run = replace(run, flags=_flags_of(run, model))
    if not recipes or run.mode == "agg" or run.setup == "stated":
        return run
    layouts = dict.fromkeys((recipe.prefill or (0, None), recipe.decode) for recipe in recipes)
    (prefill_workers, prefill), (workers, layout) = next(iter(layouts))
    setup: Setup = "recipe" if len(layouts) == 1 else "recipes"
    return replace(
        run,
        prefill_workers=prefill_workers,
        prefill=prefill,
        workers=workers,
        layout=layout,
        setup=setup,
    )


def _recipes_of(run: MeasuredRun, model: str) -> list[Recipe]:
    """Recipes that a run may be of, those in force when it was measured before others."""
    system = run.system.split("_")[0]
    split = run.mode == "disagg"
    key: _Key = (
        *(run.engine, system, model, run.precision),
        *(run.isl, run.osl, run.concurrency, split),
    )
    named = shipped_recipes().get(key, ())
    same = [recipe for image, recipe in named if image == run.image and _fits(run, recipe)]
    in_force = [one for one in same if one.first_day <= run.date <= one.last_day]
    return in_force or same


def _fits(run: MeasuredRun, recipe: Recipe) -> bool:
    """Whether what a table states of the layout agrees with a recipe.

    The tables repeat the prefill workers' EP for decode workers, and count attention groups as TP.
    """
    if recipe.prefill is None or run.prefill is None:
        return recipe.decode[1].devices == run.layout.devices
    stated, of = (run.prefill, run.layout), (recipe.prefill, recipe.decode)
    if any(a.devices != b.devices for a, (_, b) in zip(stated, of, strict=True)):
        return False
    if run.setup == "stated":
        return (run.prefill_workers, run.workers) == (of[0][0], of[1][0])
    return run.prefill.ep == recipe.prefill[1].ep


def _flags_of(run: MeasuredRun, model: str) -> EngineFlags | None:
    system = run.system.split("_")[0]
    for flags in shipped_flags():
        if (
            (flags.engine, flags.model, flags.mode) == (run.engine, model, run.mode)
            and system in flags.systems
            and flags.precision in ("", run.precision)
            and flags.drafts <= (run.drafting is True)
            and flags.tp in (0, run.layout.devices)
            and flags.isl in (0, run.isl)
        ):
            return flags
    return None


def complete_runs(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """All of them, in their order."""
    return [complete_run(run) for run in runs]
