"""``moesim kernels``: the Triton kernels and how fast they are."""

from __future__ import annotations

import typer

from moesim.cli import kernels_bench

__all__ = ["app"]

app = typer.Typer(help="Kernels of expert layers: how fast they are, here and on a GPU.")


@app.callback(no_args_is_help=True)
def _group() -> None:
    """Kernels of expert layers: how fast they are, here and on a GPU."""


app.command("bench")(kernels_bench.bench)
