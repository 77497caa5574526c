"""CloudMatrix-Infer: steps of dies of the Ascend 910C, by rates of its maker's own simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moesim.cluster import load_cluster
from moesim.forward.expert_load import draw_layer_tokens, parse_distribution
from moesim.forward.request import StepRequest, run_request
from moesim.forward.simulate import ForwardStep
from moesim.model import load_model
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.schema import Evidence

__all__ = ["predict"]

MODEL, DIE = "deepseek-r1", "ascend_910c"
DIES_PER_NPU, DIES_PER_NODE = 2, 16
DECODE_DIES, PREFILL_DIES = 320, 32
EXPERTS = 256
CACHED, PROMPT, PROMPTS = 4096, 4096, 2
ACCEPTANCE = 0.7
REQUESTS = {"decode-50ms": 97, "decode-15ms": 8}
"""At work per NPU: 1943 tokens/s times 50 ms, 538 times 15 ms."""
SMALL = (
    "the least step streams all weights of attention and pays for a thousand calls; the rates "
    "taken are for steps of any kind"
)
VECTOR = (
    "softmax, routing and quantisation run on vector units, whose peak the rates taken leave out: "
    "likely what is missing in long prompts"
)


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    del paper
    found = {
        name: _per_npu(_decode(requests // DIES_PER_NPU)) for name, requests in REQUESTS.items()
    }
    found["prefill"] = _per_npu(_prefill(), VECTOR)
    found["decode-15ms"] = _with_note(found["decode-15ms"], SMALL)
    cluster = load_cluster("cloudmatrix384")
    held = draw_layer_tokens(
        load_model(MODEL), parse_distribution("balanced"), 1, DECODE_DIES, 0, DECODE_DIES - EXPERTS
    )
    counts = {"dies": float(cluster.devices), "experts-per-die": float(held.shape[-1])}
    return found | {name: Prediction(x, evidence=Evidence.SPEC) for name, x in counts.items()}


def _per_npu(step: ForwardStep, note: str = "") -> Prediction:
    tokens = step.batch_tokens * DIES_PER_NPU / step.shape.layout.devices
    return Prediction(
        tokens / step.step_s, tokens / step.hi_s, tokens / step.lo_s, step.evidence, note
    )


def _with_note(found: Prediction, note: str) -> Prediction:
    return replace(found, note=note)


def _decode(requests: int) -> ForwardStep:
    """So many requests per die."""
    return _faster(
        StepRequest(
            model=MODEL,
            cluster=f"{DECODE_DIES // DIES_PER_NODE}x{DIES_PER_NODE}x{DIE}",
            phase="decode",
            batch=requests * DECODE_DIES,
            context=CACHED,
            dp=DECODE_DIES,
            ep=DECODE_DIES,
            redundant=DECODE_DIES - EXPERTS,
            dispatch="deepep",
            gemm_dtype="sq",
            expert_dtype="sq",
            draft_tokens=1,
            acceptance=ACCEPTANCE,
        )
    )


def _prefill() -> ForwardStep:
    return _faster(
        StepRequest(
            model=MODEL,
            cluster=f"{PREFILL_DIES // DIES_PER_NODE}x{DIES_PER_NODE}x{DIE}",
            phase="prefill",
            batch=PROMPTS * PREFILL_DIES,
            context=PROMPT,
            dp=PREFILL_DIES,
            ep=PREFILL_DIES,
            redundant=32,
            dispatch="deepep",
            gemm_dtype="sq",
            expert_dtype="sq",
        )
    )


def _faster(request: StepRequest) -> ForwardStep:
    """One batch, or two micro-batches."""
    both = (run_request(request), run_request(replace(request, overlap="two-batch")))
    return min(both, key=lambda step: step.step_s)
