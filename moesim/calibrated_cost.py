"""Seconds of a device for its experts, from coefficients fitted to measured kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.cost import ExpertTime
from moesim.hardware import Device
from moesim.model import ModelSpec
from moesim.operators.moe import (
    TILES,
    MoeDevice,
    MoeShapes,
    moe_time_s,
    overhead_s,
    padded_tiles,
)
from moesim.operators.moe_device import moe_device
from moesim.operators.moe_fits import MoeFit, shipped_moe_fits, token_regime
from moesim.operators.moe_kernels import (
    ACTIVATION_BYTES,
    ARITHMETIC,
    tile_choice,
    weight_bytes,
)
from moesim.schema import Evidence

__all__ = ["CalibratedCost"]


@dataclass(frozen=True)
class CalibratedCost:
    """:class:`~moesim.cost.ExpertCost` of one kernel on one kind of device.

    Attributes:
        fit: The kernel and its coefficients.
        device: What the physics needs of the device.
        hidden: Elements of a token that reach an expert.
        width: Elements between an expert's GEMMs.
        input_matrices: 2 for gated experts, 1 for plain ones.
        devices: Whose tokens the kernel is given: those of the whole expert-parallel group where
            it leaves out what belongs to others (each is taken to have as many), 1 where an
            all-to-all sends a device its own tokens alone.
        top_k: Experts per token.
    """

    fit: MoeFit
    device: MoeDevice
    hidden: int
    width: int
    input_matrices: int
    devices: int
    top_k: int

    @classmethod
    def of(cls, model: ModelSpec, device: Device, fit: MoeFit, devices: int) -> CalibratedCost:
        """Cost of a model's routed experts on a group of devices, by a fitted kernel."""
        return cls.of_shape(
            device,
            fit,
            hidden=model.expert_input_size,
            width=model.expert_width,
            input_matrices=model.expert_matrices - 1,
            devices=devices,
            top_k=model.top_k,
        )

    @classmethod
    def of_shape(
        cls,
        device: Device,
        fit: MoeFit,
        *,
        hidden: int,
        width: int,
        input_matrices: int,
        devices: int,
        top_k: int,
    ) -> CalibratedCost:
        """Cost of experts of any shape; the arguments are those of the class."""
        return cls(
            fit=fit,
            device=moe_device(device, fit.dtype),
            hidden=hidden,
            width=width,
            input_matrices=input_matrices,
            devices=devices,
            top_k=top_k,
        )

    @property
    def evidence(self) -> Evidence:
        """That of the fit: the device's own figures enter only as the unit of the shares."""
        return self.fit.evidence

    def seconds(self, slot_tokens: np.ndarray) -> np.ndarray:
        """The total of :meth:`time` alone, ``[...]`` for ``[..., s]`` tokens."""
        tokens = np.asarray(slot_tokens, float)
        shapes = self.shapes(tokens.reshape(-1, tokens.shape[-1]))
        return moe_time_s(shapes, self.device, self.fit.coefficients).reshape(tokens.shape[:-1])

    def time(self, slot_tokens: np.ndarray) -> ExpertTime:
        """See :meth:`moesim.cost.ExpertCost.time`."""
        tokens = np.asarray(slot_tokens, float)
        flat = tokens.reshape(-1, tokens.shape[-1])
        shapes = self.shapes(flat)
        total_s = moe_time_s(shapes, self.device, self.fit.coefficients)
        memory_s = moe_time_s(shapes, self._without_arithmetic(), self.fit.coefficients)
        compute_s = self._arithmetic_s(shapes.copies)
        parts = (np.minimum(memory_s, total_s), np.minimum(compute_s, total_s), total_s)
        memory_s, compute_s, total_s = (part.reshape(tokens.shape[:-1]) for part in parts)
        return ExpertTime(memory_s, compute_s, total_s, total_s)

    @property
    def name(self) -> str:
        """See :attr:`moesim.cost.ExpertCost.name`."""
        of = self.fit
        return f"{of.engine} {of.version}, {of.kernel}, {of.dtype}"

    def interval(self, seconds: float, tokens: int, least_s: float) -> tuple[float, float]:
        """See :meth:`moesim.cost.ExpertCost.interval`.

        Coefficients that come without an interval get the widest that any shipped fit has.
        """
        regime = token_regime(tokens)
        if regime in self.fit.intervals:
            low, high = self.fit.intervals[regime]
            return min(low, 1.0), max(high, 1.0)
        known = [
            fit.intervals[regime] for fit in shipped_moe_fits().fits if regime in fit.intervals
        ]
        return min(low for low, _ in known), max(high for _, high in known)

    def lower_bound_s(
        self, expert_tokens: np.ndarray, speed: float, devices: int = 1
    ) -> np.ndarray:
        """See :meth:`moesim.cost.ExpertCost.lower_bound_s`.

        Launches are every device's. What grows with active experts and with tokens adds up over
        devices: per GEMM the time is at least that of streaming the weights of the active experts
        at the fastest configuration, and at least that of the tokens on the best tile with nothing
        padded.
        """
        of = self.fit.coefficients
        tokens = np.asarray(expert_tokens, float)
        all_on_one = self.shapes(tokens.reshape(-1, tokens.shape[-1]))
        seconds = overhead_s(all_on_one, self.device, of) + (devices - 1) * of.launch_s
        memory_s = weight_bytes(self.fit.kernel, self.fit.dtype) / (
            self.device.memory_bytes_per_s
            * of.weight_bandwidth_share
            * max(1, of.small_bandwidth, of.large_bandwidth)
        )
        row_s = self._row_s()
        for columns, depth in self.gemms():
            streamed_s = all_on_one.active * (columns * depth * memory_s)
            computed_s = all_on_one.copies * (columns * depth * row_s)
            seconds = seconds + np.maximum(streamed_s, computed_s)
        return (seconds / speed).reshape(tokens.shape[:-1])

    def gemms(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Columns and shared dimension of both products."""
        return (
            (self.input_matrices * self.width, self.hidden),
            (self.hidden, self.width),
        )

    def _row_s(self) -> float:
        """Seconds per row, column and element of K at the kernel's best tile, nothing padded."""
        of = self.fit.coefficients
        per_row = float(np.min(of.tile_rows / TILES + of.row_cost))
        per_row *= min(1, of.small_cost, of.large_cost)
        return 2.0 * per_row / float(self.device.peak_flop_per_s)

    def _arithmetic_s(self, copies: np.ndarray) -> np.ndarray:
        """Seconds of the arithmetic alone at the kernel's best tile, nothing padded."""
        return copies * self._row_s() * sum(columns * depth for columns, depth in self.gemms())

    def _without_arithmetic(self) -> MoeDevice:
        """The device with arithmetic that takes no time."""
        device = self.device
        return MoeDevice(
            device.memory_bytes_per_s,
            device.peak_flop_per_s * 1e9,
            device.cores,
            device.cache_bytes,
        )

    def shapes(self, slot_tokens: np.ndarray) -> MoeShapes:
        """Layers of ``[rows, s]`` tokens per slot."""
        rows, slots = slot_tokens.shape
        copies = slot_tokens.sum(axis=1)
        group_copies = copies * self.devices
        kernel, dtype = self.fit.kernel, self.fit.dtype
        local, width = np.full(rows, float(slots)), np.full(rows, float(self.width))
        allowed, variant = tile_choice(
            kernel, dtype, self.fit.system, group_copies / self.top_k, group_copies, local, width
        )
        return MoeShapes(
            hidden=np.full(rows, float(self.hidden)),
            width=width,
            input_matrices=np.full(rows, float(self.input_matrices)),
            weight_bytes=np.full(rows, weight_bytes(kernel, dtype)),
            activation_bytes=np.full(rows, ACTIVATION_BYTES[ARITHMETIC[dtype]]),
            local_experts=local,
            group_copies=group_copies,
            active=np.count_nonzero(slot_tokens, axis=1).astype(float),
            copies=copies,
            squared_copies=(slot_tokens**2).sum(axis=1),
            tiles=padded_tiles(slot_tokens),
            tile_allowed=allowed,
            variant=variant,
        )
