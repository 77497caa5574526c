"""Seconds that a device needs for its experts, from the histogram of tokens per expert.

Everything above asks through :class:`ExpertCost`, so that a calibrated model can take the place of
the roofline without a change elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from moesim.hardware import Device, Reached
from moesim.model import ModelSpec
from moesim.operators.roofline_errors import REACHED_RATES, reached_interval, roofline_interval
from moesim.schema import Evidence, weakest

__all__ = ["ExpertCost", "ExpertTime", "ReachedCost", "RooflineCost"]


@dataclass(frozen=True)
class ExpertTime:
    """Seconds of one expert layer on devices, by what they are spent on.

    Attributes:
        memory_s: [...] moving weights and activations.
        compute_s: [...] arithmetic.
        total_s: [...] both, as far as they overlap.
        least_s: [...] what the interval counts from: the total, but the data sheet's roofline
            where the total is at the rates that a profile says kernels reach, and the products
            where those alone were measured.
    """

    memory_s: np.ndarray
    compute_s: np.ndarray
    total_s: np.ndarray
    least_s: np.ndarray


class ExpertCost(Protocol):
    """What a step needs to know of a device."""

    @property
    def evidence(self) -> Evidence:
        """The weakest evidence that it rests on."""
        ...

    def time(self, slot_tokens: np.ndarray) -> ExpertTime:
        """Seconds of a device for its experts.

        Args:
            slot_tokens: [..., s] tokens of each of the device's s expert slots.

        Returns:
            Seconds of shape [...].
        """
        ...

    @property
    def name(self) -> str:
        """Whose coefficients, or ``roofline``."""
        ...

    def interval(self, seconds: float, tokens: int, least_s: float) -> tuple[float, float]:
        """Ends of the 80 % interval of a layer's time as multiples of it.

        Args:
            seconds: The time.
            tokens: Of all devices together.
            least_s: The layer's ``least_s``.
        """
        ...

    def lower_bound_s(
        self, expert_tokens: np.ndarray, speed: float, devices: int = 1
    ) -> np.ndarray:
        """Seconds that the slowest device needs at least, wherever experts are placed.

        Args:
            expert_tokens: [..., E] tokens of each expert.
            speed: Σ of the devices' speed factors.
            devices: How many there are; each pays what is fixed.

        Returns:
            Seconds of shape [...].
        """
        ...


@dataclass(frozen=True)
class RooflineCost:
    """The larger of bytes over bandwidth and FLOPs over peak (Williams et al. 2009).

    An expert's weights are read once if any token uses it; per token the input is read, the
    intermediate written and read back (gate and up fused with the activation), the output written.
    No efficiency factor enters: it is the time that no kernel can beat on these figures.

    Attributes:
        expert_weight_bytes: Weights of one expert.
        token_bytes: Activation bytes per token assignment.
        token_flops: Arithmetic per token assignment.
        memory_bytes_per_s: Of the device.
        peak_flop_per_s: Of the device, in the arithmetic that the model's experts use.
        evidence: Weakest evidence of the above.
    """

    expert_weight_bytes: float
    token_bytes: float
    token_flops: float
    memory_bytes_per_s: float
    peak_flop_per_s: float
    evidence: Evidence = Evidence.SPEC

    @classmethod
    def of(cls, model: ModelSpec, device: Device) -> RooflineCost:
        """Roofline of a model's routed experts on a device."""
        activation_bytes = model.activation_bits / 8
        return cls(
            expert_weight_bytes=model.expert_active_parameters * model.expert_bits / 8,
            token_bytes=(model.expert_input_size + 2 * model.expert_width) * activation_bytes
            + model.expert_input_size * OUTPUT_BYTES,
            token_flops=model.expert_copy_flops,
            memory_bytes_per_s=device.memory_bytes_per_s,
            peak_flop_per_s=device.peak_flop_per_s(_arithmetic(model)),
            evidence=weakest(
                Evidence.SPEC,
                device.memory.bandwidth.evidence,
                device.peak_evidence(_arithmetic(model)),
            ),
        )

    def time(self, slot_tokens: np.ndarray) -> ExpertTime:
        """See :meth:`ExpertCost.time`."""
        active = np.count_nonzero(slot_tokens, axis=-1)
        return self._time(active, slot_tokens.sum(axis=-1))

    @property
    def name(self) -> str:
        """See :attr:`ExpertCost.name`."""
        return "roofline"

    def interval(self, seconds: float, tokens: int, least_s: float) -> tuple[float, float]:
        """See :meth:`ExpertCost.interval`."""
        return roofline_interval("experts", seconds)

    def lower_bound_s(
        self, expert_tokens: np.ndarray, speed: float, devices: int = 1
    ) -> np.ndarray:
        """See :meth:`ExpertCost.lower_bound_s`.

        Weights of active experts are read at least once and tokens are conserved, so the mean
        over devices, weighted by speed, bounds the slowest one.
        """
        active = np.count_nonzero(expert_tokens, axis=-1)
        return self._time(active, expert_tokens.sum(axis=-1)).total_s / speed

    def _time(self, active: np.ndarray, tokens: np.ndarray) -> ExpertTime:
        memory_s = (active * self.expert_weight_bytes + tokens * self.token_bytes) / (
            self.memory_bytes_per_s
        )
        compute_s = tokens * (self.token_flops / self.peak_flop_per_s)
        total_s = np.maximum(memory_s, compute_s)
        return ExpertTime(memory_s, compute_s, total_s, total_s)


@dataclass(frozen=True)
class ReachedCost:
    """A roofline at the shares of the peaks that a profile says kernels reach, and a fixed time.

    Attributes:
        sheet: At the peaks of the data sheet.
        reached: At the shares that kernels reach.
        call_s: Fixed time of a layer's call, which every device pays.
    """

    sheet: RooflineCost
    reached: RooflineCost
    call_s: float

    @classmethod
    def of(cls, model: ModelSpec, device: Device, shares: Reached) -> ReachedCost:
        """Experts of a model on a device whose profile has such shares."""
        sheet = RooflineCost.of(model, device)
        reached = replace(
            sheet,
            memory_bytes_per_s=sheet.memory_bytes_per_s * shares.memory.si,
            peak_flop_per_s=sheet.peak_flop_per_s * shares.compute.si,
        )
        return cls(sheet, reached, 0.0 if shares.matrix_call is None else shares.matrix_call.si)

    @property
    def evidence(self) -> Evidence:
        """Shares are read off like devices: an assumption."""
        return Evidence.ASSUMED

    @property
    def name(self) -> str:
        """See :attr:`ExpertCost.name`."""
        return REACHED_RATES

    def time(self, slot_tokens: np.ndarray) -> ExpertTime:
        """See :meth:`ExpertCost.time`."""
        found = self.reached.time(slot_tokens)
        least_s = self.sheet.time(slot_tokens).total_s
        return replace(found, total_s=found.total_s + self.call_s, least_s=least_s)

    def interval(self, seconds: float, tokens: int, least_s: float) -> tuple[float, float]:
        """See :meth:`ExpertCost.interval`."""
        return reached_interval("experts", seconds, least_s)

    def lower_bound_s(
        self, expert_tokens: np.ndarray, speed: float, devices: int = 1
    ) -> np.ndarray:
        """See :meth:`ExpertCost.lower_bound_s`."""
        calls_s = devices * self.call_s / speed
        return self.reached.lower_bound_s(expert_tokens, speed, devices) + calls_s


OUTPUT_BYTES = 2
"""Bytes per element of an expert's output: bfloat16, also where weights are narrower."""


def _arithmetic(model: ModelSpec) -> str:
    return "fp8" if model.activation_bits == 8 else "bf16"
