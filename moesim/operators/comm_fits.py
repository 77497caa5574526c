"""Fits of communication operators as documents: collectives, DeepEP, the NVLink all-to-all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field

from moesim.hardware import Device
from moesim.operators.collectives import CollectiveCoefficients, collective_s
from moesim.operators.deepep import (
    LowLatencyCoefficients,
    NormalCoefficients,
    low_latency_held_s,
    low_latency_s,
    normal_s,
)
from moesim.operators.fitted import Estimate, KernelFit, Label
from moesim.operators.nvlink_alltoall import (
    NvlinkAllToAllCoefficients,
    balanced_ranks,
    nvlink_alltoall_s,
)
from moesim.operators.systems import device_of, system_of

__all__ = [
    "DEFAULT_SMS",
    "CollectiveFit",
    "DeepEpFit",
    "NvlinkAllToAllFit",
    "link_rate",
    "ranks_per_node",
]

DEFAULT_SMS = 20
"""SMs of a normal kernel where nobody names them (DeepEP, Buffer.num_sms)."""
RANKS_PER_NODE = {"gb200": 4, "gb300": 4}
"""GPUs of a node where they are not 8 (aiconfigurator-core 0.12, systems/gb200.yaml)."""

Positive = Annotated[float, Field(gt=0)]


def ranks_per_node(system: str) -> int:
    """GPUs of a node of a measured system."""
    return RANKS_PER_NODE.get(system, 8)


class _CommFit(KernelFit):
    """A fit of times on links, which a device with other links scales.

    Attributes:
        link_bytes_per_s: Of the scale-up network, or of the host link where there is none; absent
            for a device without either.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("link", "link_bytes_per_s", "across")

    link_bytes_per_s: Positive | None = None

    @property
    def link(self) -> str:
        """Kind of the system's links: ``scale-up`` or ``host``."""
        return link_kind(device_of(self.system))

    @classmethod
    def wanted(cls, device: Device, labels: Mapping[str, Label]) -> dict[str, Label]:
        """Adds the device's links; see :meth:`KernelFit.wanted`."""
        known: dict[str, Label] = {"system": system_of(device), "link": link_kind(device)}
        rate = link_rate(device)
        return known | ({} if rate is None else {"link_bytes_per_s": rate}) | dict(labels)

    def on_device(self, device: Device) -> Self:
        """The fit with another device's links: what a byte costs on them follows their rate."""
        own, other = self.link_bytes_per_s, link_rate(device)
        if own is None or other is None:
            return self
        return self._with_link(own / other).model_copy(update={"link_bytes_per_s": other})

    @abstractmethod
    def _with_link(self, factor: float) -> Self:
        """The fit with every byte on a link taking so many times as long."""


def link_rate(device: Device) -> float | None:
    """Bytes per second of the scale-up network, or of the host link where there is none."""
    if device.scale_up is not None:
        return device.scale_up.bandwidth.si
    return None if device.host_link is None else device.host_link.bandwidth.si


def link_kind(device: Device) -> str:
    """``scale-up`` where the device has such a network, else ``host``."""
    return "host" if device.scale_up is None else "scale-up"


class CollectiveFit(_CommFit):
    """NCCL, oneCCL or an engine's own all-reduce.

    Attributes:
        collective: ``all_reduce``, ``all_gather``, ``reduce_scatter`` or ``alltoall``.
        dtype: Of the elements, as the tables name it.
        spread: ``node`` or ``nodes``: whether the ranks share a node.
    """

    ESSENTIAL: ClassVar[tuple[str, ...]] = ("collective",)
    ORDER: ClassVar[tuple[str, ...]] = (
        *("spread", "link", "link_bytes_per_s", "system", "dtype", "engine", "kernel", "version"),
    )

    collective: str
    dtype: str
    spread: str
    coefficients: CollectiveCoefficients

    def time(self, message_bytes: np.ndarray, ranks: np.ndarray) -> Estimate:
        """Time of messages; arguments as of :func:`~moesim.operators.collectives.collective_s`."""
        return self.estimate(collective_s(self.coefficients, message_bytes, ranks))

    def _with_link(self, factor: float) -> Self:
        own = self.coefficients
        protocols = tuple(
            protocol.model_copy(
                update={"wire_s_per_byte": tuple(factor * x for x in protocol.wire_s_per_byte)}
            )
            for protocol in own.protocols
        )
        return self.model_copy(
            update={"coefficients": own.model_copy(update={"protocols": protocols})}
        )


class DeepEpFit(_CommFit):
    """Dispatch or combine of DeepEP, or of a library that works alike.

    Attributes:
        phase: ``dispatch`` or ``combine``.
        mode: ``normal`` or ``low_latency``.
        backend: Name of the library's variant; empty for DeepEP itself.
        dtype: Of the vectors, as the tables name it; empty for DeepEP itself.
    """

    ESSENTIAL: ClassVar[tuple[str, ...]] = ("phase", "mode")
    ORDER: ClassVar[tuple[str, ...]] = (
        *("across", "link", "link_bytes_per_s", "system", "engine", "backend", "dtype"),
        *("kernel", "version"),
    )

    phase: str
    mode: str
    backend: str = ""
    dtype: str = ""
    coefficients: LowLatencyCoefficients | NormalCoefficients

    @property
    def across(self) -> str:
        """``nodes`` where more than one was measured, else ``node``."""
        return "nodes" if max(self.coefficients.nodes) > 1 else "node"

    def time(
        self,
        tokens: np.ndarray,
        hidden: np.ndarray,
        top_k: np.ndarray,
        experts: np.ndarray,
        ranks: np.ndarray,
        nodes: np.ndarray,
        sms: np.ndarray | int = DEFAULT_SMS,
        groups: tuple[int, int] | None = None,
    ) -> Estimate:
        """Time of one phase; arguments as of :func:`~moesim.operators.deepep.normal_s`."""
        c = self.coefficients
        if isinstance(c, LowLatencyCoefficients):
            return self.estimate(low_latency_s(c, tokens, hidden, top_k, experts, ranks, nodes))
        units = np.asarray(sms)
        return self.estimate(
            normal_s(c, tokens, hidden, top_k, experts, ranks, nodes, units, groups=groups)
        )

    def held_s(
        self, tokens: np.ndarray, hidden: np.ndarray, top_k: np.ndarray, experts: np.ndarray
    ) -> np.ndarray:
        """Seconds in which all cores are held; in normal mode some cores are, all the time."""
        c = self.coefficients
        if isinstance(c, LowLatencyCoefficients):
            return low_latency_held_s(c, tokens, hidden, top_k, experts)
        return np.zeros(np.shape(tokens))

    def _with_link(self, factor: float) -> Self:
        own = self.coefficients
        link_s = factor * own.link_s_per_byte
        return self.model_copy(
            update={"coefficients": own.model_copy(update={"link_s_per_byte": link_s})}
        )


class NvlinkAllToAllFit(_CommFit):
    """A stage of TensorRT-LLM's NVLink all-to-all.

    Attributes:
        stage: ``prepare``, ``dispatch``, ``combine`` or ``combine_low_precision``.
        dtype: Of the experts, as the tables name it.
    """

    ESSENTIAL: ClassVar[tuple[str, ...]] = ("stage",)
    ORDER: ClassVar[tuple[str, ...]] = (
        *("link", "link_bytes_per_s", "system", "kernel", "dtype", "engine", "version"),
    )

    stage: str
    dtype: str
    coefficients: NvlinkAllToAllCoefficients

    def time(self, tokens: np.ndarray, top_k: np.ndarray, ranks: np.ndarray) -> Estimate:
        """Time of a stage under balanced routing, tokens being those of one rank."""
        reached = balanced_ranks(top_k, ranks)
        return self.estimate(nvlink_alltoall_s(self.coefficients, tokens, reached, ranks))

    def _with_link(self, factor: float) -> Self:
        own = self.coefficients
        scaled = {"copy_s": factor * own.copy_s, "peer_copy_s": factor * own.peer_copy_s}
        return self.model_copy(update={"coefficients": own.model_copy(update=scaled)})
