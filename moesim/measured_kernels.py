"""Files of kernels that were measured on one's own GPU, as ``--cost`` names them.

``moesim kernels bench`` measures, ``moesim calibrate fit`` writes the file, and
:mod:`moesim.measured_cost` prices experts by one of its kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from moesim.calibrated_cost import CalibratedCost
from moesim.errors import InputError
from moesim.hardware import Device
from moesim.measured_cost import MeasuredCost
from moesim.operators.grouped_gemm import GroupedFit, GroupedFits
from moesim.safe_io import read_json

__all__ = ["MeasuredKernels", "load_measured"]

TYPES = {"bfloat16": ("bf16", 2.0), "fp8_block": ("fp8", 1.0)}
"""Number type in the benchmark of a format of experts, and bytes per element."""

ANY = ("moesim", "vllm-fused-moe", "triton-kernels", "torch-grouped-mm", "torch-loop")
PREFERRED = {
    "vllm": ("vllm-fused-moe", "triton-kernels", *ANY),
    # SGLang's fused_moe_triton began as vLLM's kernel and keeps its name and arguments.
    "sglang": ("vllm-fused-moe", *ANY),
    # TensorRT-LLM's and torch's grouped products are both CUTLASS's.
    "trtllm": ("torch-grouped-mm", *ANY),
}
"""By engine, kernels of the benchmark from the likest on."""

MEMORY_TOLERANCE = 0.1
"""A driver reports GiB where data sheets say GB (7 %), less what it keeps to itself."""


PRODUCT = "grouped-gemm"
"""The benchmark's operation that a layer runs twice."""


@dataclass(frozen=True, eq=False)
class MeasuredKernels:
    """A file of fitted kernels, as ``--cost`` names it.

    Attributes:
        named: As it was named.
        path: Of the file.
        kernel: The one asked for; without it, the engine's own or the likest.
        fits: Of the file.
    """

    named: str
    path: Path
    kernel: str | None
    fits: GroupedFits

    def __str__(self) -> str:
        return self.named

    def check(self, device: Device) -> None:
        """Whether the file was measured on such a device.

        Raises:
            InputError: If cores or memory differ, or it was no GPU.
        """
        fits = self.fits
        if fits.device != "cuda":
            raise InputError(
                "kernels of a CPU price no device here",
                file=self.named,
                field="device",
                found=fits.device,
                allowed="cuda",
                fix="measure a CPU with moesim calibrate measure --device cpu --device-profile",
            )
        if device.kind != "gpu":
            raise InputError(
                f"was measured on a GPU, and {device.name} is none",
                file=self.named,
                field="processor",
                found=fits.processor,
                fix="leave out the file",
            )
        if device.cores is None:
            raise InputError(
                f"the profile of {device.name} lacks its number of cores",
                field="cores",
                allowed=f"{fits.cores}, as {fits.processor} has",
                fix="add it to the profile",
            )
        memory = fits.memory_bytes or 0.0
        same = fits.cores == device.cores.value
        if not same or abs(memory / device.memory_bytes - 1) > MEMORY_TOLERANCE:
            raise InputError(
                f"was measured on another device than {device.name}",
                file=self.named,
                field="cores, memory_bytes",
                found=f"{fits.processor}: {fits.cores} cores, {memory / 1e9:.0f} GB",
                allowed=f"{device.cores.value} cores, {device.memory_bytes / 1e9:.0f} GB within "
                f"{MEMORY_TOLERANCE:.0%}",
                fix="name the device that was measured, or leave out the file",
            )

    def kernel_for(self, dtype: str, engine: str) -> GroupedFit | None:
        """The kernel that multiplies experts of a format, or None where none was measured.

        Args:
            dtype: As the measured tables name it.
            engine: Whose kernel to prefer.
        """
        kind, _ = TYPES.get(dtype, ("", 0.0))
        there = {
            fit.kernel: fit for fit in self.fits.fits if (fit.op, fit.dtype) == (PRODUCT, kind)
        }
        for kernel in (self.kernel,) if self.kernel else (*PREFERRED[engine], *sorted(there)):
            if kernel in there:
                return there[kernel]
        return None

    def cost(self, around: CalibratedCost) -> MeasuredCost | None:
        """Cost of experts, or None where no kernel of the file multiplies such.

        Args:
            around: What prices them without the file.
        """
        fit = self.kernel_for(around.fit.dtype, around.fit.engine)
        if fit is None:
            return None
        return MeasuredCost(fit, TYPES[around.fit.dtype][1], self.fits.processor, around)


def load_measured(named: str) -> MeasuredKernels:
    """A file of ``moesim calibrate fit``, with ``:KERNEL`` behind it if one is meant.

    Raises:
        InputError: If there is no such file, or it holds something else.
    """
    path, kernel = Path(named), None
    if not path.is_file():
        head, _, tail = named.rpartition(":")
        if head and Path(head).is_file():
            path, kernel = Path(head), tail
    if not path.is_file():
        raise InputError(
            "no such file", file=named, field="--cost", fix="name fitted, roofline or a file"
        )
    status = path.stat()
    return _loaded(named, str(path.resolve()), kernel, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _loaded(named: str, path: str, kernel: str | None, _time: int, _size: int) -> MeasuredKernels:
    data = read_json(path)
    if isinstance(data, dict) and data.get("schema") == "moesim.kernels/1":
        raise InputError(
            "holds measured times, not their fit",
            file=named,
            field="schema",
            found=data["schema"],
            allowed=GroupedFits.schema_id,
            fix=f"fit it first: moesim calibrate fit --source {named} --out fitted",
        )
    fits = GroupedFits.parse(data, file=named)
    there = sorted({fit.kernel for fit in fits.fits})
    if kernel is not None and kernel not in there:
        raise InputError(
            "no such kernel in the file",
            file=named,
            field="fits",
            found=kernel,
            allowed=", ".join(there),
            fix="name one of these behind the file and a colon, or none",
        )
    return MeasuredKernels(named, Path(path), kernel, fits)
