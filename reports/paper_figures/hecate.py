"""Hecate's figures from the balanced training simulator and counts of its models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from moesim.model import load_model
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.schema import Evidence
from moesim.training.balance.request import BalancedAnswer, BalancedRequest, run_balanced

__all__ = ["predict"]

SCENARIOS = Path(__file__).parents[1] / "scenarios"
SEQUENCES = {
    "gpt_moe_s": (2048, 2),
    "gpt_moe_l": (2048, 2),
    "bert_moe": (512, 16),
    "bert_moe_deep": (512, 16),
}
"""Tokens of a sequence (table 1) and sequences of a device by model."""
HALF = ("prune:32",)
"""Two nodes have half the experts (section 5.1)."""
ROUTING = "zipf:0.65"
INTERVALS = (10, 20, 50, 100)
"""Iterations between shardings; a request's interval is a tenth of Hecate's."""


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Speed-ups per cluster, memory, and parameters."""
    del paper
    found = {}
    for cluster in ("a16", "a32", "b32"):
        gains = [_run(cluster, model).speedup for model in SEQUENCES]
        found[f"{cluster}-least"], found[f"{cluster}-most"] = min(gains), max(gains)
    kept, again = _run("a32", "gpt_moe_s"), _run("a32", "gpt_moe_s", "hecate-rm")
    flex, near = _run("a32", "gpt_moe_s", "flexmoe"), _run("b32", "gpt_moe_s")
    plain, own = kept.plain.memory, kept.step.memory
    found["memory-parameters"] = own.weights / plain.weights
    found["memory"] = own.total / plain.total
    found["memory-again"] = again.step.memory.total / plain.total
    found["memory-flexmoe"] = flex.step.memory.total / own.total
    found["again-slower"] = again.step.step_s / kept.step.step_s
    found["moe-layer"] = near.plain.moe_s / near.step.moe_s
    sharded = _run("a32", "gpt_moe_s", room=0)
    found["sharding-alone"] = sharded.step.step_s / kept.step.step_s
    re_sharded = [_run("a32", "gpt_moe_s", interval=every // 10).speedup for every in INTERVALS]
    found["intervals"] = max(re_sharded) / min(re_sharded)
    deep = _run("b32", "bert_moe_deep")
    found["alltoall"] = deep.plain.alltoall_s / deep.step.alltoall_s
    result = {name: Prediction(value, evidence=Evidence.ASSUMED) for name, value in found.items()}
    for model in SEQUENCES:
        count = load_model(_path(model)).parameters
        parameters = float(count.routed_experts + count.mixers)
        result[f"parameters-{model.replace('_', '-')}"] = Prediction(
            parameters, evidence=Evidence.SPEC, note="experts and attention"
        )
    return result


def _path(model: str) -> str:
    return str(SCENARIOS / "models" / f"hecate_{model}.json")


@cache
def _run(cluster: str, model: str, system: str = "hecate", **fields: Any) -> BalancedAnswer:
    sequence, batch = SEQUENCES[model]
    return run_balanced(
        BalancedRequest(
            _path(model),
            str(SCENARIOS / "clusters" / f"hecate_{cluster}.yaml"),
            system,
            sequence,
            batch,
            ROUTING,
            # FlashAttention needs a newer device than the V100 of cluster A.
            flash_attention=cluster == "b32",
            transforms=HALF if cluster == "a16" else (),
            **fields,
        )
    )
