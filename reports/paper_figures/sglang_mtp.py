"""Multi-token prediction in SGLang on H200: steps with drafts, and the host between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.forward.request import StepRequest, run_request
from moesim.forward.simulate import ForwardStep
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction

__all__ = ["predict"]

HOST_S = 13.8e-3
"""Fitted to the baseline of the table, 2 requests in 39.2 ms of which kernels take 25.4 ms."""
SMALL: dict[str, Any] = {
    "cluster": "2x8xh200_sxm", "batch": 2 * 16, "context": 65536 + 4096 // 2, "dp": 16, "ep": 16,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "cluster": "12x8xh200_sxm", "batch": 128 * 96, "context": 2000 + 100 // 2, "dp": 96, "ep": 96,
}  # fmt: skip
TOKENS_PER_STEP = {3: 2.18, 4: 2.44}
"""By window, as published."""
HIDDEN_HOST = "all of the host is taken as hidden; what is left of it was not measured"


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    del paper
    small, large = _step(SMALL), _step(LARGE)
    drafting = _step(LARGE, 2)
    gain = _rate(drafting, HOST_S).value / _rate(large, HOST_S).value
    return {
        "baseline": _rate(small, HOST_S),
        "overlapped": _rate(small, 0.0, HIDDEN_HOST),
        "three": _rate(_step(SMALL, 3), HOST_S),
        "four": _rate(_step(SMALL, 4), HOST_S),
        "large-gain": Prediction(gain, evidence=drafting.evidence),
    }


def _rate(step: ForwardStep, host_s: float, note: str = "") -> Prediction:
    """Tokens per second and GPU."""
    tokens = step.batch_tokens / step.shape.layout.devices
    ends = (step.step_s, step.hi_s, step.lo_s)
    middle, low, high = (tokens / (end + host_s) for end in ends)
    return Prediction(middle, low, high, step.evidence, note)


def _step(setup: dict[str, Any], window: int = 1) -> ForwardStep:
    """A step that verifies so many tokens of every request."""
    drafts = window - 1
    wanted = TOKENS_PER_STEP.get(window, 0.0)
    acceptance = _acceptance(wanted, drafts) if wanted else _acceptance(TOKENS_PER_STEP[3], 2)
    return run_request(
        StepRequest(
            model="deepseek-v3",
            phase="decode",
            dispatch="deepep",
            redundant=32,
            draft_tokens=drafts,
            acceptance=acceptance if drafts else 0.0,
            **setup,
        )
    )


def _acceptance(tokens: float, drafts: int) -> float:
    """Probability a with 1 + a + … + aᵏ tokens of k drafts."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        gained = sum(middle**place for place in range(drafts + 1))
        low, high = (middle, high) if gained < tokens else (low, middle)
    return low
