"""Dollars and joules of deployments."""

from __future__ import annotations

from dataclasses import dataclass, field

from moesim.capacity.candidates import Candidate
from moesim.capacity.deployments import Plan, Played
from moesim.capacity.question import Question
from moesim.errors import UsageError
from moesim.forward.expert_load import parse_distribution
from moesim.forward.layout import StepLoad
from moesim.forward.simulate import simulate_step
from moesim.model import ModelSpec, load_model

__all__ = ["Costs"]

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, eq=False)
class Costs:
    """What a deployment costs, for one question.

    Attributes:
        question: Objective and prices.
    """

    question: Question
    _watts: dict[int, float | None] = field(default_factory=dict)

    def usd_per_h(self, candidate: Candidate) -> float | None:
        """Of one device: as given, else its profile's list price; None where nobody says."""
        device = candidate.machine.device
        given = self.question.prices.get(device.name)
        if given is not None:
            return given
        return None if device.price is None else device.price.si

    def usd_per_mtok(self, plan: Plan, tokens_per_s: float) -> float | None:
        """Per million generated tokens; None without a price."""
        price = self.usd_per_h(plan.candidate)
        if price is None or tokens_per_s <= 0:
            return None
        return price * plan.devices / SECONDS_PER_HOUR / tokens_per_s * 1e6

    def energy_j_per_token(self, plan: Plan, tokens_per_s: float) -> float | None:
        """Of all devices, per generated token; None where nothing is known of their power.

        Devices draw what they draw in a decode step all the time: an upper bound for those that
        wait, and prefill draws more.
        """
        watts = self.device_w(plan.candidate)
        return None if watts is None else watts * plan.devices / tokens_per_s

    def device_w(self, candidate: Candidate) -> float | None:
        """Mean watts of one device of a replica that decodes at its usual batch."""
        known = self._watts.get(id(candidate), -1.0)
        if known != -1.0:
            return known
        step = simulate_step(
            self._model(),
            candidate.machine,
            candidate.layout,
            StepLoad.of("decode", 32 * candidate.layout.dp, self.question.isl),
            candidate.formats,
            parse_distribution("balanced"),
            check_memory=False,
        )
        found = None if step.energy is None else step.energy.device_w
        self._watts[id(candidate)] = found
        return found

    def estimated(self, plan: Plan, tokens_per_s: float) -> float:
        """The objective's value; less is better.

        Raises:
            UsageError: If it is about prices or power that are not known.
        """
        if self.question.objective == "devices":
            return float(plan.devices)
        if self.question.objective == "throughput":
            return plan.devices / max(tokens_per_s, 1e-12)
        name = plan.candidate.machine.device.name
        if self.question.objective == "cost":
            cost = self.usd_per_mtok(plan, tokens_per_s)
            if cost is None:
                raise UsageError(
                    f"nothing is known of the price of {name}\n"
                    f"fix: pass --price {name}=USD_PER_HOUR, or another --objective"
                )
            return cost
        energy = self.energy_j_per_token(plan, tokens_per_s)
        if energy is None:
            raise UsageError(
                f"nothing is known of the power of {name}\nfix: choose another --objective"
            )
        return energy

    def value(self, played: Played) -> float:
        """The same of what was played."""
        return self.estimated(played.plan, played.tokens_per_s)

    def _model(self) -> ModelSpec:
        return load_model(self.question.model, dense=True, transforms=self.question.transforms)
