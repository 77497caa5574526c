"""How much slower a device's kernels run in training than alone: one set per device.

Kernels are measured one by one, on a device that rests in between. In training they follow one
another for months: clocks sink under load, hosts fall behind, ranks wait for the slowest. One
factor per system stands for all that; communication is not scaled. It is fitted to one published
iteration time each (``fitted_on``), which is no longer a test of the model.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import Field

from moesim.hardware import Device, profiles_folder
from moesim.schema import Document, Evidence

__all__ = ["TrainingFit", "TrainingFits", "find_slowdown", "shipped_training_fits"]

DEFAULT = "megascale"
"""Whose factor others take: kernels as good as they get."""


class TrainingFit(Document):
    """The factor of one system on one device."""

    device: str
    system: str
    compute_slowdown: Annotated[float, Field(ge=1, le=10)]
    fitted_on: tuple[str, ...]
    """Ids of the published figures that it reproduces."""
    source: str


class TrainingFits(Document):
    """``hwprofiles/fitted/training.json``."""

    schema_id: ClassVar[str] = "moesim.training-fits/1"

    fits: tuple[TrainingFit, ...]


@lru_cache(maxsize=1)
def shipped_training_fits() -> TrainingFits:
    """Those that come with moesim."""
    return TrainingFits.load(profiles_folder() / "fitted" / "training.json")


def find_slowdown(device: Device, system: str) -> tuple[float, Evidence]:
    """Factor on kernels' times, and what it rests on.

    A system that was not fitted takes the factor of MegaScale's kernels; a device that was not
    takes the system's on another, which is then assumed.
    """
    fits = shipped_training_fits().fits
    named = [fit for fit in fits if fit.system == system]
    named = named or [fit for fit in fits if fit.system == DEFAULT]
    own = [fit for fit in named if fit.device == device.name]
    if own:
        return own[0].compute_slowdown, Evidence.FITTED
    return named[0].compute_slowdown, Evidence.ASSUMED
