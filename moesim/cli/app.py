"""The ``moesim`` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import moesim
from moesim.cli import (
    calibrate,
    capacity,
    doctor,
    hw,
    kernels,
    model,
    plan,
    plan_moge,
    simulate,
    sweep,
    trace,
    validate,
    whatif,
)
from moesim.cli.console import run
from moesim.cli.words_of_commands import TwoWordGroup

__all__ = ["app", "main"]

app = typer.Typer(
    name="moesim",
    cls=TwoWordGroup,
    help="Performance simulation and planning for Mixture-of-Experts models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan", epilog=plan.SEE_ALSO)(plan.plan)
app.add_typer(plan_moge.app, name="plan moge")
app.add_typer(simulate.app, name="simulate")
app.command("capacity")(capacity.capacity)
app.add_typer(trace.app, name="trace")
app.add_typer(model.app, name="model")
app.add_typer(hw.app, name="hw")
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(whatif.app, name="whatif")
app.add_typer(validate.app, name="validate")
app.add_typer(kernels.app, name="kernels")
app.command("sweep")(sweep.sweep)
app.command("doctor")(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        print(f"moesim {moesim.__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Performance simulation and planning for Mixture-of-Experts models."""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(app))
