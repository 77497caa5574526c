"""Options of the verbs about experts that do not fit: the setting and the formats of weights."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "DEFAULT_HARDWARE",
    "BitsOption",
    "HardwareOption",
    "HostBitsOption",
]

DEFAULT_HARDWARE = "rtx4090+epyc_9554"

HardwareOption = Annotated[
    str,
    typer.Option(help="GPU, GPU+CPU or GPU+CPU:CORES; a measured CPU profile in its place."),
]
BitsOption = Annotated[
    float | None, typer.Option(help="Bits per expert weight, with scales [the model's own].")
]
HostBitsOption = Annotated[
    float | None, typer.Option(help="Same, of what the CPU computes with [--bits].")
]
