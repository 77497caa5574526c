"""SGLang's deployment on 96 H100: steps of prefill and decode, with and without their measures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import log2
from typing import Literal

import numpy as np

from moesim.cluster import load_cluster
from moesim.forward.expert_load import Distribution, parse_distribution
from moesim.forward.formats import choose_formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.overlap import Overlap
from moesim.forward.simulate import ForwardStep, simulate_step
from moesim.model import load_model
from moesim.reports.paper import Paper
from moesim.reports.paper_figures.deepseek_routing import slot_tokens
from moesim.reports.paper_figures.deepseek_serving import node_rate
from moesim.reports.prediction import Prediction
from moesim.workload import Phase

__all__ = ["per_gpu", "predict"]

Loads = Literal["eplb", "in order", "even"]

NODE = 8
GPUS: dict[Phase, int] = {"prefill": 32, "decode": 72}
REDUNDANT = 32
PREFILL_TOKENS = 16384
CONTEXT = 2000 + 100 // 2
BATCHES = (32, 64, 128, 256)
ACCEPTANCE = 0.6
EPLB_NOTE = (
    "without EPLB the busiest rank has 2.6 times the mean (prefill) and 4.4 times (decode) in the "
    "dataset assumed; that of the experiments is not published"
)


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    del paper
    plain, twice = _decode(256, "none"), _decode(256)
    short, short_plain = _prefill(2, 4096), _prefill(2, 4096, "none")
    long = _prefill(4, 4096)
    drafts, drafts_plain = _decode(128, drafts=1), _decode(128, "none", drafts=1)
    return {
        "prefill-1k": node_rate(_prefill(16, 1024)),
        "prefill-2k": node_rate(_prefill(8, 2048)),
        "prefill-4k": node_rate(long),
        "prefill-perfect": node_rate(_prefill(4, 4096, loads="even")),
        "decode-2k": node_rate(twice),
        "decode-mtp": node_rate(drafts),
        "itl": Prediction(twice.step_s, twice.lo_s, twice.hi_s, twice.evidence),
        "decode-no-overlap": node_rate(plain),
        "overlap-256": _gain(plain, twice),
        "overlap-32": _gain(_decode(32, "none"), _decode(32)),
        "overlap-even": Prediction(_break_even(), evidence=plain.evidence),
        "overlap-mtp": _gain(drafts_plain, drafts),
        "overlap-prefill": _gain(short_plain, short),
        "overlap-prefill-larger": _gain(short_plain, long),
        "eplb-prefill": _gain(_prefill(4, 4096, loads="in order"), long, EPLB_NOTE),
        "eplb-decode": _gain(_decode(256, loads="in order"), twice, EPLB_NOTE),
    }


def per_gpu(phase: Phase) -> float:
    """Tokens per second and GPU with prompts of 2K."""
    step = _prefill(8, 2048) if phase == "prefill" else _decode(256)
    return step.tokens_per_s / GPUS[phase]


def _gain(before: ForwardStep, after: ForwardStep, note: str = "") -> Prediction:
    """How much faster tokens come."""
    value = after.tokens_per_s / before.tokens_per_s
    return Prediction(value, evidence=after.evidence, note=note)


def _break_even() -> float:
    """Requests per GPU at which both ways are as fast, between batches on a scale of powers."""
    gains = [log2(_gain(_decode(each, "none"), _decode(each)).value) for each in BATCHES]
    for place in range(len(BATCHES) - 1):
        low, high = gains[place : place + 2]
        if low < 0 <= high:
            return float(2 ** (log2(BATCHES[place]) - low / (high - low)))
    return float(BATCHES[0] if gains[0] >= 0 else BATCHES[-1])


def _prefill(
    prompts: int, tokens: int, overlap: Overlap = "two-batch", loads: Loads = "eplb"
) -> ForwardStep:
    """So many prompts per GPU."""
    gpus = GPUS["prefill"]
    load = StepLoad.of("prefill", prompts * gpus, tokens)
    return _step("prefill", f"{gpus // NODE}x{NODE}xh100_sxm", load, overlap, loads)


def _decode(
    requests: int, overlap: Overlap = "two-batch", loads: Loads = "eplb", drafts: int = 0
) -> ForwardStep:
    """So many requests per GPU, which is a node of its own to DeepEP."""
    gpus = GPUS["decode"]
    context = 4000 if drafts else CONTEXT
    load = StepLoad.of("decode", requests * gpus, context, drafts=drafts)
    return _step("decode", f"{gpus}x1xh100_sxm", load, overlap, loads)


@lru_cache(maxsize=64)
def _step(
    phase: Phase, cluster: str, load: StepLoad, overlap: Overlap, loads: Loads
) -> ForwardStep:
    gpus = GPUS[phase]
    machine = Machine(load_cluster(cluster), "sglang", "fitted")
    model = load_model("deepseek-v3").model_copy(update={"mtp_layers": 0})
    layout = Layout.complete(gpus, dp=gpus, ep=gpus, dispatch="deepep", redundant=REDUNDANT)
    routing: Distribution | np.ndarray
    if loads == "even":
        routing = parse_distribution("uniform")
    else:
        routing = slot_tokens(load.tokens, gpus, gpus // NODE, REDUNDANT, eplb=loads == "eplb")
    return simulate_step(
        model,
        machine,
        layout,
        load,
        choose_formats(model, machine.device),
        routing,
        overlap=overlap,
        acceptance=ACCEPTANCE if load.groups[0].drafts else 0.0,
    )
