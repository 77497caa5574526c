"""Operators scored together: one name for all that do one job, and rows drawn for a quick look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.calibrate.metrics import Score, score
from moesim.calibrate.operator import Evaluation, evaluate
from moesim.calibrate.registry import CALIBRATED, calibrated_operator, default_versions
from moesim.calibrate.splits import DEALT_FOLDS
from moesim.calibrate.tables import PACKAGE
from moesim.errors import UsageError

__all__ = ["GROUPS", "GroupEvaluation", "Rows", "drawn", "evaluate_group", "members"]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("context_attention", "generation_attention"),
    "mla": (
        *("context_mla", "generation_mla", "context_mla_module", "generation_mla_module"),
        *("wideep_context_mla", "wideep_generation_mla", "mla_bmm"),
    ),
    "small": ("compute_scale", "scale_matrix", "hyper_connection"),
    "linear": ("gdn", "kda", "mamba2"),
    "comm": (
        *("collective", "custom_allreduce", "deepep_normal", "deepep_low_latency"),
        *("moe_all_to_all", "trtllm_alltoall"),
    ),
}
"""Names that stand for several operators."""


@dataclass(frozen=True)
class Rows:
    """Which measured rows are scored.

    Attributes:
        source: Package or folder of the measured tables.
        systems: Only these, if given.
        engines: Only these, if given.
        versions: As of ``Catalogue.select``; by default the newest, or all where a split or an
            operator needs the older ones.
        rows_per_kernel: Draw at most so many rows of each kernel before anything else.
    """

    source: str = PACKAGE
    systems: list[str] | None = None
    engines: list[str] | None = None
    versions: str | list[str] | None = None
    rows_per_kernel: int | None = None


@dataclass(frozen=True)
class GroupEvaluation:
    """Operators scored on held-out rows, one by one and together.

    Attributes:
        members: By operator.
        hygiene: By operator, what was dropped.
        skipped: By operator, why it was not scored.
        systems: Of all rows.
        predicted_s: By operator, of the held-out rows that have a prediction.
        measured_s: Same rows.
        score: Over the held-out rows of all members.
    """

    members: dict[str, Evaluation]
    hygiene: dict[str, dict[str, Any] | None]
    skipped: dict[str, str]
    systems: tuple[str, ...]
    predicted_s: dict[str, np.ndarray]
    measured_s: dict[str, np.ndarray]
    score: Score

    def to_dict(self) -> dict[str, Any]:
        """For JSON: one operator as itself; several with their names before regimes and folds."""
        if len(self.members) == 1 and not self.skipped:
            (name,) = self.members
            return {**self.members[name].to_dict(), "hygiene": self.hygiene[name]}
        result: dict[str, Any] = {**self.score.to_dict(), "by_regime": {}, "by_fold": {}}
        result |= {"coefficients": {}, "hygiene": self.hygiene, "skipped": self.skipped}
        for name, found in self.members.items():
            plain = found.to_dict()
            result["by_regime"][f"operator={name}"] = found.score.to_dict()
            for part in ("by_regime", "by_fold"):
                result[part] |= {f"{name}, {key}": value for key, value in plain[part].items()}
            result["coefficients"] |= {
                f"{name}, {fold}": value for fold, value in plain["coefficients"].items()
            }
        return result


def members(name: str) -> tuple[str, ...]:
    """The operators that a name stands for: those of a group, or itself.

    Raises:
        UsageError: If there is neither a group nor an operator of that name.
    """
    if name in GROUPS:
        return GROUPS[name]
    if name not in CALIBRATED:
        raise UsageError(
            f"no fitted model of operator {name}\n"
            f"fix: use one of {', '.join((*GROUPS, *CALIBRATED))}"
        )
    return (name,)


def drawn(table: Any, rows_per_kernel: int | None, seed: int) -> Any:
    """At most so many rows of each kernel, at random; the draw is the same for the same seed.

    A kernel is what has coefficients of its own: of attention also a head size and a variant.
    """
    frame = table.frame
    if rows_per_kernel is None:
        return table
    names = (
        *("system", "engine", "version", "kernel", "dtype", "kv_dtype", "gemm_dtype"),
        *("head_dim", "variant", "phase", "stage"),
    )
    kernels = frame.groups([name for name in names if name in frame.columns])
    order = np.random.default_rng(seed).permutation(len(frame))
    order = order[np.argsort(kernels[order], kind="stable")]
    first = np.searchsorted(kernels[order], np.arange(int(kernels.max()) + 1))
    rank = np.arange(len(frame)) - first[kernels[order]]
    return _taken(table, np.sort(order[rank < rows_per_kernel]))


def evaluate_group(
    names: Sequence[str],
    rows: Rows,
    kind: str,
    *,
    fit_fraction: float | None = None,
    seed: int = 0,
    hold_out: Sequence[str] = (),
    residual: bool = False,
    folds: int = DEALT_FOLDS,
    say: Callable[[str], None] = lambda _: None,
) -> GroupEvaluation:
    """Score operators on rows that their fits have not seen; see ``evaluate``.

    Args:
        names: Of the operators.
        rows: Which rows.
        kind: The split.
        fit_fraction: Share of the rows to fit on.
        seed: Of every draw.
        hold_out: Judge only these held-out parts.
        residual: Add the learned residual.
        folds: Into which many shapes are dealt.
        say: Told what is being done.

    Raises:
        UsageError: If none of the operators can be scored; of one alone, its own reason.
    """
    found: dict[str, Evaluation] = {}
    hygiene: dict[str, dict[str, Any] | None] = {}
    skipped: dict[str, str] = {}
    seen: set[str] = set()
    scored: dict[str, tuple[np.ndarray, ...]] = {}
    for name in names:
        model = calibrated_operator(name, residual=residual)
        wanted = rows.versions or _versions(name, kind)
        try:
            say(f"{name}: reading")
            table = model.load(rows.source, rows.systems, wanted, rows.engines)
            table = drawn(table, rows.rows_per_kernel, seed)
            say(f"{name}: fitting and predicting")
            result = evaluate(
                model,
                table,
                kind,
                fit_fraction=fit_fraction,
                seed=seed,
                hold_out=hold_out,
                folds=folds,
            )
        except UsageError as error:
            if len(names) == 1:
                raise
            skipped[name] = str(error).partition("\n")[0]
            continue
        found[name] = result
        hygiene[name] = table.report.to_dict() if table.report is not None else None
        seen |= set(table.frame.text("system"))
        tested = np.isfinite(result.predicted_s)
        ends = (end[tested] for end in result.interval.ends())
        scored[name] = (result.predicted_s[tested], table.frame["latency_s"][tested], *ends)
    if not found:
        raise UsageError("; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    joined = [np.concatenate(column) for column in zip(*scored.values(), strict=True)]
    total = sum(one.score.rows for one in found.values())
    return GroupEvaluation(
        found,
        hygiene,
        skipped,
        tuple(sorted(seen)),
        {name: columns[0] for name, columns in scored.items()},
        {name: columns[1] for name, columns in scored.items()},
        replace(score(*joined), rows=total),
    )


def _versions(name: str, kind: str) -> str:
    """Versions that a split of an operator needs, unless others are named."""
    if kind in ("leave-version-out", "leave-nodes-out"):
        return "all"
    return "newest" if kind == "leave-shape-out" else default_versions(name)


def _taken(table: Any, rows: np.ndarray) -> Any:
    """Some rows of a table; tables that keep more than a frame have a ``take`` of their own."""
    if hasattr(table, "take"):
        return table.take(rows)
    return type(table)(table.frame.take(rows), table.report)
