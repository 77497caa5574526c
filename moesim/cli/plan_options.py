"""Options of every verb that plans placements: the setting, and how long and on what to plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.choices import CommOption, EngineOption, PhaseOption
from moesim.errors import UsageError

__all__ = [
    "ClusterOption",
    "DistinctCopiesOption",
    "HoldoutOption",
    "LoadOption",
    "ModelOption",
    "PlanCommOption",
    "PlanEngineOption",
    "PlanPhaseOption",
    "TokensPerDeviceOption",
    "TraceArgument",
    "TraceOption",
    "positive_seconds",
]

TraceArgument = Annotated[
    Path | None, typer.Argument(help="Trace bundle; the bundled sample if left out.")
]
TraceOption = Annotated[
    Path | None, typer.Option(help="Trace bundle; the bundled sample if left out.")
]
LoadOption = Annotated[
    Path | None,
    typer.Option(help="Expert counts [layers, experts] (npy, csv, json) instead of a trace."),
]
ModelOption = Annotated[
    str | None, typer.Option(help="Registry name, config.json or folder with one.")
]
ClusterOption = Annotated[
    str | None, typer.Option(help="Like 2x8xh100_sxm (nodes x devices x device), or YAML.")
]
DistinctCopiesOption = Annotated[
    bool, typer.Option("--distinct-copies", help="Never two copies of an expert on one device.")
]
PlanCommOption = Annotated[CommOption, typer.Option(help="How tokens travel.")]
PlanPhaseOption = Annotated[PhaseOption, typer.Option(help="Kind of step.")]
PlanEngineOption = Annotated[EngineOption, typer.Option("--engine", help="Whose kernels.")]
TokensPerDeviceOption = Annotated[
    int | None, typer.Option(help="Tokens of a step per device [4096 prefill, 128 decode].")
]
HoldoutOption = Annotated[
    float, typer.Option(help="Share of the trace kept back to check the plan on.")
]


def positive_seconds(value: float, option: str) -> float:
    """The value itself.

    Raises:
        UsageError: If it is no positive number of seconds.
    """
    if not 0 < value < float("inf"):
        raise UsageError(
            f"{option} must be a positive number of seconds; found {value}\n"
            f"fix: pass e.g. {option} 30"
        )
    return value
