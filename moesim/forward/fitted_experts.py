"""Routed experts by fitted kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from moesim.calibrated_cost import CalibratedCost
from moesim.errors import InputError
from moesim.fitted_costs import with_measured
from moesim.forward.machine import Machine
from moesim.forward.price import Price
from moesim.forward.work import ExpertWork, Op
from moesim.operators.moe_fits import MoeFit, moe_fit_for
from moesim.operators.moe_kernels import WEIGHT_BYTES

__all__ = ["price_experts"]


def price_experts(ops: Sequence[Op], machine: Machine) -> list[Price | None]:
    """The slowest rank, mean over draws."""
    return [_price(op.work, machine) for op in ops if isinstance(op.work, ExpertWork)]


@lru_cache(maxsize=256)
def _fit(machine: Machine, dtype: str) -> MoeFit | None:
    try:
        return moe_fit_for(machine.device, dtype, engine=machine.engine)
    except InputError:
        return None


def _price(work: ExpertWork, machine: Machine) -> Price | None:
    if work.weight_bytes != WEIGHT_BYTES[work.dtype]:
        return None  # stored in another form than the kernel that was measured
    fit = _fit(machine, work.dtype)
    if fit is None:
        return None
    shipped = CalibratedCost.of_shape(
        machine.device,
        fit,
        hidden=work.hidden,
        width=work.width,
        input_matrices=work.matrices - 1,
        devices=work.slot_tokens.shape[1] if work.sees_group else 1,
        top_k=max(1, round(work.top_k)),
    )
    cost = with_measured(shipped, machine.cost)
    if isinstance(cost, CalibratedCost):
        seconds = least_s = float(cost.seconds(work.slot_tokens).max(axis=-1).mean())
    else:
        layer = cost.time(work.slot_tokens)
        seconds, least_s = (float(s.max(axis=-1).mean()) for s in (layer.total_s, layer.least_s))
    low, high = cost.interval(seconds, work.group_tokens, least_s)
    return Price(seconds, seconds * low, seconds * high, cost.evidence, cost.name)
