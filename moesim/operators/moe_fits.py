"""Fitted coefficients of expert layers as a document, and finding those of a kernel.

``hwprofiles/fitted/moe.json`` is written by ``moesim calibrate fit`` and read here; running moesim
needs neither the measured rows nor a fit.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from moesim.errors import InputError
from moesim.hardware import Device, profiles_folder
from moesim.operators.moe import MoeCoefficients
from moesim.operators.moe_device import moe_device
from moesim.operators.moe_transfer import (
    PROFILES,
    MoeKernel,
    TransferKind,
    architecture,
    transferred,
)
from moesim.schema import Document, Evidence

__all__ = ["REGIMES", "FittedMoe", "MoeFit", "moe_fit_for", "shipped_moe_fits", "token_regime"]


REGIMES = {"decode": (0, 64), "mixed": (64, 1024), "prefill": (1024, math.inf)}
"""Tokens of the group above and up to which each regime lies: those that errors are reported by."""


def token_regime(tokens: int) -> str:
    """Regime of a batch, the key of a fit's intervals: ``decode``, ``mixed`` or ``prefill``."""
    return next(name for name, (_, most) in REGIMES.items() if tokens <= most)


Intervals = dict[str, tuple[float, float]]


class MoeFit(Document):
    """Fitted coefficients of one kernel, and what they rest on.

    Attributes:
        rows: Measured rows that were fitted on.
        borrowed_from: Kernels whose coefficients were taken, where it has none of its own.
        on_bounds: Coefficients that ended on a bound.
        coefficients: Of :func:`~moesim.operators.moe.moe_time_s`.
        transfer: How near those kernels are.
        intervals: By ``token_regime``, the central 80 % of measured over predicted time on what
            the fit had not seen: shapes, or for coefficients of other kernels such transfers.
    """

    system: str
    engine: str
    version: str
    kernel: str
    dtype: str
    rows: int
    borrowed_from: tuple[str, ...] = ()
    on_bounds: tuple[str, ...] = ()
    coefficients: MoeCoefficients
    transfer: TransferKind = "none"
    intervals: Intervals = Field(default_factory=dict)

    @property
    def key(self) -> MoeKernel:
        """Which kernel it is."""
        return MoeKernel(self.system, self.engine, self.version, self.kernel, self.dtype)

    @property
    def evidence(self) -> Evidence:
        """``fitted`` if the kernel itself was measured on the device, else ``spec``."""
        return Evidence.FITTED if self.transfer == "none" else Evidence.SPEC

    def interval(self, tokens: int) -> tuple[float, float]:
        """80 % interval of measured over predicted time for a batch of the whole group.

        Raises:
            InputError: If the fit carries none.
        """
        regime = token_regime(tokens)
        if regime not in self.intervals:
            raise InputError(
                "the fit has no interval for batches of this size",
                field="intervals",
                found=", ".join(self.intervals) or "none",
                allowed=regime,
                fix="write the fits anew with: moesim calibrate fit --operator moe",
            )
        return self.intervals[regime]


class FittedMoe(Document):
    """All fits of one run, with their provenance."""

    schema_id: ClassVar[str] = "moesim.fitted-moe/1"

    source: str
    """Package and version, or folder, that the rows came from."""
    rows: int
    """Rows after hygiene."""
    rows_dropped: dict[str, int]
    """By rule of hygiene."""
    date: str
    command: str
    transfer_intervals: dict[TransferKind, Intervals] = Field(default_factory=dict)
    """80 % intervals of predictions by other kernels' coefficients, by kind and token regime."""
    fits: tuple[MoeFit, ...]

    def find(self, system: str, engine: str, dtype: str, kernel: str | None = None) -> MoeFit:
        """The fit of a kernel; of the one with the most rows, if none is named.

        Raises:
            InputError: If there is none, listing what there is.
        """
        near = [fit for fit in self.fits if (fit.system, fit.engine) == (system, engine)]
        found = [fit for fit in near if fit.dtype == dtype and kernel in (None, fit.kernel)]
        if not found:
            raise InputError(
                "no fitted kernel of that kind",
                found=f"{system}, {engine}, {dtype}, {kernel or 'any kernel'}",
                allowed="; ".join(f"{fit.dtype} {fit.kernel}" for fit in near)
                or "; ".join(sorted({f"{fit.system} {fit.engine}" for fit in self.fits})),
            )
        return max(found, key=lambda fit: fit.rows)


@cache
def shipped_moe_fits(path: Path | None = None) -> FittedMoe:
    """The coefficients that come with moesim, or those of another file."""
    return FittedMoe.load(path or profiles_folder() / "fitted" / "moe.json")


def moe_fit_for(
    device: Device,
    dtype: str,
    *,
    engine: str | None = None,
    kernel: str | None = None,
    fits: FittedMoe | None = None,
) -> MoeFit:
    """Coefficients of an expert kernel on a device: fitted where it was measured, else transferred.

    A device that was never measured takes the efficiencies of its architecture (of the nearest
    measured kernels where nothing of its architecture was measured), the interval of systems that
    were held out in the same way, and ``spec`` as its evidence.

    Args:
        device: Any profile.
        dtype: As the measured tables name it; see
            :func:`~moesim.operators.moe_kernels.measured_dtype`.
        engine: ``sglang``, ``trtllm`` or ``vllm``; any without it.
        kernel: As the tables name it; without it, the one that was measured most.
        fits: Other coefficients than those shipped.

    Raises:
        InputError: If no such kernel was measured anywhere, or the device lacks a figure that the
            physics needs.
    """
    fits = fits if fits is not None else shipped_moe_fits()
    wanted = [
        fit
        for fit in fits.fits
        if fit.dtype == dtype and engine in (None, fit.engine) and kernel in (None, fit.kernel)
    ]
    if not wanted:
        raise InputError(
            "no expert kernel of that kind was measured on any system",
            found=f"{dtype}, {engine or 'any engine'}, {kernel or 'any kernel'}",
            allowed="; ".join(sorted({f"{fit.engine} {fit.dtype}" for fit in fits.fits})),
        )
    own = [fit for fit in wanted if PROFILES.get(fit.system, fit.system) == device.name]
    if own:
        return max(own, key=lambda fit: fit.rows)
    home = architecture(device)
    of_home = [fit for fit in wanted if architecture(fit.system) == home] if home else []
    like = max(of_home or wanted, key=lambda fit: fit.rows)
    target = MoeKernel(device.name, like.engine, like.version, like.kernel, like.dtype)
    found = transferred(target, fits.fits, moe_device(device, dtype), family_of=home)
    return MoeFit(
        **target._asdict(),
        rows=0,
        borrowed_from=tuple("/".join(donor) for donor in found.donors),
        transfer=found.kind,
        coefficients=found.coefficients,
        intervals=fits.transfer_intervals.get(found.kind, {}),
    )
