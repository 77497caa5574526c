"""The fits that come with moesim, and finding the one for a device.

``hwprofiles/fitted/<operator>.json`` is written by ``moesim calibrate fit`` and read here; running
moesim needs neither the measured rows nor a fit. (Fused expert layers have
:mod:`moesim.operators.moe_fits`.)

    fit = find_fit("gemm", load_device("h200_sxm"), engine="sglang", dtype="fp8_block")
    fit.time(m=np.array([128]), n=np.array([7168]), k=np.array([2048])).time_s
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from moesim.errors import InputError, UsageError
from moesim.hardware import Device, load_device, profiles_folder
from moesim.operators.fitted import FittedOperator, KernelFit, Label, nearest
from moesim.schema import Evidence

__all__ = ["KINDS", "as_stand_in", "find_fit", "kind_of_fit", "shipped_fits"]

K = TypeVar("K", bound=KernelFit)

KINDS: Mapping[str, str] = {
    "gemm": "moesim.operators.gemm:GemmKernel",
    "mla_bmm": "moesim.operators.gemm:GemmKernel",
    "context_attention": "moesim.operators.attention:AttentionKernel",
    "generation_attention": "moesim.operators.attention:AttentionKernel",
    "context_mla": "moesim.operators.mla:MlaKernel",
    "generation_mla": "moesim.operators.mla:MlaKernel",
    "context_mla_module": "moesim.operators.mla:MlaKernel",
    "generation_mla_module": "moesim.operators.mla:MlaKernel",
    "wideep_context_mla": "moesim.operators.mla:MlaKernel",
    "wideep_generation_mla": "moesim.operators.mla:MlaKernel",
    "collective": "moesim.operators.comm_fits:CollectiveFit",
    "custom_allreduce": "moesim.operators.comm_fits:CollectiveFit",
    "deepep_normal": "moesim.operators.comm_fits:DeepEpFit",
    "deepep_low_latency": "moesim.operators.comm_fits:DeepEpFit",
    "moe_all_to_all": "moesim.operators.comm_fits:DeepEpFit",
    "trtllm_alltoall": "moesim.operators.comm_fits:NvlinkAllToAllFit",
    "compute_scale": "moesim.operators.streaming:StreamKernel",
    "gdn": "moesim.operators.streaming:StreamKernel",
    "kda": "moesim.operators.streaming:StreamKernel",
    "mamba2": "moesim.operators.streaming:StreamKernel",
    "hyper_connection": "moesim.operators.streaming:StreamKernel",
    "scale_matrix": "moesim.operators.elementwise:ElementwiseKernel",
}
"""By operator, where the document of its fits lies; imported when asked for."""


def kind_of_fit(operator: str) -> type[KernelFit]:
    """The document of an operator's fits.

    Raises:
        UsageError: If no operator of that name is fitted.
    """
    if operator not in KINDS:
        raise UsageError(f"no fits of operator {operator}\nfix: use one of {', '.join(KINDS)}")
    module, _, name = KINDS[operator].partition(":")
    found: type[KernelFit] = getattr(import_module(module), name)
    return found


@cache
def shipped_fits(operator: str, path: Path | None = None) -> FittedOperator[Any]:
    """The fits of an operator that come with moesim, or those of another file.

    Raises:
        UsageError: If no operator of that name is fitted.
        InputError: If the file is not such a document.
    """
    kind: Any = kind_of_fit(operator)
    document: type[FittedOperator[Any]] = FittedOperator[kind]
    return document.load(path or profiles_folder() / "fitted" / f"{operator}.json")


def find_fit(
    operator: str,
    device: Device | str,
    *,
    engine: str | None = None,
    version: str | None = None,
    kernel: str | None = None,
    fits: Path | None = None,
    **labels: Label,
) -> Any:
    """The fit that is nearest to what is wanted, ready to be asked for times on the device.

    What is not named is free; what is named and not there is replaced by its nearest sibling, as
    the ``ORDER`` of the operator's document says (a number format counts more than the system,
    the system more than the engine …). The result's ``instead_of`` lists what was replaced. A fit
    from another system gets the device's peaks and links, the wider ``transfer`` intervals, and
    the evidence ``spec``.

    Args:
        operator: A key of ``KINDS``.
        device: The device, or the name of its profile.
        engine: ``sglang``, ``trtllm`` or ``vllm``; of NCCL ``nccl``.
        version: Of the engine; the newest of the best fits if not named.
        kernel: Name of the kernel, as the tables give it.
        fits: Another file than the shipped one.
        labels: Further labels of the operator's document: ``dtype``, ``kv_dtype``, ``head_dim``,
            ``variant``, ``collective``, ``phase``, ``mode`` …

    Returns:
        An instance of ``kind_of_fit(operator)``, whose method ``time`` gives an
        :class:`~moesim.operators.fitted.Estimate`.

    Raises:
        UsageError: If there is no such operator or label.
        InputError: If no fit does the same (an essential label such as ``collective`` differs).
    """
    found = load_device(device) if isinstance(device, str) else device
    named = {"engine": engine, "version": version, "kernel": kernel} | labels
    wanted = {name: value for name, value in named.items() if value is not None}
    return _found(operator, found.name, _Held(found), fits, tuple(sorted(wanted.items())))


class _Held:
    """A device as part of a cache key: equal by identity, since hashing it would cost more."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __hash__(self) -> int:
        return id(self.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.device is self.device


@lru_cache(maxsize=4096)
def _found(
    operator: str, _name: str, held: _Held, path: Path | None, items: tuple[tuple[str, Label], ...]
) -> KernelFit:
    kind = kind_of_fit(operator)
    known = (*kind.ESSENTIAL, *kind.ORDER)
    for name, _ in items:
        if name not in known:
            raise UsageError(
                f"fits of {operator} have no label {name}\nfix: use {', '.join(known)}"
            )
    wanted = kind.wanted(held.device, dict(items))
    document = shipped_fits(operator, path)
    best = nearest(document.fits, wanted)
    if best is None:
        essential = {name: wanted[name] for name in kind.ESSENTIAL if name in wanted}
        there = sorted({tuple(str(getattr(f, name)) for name in essential) for f in document.fits})
        raise InputError(
            f"no fit of {operator} does this",
            found=", ".join(f"{name} {value}" for name, value in essential.items()),
            allowed="; ".join(" ".join(values) for values in there),
        )
    return as_stand_in(best, wanted, held.device, document)


def as_stand_in(
    fit: K,
    wanted: Mapping[str, Label],
    device: Device,
    document: FittedOperator[Any] | None = None,
) -> K:
    """A fit for what was wanted: on the device's own peaks if it is from another system."""
    instead = {
        name: value
        for name, value in wanted.items()
        if name not in fit.DERIVED and fit.mismatch(name, value)
    }
    if not instead:
        return fit
    changes: dict[str, Any] = {"instead_of": instead}
    if "system" in instead:
        fit = fit.on_device(device)
        changes["evidence"] = Evidence.SPEC
        if document is not None and document.transfer:
            changes["bands"] = document.transfer
    return fit.model_copy(update=changes)
