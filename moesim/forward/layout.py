"""How a model is spread over devices, and the sequences that a step works on.

A stage of ``tp × dp`` devices holds ``1 / pp`` of the layers. Attention is cut by heads over ``tp``
devices and repeated ``dp`` times on different sequences; experts are cut over the same devices by
``moe_tp`` (each expert's width) and ``ep`` (whole experts): ``tp · dp = moe_tp · ep``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from moesim.errors import UsageError
from moesim.model import ModelSpec
from moesim.workload import Phase

__all__ = ["DISPATCHES", "Dispatch", "Layout", "Sequences", "StepLoad"]

Dispatch = Literal["allreduce", "allgather", "deepep", "nvlink"]
"""How token vectors reach experts: not at all (every device has all tokens, results are added up),
by collectives (all-gather before, reduce-scatter behind), or to the chosen experts alone."""

DISPATCHES: tuple[Dispatch, ...] = ("allreduce", "allgather", "deepep", "nvlink")


@dataclass(frozen=True)
class Layout:
    """Parallel layout of a model.

    Attributes:
        tp: Devices that share the heads of a sequence.
        dp: Groups of those, each with its own sequences.
        moe_tp: Devices that share the width of an expert.
        ep: Groups of those, each with its own experts.
        pp: Stages of layers, one after the other.
        dispatch: How tokens reach experts.
        redundant: Expert slots of a layer beyond one for each expert, over all devices.
    """

    tp: int = 1
    dp: int = 1
    moe_tp: int = 1
    ep: int = 1
    pp: int = 1
    dispatch: Dispatch = "allreduce"
    redundant: int = 0

    @property
    def stage_devices(self) -> int:
        """Devices of one pipeline stage."""
        return self.tp * self.dp

    @property
    def devices(self) -> int:
        """All devices."""
        return self.stage_devices * self.pp

    @property
    def scattered(self) -> bool:
        """Whether every device works on tokens of its own outside attention and experts."""
        return self.dispatch in ("deepep", "nvlink")

    def __str__(self) -> str:
        named = {"TP": self.tp, "DP": self.dp, "EP": self.ep, "MoE-TP": self.moe_tp, "PP": self.pp}
        if self.redundant:
            named["redundant "] = self.redundant
        return " ".join(f"{name}{value}" for name, value in named.items() if value > 1) or "TP1"

    @classmethod
    def complete(
        cls,
        devices: int,
        *,
        tp: int | None = None,
        dp: int | None = None,
        moe_tp: int | None = None,
        ep: int | None = None,
        pp: int = 1,
        dispatch: Dispatch | None = None,
        direct: Dispatch = "deepep",
        redundant: int = 0,
    ) -> Layout:
        """A layout of so many devices from the sizes that are given.

        Without any, heads and experts are cut over all devices (engines' default). With data
        parallel attention and nothing said of experts, these are spread whole.

        Args:
            devices: Of the cluster.
            tp: See :class:`Layout`.
            dp: Same.
            moe_tp: Same.
            ep: Same.
            pp: Same.
            dispatch: Same; what suits the layout, if not given.
            direct: What sends tokens to the chosen experts, where that suits.
            redundant: See :class:`Layout`.

        Raises:
            UsageError: If the sizes contradict each other or the number of devices.
        """
        given = {"--tp": tp, "--dp": dp, "--moe-tp": moe_tp, "--ep": ep, "--pp": pp}
        for option, value in given.items():
            if value is not None and value < 1:
                raise UsageError(
                    f"{option} must be at least 1; found {value}\nfix: pass {option} 1"
                )
        if devices % pp:
            raise UsageError(
                f"--pp {pp} does not divide the cluster's {devices} devices\n"
                "fix: pass a divisor, or another --cluster"
            )
        stage = devices // pp
        tp, dp = _pair(stage, tp, dp, ("--tp", "--dp"), first_takes_rest=True)
        ep, moe_tp = _pair(stage, ep, moe_tp, ("--ep", "--moe-tp"), first_takes_rest=dp > 1)
        if dispatch is None:
            whole = dp > 1 and moe_tp == 1 and ep > 1
            dispatch = direct if whole else "allgather" if dp > 1 else "allreduce"
        if (dispatch == "allreduce") != (dp == 1):
            raise UsageError(
                f"--dispatch {dispatch} does not go with --dp {dp}\nfix: "
                + ("leave out --dispatch" if dp == 1 else "choose allgather, deepep or nvlink")
            )
        if dispatch in ("deepep", "nvlink") and moe_tp > 1:
            raise UsageError(
                f"--dispatch {dispatch} sends tokens to whole experts, and --moe-tp {moe_tp} cuts "
                "them\nfix: pass --dispatch allgather, or --moe-tp 1"
            )
        if redundant < 0 or (redundant and ep == 1):
            raise UsageError(
                f"--redundant {redundant} with --ep {ep}: further copies of experts are for "
                "devices that hold some experts each\nfix: leave out --redundant, or pass --ep"
            )
        return cls(tp, dp, moe_tp, ep, pp, dispatch, redundant)

    def check(self, model: ModelSpec) -> None:
        """Refuse a layout that does not divide the model.

        Raises:
            UsageError: Naming the option and what it must divide.
        """
        heads = [mixer.heads for mixer in model.mixers if hasattr(mixer, "heads")]
        for option, size, what, parts in (
            *(("--tp", self.tp, "attention heads", count) for count in heads),
            ("--ep", self.ep, "expert slots", model.experts + self.redundant),
            ("--moe-tp", self.moe_tp, "elements of an expert's width", model.expert_width),
        ):
            if parts % size:
                raise UsageError(
                    f"{option} {size} does not divide the {parts} {what} of {model.name}\n"
                    f"fix: pass a divisor of {parts}"
                )
        if self.pp > model.layers:
            raise UsageError(
                f"--pp {self.pp} is more than the {model.layers} layers of {model.name}\n"
                "fix: pass fewer stages"
            )


def _pair(
    product: int,
    first: int | None,
    second: int | None,
    options: tuple[str, str],
    *,
    first_takes_rest: bool,
) -> tuple[int, int]:
    """Two sizes with that product, from those that are given."""
    if first is None and second is None:
        return (product, 1) if first_takes_rest else (1, product)
    known = first if first is not None else second
    if known is None or product % known:
        raise UsageError(
            f"{options[0] if first is not None else options[1]} {known} does not divide the "
            f"{product} devices of a stage\nfix: pass a divisor of {product}"
        )
    if first is None:
        first = product // known
    if second is None:
        second = product // first
    if first * second != product:
        raise UsageError(
            f"{options[0]} {first} times {options[1]} {second} is not the {product} devices of a "
            f"stage\nfix: leave out one of them, or use another --cluster"
        )
    return first, second


@dataclass(frozen=True)
class Sequences:
    """Sequences that are alike in a step.

    Attributes:
        count: How many.
        new_tokens: That each brings to the step: in decode 1, and its drafts.
        cached_tokens: In its key-value cache before the step.
        drafts: Of the new tokens, those that a drafter proposed and the step verifies.
    """

    count: int
    new_tokens: int
    cached_tokens: int
    drafts: int = 0

    @property
    def tokens(self) -> int:
        """New tokens of all of them."""
        return self.count * self.new_tokens

    @property
    def phase(self) -> Phase:
        """Which attention kernel they take."""
        return "decode" if self.new_tokens == 1 + self.drafts else "prefill"


@dataclass(frozen=True)
class StepLoad:
    """What a step works on: groups of sequences, over all devices of a stage.

    Mixed steps (chunked prefill beside decode) have several groups.
    """

    groups: tuple[Sequences, ...]

    @classmethod
    def of(
        cls, phase: Phase, batch: int, context: int, prefix: int = 0, drafts: int = 0
    ) -> StepLoad:
        """A plain step.

        Args:
            phase: Decode: each sequence has ``context`` tokens cached and adds one. Prefill: each
                adds ``context`` tokens behind ``prefix`` cached ones.
            batch: Sequences over all devices.
            context: See above.
            prefix: See above.
            drafts: That each sequence verifies in decode beside its one token.
        """
        if phase == "decode":
            return cls((Sequences(batch, 1 + drafts, context + prefix, drafts),))
        return cls((Sequences(batch, context, prefix),))

    @property
    def tokens(self) -> int:
        """New tokens over all devices."""
        return sum(group.tokens for group in self.groups)

    @property
    def sequences(self) -> int:
        """Sequences over all devices."""
        return sum(group.count for group in self.groups)

    @property
    def sampled(self) -> int:
        """Tokens behind which the next one is sampled: the last of each sequence, and drafts."""
        return sum(group.count * (1 + group.drafts) for group in self.groups)

    @property
    def phase(self) -> Phase:
        """Prefill if any sequence is in prefill."""
        phases: Iterable[Phase] = (group.phase for group in self.groups)
        return "prefill" if "prefill" in phases else "decode"

    def scaled(self, share: float) -> StepLoad:
        """Tokens that pass a layer: a share of them, or every sequence more than once."""
        if share >= 1:
            return StepLoad(
                tuple(replace(group, count=ceil(group.count * share)) for group in self.groups)
            )
        return StepLoad(
            tuple(
                replace(
                    group,
                    count=ceil(group.count * share) if group.phase == "decode" else group.count,
                    new_tokens=group.new_tokens
                    if group.phase == "decode"
                    else max(2, ceil(group.new_tokens * share)),
                    cached_tokens=round(group.cached_tokens * share),
                )
                for group in self.groups
            )
        )

    def busiest(self, ways: int) -> StepLoad:
        """The share of the busiest of so many groups of devices: sequences are whole."""
        return StepLoad(
            tuple(replace(group, count=ceil(group.count / ways)) for group in self.groups)
        )
