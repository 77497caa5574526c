"""SGLang on GB200 NVL72: steps in BF16 with FP8 experts, and in FP8 with NVFP4 experts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from moesim.cluster import load_cluster
from moesim.forward.formats import choose_formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.overlap import Overlap
from moesim.forward.simulate import ForwardStep, simulate_step
from moesim.model import load_model
from moesim.reports.paper import Paper
from moesim.reports.paper_figures.deepseek_routing import slot_tokens
from moesim.reports.paper_figures.sglang_96_h100 import per_gpu
from moesim.reports.prediction import Prediction

__all__ = ["predict"]

DECODE_GPUS, TRAY = 48, 4
REDUNDANT = 32
CONTEXT = 2000 + 100 // 2
FULL, SMALLER = 1408, 768
BF16_FULL = FULL // 2
PROMPT, PREFILL_TOKENS = 2048, 16384
NARROW = ("fp8", "nvfp4")
"""Of caches and experts."""
EXPERTS = (
    "both formats by the kernels of FlashInfer that were measured; the run's FP8 kernel is "
    "DeepGEMM's, which was not measured with all experts of a rank on this device"
)


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    del paper
    one, bf16 = _decode(BF16_FULL, "none"), _decode(BF16_FULL, "shared-expert")
    fp4 = _decode(FULL, "shared-expert", NARROW)
    smaller = _decode(SMALLER, "shared-expert", NARROW)
    wide = _decode(SMALLER, "shared-expert")
    prefill = _prefill(2, NARROW)
    rates = {
        "decode-one": one,
        "decode-bf16": bf16,
        "decode-fp4": fp4,
        "prefill-bf16": _prefill(4, None),
        "prefill-fp4": prefill,
    }
    ratios = {
        "over-h100-one": _rate(one).value / per_gpu("decode"),
        "over-h100-decode": _rate(fp4).value / per_gpu("decode"),
        "over-h100-prefill": _rate(prefill).value / per_gpu("prefill"),
        "smaller-batch": smaller.tokens_per_s / fp4.tokens_per_s,
        "attention-fp8": _op_s(wide, "decode_attention") / _op_s(smaller, "decode_attention"),
        "experts-fp4": _op_s(wide, "moe.experts") / _op_s(smaller, "moe.experts"),
    }
    found = {name: _rate(step) for name, step in rates.items()}
    notes = {"experts-fp4": EXPERTS}
    return found | {
        name: Prediction(value, evidence=fp4.evidence, note=notes.get(name, ""))
        for name, value in ratios.items()
    }


def _rate(step: ForwardStep) -> Prediction:
    """Tokens per second and GPU."""
    tokens = step.batch_tokens / step.shape.layout.devices
    return Prediction(
        tokens / step.step_s, tokens / step.hi_s, tokens / step.lo_s, evidence=step.evidence
    )


def _op_s(step: ForwardStep, name: str) -> float:
    return sum(priced.time_s for priced in step.ops if priced.op.name.endswith(name))


def _decode(requests: int, overlap: Overlap, formats: tuple[str, str] | None = None) -> ForwardStep:
    """So many requests per GPU; everything is in one NVLink domain."""
    load = StepLoad.of("decode", requests * DECODE_GPUS, CONTEXT)
    return _step(DECODE_GPUS, load, overlap, formats, REDUNDANT)


def _prefill(gpus: int, formats: tuple[str, str] | None) -> ForwardStep:
    load = StepLoad.of("prefill", PREFILL_TOKENS // PROMPT * gpus, PROMPT)
    return _step(gpus, load, "shared-expert", formats, 0)


@lru_cache(maxsize=16)
def _step(
    gpus: int,
    load: StepLoad,
    overlap: Overlap,
    formats: tuple[str, str] | None,
    redundant: int,
) -> ForwardStep:
    trays = max(1, gpus // TRAY)
    machine = Machine(load_cluster(f"{trays}x{gpus // trays}xgb200"), "sglang", "fitted")
    model = load_model("deepseek-v3")
    kv, experts = formats or (None, None)
    return simulate_step(
        model,
        machine,
        Layout.complete(gpus, dp=gpus, ep=gpus, dispatch="deepep", redundant=redundant),
        load,
        choose_formats(model, machine.device, kv=kv, experts=experts),
        slot_tokens(load.tokens, gpus, trays, redundant, eplb=True),
        overlap=overlap,
        check_memory=load.phase == "decode",  # weights may lie on the host
    )
