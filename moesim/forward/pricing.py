"""Seconds of the calls of a step, with intervals: by fitted kernels where there are any.

Calls of one operator are priced together: arrays of shapes go through its model once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.fitted_costs import takes_fitted_kernels
from moesim.forward.fitted_communication import price_collectives, price_transfers
from moesim.forward.fitted_dense import price_attention, price_gemms, price_moves
from moesim.forward.fitted_experts import price_experts
from moesim.forward.machine import Machine
from moesim.forward.price import Price
from moesim.forward.roofline import compute_s, memory_s, roofline_price
from moesim.forward.work import CollectiveWork, ExpertWork, Op, OperatorName, TransferWork

__all__ = ["PricedOp", "find_prices", "price_ops"]

Pricer = Callable[[Sequence[Op], Machine], "list[Price | None]"]
"""Prices of calls of one operator; None where nothing was fitted for a call."""

FITTED: dict[OperatorName, Pricer] = {
    "gemm": price_gemms,
    "attention": price_attention,
    "experts": price_experts,
    "collective": price_collectives,
    "dispatch": price_transfers,
    "small": price_moves,
}


@dataclass(frozen=True)
class PricedOp:
    """A call with its price.

    Attributes:
        op: The call, which comes back in ``op.layers`` layers.
        price: Of one call.
        bound: What decides its time: ``memory``, ``compute``, ``link``, or ``latency`` where
            fixed times and inefficiency are more than any of those.
    """

    op: Op
    price: Price
    bound: str

    @property
    def time_s(self) -> float:
        """Seconds over all layers."""
        return self.price.time_s * self.op.layers


def price_ops(ops: Sequence[Op], machine: Machine) -> list[PricedOp]:
    """Price every call, in order."""
    return [
        PricedOp(op, price, _bound(op, price.time_s, machine))
        for op, price in zip(ops, find_prices(ops, machine), strict=True)
    ]


def find_prices(ops: Sequence[Op], machine: Machine) -> list[Price]:
    """Price of every call, in order; those of one operator, of any number of steps, together."""
    prices: list[Price | None] = [None] * len(ops)
    if machine.cost != "roofline" and takes_fitted_kernels(machine.device):
        for operator, pricer in FITTED.items():
            places = [index for index, op in enumerate(ops) if op.operator == operator]
            if places:
                found = pricer([ops[index] for index in places], machine)
                for index, price in zip(places, found, strict=True):
                    prices[index] = price
    return [price or roofline_price(op, machine) for op, price in zip(ops, prices, strict=True)]


def _bound(op: Op, time_s: float, machine: Machine) -> str:
    """The longest of memory, arithmetic, link and what none of them explains."""
    moving, computing = memory_s(op.work, machine), compute_s(op.work, machine)
    name = "link" if isinstance(op.work, CollectiveWork | TransferWork) else "memory"
    if isinstance(op.work, ExpertWork):
        # The work names the device with the most tokens; the slowest may be another.
        moving, computing = min(moving, time_s), min(computing, time_s)
    longest = max(moving, computing)
    if time_s - longest > longest:
        return "latency"
    return "compute" if computing > moving else name
