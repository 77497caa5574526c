"""What our kernels must reach on a GPU, and what a measured file says of it.

A goal without data says so; it neither passes nor fails. Rates are shares of what the same run
measured as the machine's own: a large copy, and the vendor's square product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.kernels.bench_configs import CHOSEN
from moesim.kernels.bench_kernels import OURS

__all__ = ["GOALS", "Goal", "Scored", "peer_ratios", "ratios_text", "score_bench", "score_text"]

Entry = dict[str, Any]
Document = dict[str, Any]

PEER_LOOP, PEER_GROUPED = "torch-loop", "torch-grouped-mm"
PEER_VLLM, PEER_OGS = "vllm-fused-moe", "triton-kernels"


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        id: For JSON.
        text: What is asked.
        must: The bound.
        unit: ``share``, ``ratio`` or ``TFLOP/s``.
        values: The values that a file holds for it, one per case.
        judge: How they make one figure: ``worst``, ``median``, ``geomean``, ``mean``, ``p95`` or
            ``p90``.
        at_most: Whether smaller is better.
    """

    id: str
    text: str
    must: float
    unit: str
    values: Callable[[Document], list[float]]
    judge: str = "worst"
    at_most: bool = False


@dataclass(frozen=True)
class Scored:
    """A goal with what was found.

    Attributes:
        goal: The goal.
        value: The figure; None without data.
        cases: How many cases it rests on.
        ok: Whether it is reached; None without data.
        note: Why there is none.
    """

    goal: Goal
    value: float | None
    cases: int
    ok: bool | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.goal.id,
            "goal": self.goal.text,
            "must": self.goal.must,
            "at_most": self.goal.at_most,
            "judge": self.goal.judge,
            "unit": self.goal.unit,
            "value": self.value,
            "cases": self.cases,
            "ok": self.ok,
            "note": self.note,
        }


def _ours(document: Document, *regimes: str, dtype: str = "bf16") -> Iterator[Entry]:
    """Entries of our kernels with their own choice of configuration."""
    for entry in document["cases"]:
        own = (entry["kernel"], entry["config"], entry["dtype"]) == (OURS, "", dtype)
        if own and entry["regime"] in regimes:
            yield entry


def _mean_rows(entry: Entry) -> float:
    return float(entry["shape"]["rows"]) / max(1, entry["shape"]["active"])


def _of_dense(document: Document, keep: Callable[[Entry], bool], *regimes: str) -> list[float]:
    dense = document["ceilings"].get("dense_flop_per_s")
    found = [e for e in _ours(document, *regimes) if keep(e)]
    return [entry["tflops"] * 1e12 / dense for entry in found] if dense else []


def _is_large(entry: Entry) -> bool:
    """8 to 32 groups of 2048 to 8192 rows, N and K of at least 4096."""
    shape = entry["shape"]
    wide = min(shape["n"], shape["k"]) >= 4096
    return wide and 8 <= shape["experts"] <= 32 and 2048 <= _mean_rows(entry) <= 8192


def _is_ragged_128(entry: Entry) -> bool:
    """128 experts of a mean of 256 rows, Zipf."""
    shape = entry["shape"]
    rows = shape["rows"] / shape["experts"]
    narrow = entry["shape"]["model"] in ("qwen3-30b-a3b", "qwen3-235b-a22b")
    return entry["load"] == "zipf" and shape["experts"] == 128 and rows == 256 and narrow


def _decode(document: Document) -> list[float]:
    """Share of the copy's bandwidth where at least 1 GB of weights are streamed."""
    copy = document["ceilings"].get("copy_bytes_per_s")
    if not copy:
        return []
    found = []
    for entry in _ours(document, "decode"):
        shape = entry["shape"]
        weight_bytes = 2.0 * shape["active"] * shape["n"] * shape["k"]
        if weight_bytes >= 1e9 and _mean_rows(entry) <= 8:
            found.append(entry["bytes_per_s"] / copy)
    return found


def _against(
    peer: str, keep: Callable[[Entry], bool] = lambda _: True, regimes: Sequence[str] = ()
) -> Callable[[Document], list[float]]:
    wanted = tuple(regimes) or ("large", "ragged", "decode", "experts", "choice")

    def values(document: Document) -> list[float]:
        found = [entry for entry in _ours(document, *wanted) if keep(entry)]
        return [entry["ratio_vs"][peer] for entry in found if peer in entry["ratio_vs"]]

    return values


def _many_experts(few: bool) -> Callable[[Entry], bool]:
    def keep(entry: Entry) -> bool:
        rows = entry["shape"]["rows"] / entry["shape"]["experts"]
        return entry["shape"]["experts"] == 128 and (rows <= 256 if few else rows >= 2048)

    return keep


def _fp8(document: Document) -> list[float]:
    return [e["tflops"] for e in _ours(document, "fp8", dtype="fp8") if _mean_rows(e) >= 8192]


def regrets(document: Document) -> list[float]:
    """The choice's time over the best one's − 1, for cases where all configurations were timed."""
    cases: dict[str, dict[str, float]] = {}
    for entry in document["cases"]:
        if (entry["kernel"], entry["regime"]) == (OURS, "choice"):
            cases.setdefault(entry["case"], {})[entry["config"]] = entry["time_s"]
    return [
        times_s[CHOSEN] / min(times_s.values()) - 1
        for times_s in cases.values()
        if CHOSEN in times_s and len(times_s) > 2
    ]


def _errors(document: Document) -> list[float]:
    """Errors of the wave model on held-out loads; it needs torch, so it is imported late."""
    if not any(entry["config"] for entry in document["cases"]):
        return []
    from moesim.kernels.bench_held_out import held_out_errors

    return held_out_errors(document)


GOALS = (
    Goal(
        "large",
        "large groups: share of the dense product's rate",
        0.75,
        "share",
        lambda d: _of_dense(d, _is_large, "large"),
    ),
    Goal(
        "ragged",
        "128 Zipf experts, mean 256 rows: useful share of the dense rate",
        0.50,
        "share",
        lambda d: _of_dense(d, _is_ragged_128, "ragged", "choice"),
    ),
    Goal(
        "decode", "decode, ≤ 8 rows, ≥ 1 GB of weights: share of the copy", 0.85, "share", _decode
    ),
    Goal(
        "loop-few",
        "128 experts, ≤ 256 rows: speed over the cuBLAS loop",
        2.0,
        "ratio",
        _against(PEER_LOOP, _many_experts(True), ("ragged", "decode")),
    ),
    Goal(
        "loop-many",
        "128 experts, ≥ 2048 rows: speed over the cuBLAS loop",
        0.95,
        "ratio",
        _against(PEER_LOOP, _many_experts(False), ("ragged", "decode")),
    ),
    Goal(
        "grouped-mm",
        "speed over torch._grouped_mm, geometric mean",
        1.0,
        "ratio",
        _against(PEER_GROUPED),
        "geomean",
    ),
    Goal(
        "grouped-mm-worst",
        "speed over torch._grouped_mm, worst case",
        0.85,
        "ratio",
        _against(PEER_GROUPED),
    ),
    Goal(
        "grouped-mm-decode",
        "speed over torch._grouped_mm, ≤ 16 rows, geometric mean",
        1.2,
        "ratio",
        _against(PEER_GROUPED, lambda e: _mean_rows(e) <= 16, ("decode",)),
        "geomean",
    ),
    Goal(
        "vllm-decode",
        "expert layer, decode: speed over vLLM's fused MoE, geometric mean",
        1.0,
        "ratio",
        _against(PEER_VLLM, lambda e: _mean_rows(e) <= 8, ("experts",)),
        "geomean",
    ),
    Goal(
        "vllm-prefill",
        "expert layer, ≥ 256 rows: speed over vLLM's fused MoE, geometric mean",
        1.2,
        "ratio",
        _against(PEER_VLLM, lambda e: _mean_rows(e) >= 256, ("experts",)),
        "geomean",
    ),
    Goal(
        "triton-kernels",
        "speed over triton_kernels, geometric mean",
        0.95,
        "ratio",
        _against(PEER_OGS),
        "geomean",
    ),
    Goal("fp8", "fp8 with block scales, 4 × 8192 rows", 900.0, "TFLOP/s", _fp8),
    Goal("regret-mean", "chosen over best configuration, mean", 0.03, "share", regrets, "mean",
         at_most=True),
    Goal("regret-p95", "chosen over best configuration, 95th percentile", 0.10, "share", regrets,
         "p95", at_most=True),
    Goal("error-median", "time predicted on held-out loads, median error", 0.05, "share", _errors,
         "median", at_most=True),
    Goal("error-p90", "time predicted on held-out loads, 90th percentile", 0.15, "share", _errors,
         "p90", at_most=True),
)  # fmt: skip


def score_bench(document: Document) -> list[Scored]:
    """Every goal with what the file says of it.

    Args:
        document: Of :func:`moesim.kernels.bench_file.read_bench`.
    """
    if document["device"] != "cuda":
        note = "no data: measured on a CPU, these goals are a GPU's"
        return [Scored(goal, None, 0, None, note) for goal in GOALS]
    rows = []
    for goal in GOALS:
        values = [value for value in goal.values(document) if np.isfinite(value)]
        if not values:
            rows.append(Scored(goal, None, 0, None, "no data"))
            continue
        value = _judged(np.array(values), goal)
        ok = value <= goal.must if goal.at_most else value >= goal.must
        rows.append(Scored(goal, value, len(values), bool(ok)))
    return rows


def _judged(values: np.ndarray, goal: Goal) -> float:
    match goal.judge:
        case "geomean":
            return float(np.exp(np.log(values).mean()))
        case "mean":
            return float(values.mean())
        case "median":
            return float(np.median(values))
        case "p90" | "p95":
            return float(np.quantile(values, int(goal.judge[1:]) / 100))
        case _:
            return float(values.max() if goal.at_most else values.min())


def peer_ratios(document: Document) -> dict[str, dict[str, float]]:
    """Geometric mean of each peer's time over ours, by regime; above 1 ours is faster."""
    found: dict[str, dict[str, list[float]]] = {}
    for entry in document["cases"]:
        if (entry["kernel"], entry["config"]) == (OURS, ""):
            for peer, ratio in entry["ratio_vs"].items():
                found.setdefault(entry["regime"], {}).setdefault(peer, []).append(ratio)
    return {
        regime: {peer: float(np.exp(np.log(own).mean())) for peer, own in peers.items()}
        for regime, peers in found.items()
    }


def ratios_text(ratios: dict[str, dict[str, float]]) -> str:
    """:func:`peer_ratios` as a table."""
    peers = sorted({peer for own in ratios.values() for peer in own})
    lines = [f"{'time over ours':<16}" + "".join(f"{peer:>18}" for peer in peers)]
    for regime, own in ratios.items():
        cells = (f"{own[peer]:.2f}×" if peer in own else "-" for peer in peers)
        lines.append(f"{regime:<16}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def score_text(rows: Sequence[Scored]) -> str:
    """The table for people."""
    lines = [f"{'goal':<68}{'must':>10}{'found':>10}{'cases':>7}"]
    for row in rows:
        goal = row.goal
        sign = "≤" if goal.at_most else "≥"
        must = f"{sign} {_shown(goal.must, goal.unit)}"
        found = "-" if row.value is None else _shown(row.value, goal.unit)
        verdict = {True: "yes", False: "NO", None: row.note}[row.ok]
        lines.append(f"{goal.text:<68}{must:>10}{found:>10}{row.cases:>7}  {verdict}")
    return "\n".join(lines)


def _shown(value: float, unit: str) -> str:
    return {"share": f"{value:.1%}", "ratio": f"{value:.2f}×"}.get(unit, f"{value:.0f}")
