"""Made-up files of fitted kernels, as ``moesim calibrate fit`` writes them of a GPU's benchmark."""

from __future__ import annotations

from pathlib import Path

from moesim.measured_kernels import MeasuredKernels, load_measured
from moesim.operators.grouped_gemm import GroupedCoefficients, GroupedFit, GroupedFits
from moesim.safe_io import write_json

PARALLEL = GroupedCoefficients(
    serial=False,
    call_s=1e-5,
    expert_s=6e-8,
    weight_bytes_per_s=4.2e12,
    flop_per_s=6.5e14,
    row_bytes_per_s=2e13,
    tile_rows=64,
    overlap_exponent=2.0,
)
SERIAL = GroupedCoefficients(
    serial=True,
    call_s=1e-8,
    expert_s=5e-6,
    weight_bytes_per_s=4e12,
    flop_per_s=6e14,
    row_bytes_per_s=2e13,
    few_rows=8,
    few_rows_flop_per_s=3e13,
    pack_bytes_per_s=2e13,
    tile_rows=1,
    overlap_exponent=3.0,
)


def fits(
    scale: float = 1.0,
    kernels: tuple[str, ...] = ("moesim", "vllm-fused-moe", "torch-loop"),
    **changes: object,
) -> GroupedFits:
    """Kernels of an H200 in bfloat16, with rates that are ``scale`` times the usual ones.

    Args:
        scale: Of rates; times of active experts are divided by it.
        kernels: Names; ``torch-loop`` is serial, every later parallel one 10 % slower.
        changes: Of the document.
    """
    found = []
    for place, kernel in enumerate(kernels):
        of = SERIAL if kernel == "torch-loop" else PARALLEL
        rate = scale * 0.9**place
        update = {"expert_s": of.expert_s / rate}
        for name in ("weight_bytes_per_s", "flop_per_s", "few_rows_flop_per_s", "pack_bytes_per_s"):
            value = getattr(of, name)
            update[name] = value and value * rate
        found.append(
            GroupedFit(
                system="nvidia_h200",
                kernel=kernel,
                op="grouped-gemm",
                dtype="bf16",
                rows=100,
                interval=(0.93, 1.08),
                held_out="model",
                coefficients=of.model_copy(update=update),
            )
        )
    body = {
        "system": "nvidia_h200", "device": "cuda", "processor": "NVIDIA H200",
        "clock": "cuda-event", "source": "mine.json", "date": "", "versions": {}, "cores": 132,
        "memory_bytes": 150e9, "fits": found,
    }  # fmt: skip
    return GroupedFits(**(body | changes))


def written(folder: Path, document: GroupedFits | None = None, name: str = "mine.json") -> Path:
    """The file."""
    return write_json(folder / name, (document or fits()).to_dict())


def loaded(
    folder: Path, document: GroupedFits | None = None, kernel: str | None = None
) -> MeasuredKernels:
    """The file as ``--cost`` reads it."""
    path = written(folder, document)
    return load_measured(f"{path}:{kernel}" if kernel else str(path))
