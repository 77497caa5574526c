"""How measured serving runs differ from the plain sum of kernels: weights and host times."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from pydantic import Field

from moesim.cost_model import CostModel
from moesim.hardware import Device, profiles_folder
from moesim.schema import Document, Evidence, weakest

__all__ = [
    "NEUTRAL",
    "FittedSteps",
    "ServingCoefficients",
    "family_of",
    "shipped_coefficients",
    "step_coefficients",
]


class ServingCoefficients(Document):
    """What turns tabulated kernel times into the times of an engine's steps.

    Attributes:
        engine: The engine; empty for any.
        family: Of systems; empty for any.
        systems: Devices that it was fitted on.
        weights: By component of the step tables, and for ``sampled``, ``decode_attention`` and
            ``chunk_attention``: factors in decode-only steps and in steps with prefill. 1 where
            nothing is said.
        step_host_s: Seconds that the host adds to a step, of both kinds.
        sequence_host_s: Seconds that it adds per sequence of a group.
        token_host_s: Seconds that it adds per new token of a group.
        kernel_host_s: Seconds that it adds per kernel launch.
        request_host_s: Seconds between the step that yields the first token and its arrival, and
            between the arrival of a request and the scheduler, together.
        tpot_band: Ends of the 80 % interval of the time per output token, as factors.
        ttft_band: The same of the time to first token.
        evidence: What they rest on.
    """

    schema_id: ClassVar[str] = "moesim.serving-coefficients/1"

    engine: str = ""
    family: str = ""
    systems: tuple[str, ...] = ()
    weights: dict[str, tuple[float, float]] = Field(default_factory=dict)
    step_host_s: tuple[float, float] = (0.0, 0.0)
    sequence_host_s: float = 0.0
    token_host_s: float = 0.0
    kernel_host_s: float = 0.0
    request_host_s: float = 0.0
    tpot_band: tuple[float, float] = (1.0, 1.0)
    ttft_band: tuple[float, float] = (1.0, 1.0)
    evidence: Evidence = Evidence.ASSUMED

    def weight(self, component: str) -> tuple[float, float]:
        """Factors of a component in decode-only steps and in steps with prefill."""
        return self.weights.get(component, (1.0, 1.0))


NEUTRAL = ServingCoefficients()
"""Kernels one after the other, and a host that takes no time."""


class FittedSteps(Document):
    """The coefficients that come with moesim, and what they were fitted to."""

    schema_id: ClassVar[str] = "moesim.fitted-steps/1"

    source: str
    rows: int
    date: str
    command: str
    fits: tuple[ServingCoefficients, ...]


def family_of(system: str) -> str:
    """Architecture of a system: kernels and engines' paths differ between them."""
    if system.startswith(("h100", "h200", "h800", "gh200")):
        return "hopper"
    return "blackwell" if system.startswith(("b200", "b300", "gb200", "gb300")) else "other"


@cache
def _shipped() -> FittedSteps:
    return FittedSteps.load(profiles_folder() / "fitted" / "serving_steps.json")


def shipped_coefficients(engine: str, device: Device) -> ServingCoefficients:
    """The fit of an engine on a device, or the nearest there is.

    A family without measured runs takes what all families of the engine have in common, and an
    engine without any what all engines have; a device that is no GPU keeps its kernels alone.
    """
    if device.kind != "gpu":
        return NEUTRAL
    fits = _shipped().fits
    for wanted in ((engine, family_of(device.name)), (engine, ""), ("", "")):
        for fit in fits:
            if (fit.engine, fit.family) == wanted:
                measured = device.name in fit.systems
                return fit if measured else fit.model_copy(update={"evidence": Evidence.SPEC})
    return NEUTRAL


def step_coefficients(cost: CostModel, engine: str, device: Device) -> ServingCoefficients:
    """What goes with kernels' prices: the shipped fit, none with rooflines.

    The shipped fit says how runs differ from the kernels that come with moesim; with kernels of
    one's own file it is taken over.
    """
    if cost == "roofline":
        return NEUTRAL
    fit = shipped_coefficients(engine, device)
    if cost == "fitted":
        return fit
    return fit.model_copy(update={"evidence": weakest(fit.evidence, Evidence.SPEC)})
