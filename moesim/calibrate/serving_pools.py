"""Workers of a measured run: their step times, engine policy and room for keys and values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import log

from moesim.calibrate.serving_rows import MeasuredRun, RunLayout
from moesim.cluster import load_cluster
from moesim.forward.expert_load import parse_distribution
from moesim.forward.formats import Formats
from moesim.forward.layout import Dispatch, Layout
from moesim.forward.machine import Machine
from moesim.forward.step_tables import StepTables, build_step_tables
from moesim.hardware import Device
from moesim.model import ModelSpec, load_model
from moesim.serving.deployment import Pool
from moesim.serving.engines import EnginePolicy, find_engine

__all__ = ["run_pool"]

ROUTING = "power-law:1.01"
"""Skew of the tokens over experts: that of NVIDIA's balanced-like benchmark distribution, which the
measured kernels were timed with; random prompts route much like it."""


def run_pool(run: MeasuredRun, model: ModelSpec, stated: RunLayout) -> Pool:
    """A worker's step times and policy; raised to devices that hold the weights."""
    limits = _limits(run)
    while True:
        tables, policy, layout = _tables(
            *(run.engine, run.model, run.system, run.precision, run.block_scaled, stated),
            *(run.mode, limits),
        )
        room = _room(tables, policy)
        if room > run.isl + run.osl or stated.devices >= 64:
            break
        stated = _doubled(stated, model)
    return Pool(
        tables, policy, max(room, 2 * (run.isl + run.osl)), groups=layout.dp, lanes=layout.pp
    )


def _room(tables: StepTables, policy: EnginePolicy) -> int:
    """Tokens that the cache of one attention group holds."""
    if tables.cache_bytes_per_token <= 0:
        return 2**40
    return max(0, int(tables.cache_bytes(policy.memory_share) / tables.cache_bytes_per_token))


@dataclass(frozen=True)
class _Limits:
    """What a launch script sets of an engine; None where it leaves the default."""

    kv: str = ""
    token_budget: int | None = None
    max_sequences: int | None = None
    memory_share: float | None = None


def _limits(run: MeasuredRun) -> _Limits:
    flags = run.flags
    if flags is None:
        return _Limits()
    return _Limits(
        flags.kv,
        flags.token_budget.of(run) if flags.token_budget else None,
        flags.max_sequences.of(run) if flags.max_sequences else None,
        flags.memory_share,
    )


def _doubled(stated: RunLayout, model: ModelSpec) -> RunLayout:
    """Twice the devices: what a table calls one device is then a share of a deployment."""
    if stated.dp > 1 or (model.moe_layers and stated.tp >= 8):
        return RunLayout(
            stated.tp, 2 * stated.dp, stated.moe_tp, 2 * stated.ep, stated.pp, stated.rule
        )
    return RunLayout(2 * stated.tp, 1, 2 * stated.moe_tp, stated.ep, stated.pp, stated.rule)


@lru_cache(maxsize=512)
def _tables(
    engine: str,
    name: str,
    system: str,
    precision: str,
    block_scaled: bool,
    stated: RunLayout,
    mode: str,
    limits: _Limits,
) -> tuple[StepTables, EnginePolicy, Layout]:
    model = load_model(name, dense=True)
    layout = _layout(stated, model, mode, engine)
    machine = _machine(system, layout.devices, engine)
    sequences, groups = limits.max_sequences, layout.dp
    policy = find_engine(
        engine,
        memory_bytes=machine.device.memory_bytes,
        groups=groups,
        token_budget=limits.token_budget if groups == 1 else None,
        max_sequences=sequences and max(1, sequences // groups),
        memory_share=limits.memory_share,
    )
    formats = _formats(engine, precision, block_scaled, model, machine.device)
    if limits.kv:
        formats = replace(formats, kv=limits.kv)
    tables = build_step_tables(
        model,
        machine,
        layout,
        formats,
        parse_distribution(ROUTING),
        max_tokens=policy.token_budget,
    )
    return tables, policy, layout


def _layout(stated: RunLayout, model: ModelSpec, mode: str, engine: str) -> Layout:
    tp, dp, moe_tp, ep = stated.tp, stated.dp, stated.moe_tp, stated.ep
    if stated.rule == "total":
        # The largest power of two within the deployment, attention and experts spread over it.
        tp, moe_tp = 1, 1
        dp = ep = 2 ** int(log(stated.devices, 2))
    if not model.moe_layers:
        moe_tp, ep = tp * dp, 1
    layout = Layout.complete(
        tp * dp * stated.pp,
        tp=tp,
        dp=dp,
        ep=ep,
        moe_tp=moe_tp,
        pp=stated.pp,
        dispatch=_dispatch(dp, moe_tp, "disagg" if stated.rule == "total" else mode),
        direct="nvlink" if engine == "trtllm" else "deepep",
        redundant=-model.experts % ep if ep > 1 else 0,
    )
    layout.check(model)
    return layout


def _dispatch(dp: int, moe_tp: int, mode: str) -> Dispatch | None:
    """One pool gathers, as engines do by default; decode workers send tokens to their experts."""
    if dp == 1:
        return None
    return "allgather" if mode == "agg" or moe_tp > 1 else None


@lru_cache(maxsize=256)
def _machine(system: str, devices: int, engine: str) -> Machine:
    name = f"{devices}x{system}" if devices <= 8 else f"{devices // 8}x8x{system}"
    if system.startswith("gb") and devices > 4:
        name = f"{devices}x{system}" if devices < 72 else f"72x{system}"
    return Machine(load_cluster(name), find_engine(engine).kernels, "fitted")


def _formats(
    engine: str, precision: str, block_scaled: bool, model: ModelSpec, device: Device
) -> Formats:
    """Number formats of a checkpoint of that precision.

    FP4 checkpoints of Mixture-of-Experts models keep their projections in bfloat16 (NVIDIA
    ModelOpt's recipes). TensorRT-LLM's runs keep an FP8 cache (InferenceX), others the model's.
    """
    kv = "fp8" if engine == "trtllm" else "bfloat16"
    if model.quantisation.method == "mxfp4":
        wide = "w4a8_mxfp4_mxfp8" if "fp4" in device.peak else "w4a16_mxfp4"
        return Formats("bfloat16", wide, kv)
    if precision == "fp4":
        return Formats("bfloat16" if model.moe_layers else "nvfp4", "nvfp4", kv)
    if precision == "fp8":
        dtype = "fp8_block" if model.moe_layers or block_scaled else "fp8"
        return Formats(dtype, dtype, kv)
    return Formats("bfloat16", "bfloat16", kv)
