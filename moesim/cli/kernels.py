"""``moesim kernels``: the Triton kernels, whether they are right, and how fast they are."""

from __future__ import annotations

import typer

from moesim.cli import kernels_bench, kernels_check, kernels_select

__all__ = ["app"]

app = typer.Typer(help="Kernels of expert layers: compile and check, time, choose a configuration.")


@app.callback(no_args_is_help=True)
def _group() -> None:
    """Kernels of expert layers: compile and check, time, choose a configuration."""


app.command("check")(kernels_check.check)
app.command("bench")(kernels_bench.bench)
app.command("select")(kernels_select.select)
