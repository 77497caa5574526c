"""Replicas that fit: layouts with their step times, looked up once for a whole search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from moesim.capacity.layouts import cluster_name, replica_layouts, replica_sizes
from moesim.capacity.question import Question
from moesim.cluster import load_cluster
from moesim.errors import InfeasibleError, UsageError
from moesim.forward.calls import StepShape
from moesim.forward.expert_load import draw_layer_tokens, parse_distribution
from moesim.forward.formats import Formats, choose_formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.memory import DeviceMemory, device_memory
from moesim.forward.step_tables import StepTables, build_step_tables
from moesim.hardware import load_device
from moesim.model import ModelSpec
from moesim.serving.cache_sizes import cache_sizes
from moesim.serving.coefficients import step_coefficients
from moesim.serving.deployment import Pool
from moesim.serving.engines import find_engine
from moesim.units import format_bytes

__all__ = ["Candidate", "Refused", "find_candidates"]


NODE_DEVICES = 8
"""Of a server whose devices share nothing faster than PCIe."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A replica that can run.

    Attributes:
        question: Engine, routing, cost.
        model: What is served.
        machine: Its cluster under its engine.
        layout: How the model is spread over it.
        formats: Of weights and cache.
        pool: Policy and coarse step times of one worker, to estimate with.
    """

    question: Question
    model: ModelSpec
    machine: Machine
    layout: Layout
    formats: Formats
    pool: Pool

    @cached_property
    def fine_pool(self) -> Pool:
        """The worker with step times to play with."""
        tables = _tables(self, self.pool.policy.token_budget, coarse=False)
        return replace(self.pool, tables=tables)

    @property
    def memory(self) -> DeviceMemory:
        """Of one device, at the largest step, without cache."""
        return self.pool.tables.memory

    @property
    def devices(self) -> int:
        """Of one replica."""
        return self.layout.devices

    @property
    def name(self) -> str:
        """Device, layout and cache format in words."""
        cache = "" if self.formats.kv == "bfloat16" else f", {self.formats.kv} cache"
        return f"{self.devices}x{self.machine.device.name} {self.layout}{cache}"

    def most_concurrency(self, tokens: int) -> int:
        """Requests of so many tokens that the replica works on at once."""
        pool = self.pool
        each = min(pool.policy.max_sequences, pool.kv_tokens // max(tokens, 1))
        return each * pool.groups


@dataclass(frozen=True)
class Refused:
    """A layout that cannot run, and why."""

    name: str
    reason: str


def find_candidates(question: Question, model: ModelSpec) -> tuple[list[Candidate], list[Refused]]:
    """All replicas of a question that fit into memory.

    Args:
        question: Devices, engine, formats.
        model: What is served.
    """
    found: list[Candidate] = []
    refused: list[Refused] = []
    for name in question.devices:
        for machine, layout, formats in _layouts(question, model, name):
            candidate = _candidate(question, model, machine, layout, formats)
            if isinstance(candidate, Candidate):
                found.append(candidate)
            else:
                refused.append(candidate)
    return found, refused


def _layouts(
    question: Question, model: ModelSpec, name: str
) -> Iterator[tuple[Machine, Layout, Formats]]:
    device = load_device(name)
    domain = device.scale_up.domain_devices if device.scale_up else NODE_DEVICES
    spans = device.scale_up is not None and device.scale_up.spans_nodes
    kernels = find_engine(question.engine).kernels
    for size in replica_sizes(question.max_devices, domain):
        short = cluster_name(name, size, size if spans else domain)
        machine = Machine(load_cluster(short), kernels, question.cost)
        for redundant in question.redundant:
            for layout in replica_layouts(model, machine.cluster, kernels, domain, redundant):
                for kv in question.kv_dtypes:
                    yield machine, layout, choose_formats(model, device, kv=kv)


def _candidate(
    question: Question, model: ModelSpec, machine: Machine, layout: Layout, formats: Formats
) -> Candidate | Refused:
    device = machine.device
    policy = find_engine(question.engine, memory_bytes=device.memory_bytes, groups=layout.dp)
    name = f"{layout.devices}x{device.name} {layout}"
    weights = _smallest(model, layout, formats)
    available = device.memory_bytes * policy.memory_share
    if weights.total >= available:
        return Refused(
            name, f"needs {format_bytes(weights.total)} per device, has {format_bytes(available)}"
        )
    setting = _Setting(question, model, machine, layout, formats)
    tables = _tables(setting, policy.token_budget, coarse=True)
    try:
        kv_tokens, most = cache_sizes(tables, policy, policy.max_sequences, name)
    except InfeasibleError:
        return Refused(name, "activations leave no room for a cache")
    if kv_tokens // layout.pp < question.isl + question.osl:
        return Refused(
            name, f"its cache holds {kv_tokens // layout.pp:,} tokens, less than one request"
        )
    pool = Pool(
        tables,
        policy.model_copy(update={"max_sequences": most}),
        kv_tokens,
        groups=layout.dp,
        lanes=layout.pp,
        coefficients=step_coefficients(question.cost, machine.engine, device),
    )
    return Candidate(question, model, machine, layout, formats, pool)


class _Setting(NamedTuple):
    """What step times follow from."""

    question: Question
    model: ModelSpec
    machine: Machine
    layout: Layout
    formats: Formats


def _tables(setting: _Setting | Candidate, budget: int, *, coarse: bool) -> StepTables:
    return build_step_tables(
        setting.model,
        setting.machine,
        setting.layout,
        setting.formats,
        parse_distribution(setting.question.routing),
        max_tokens=budget,
        seed=setting.question.seed,
        coarse=coarse,
    )


def _smallest(model: ModelSpec, layout: Layout, formats: Formats) -> DeviceMemory:
    """Memory of a step of one token per group: what weights alone need."""
    load = StepLoad.of("decode", layout.dp, 1)
    slots = np.zeros((1, layout.ep, (model.experts + layout.redundant) // layout.ep))
    if not model.moe_layers:
        slots = draw_layer_tokens(model, parse_distribution("balanced"), 1, layout.ep, 0)
    return device_memory(StepShape(model, layout, load, formats, slots))


def check_devices(question: Question) -> None:
    """Refuse a search that no device of the question can be part of.

    Raises:
        UsageError: If a device computes nothing that engines run on.
    """
    for name in question.devices:
        if load_device(name).kind not in ("gpu", "npu"):
            raise UsageError(
                f"{name} is no device that serving engines run on\n"
                "fix: choose GPUs or NPUs (moesim hw list)"
            )
