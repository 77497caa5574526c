"""How good the operators' models must be on rows that a fit has not seen, and whether they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from moesim.calibrate.groups import GroupEvaluation, Rows, evaluate_group
from moesim.calibrate.metrics import Score
from moesim.calibrate.splits import DEALT_FOLDS
from moesim.errors import UsageError

__all__ = [
    "COMM_GOALS",
    "COVERAGE",
    "KERNEL_GOALS",
    "SIZES",
    "Goal",
    "Outcome",
    "Size",
    "chosen_goals",
    "outcomes",
]

Metric = Literal["mape", "median_ape", "p90_ape"]

COVERAGE = (0.75, 0.87)
"""Share of measurements that 80 % intervals must hold, at least and at most."""
WORST = 3
WORST_ROWS = 30
"""Regimes with fewer held-out rows are too small to be called the worst."""


@dataclass(frozen=True)
class Goal:
    """Errors of one job on one split.

    Attributes:
        id: Short name.
        title: For people.
        operators: Scored together.
        split: What the fit must not have seen.
        limits: Largest allowed error by metric, as a share.
        fit_fraction: Share of the rows that is fitted on, if not the split's usual one.
        pair: Needs several systems: those of ``PAIR`` where a single one is chosen.
        whole: Whatever the size, all rows of the systems are scored, in all folds: few rows, a
            fast fit, or a fit that needs them all.
    """

    id: str
    title: str
    operators: tuple[str, ...]
    split: str
    limits: tuple[tuple[Metric, float], ...]
    fit_fraction: float | None = None
    pair: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Size:
    """How much is scored.

    Attributes:
        systems: Of the tables; all if none are named.
        rows_per_kernel: Drawn of each kernel at most; all if not given.
        folds: Into which many shapes are dealt.
    """

    systems: tuple[str, ...]
    rows_per_kernel: int | None
    folds: int


PAIR = ("h100_sxm", "h200_sxm")
SIZES = {
    "quick": Size(("h200_sxm",), 500, 2),
    "usual": Size(PAIR, 1500, 4),
    "full": Size((), None, 8),
}
"""About two minutes of one core, about a quarter of an hour, and hours."""

_SHAPES, _SIZES, _NODES = "leave-shape-out", "leave-size-out", "leave-nodes-out"
_MLA = ("context_mla", "generation_mla", "context_mla_module", "generation_mla_module")
_DEEPEP = ("deepep_normal", "deepep_low_latency")

KERNEL_GOALS = (
    Goal("gemm", "dense GEMM", ("gemm",), _SHAPES, (("median_ape", 0.06),)),
    Goal("prefill", "prefill attention", ("context_attention",), _SHAPES, (("median_ape", 0.08),)),
    Goal("decode", "decode attention", ("generation_attention",), _SHAPES, (("median_ape", 0.08),)),
    Goal("mla", "latent attention", _MLA, _SHAPES, (("median_ape", 0.10),)),
    Goal(
        "moe",
        "expert layers",
        ("moe",),
        _SHAPES,
        (("mape", 0.15), ("median_ape", 0.08), ("p90_ape", 0.36)),
        pair=True,
        whole=True,
    ),
    Goal(
        "moe-tenth",
        "expert layers, a tenth fitted",
        ("moe",),
        "random",
        (("mape", 0.14), ("median_ape", 0.07)),
        fit_fraction=0.1,
        pair=True,
        whole=True,
    ),
)
COMM_GOALS = tuple(
    Goal(name, title, operators, split, (("median_ape", limit),), pair=split == _NODES, whole=True)
    for name, title, operators, split, limit in (
        ("nccl", "NCCL", ("collective",), _SIZES, 0.08),
        ("nccl-ranks", "NCCL, other ranks", ("collective",), _SHAPES, 0.08),
        ("allreduce", "custom all-reduce", ("custom_allreduce",), _SIZES, 0.08),
        ("allreduce-ranks", "custom all-reduce, other ranks", ("custom_allreduce",), _SHAPES, 0.08),
        ("deepep", "DeepEP", _DEEPEP, _SIZES, 0.10),
        ("deepep-shapes", "DeepEP, other models", _DEEPEP, _SHAPES, 0.10),
        ("deepep-nodes", "DeepEP, other numbers of nodes", _DEEPEP, _NODES, 0.10),
    )
)


@dataclass(frozen=True)
class Outcome:
    """A goal and what was found.

    Attributes:
        goal: What was asked.
        found: The scores; absent where nothing could be scored.
        reason: Why not.
    """

    goal: Goal
    found: GroupEvaluation | None
    reason: str = ""

    def worst(self) -> list[tuple[str, Score]]:
        """The regimes and held-out parts with the largest median errors."""
        if self.found is None:
            return []
        parts = [
            (f"{name}: {key}" if len(self.found.members) > 1 else key, score)
            for name, member in self.found.members.items()
            for key, score in {**member.by_regime, **member.by_fold}.items()
            if score.median_ape is not None and score.covered >= WORST_ROWS
        ]
        return sorted(parts, key=lambda part: -(part[1].median_ape or 0.0))[:WORST]


def chosen_goals(goals: tuple[Goal, ...], only: list[str] | None) -> tuple[Goal, ...]:
    """The goals of some ids, in the usual order.

    Raises:
        UsageError: If there is none of that id.
    """
    if only is None:
        return goals
    known = [goal.id for goal in goals]
    for name in only:
        if name not in known:
            raise UsageError(f"no goal {name}\nfix: use one of {', '.join(known)}")
    return tuple(goal for goal in goals if goal.id in only)


def outcomes(
    goals: tuple[Goal, ...],
    source: str,
    size: Size,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Score every goal on held-out rows.

    Args:
        goals: What to score.
        source: Package or folder of the measured tables.
        size: How much of it.
        seed: Of every draw.
        say: Told what is being done.
    """
    for goal in goals:
        systems = size.systems
        if goal.pair and len(systems) == 1:
            systems = PAIR
        rows = Rows(source, list(systems) or None, rows_per_kernel=size.rows_per_kernel)
        if goal.whole:
            rows = replace(rows, rows_per_kernel=None)
        try:
            found = evaluate_group(
                goal.operators,
                rows,
                goal.split,
                fit_fraction=goal.fit_fraction,
                seed=seed,
                folds=DEALT_FOLDS if goal.whole else size.folds,
                say=say,
            )
        except UsageError as error:
            yield Outcome(goal, None, str(error).partition("\n")[0])
        else:
            yield Outcome(goal, found)
