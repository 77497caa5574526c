"""Seconds of a collective over a scale-up domain, from the coefficients of its protocols.

A collective library has a few protocols or algorithms and picks one by message size: NCCL has LL,
LL128 and Simple (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-proto),
custom all-reduces have one-shot and two-shot kernels and hand large messages to NCCL. Each costs

    launch + steps(ranks) · step + wire bytes / bandwidth(ranks),

the model of Thakur, Rabenseifner and Gropp (IJHPCA 2005) that NCCL's own tuner uses. The steps
are those of a ring (nccl-tests, doc/PERFORMANCE.md): 2(P − 1) for an all-reduce, P − 1 for the
others, which also counts the peers of a direct exchange. Bandwidth belongs to a number of ranks:
channels, NVLink SHARP and PCIe topologies make it differ between 2 and 8 ranks of one machine.

Axes: D measured numbers of ranks.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from moesim.errors import InputError
from moesim.schema import Document

__all__ = [
    "COLLECTIVES",
    "Collective",
    "CollectiveCoefficients",
    "Protocol",
    "collective_s",
    "ring_steps",
    "wire_bytes",
]

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "alltoall"]
COLLECTIVES: tuple[Collective, ...] = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")

NonNegative = Annotated[float, Field(ge=0)]


class Protocol(Document):
    """One protocol's cost.

    Attributes:
        from_bytes: It serves messages from here on; see ``CollectiveCoefficients.switch_exponent``.
        launch_s: Time that does not depend on anything.
        step_s: Time per step of the ring.
        wire_s_per_byte: [D] time per byte that each rank sends, the inverse of its bandwidth.
    """

    from_bytes: NonNegative
    launch_s: NonNegative
    step_s: NonNegative
    wire_s_per_byte: tuple[NonNegative, ...]


class CollectiveCoefficients(Document):
    """A collective of one library version and type on one system.

    Attributes:
        collective: Which.
        ranks: [D] numbers of ranks that were measured, ascending.
        switch_exponent: Protocols switch at a size of ``message · ranks^-exponent``: the whole
            message (0), a rank's share of it (1), or what all ranks hold together (-1).
        protocols: In the order of ``from_bytes``, the first from 0.
        on_bounds: Coefficients that the fit left on a bound of theirs.
    """

    collective: Collective
    ranks: tuple[Annotated[int, Field(ge=2)], ...]
    switch_exponent: Literal[-1, 0, 1]
    protocols: tuple[Protocol, ...]
    on_bounds: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _shapes_agree(self) -> CollectiveCoefficients:
        starts = [protocol.from_bytes for protocol in self.protocols]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise InputError("protocols must start at 0 and ascend", field="protocols")
        if not self.ranks or list(self.ranks) != sorted(set(self.ranks)):
            raise InputError("ranks must ascend", field="ranks", found=self.ranks)
        for protocol in self.protocols:
            if len(protocol.wire_s_per_byte) != len(self.ranks):
                raise InputError(
                    "one value for each number of ranks is needed",
                    field="wire_s_per_byte",
                    found=len(protocol.wire_s_per_byte),
                    allowed=str(len(self.ranks)),
                )
        return self


def ring_steps(collective: Collective, ranks: np.ndarray) -> np.ndarray:
    """Steps one after the other: 2(P − 1) or P − 1, float64 of the shape of ``ranks``."""
    return (2.0 if collective == "all_reduce" else 1.0) * (np.asarray(ranks, float) - 1)


def wire_bytes(collective: Collective, message_bytes: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Bytes that each rank sends, which nccl-tests' bus bandwidth counts.

    Args:
        collective: Which.
        message_bytes: The larger of a rank's input and output, nccl-tests' "size".
        ranks: P.
    """
    ranks = np.asarray(ranks, float)
    share = (ranks - 1) / ranks
    return (2.0 if collective == "all_reduce" else 1.0) * share * np.asarray(message_bytes, float)


def collective_s(
    coefficients: CollectiveCoefficients, message_bytes: np.ndarray, ranks: np.ndarray
) -> np.ndarray:
    """Seconds of a collective; never less for a larger message.

    At a switch the new protocol may start below where the old one ended; the time then stays at
    the old one's last value until the new one exceeds it.

    Args:
        coefficients: Of the collective.
        message_bytes: Size as ``wire_bytes`` takes it; broadcast against ``ranks``.
        ranks: P; between measured numbers the inverse bandwidth is interpolated over log P,
            beyond them it stays, while the steps go on growing.

    Returns:
        Seconds; 0 for one rank, NaN where a single number of ranks was measured and another is
        asked for, so that launch and steps cannot be told apart.
    """
    size, count = np.broadcast_arrays(np.asarray(message_bytes, float), np.asarray(ranks, float))
    steps = ring_steps(coefficients.collective, count)
    places = np.log(np.maximum(count, 1.0))
    known = np.log(np.array(coefficients.ranks, float))
    share = count**-coefficients.switch_exponent  # a size times this is where protocols switch
    starts = [protocol.from_bytes for protocol in coefficients.protocols]
    total = np.zeros(size.shape)
    for protocol, end in zip(coefficients.protocols, [*starts[1:], np.inf], strict=True):
        served = np.minimum(size, end / share)
        wire = wire_bytes(coefficients.collective, served, count)
        per_byte = np.interp(places, known, np.array(protocol.wire_s_per_byte))
        time = protocol.launch_s + protocol.step_s * steps + per_byte * wire
        total = np.where(size * share >= protocol.from_bytes, np.maximum(total, time), total)
    if len(coefficients.ranks) == 1:
        total = np.where(count == coefficients.ranks[0], total, np.nan)
    return np.where(count == 1, 0.0, total)
