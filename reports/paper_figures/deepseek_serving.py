"""DeepSeek's inference system: steps of its profiles and of its production, and a day's sums."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.forward.expert_load import draw_layer_tokens, parse_distribution
from moesim.forward.request import StepRequest, run_request
from moesim.forward.simulate import ForwardStep
from moesim.model import load_model
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.schema import Evidence

__all__ = ["predict"]

MODEL = "deepseek-v3"
NODE = 8
PREFILL_GPUS, DECODE_GPUS, PROFILE_GPUS = 32, 144, 128
PROMPT, CACHED, PRODUCTION_CACHED = 4096, 4096, 4989
PREFILL_TOKENS, PROFILE_BATCH = 16384, 128
REDUNDANT = 32
USER_TOKENS_PER_S = 21.0
DAY_S = 86400.0
INPUT_TOKENS, HIT_TOKENS, OUTPUT_TOKENS = 608e9, 342e9, 168e9
HIT_USD, MISS_USD, OUTPUT_USD, GPU_HOUR_USD = 0.14e-6, 0.55e-6, 2.19e-6, 2.0
MEAN_NODES, INPUT_RATE, OUTPUT_RATE = 226.75, 73.7e3, 14.8e3


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    del paper
    return _steps() | {
        name: Prediction(value, evidence=Evidence.SPEC) for name, value in _counts().items()
    }


def _steps() -> dict[str, Prediction]:
    profile = _decode(PROFILE_GPUS, PROFILE_BATCH, CACHED, "balanced", 0)
    # By Little's law: what a node yields over what a user gets.
    batch = round(OUTPUT_RATE / NODE / USER_TOKENS_PER_S)
    production = _decode(DECODE_GPUS, batch, PRODUCTION_CACHED, "uniform", REDUNDANT)
    return {
        "profile-decode": node_rate(profile),
        "profile-prefill": node_rate(_prefill("balanced", 0)),
        "production-decode": node_rate(production, note=f"{batch} requests per GPU"),
        "production-prefill": node_rate(
            _prefill("uniform", REDUNDANT),
            note="nodes that never wait; the published rate is the mean of a day with its lulls",
        ),
    }


def node_rate(step: ForwardStep, note: str = "", share: float = 1.0) -> Prediction:
    """Tokens per second of a node of eight devices, times a share.

    Args:
        step: Of all devices.
        note: What to know of it.
        share: Of the tokens that count.
    """
    tokens = step.batch_tokens * NODE / step.shape.layout.devices * share
    return Prediction(
        tokens / step.step_s, tokens / step.hi_s, tokens / step.lo_s, step.evidence, note
    )


def _decode(gpus: int, batch: int, cached: int, routing: str, redundant: int) -> ForwardStep:
    """Every GPU is a node of its own to DeepEP: all messages go by RDMA."""
    return run_request(
        StepRequest(
            model=MODEL,
            cluster=f"{gpus}x1xh800_sxm",
            phase="decode",
            batch=batch * gpus,
            context=cached,
            dp=gpus,
            ep=gpus,
            redundant=redundant,
            dispatch="deepep",
            routing=routing,
            overlap="two-batch",
        )
    )


def _prefill(routing: str, redundant: int) -> ForwardStep:
    return run_request(
        StepRequest(
            model=MODEL,
            cluster=f"{PREFILL_GPUS // NODE}x{NODE}xh800_sxm",
            phase="prefill",
            batch=PREFILL_TOKENS // PROMPT * PREFILL_GPUS,
            context=PROMPT,
            dp=PREFILL_GPUS,
            ep=PREFILL_GPUS,
            redundant=redundant,
            dispatch="deepep",
            routing=routing,
            overlap="two-batch",
        )
    )


def _counts() -> dict[str, float]:
    model = load_model(MODEL)
    held = {
        f"routed-{name}": draw_layer_tokens(
            model, parse_distribution("balanced"), gpus, gpus, 0, REDUNDANT
        ).shape[-1]
        for name, gpus in (("prefill", PREFILL_GPUS), ("decode", DECODE_GPUS))
    }
    cost = MEAN_NODES * NODE * GPU_HOUR_USD * 24
    missed = INPUT_TOKENS - HIT_TOKENS
    revenue = HIT_TOKENS * HIT_USD + missed * MISS_USD + OUTPUT_TOKENS * OUTPUT_USD
    return held | {
        "hits": HIT_TOKENS / INPUT_TOKENS,
        "cost": cost,
        "revenue": revenue,
        "margin": revenue / cost - 1,
        "nodes": (INPUT_TOKENS / INPUT_RATE + OUTPUT_TOKENS / OUTPUT_RATE) / DAY_S,
    }
