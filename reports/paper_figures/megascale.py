"""MegaScale-MoE's figures from the training simulator, its closed forms of bytes, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from moesim.model import load_model
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.schema import Evidence
from moesim.training.flops import training_flops_per_token
from moesim.training.outcome import TrainingStep
from moesim.training.request import TrainingRequest, run_training
from moesim.training.volumes import (
    attention_sp_bytes,
    attention_tp_bytes,
    expert_parallel_bytes,
    expert_tensor_bytes,
    prefers_alltoall,
)

__all__ = ["predict"]

SCENARIOS = Path(__file__).parents[1] / "scenarios"
MODEL = str(SCENARIOS / "megascale-352b.json")
TABLE_2 = (
    MODEL,
    "mixtral-8x7b",
    "mixtral-8x22b",
    "phi-3.5-moe",
    str(SCENARIOS / "models" / "megascale_hunyuan_large.json"),
    str(SCENARIOS / "models" / "megascale_deepseekmoe.json"),
)
ONE_NODE_BATCH = 32
SEQUENCE, BATCH, STAGES = 8192, 720, 15
GPUS = (240, 480, 960, 1440)
WEAK = {480: 360, 1440: 1080}
"""Batch by GPUs where the batch grows with them (smallest and largest)."""
PRINTED_S = {240: 21.61, 480: 11.83, 960: 6.12, 1440: 4.19}
"""MegaScale's iteration times of table 3, which its utilisation is counted from."""
PRINTED_PEAK = 989e12
"""FLOP/s of table 4."""
NODE = 8
MEGATRON_TP = 4
"""Largest size below a node's 8 that divides the heads: what the paper says it was tuned under."""
TENSOR = {"tp": NODE, "ep": 1, "expert_tp": NODE, "overlap": "none"}
"""The ablation's start: attention and experts cut over a node, nothing hidden."""
ROUTING = "zipf:0.25"
CHUNKS = 2


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Iterations, ratios of them, bytes and counts."""
    del paper
    return _iterations() | _ablation() | _weak_scaling() | _other_models() | _one_node() | _counts()


@cache
def _run(gpus: int, system: str = "megascale", batch: int = BATCH, **fields: Any) -> TrainingStep:
    if system == "megatron":
        fields["tp"] = MEGATRON_TP
    return run_training(
        TrainingRequest(
            MODEL, f"{gpus // NODE}x{NODE}xh800_sxm", system, pp=STAGES, chunks=CHUNKS,
            sequence=SEQUENCE, global_batch=batch, routing=ROUTING, **fields,
        )
    )  # fmt: skip


def _iterations() -> dict[str, Prediction]:
    found = {}
    for gpus in GPUS:
        ours, theirs = _run(gpus), _run(gpus, "megatron")
        for system, step in (("megascale", ours), ("megatron", theirs)):
            found[f"{system}-{gpus}"] = Prediction(step.step_s, step.lo_s, step.hi_s, step.evidence)
        found[f"speedup-{gpus}"] = _ratio(theirs, ours)
    return found


def _ratio(slower: TrainingStep, faster: TrainingStep) -> Prediction:
    return Prediction(slower.step_s / faster.step_s, evidence=faster.evidence)


def _ablation() -> dict[str, Prediction]:
    start = _run(GPUS[0], **TENSOR)
    steps = {"parallelism": "none", "inter": "inter", "intra": "full"}
    return {
        f"ablation-{name}": _ratio(start, _run(GPUS[0], overlap=overlap))
        for name, overlap in steps.items()
    }


def _weak_scaling() -> dict[str, Prediction]:
    found = {}
    few, many = WEAK
    for system in ("megascale", "megatron"):
        small, large = (_run(gpus, system, batch) for gpus, batch in WEAK.items())
        kept = large.tokens_per_s * few / (small.tokens_per_s * many)
        found[f"weak-{system}"] = Prediction(kept, evidence=large.evidence)
    for gpus, batch in WEAK.items():
        found[f"weak-speedup-{gpus}"] = _ratio(
            _run(gpus, "megatron", batch), _run(gpus, "megascale", batch)
        )
    return found


def _other_models() -> dict[str, Prediction]:
    found = {}
    for name in ("mixtral-8x7b", "mixtral-8x22b"):
        kept = {
            how: run_training(
                TrainingRequest(
                    name, "4x8xh800_sxm", sequence=SEQUENCE, routing=ROUTING, recompute=how,
                    check_memory=False,
                )
            ).memory.activations
            for how in ("none", "selective")
        }  # fmt: skip
        saved = 1 - kept["selective"] / kept["none"]
        found[f"activations-{name}"] = Prediction(saved, evidence=Evidence.ASSUMED)
    return found


def _one_node() -> dict[str, Prediction]:
    """The models of table 2 on eight GPUs: what parallelism and overlap gain, least and most."""
    gains, saved = [], []
    for model in TABLE_2:
        tensor = _node_s(model, **TENSOR)
        gains.append(tensor / _node_s(model, overlap="none"))
        saved.append(1 - _node_s(model, overlap="full") / _node_s(model, overlap="inter"))
    found = {
        "one-node-least": min(gains),
        "one-node-most": max(gains),
        "intra-least": min(saved),
        "intra-most": max(saved),
    }
    return {name: Prediction(value, evidence=Evidence.ASSUMED) for name, value in found.items()}


def _node_s(model: str, **fields: Any) -> float:
    return run_training(
        TrainingRequest(
            model, f"1x{NODE}xh800_sxm", sequence=SEQUENCE, global_batch=ONE_NODE_BATCH,
            routing=ROUTING, check_memory=False, **fields,
        )
    ).step_s  # fmt: skip


def _counts() -> dict[str, Prediction]:
    model = load_model(MODEL)
    flops = training_flops_per_token(model, SEQUENCE) * SEQUENCE * BATCH
    found = {
        f"utilisation-{gpus}": flops / (PRINTED_S[gpus] * gpus * PRINTED_PEAK)
        for gpus in (GPUS[0], GPUS[-1])
    }
    found["parameters"] = float(model.total_parameters)
    tokens, hidden = SEQUENCE, model.hidden_size
    queries_per_kv = 4
    found["attention-bytes"] = attention_sp_bytes(
        tokens, hidden, NODE, queries_per_kv
    ) / attention_tp_bytes(tokens, hidden, NODE)
    found["expert-bytes"] = expert_parallel_bytes(
        tokens, hidden, NODE, model.top_k
    ) / expert_tensor_bytes(tokens, hidden, NODE)
    found["gather-from"] = float(
        next(k for k in range(1, NODE + 1) if not prefers_alltoall(NODE, k))
    )
    notes = {"attention-bytes": "(1 + 1/m)/n, as a count of every element sent gives: half"}
    return {
        name: Prediction(value, evidence=Evidence.SPEC, note=notes.get(name, ""))
        for name, value in found.items()
    }
