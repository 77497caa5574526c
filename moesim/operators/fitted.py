"""What the fit of every operator shares: whose it is, what it rests on, how far off it may be.

An operator (dense GEMM, attention, a collective …) is fitted once per measured kernel. Its module
derives a document from :class:`KernelFit` that adds the coefficients and a method ``time``; all of
one operator's fits stand in a :class:`FittedOperator`, one file of ``hwprofiles/fitted``.
:mod:`moesim.operators.shipped` finds the fit for a device.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from pydantic import Field

from moesim.hardware import Device
from moesim.operators.moe_transfer import architecture
from moesim.operators.systems import system_of
from moesim.schema import Document, Evidence

__all__ = [
    "Band",
    "Estimate",
    "FittedOperator",
    "KernelFit",
    "Label",
    "nearest",
    "version_key",
]

Label = str | int | float


class Band(Document):
    """The central 80 % of measured over predicted time, up to a predicted time.

    Attributes:
        up_to_s: Predicted times that it holds for; absent in the last, which holds for the rest.
        lo: 10th percentile of measured over predicted.
        hi: 90th percentile.
    """

    up_to_s: float | None = None
    lo: float = Field(gt=0)
    hi: float = Field(gt=0)


@dataclass(frozen=True)
class Estimate:
    """Predicted times with their 80 % intervals; arrays of one shape, seconds.

    Attributes:
        time_s: The prediction; NaN where the fit does not reach.
        lo_s: Lower end; equal to ``time_s`` where no interval is known.
        hi_s: Upper end.
        evidence: The weakest that went in.
    """

    time_s: np.ndarray
    lo_s: np.ndarray
    hi_s: np.ndarray
    evidence: Evidence


class KernelFit(Document):
    """One kernel of an engine version on a system; operators add what they fit.

    Attributes:
        rows: Measured rows that were fitted.
        on_bounds: Coefficients that ended on the edge of what physics allows: not to be read as
            physical.
        bands: Intervals by predicted time, from rows that a fit had not seen; none if unknown.
        evidence: ``fitted``; ``spec`` on a system that was not measured.
        instead_of: By label, what was asked for where the fit stands in for another.
    """

    ORDER: ClassVar[tuple[str, ...]] = ("family", "system", "engine", "kernel", "version")
    """Labels, from the one that a stand-in must agree in first to the one that matters least."""
    ESSENTIAL: ClassVar[tuple[str, ...]] = ()
    """Labels that a stand-in cannot differ in: another operation."""

    system: str
    engine: str
    version: str
    kernel: str
    rows: int = 0
    on_bounds: tuple[str, ...] = ()
    bands: tuple[Band, ...] = ()
    evidence: Evidence = Evidence.FITTED
    instead_of: dict[str, Label] = Field(default_factory=dict)

    DERIVED: ClassVar[tuple[str, ...]] = ("family",)
    """Those of the labels that follow from others."""

    @property
    def labels(self) -> dict[str, Label]:
        """What tells it from the operator's other fits."""
        names = (*self.ESSENTIAL, *self.ORDER)
        return {name: getattr(self, name) for name in names if name not in self.DERIVED}

    @property
    def family(self) -> str:
        """Architecture of the system; empty if unknown."""
        return architecture(self.system) or ""

    def estimate(self, time_s: np.ndarray) -> Estimate:
        """Add the intervals to predicted times, which lie within them."""
        time_s = np.asarray(time_s, float)
        if not self.bands:
            return Estimate(time_s, time_s, time_s, self.evidence)
        ends, lo, hi = self._bands
        place = np.minimum(np.searchsorted(ends, time_s), len(ends) - 1)
        return Estimate(time_s, time_s * lo[place], time_s * hi[place], self.evidence)

    @cached_property
    def _bands(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[bands] ends in seconds and factors of both ends of the interval, around 1."""
        ends = [np.inf if band.up_to_s is None else band.up_to_s for band in self.bands]
        lo, hi = (np.array([getattr(band, end) for band in self.bands]) for end in ("lo", "hi"))
        return np.array(ends), np.minimum(lo, 1.0), np.maximum(hi, 1.0)

    def mismatch(self, name: str, wanted: Label) -> float:
        """How far the fit is from what is wanted in one label; numbers differ by their ratio."""
        own = getattr(self, name)
        if own == wanted:
            return 0.0
        if isinstance(own, int | float) and isinstance(wanted, int | float) and own * wanted > 0:
            return float(abs(np.log(own / wanted)))
        return 1.0

    @classmethod
    def wanted(cls, device: Device, labels: Mapping[str, Label]) -> dict[str, Label]:
        """Labels of what is wanted on a device, with those that follow from it and from others."""
        return {"system": system_of(device), "family": architecture(device) or "", **labels}

    @abstractmethod
    def on_device(self, device: Device) -> Self:
        """The fit with another device's peaks: efficiencies are shares of them.

        Raises:
            InputError: If the device's profile lacks what the operator needs.
        """


K = TypeVar("K", bound=KernelFit)


class FittedOperator(Document, Generic[K]):
    """All fits of one operator, with their provenance.

    Attributes:
        operator: Name of the measured operator.
        source: Package and version, or folder, that the rows came from.
        rows: Rows after hygiene.
        rows_dropped: By rule of hygiene.
        date: Of the fit.
        command: That repeats it.
        transfer: Intervals of fits that stand in on a system that was not measured, from
            predicting every measured system by the fits of the others.
        fits: One per kernel.
    """

    schema_id: ClassVar[str] = "moesim.fitted-operator/1"

    operator: str
    source: str
    rows: int
    rows_dropped: dict[str, int]
    date: str
    command: str
    transfer: tuple[Band, ...] = ()
    fits: tuple[K, ...]


def nearest(fits: Iterable[K], wanted: Mapping[str, Label]) -> K | None:
    """The fit that agrees best with some labels, judged by ``ORDER``; labels not named are free.

    Among equals the newest version wins, then the one with the most rows. ``None`` if every fit
    differs in an essential label.
    """
    left = list(fits)
    for name in left[0].ESSENTIAL if left else ():
        if name in wanted:
            left = [fit for fit in left if not fit.mismatch(name, wanted[name])]
    for name in left[0].ORDER if left else ():
        if name in wanted and len(left) > 1:
            # Few distinct values, many fits: each value is judged once.
            first = {getattr(fit, name): fit for fit in left}
            far = {value: fit.mismatch(name, wanted[name]) for value, fit in first.items()}
            least = min(far.values())
            left = [fit for fit in left if far[getattr(fit, name)] == least]
    return max(left, key=lambda fit: (version_key(fit.version), fit.rows), default=None)


def version_key(version: str) -> tuple[Any, ...]:
    """Sort key of a version: ``0.5.9 < 0.5.10``, ``1.3.0rc20 < 1.3.0 < 1.3.0.post1``.

    The order is that of the Python packaging rules for releases, pre-, post- and development
    releases (PEP 440), without epochs and local labels; other words come before every number.
    """
    match = re.match(r"v?(\d+(?:\.\d+)*)(?:\.?(dev|a|b|rc|post)(\d+))?$", version)
    if match is None:
        return ((), 0, 0, version)
    stages = {"dev": -4, "a": -3, "b": -2, "rc": -1, None: 0, "post": 1}
    release = [int(part) for part in match[1].split(".")]
    while release and release[-1] == 0:
        release.pop()
    return (tuple(release), stages[match[2]], int(match[3] or 0), version)
