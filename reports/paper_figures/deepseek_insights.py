"""What DeepSeek-V3's authors count of caches, FLOPs and links, counted from model documents."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from moesim.cluster import load_cluster
from moesim.forward.machine import Links
from moesim.hardware import load_device
from moesim.model import ModelSpec, load_model
from moesim.model.transforms import figures
from moesim.operators.comm_fits import DEFAULT_SMS
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.schema import Evidence
from moesim.training.flops import training_flops_per_token

__all__ = ["predict"]

HIDDEN = 7000
"""As printed: 7K."""
TOKENS = 32
"""Of a device."""
EXCHANGE_BYTES = 1 + 2
"""Per element: FP8 to the experts, BF16 back."""
SEQUENCE = 4096
BATCH = 15360
"""Sequences of a training step (arXiv 2412.19437, section 4.2)."""
STEP_S = 19.926
"""Measured (table 4); what the table says of speed follows from it."""
DAY_S = 86400.0
GPUS = 2048


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every count of the file."""
    del paper
    model = load_model("deepseek-v3")
    found = _caches() | _flops() | _training(model)
    many, rack = load_cluster("2x8xh800_sxm"), load_cluster("gb200_nvl72")
    found |= _decoding("h800", Links.of(many).out_bytes_per_s, model)
    found |= _decoding("gb200", Links.of(rack).up_bytes_per_s, model)
    found["nodes-per-token"] = float(model.groups_per_token)
    cores = many.device.cores
    found["sms-for-links"] = DEFAULT_SMS / (cores.value if cores else inf)
    notes = {"flops-qwen": QWEN, "flops-llama": LLAMA}
    return {
        name: Prediction(value, evidence=Evidence.SPEC, note=notes.get(name, ""))
        for name, value in found.items()
    }


QWEN = (
    "the model's 72.7 billion parameters alone, six times, without the embedding, are 429 GFLOP; "
    "the printed figure is less than those"
)
LLAMA = "403.8 billion parameters six times, and attention"


def _caches() -> dict[str, float]:
    models = {"deepseek-v3": "deepseek-v3", "qwen": "qwen2.5-72b", "llama": "llama-3.1-405b"}
    return {
        f"kv-{name}": figures.cache_bytes(load_model(model, dense=True), 1)
        for name, model in models.items()
    }


def _flops() -> dict[str, float]:
    models = {
        "v2": "deepseek-v2",
        "v3": "deepseek-v3",
        "llama": "llama-3.1-405b",
        "qwen": "qwen2.5-72b",
    }
    return {
        f"flops-{name}": training_flops_per_token(load_model(model, dense=True), SEQUENCE)
        for name, model in models.items()
    }


def _decoding(name: str, bytes_per_s: float, model: ModelSpec) -> dict[str, float]:
    """Bounds of a link: an exchange per layer and micro-batch, two of which alternate."""
    copies = model.top_k + model.shared_expert_width // model.expert_width
    exchange_s = EXCHANGE_BYTES * TOKENS * copies * HIDDEN / bytes_per_s
    tpot_s = 2 * exchange_s * model.layers
    return {f"exchange-{name}": exchange_s, f"tpot-{name}": tpot_s, f"speed-{name}": 1 / tpot_s}


def _training(model: ModelSpec) -> dict[str, float]:
    tokens_per_s = BATCH * SEQUENCE / STEP_S
    causal = training_flops_per_token(model, SEQUENCE)
    # Half of the pairs are masked, so that all of them are those of twice the length.
    full = training_flops_per_token(model, 2 * SEQUENCE)
    peak = load_device("h800_sxm").peak["bf16"].si
    found = {"tokens-per-day": tokens_per_s * DAY_S}
    for name, flops in (("causal", causal), ("full", full)):
        found[f"tflops-{name}"] = flops * tokens_per_s / GPUS
        found[f"mfu-{name}"] = found[f"tflops-{name}"] / peak
    return found
