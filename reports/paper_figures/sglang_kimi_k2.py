"""Kimi K2 on 128 H200 with SGLang: a step of prefill and one of decode."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.forward.request import StepRequest, run_request
from moesim.forward.simulate import ForwardStep
from moesim.reports.paper import Paper
from moesim.reports.paper_figures.deepseek_serving import node_rate
from moesim.reports.prediction import Prediction
from moesim.workload import Phase

__all__ = ["predict"]

NODE = 8
NODES: dict[Phase, int] = {"prefill": 4, "decode": 12}
PROMPT, CONTEXT = 2048, 2000 + 100 // 2
PREFILL_TOKENS, REQUESTS = 16384, 480
GPU_HOUR_USD = 2.3


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    del paper
    decode = node_rate(_step("decode", REQUESTS, CONTEXT))
    usd_per_s = NODE * GPU_HOUR_USD / 3600
    usd = Prediction(1e6 * usd_per_s / decode.value, evidence=decode.evidence)
    prefill = node_rate(_step("prefill", PREFILL_TOKENS // PROMPT, PROMPT))
    return {"prefill": prefill, "decode": decode, "usd": usd}


def _step(phase: Phase, requests: int, context: int) -> ForwardStep:
    """So many requests per GPU."""
    gpus = NODES[phase] * NODE
    return run_request(
        StepRequest(
            model="kimi-k2",
            cluster=f"{NODES[phase]}x{NODE}xh200_sxm",
            phase=phase,
            batch=requests * gpus,
            context=context,
            dp=gpus,
            ep=gpus,
            redundant=gpus if phase == "decode" else 0,
            dispatch="deepep",
            overlap="two-batch",
        )
    )
