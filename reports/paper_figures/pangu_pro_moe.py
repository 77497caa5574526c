"""Pangu Pro MoE: steps of Ascend 910B4 cards, by rates of their maker's own simulator."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.forward.request import StepRequest, run_request
from moesim.forward.simulate import ForwardStep
from moesim.model import load_model
from moesim.planners.moge_score import draw_imbalance
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.reports.scenario import scenario_path
from moesim.schema import Evidence

__all__ = ["predict"]

DEVICE, CONTEXT = "ascend_910b4", 2048
DENSE = {"32b": "qwen3-32b", "72b": "qwen2.5-72b"}
BATCHES = {"moe": (1, 456), "32b": (1, 336), "72b": (1, 228)}
DECODE_CARDS, PREFILL_CARDS, PROMPTS = 4, 2, 2
LAUNCH = "held up by the host, which launches one call after the other"


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    names = {"moe": str(scenario_path("pangu-pro-moe").with_suffix(".json")), **DENSE}
    # The one fitted number: what the host takes per call, from the MoE's smallest step.
    launch_s = paper.fitted("decode-moe-1") / _calls(_step(names["moe"], "decode", 1))
    found, rates = _counts(names["moe"]) | _imbalance(), {}
    for kind, name in names.items():
        for batch in BATCHES[kind]:
            step = _step(name, "decode", batch)
            waited = launch_s * _calls(step)
            found[f"decode-{kind}-{batch}"] = _seconds(step, waited)
            rates["decode", kind] = batch / max(step.step_s, waited)
        step = _step(name, "prefill", PROMPTS)
        waited = launch_s * _calls(step)
        found[f"prefill-{kind}"] = _seconds(step, waited)
        rates["prefill", kind] = PROMPTS / max(step.step_s, waited)
    for phase in ("decode", "prefill"):
        for kind in DENSE:
            gain = rates[phase, "moe"] / rates[phase, kind]
            found[f"{phase}-over-{kind}"] = Prediction(gain, evidence=Evidence.ASSUMED)
    return found


def _counts(name: str) -> dict[str, Prediction]:
    counts = load_model(name).parameters
    experts = (counts.routed_experts + counts.shared_experts) / counts.total
    values = {
        "parameters": counts.total,
        "active": counts.active,
        "expert-share": experts,
    }
    return {key: Prediction(float(value), evidence=Evidence.SPEC) for key, value in values.items()}


def _imbalance() -> dict[str, Prediction]:
    """Shares of batches with an imbalance score above 0, by the Monte Carlo of figure 2."""
    found = {}
    for name, groups in (("top-k", 1), ("grouped", 8)):
        drawn = draw_imbalance(experts=64, top_k=8, devices=8, tokens=16, groups=groups)
        found[f"imbalance-{name}"] = Prediction(drawn.positive, evidence=Evidence.SPEC)
    return found


def _step(name: str, phase: str, batch: int) -> ForwardStep:
    moe = name not in DENSE.values()
    cards = DECODE_CARDS if phase == "decode" else PREFILL_CARDS
    return run_request(
        StepRequest(
            model=name,
            cluster=f"{cards}x{DEVICE}",
            phase="decode" if phase == "decode" else "prefill",
            batch=batch,
            context=CONTEXT,
            tp=cards,
            ep=cards if moe else None,
            gemm_dtype="sq",
            expert_dtype="sq" if moe else None,
            routing="balanced",
        )
    )


def _calls(step: ForwardStep) -> int:
    """Calls that the host launches for a step."""
    return sum(priced.op.layers for priced in step.ops)


def _seconds(step: ForwardStep, waited_s: float) -> Prediction:
    held = waited_s > step.step_s
    return Prediction(
        max(step.step_s, waited_s),
        max(step.lo_s, waited_s),
        max(step.hi_s, waited_s),
        step.evidence,
        LAUNCH if held else "",
    )
