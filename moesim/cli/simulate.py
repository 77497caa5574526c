"""``moesim simulate``: how fast a model runs."""

from __future__ import annotations

import typer

from moesim.cli import (
    simulate_fpga,
    simulate_offload,
    simulate_pim,
    simulate_rebalancing,
    simulate_serving,
    simulate_step,
    simulate_training,
)

__all__ = ["app"]

app = typer.Typer(name="simulate", help="How fast a model runs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """How fast a model runs."""


app.command("step")(simulate_step.step)
app.command("offload")(simulate_offload.offload)
app.command("serving")(simulate_serving.serving)
app.command("training")(simulate_training.training)
app.command("fpga")(simulate_fpga.fpga)
app.command("pim")(simulate_pim.pim)
app.command("rebalancing")(simulate_rebalancing.rebalancing)
