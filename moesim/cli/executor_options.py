"""Options of verbs whose work an executor can take."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AddressOption", "JobsOption"]

AddressOption = Annotated[
    str | None, typer.Option(help="Running Ray cluster [Ray is started on this machine].")
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, help="Worker processes [one per usable CPU].")
]
