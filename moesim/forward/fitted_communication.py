"""Collectives and all-to-alls by fitted kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.errors import InputError
from moesim.forward.machine import Machine
from moesim.forward.price import Price, prices_of
from moesim.forward.work import CollectiveWork, Op, TransferWork
from moesim.operators.shipped import find_fit

__all__ = ["price_collectives", "price_transfers"]

ALL_REDUCE_KERNELS = {
    "sglang": "SGLang_CustomAllReduce_graph",
    "vllm": "vLLM_custom_graph",
    "trtllm": "TRTLLM",
}
"""What each engine's own all-reduce is called in the tables when it runs in a CUDA graph."""


def price_collectives(ops: Sequence[Op], machine: Machine) -> list[Price | None]:
    """Prices of collectives within one scale-up domain; nothing was fitted beyond it."""
    works = [op.work for op in ops if isinstance(op.work, CollectiveWork)]
    known = {work: _collective(work, machine) for work in dict.fromkeys(works)}
    return [known[work] for work in works]


def _collective(work: CollectiveWork, machine: Machine) -> Price | None:
    if machine.links.domains(work.ranks) > 1:
        return None
    try:
        if work.collective == "all_reduce":
            fit = find_fit(
                "custom_allreduce",
                machine.device,
                collective="all_reduce",
                engine=machine.engine,
                kernel=ALL_REDUCE_KERNELS[machine.engine],
                spread="node",
            )
        else:
            fit = find_fit(
                "collective",
                machine.device,
                collective=work.collective,
                dtype="half",
                spread="node",
            )
    except InputError:
        return None
    return prices_of(fit.time(np.array([work.size_bytes]), np.array([work.ranks])), fit)[0]


def price_transfers(ops: Sequence[Op], machine: Machine) -> list[Price | None]:
    """Prices of dispatch and combine."""
    return [_transfer(op.work, machine) for op in ops if isinstance(op.work, TransferWork)]


def _transfer(work: TransferWork, machine: Machine) -> Price | None:
    try:
        if work.kernel == "deepep":
            return _deepep(work, machine)
        if work.kernel == "nvlink":
            return _nvlink(work, machine)
    except InputError:
        pass
    return None


def _deepep(work: TransferWork, machine: Machine) -> Price | None:
    fast = machine.device.scale_up
    if fast is None or fast.topology != "switch":
        return None
    nodes = machine.links.domains(work.ranks)
    mode = "normal" if work.phase == "prefill" else "low_latency"
    fit = find_fit(
        f"deepep_{mode}",
        machine.device,
        phase=work.direction,
        mode=mode,
        across="nodes" if nodes > 1 else "node",
    )
    # The busiest device receives so many times the mean: everybody waits for it.
    numbers = (work.tokens * work.skew, work.hidden, work.top_k, work.experts, work.ranks, nodes)
    groups = work.groups if work.groups[0] > 1 else None
    sizes = [np.array([number]) for number in numbers]
    price = prices_of(fit.time(*sizes, groups=groups), fit)[0]
    return price and replace(price, held_s=float(fit.held_s(*sizes[:4])[0]))


def _nvlink(work: TransferWork, machine: Machine) -> Price | None:
    if machine.links.domains(work.ranks) > 1:
        return None
    stages = ("prepare", "dispatch") if work.direction == "dispatch" else ("combine",)
    numbers = tuple(np.array([x]) for x in (work.tokens * work.skew, work.top_k, work.ranks))
    total: Price | None = None
    for stage in stages:
        fit = find_fit("trtllm_alltoall", machine.device, stage=stage)
        price = prices_of(fit.time(*numbers), fit)[0]
        if price is None:
            return None
        total = price if total is None else total.plus(price)
    return total
