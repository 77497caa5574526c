"""A search's answer as JSON (``moesim.capacity/1``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import moesim
from moesim.capacity.deployments import Played
from moesim.capacity.detail import Detail, bottleneck
from moesim.capacity.flags import launch_flags
from moesim.capacity.frontier import Crossover
from moesim.capacity.search import Answer
from moesim.capacity.why import Loser
from moesim.cost_model import cost_in_words
from moesim.forward.layout import Layout

__all__ = ["capacity_json"]


def capacity_json(
    found: Answer,
    points: list[Played],
    crossovers: list[Crossover],
    losers: list[Loser],
    more: Detail | None,
    solve_s: float,
) -> dict[str, Any]:
    """All of it; ``best`` is None if nothing keeps the targets.

    Args:
        found: By the search.
        points: Of the frontier.
        crossovers: Of TP and EP.
        losers: And why.
        more: Of the best.
        solve_s: Seconds that the search took.
    """
    question = found.question
    best = None
    if found.best is not None:
        best = _entry(found, found.best) | {
            "launch": launch_flags(found.best.plan, found.best.concurrency, question.model),
            "sure": found.best.is_sure(question),
        }
        if more is not None:
            best["memory_bytes_per_device"] = more.decode.memory.total
            best["memory"] = asdict(more.decode.memory)
            best["kv_tokens"] = more.kv_tokens
            best["bottleneck"] = {
                "decode": bottleneck(more.decode), "prefill": bottleneck(more.prefill)
            }  # fmt: skip
    return {
        "schema": "moesim.capacity/1",
        "ok": found.best is not None,
        "model": found.model.name,
        "engine": question.engine,
        "objective": question.objective,
        "cost": str(question.cost) if not found.candidates else cost_in_words(
            question.cost,
            found.model,
            found.candidates[0].formats.experts,
            found.candidates[0].machine.engine,
        ),
        "load": {
            "concurrency": question.concurrency, "rps": question.rps, "isl": question.isl,
            "osl": question.osl, "lengths": question.lengths,
        },
        "targets": {
            "ttft_s": question.ttft_s, "tpot_s": question.tpot_s, "percentile": question.percentile
        },
        "best": best,
        "frontier": [_entry(found, played) for played in points],
        "nearest": [_entry(found, played) for played in found.missed[:3]],
        "crossovers": [asdict(crossover) for crossover in crossovers],
        "runners_up": [asdict(loser) for loser in losers],
        "searched": {
            "layouts": len(found.candidates), "refused": len(found.refused),
            "deployments": len(found.options), "played": len(found.kept) + len(found.missed),
        },
        "solve_s": solve_s,
        "seed": question.seed,
        "version": moesim.__version__,
    }  # fmt: skip


def _entry(found: Answer, played: Played) -> dict[str, Any]:
    """One deployment; intervals are those of 80 %."""
    plan, rate = played.plan, played.tokens_per_s
    own = played.tokens_per_s_per_device
    entry: dict[str, Any] = {
        "name": plan.name,
        "device": plan.candidate.machine.device.name,
        "devices": plan.devices,
        "replicas": plan.workers,
        "layout": _layout(plan.candidate.layout),
        "formats": asdict(plan.candidate.formats),
        "concurrency": played.concurrency,
        "ttft_s": played.ttft_s,
        "ttft_lo_s": played.ttft_s * played.ttft_band[0],
        "ttft_hi_s": played.ttft_s * played.ttft_band[1],
        "tpot_s": played.tpot_s,
        "tpot_lo_s": played.tpot_s * played.tpot_band[0],
        "tpot_hi_s": played.tpot_s * played.tpot_band[1],
        "tokens_per_s": rate,
        "tokens_per_s_per_user": 1 / played.tpot_s if played.tpot_s else None,
        "tokens_per_s_per_device": own,
        "lo": own * played.lo,
        "hi": own * played.hi,
        "usd_per_mtok": found.costs.usd_per_mtok(plan, rate),
        "energy_j_per_token": found.costs.energy_j_per_token(plan, rate),
        "evidence": played.evidence.value,
    }
    if plan.prefill is not None:
        entry["prefill_workers"] = plan.prefill_workers
        entry["prefill_layout"] = _layout(plan.prefill.layout)
    return entry


def _layout(layout: Layout) -> dict[str, Any]:
    return {
        "tp": layout.tp, "dp": layout.dp, "ep": layout.ep, "moe_tp": layout.moe_tp,
        "pp": layout.pp, "dispatch": layout.dispatch, "redundant": layout.redundant,
    }  # fmt: skip
