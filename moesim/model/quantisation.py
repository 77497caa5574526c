"""How the routed experts of a checkpoint are stored, read from its quantisation configuration.

Only the routed experts are looked at: they are what fills memory, and checkpoints often leave
attention or shared experts wide.
"""

from __future__ import annotations

import fnmatch
import re

from moesim.model.fields import Fields
from moesim.model.spec import Quantisation

__all__ = ["activation_bits", "read_quantisation"]

NVFP4 = ("nvfp4", 4, 8 / 16)
"""One FP8 scale per 16 weights (NVIDIA, Introducing NVFP4)."""
MXFP4 = ("mxfp4", 4, 8 / 32)
MXFP8 = ("mxfp8", 8, 8 / 32)
"""One E8M0 scale per 32 weights (OCP Microscaling Formats v1.0, section 5.2)."""
SCALE_BITS = {"fp8": 32, "gptq": 16, "awq": 16, "int": 16}
"""FP8 checkpoints store float32 scales, integer formats half-precision ones."""

WEIGHT_BITS_BY_DTYPE = {"float32": 32, "bfloat16": 16, "float16": 16, "float8_e4m3fn": 8}


def read_quantisation(config: Fields, expert_hidden_size: int, expert_width: int) -> Quantisation:
    """Storage of the routed experts.

    Args:
        config: The configuration that holds ``quantization_config`` (or nothing: unquantised).
        expert_hidden_size: Width of the tokens that experts take.
        expert_width: Inner width of an expert, for scales that cover a row.

    Raises:
        InputError: If the method is not known or the fields contradict each other.
    """
    section = config.section("quantization_config") or config.section("quantization")
    dtype = _dtype_bits(config)
    if section is None:
        return Quantisation(weight_bits=dtype)
    # DeepSeek-V4 quantises to FP8 and says in a field of its own that experts are FP4.
    if (expert_dtype := config.text("expert_dtype")) is not None and not _is_mixed(section):
        if expert_dtype in {"fp4", "mxfp4"}:
            return _named(MXFP4)
        if expert_dtype != "fp8":
            raise config.error("unknown", "expert_dtype", found=expert_dtype, allowed="fp4, fp8")
    if _experts_are_ignored(section):
        return Quantisation(weight_bits=dtype)
    return _by_method(section, min(expert_hidden_size, expert_width))


def activation_bits(config: Fields, quantisation: Quantisation) -> int:
    """Bits per element of a dispatched token: 8 in FP8 models, 16 in all others.

    DeepSeek-V4 is an FP8 model whose experts are FP4: its tokens are FP8 too.
    """
    section = config.section("quantization_config")
    fp8_model = section is not None and section.text("quant_method") == "fp8"
    if quantisation.method in {"fp8", "fp8-block", "mxfp8"}:
        return 8
    return 8 if fp8_model and quantisation.method != "none" else 16


def _named(scheme: tuple[str, int, float]) -> Quantisation:
    method, bits, scales = scheme
    return Quantisation(method=method, weight_bits=bits, scale_bits_per_weight=scales)


def _dtype_bits(config: Fields) -> int:
    dtype = config.text("torch_dtype", "dtype")
    if dtype is None:
        return 16
    bits = WEIGHT_BITS_BY_DTYPE.get(dtype.removeprefix("torch."))
    if bits is None:
        raise config.error(
            "unknown", "torch_dtype", found=dtype, allowed=", ".join(WEIGHT_BITS_BY_DTYPE)
        )
    return bits


def _is_mixed(section: Fields) -> bool:
    return section.text("quant_algo") == "MIXED_PRECISION"


def _by_method(section: Fields, row: int) -> Quantisation:
    method = section.text("quant_method") or ""
    algorithm = (section.text("quant_algo") or "").upper()
    if algorithm:
        return _modelopt(section, algorithm, row)
    if method == "mxfp4":
        return _named(MXFP4)
    if method in {"fp8", "fbgemm_fp8"}:
        return _fp8(section, row)
    if method in {"gptq", "awq", "awq_marlin", "gptq_marlin"}:
        return _grouped_integer(section, row)
    if method == "compressed-tensors":
        return _compressed_tensors(section, row)
    raise section.error(
        "unknown quantisation",
        "quant_method",
        found=method or "none",
        allowed="fp8, fbgemm_fp8, mxfp4, gptq, awq, compressed-tensors, modelopt",
        fix="describe the model in a moesim.model/1 document",
    )


def _fp8(section: Fields, row: int) -> Quantisation:
    block = section.sizes("weight_block_size", minimum=1, length=2)
    if block is None:
        return Quantisation(
            method="fp8", weight_bits=8, scale_bits_per_weight=SCALE_BITS["fp8"] / row
        )
    return Quantisation(
        method="fp8-block",
        weight_bits=8,
        scale_bits_per_weight=SCALE_BITS["fp8"] / (block[0] * block[1]),
    )


def _grouped_integer(section: Fields, row: int) -> Quantisation:
    """GPTQ and AWQ: a half-precision scale and a packed zero point per group."""
    bits = section.size("bits", "w_bit", maximum=8, what="bits per weight")
    group = section.optional_size("group_size", "q_group_size", minimum=-1)
    group = row if group in {None, -1, 0} else group
    return Quantisation(
        method=f"int{bits}",
        weight_bits=bits,
        scale_bits_per_weight=(SCALE_BITS["int"] + bits) / (group or row),
    )


def _compressed_tensors(section: Fields, row: int) -> Quantisation:
    groups = section.section("config_groups")
    if groups is None or not groups.values:
        raise section.missing("config_groups", what="the schemes of compressed-tensors")
    for name in groups.values:
        group = groups.section(name)
        weights = group.section("weights") if group else None
        if weights is not None:
            return _scheme(weights, section.text("format") or "", row)
    raise groups.missing("weights", what="how weights are stored")


def _scheme(weights: Fields, layout: str, row: int) -> Quantisation:
    bits = weights.size("num_bits", maximum=16, what="bits per weight")
    kind = weights.text("type") or "int"
    if kind not in {"int", "float"}:
        raise weights.error("unknown", "type", found=kind, allowed="int, float")
    strategy = weights.text("strategy") or ""
    group = weights.optional_size("group_size", minimum=-1)
    if kind == "float" and bits == 4:
        return _named(MXFP4 if "mxfp4" in layout or group == 32 else NVFP4)
    if kind == "float" and bits == 8 and group == 32:
        return _named(MXFP8)
    block = weights.sizes("block_structure", minimum=1, length=2)
    if strategy == "block" and block:
        per_scale = block[0] * block[1]
    else:
        per_scale = group if group and group > 0 else row
    name = f"int{bits}" if kind == "int" else f"fp{bits}"
    scale = SCALE_BITS["int"] if kind == "int" else SCALE_BITS["fp8"]
    zero_point = 0 if weights.flag("symmetric", default=True) else bits
    return Quantisation(
        method=f"{name}-block" if strategy == "block" and kind == "float" else name,
        weight_bits=bits,
        scale_bits_per_weight=(scale + zero_point) / per_scale,
    )


def _modelopt(section: Fields, algorithm: str, row: int) -> Quantisation:
    """NVIDIA ModelOpt; with mixed precision the experts' own entry decides."""
    if algorithm == "MIXED_PRECISION":
        layers = section.section("quantized_layers")
        algorithm = (section.text("moe_quant_algo") or "").upper() or _expert_algorithm(layers)
    if "NVFP4" in algorithm:
        return _named(NVFP4)
    if "MXFP4" in algorithm:
        return _named(MXFP4)
    if algorithm == "MXFP8":
        return _named(MXFP8)
    if algorithm.startswith("FP8"):
        # Per tensor or per channel; blocks are named FP8_PB.
        scales = 1 / row if "PB" not in algorithm else 1 / 128**2
        return Quantisation(
            method="fp8-block" if "PB" in algorithm else "fp8",
            weight_bits=8,
            scale_bits_per_weight=SCALE_BITS["fp8"] * scales,
        )
    if match := re.match(r"W(4|8)A(16|8)", algorithm):
        bits = int(match[1])
        group = section.optional_size("group_size") or row
        return Quantisation(
            method=f"int{bits}", weight_bits=bits, scale_bits_per_weight=SCALE_BITS["int"] / group
        )
    raise section.error(
        "unknown quantisation of the experts",
        "quant_algo",
        found=algorithm or "none",
        allowed="NVFP4, MXFP4, MXFP8, FP8, W4A16, W4A8",
    )


def _expert_algorithm(layers: Fields | None) -> str:
    """The algorithm of the first entry that is about routed experts."""
    for name in layers.values if layers else ():
        if "experts" in name and "shared" not in name:
            entry = layers.section(name) if layers else None
            return (entry.text("quant_algo") or "").upper() if entry else ""
    return ""


PROBES = tuple(
    f"model.layers.{layer}.{block}.experts.{expert}{matrix}"
    for layer in (7, 41)
    for block in ("mlp", "block_sparse_moe", "ffn", "mixer")
    for expert, matrix in ((3, ".down_proj"), (5, ".w2"))
)
"""Names of expert matrices as checkpoints spell them, in two layers that every model has or may
have: a pattern that covers experts matches some of them in both layers."""


def _experts_are_ignored(section: Fields) -> bool:
    """Whether a list of exceptions takes the routed experts out of the quantisation."""
    patterns: list[str] = []
    for name in ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules"):
        value = section.values.get(name)
        if isinstance(value, list):
            patterns += [item for item in value if isinstance(item, str)]
    hit = {probe.split(".")[2] for probe in PROBES if any(_matches(p, probe) for p in patterns)}
    return hit == {"7", "41"}


def _matches(pattern: str, name: str) -> bool:
    """Match a name, a glob or one of the plain regular expressions that checkpoints use.

    Expressions from a file are never run: a hostile one could take for ever.
    """
    if pattern.startswith("re:"):
        pattern = pattern[3:].removeprefix("^").removesuffix("$")
        pattern = pattern.replace("\\.", "\0").replace(".*", "*").replace("\0", ".")
        if set(pattern) & set("()[]{}|+?\\"):
            return False
        pattern = pattern if pattern.endswith("*") else pattern + "*"
    if "*" in pattern:
        return fnmatch.fnmatchcase(name, pattern)
    return name.startswith(pattern + ".") or name == pattern
