"""Placements as files that engines load, and the way back.

Every exporter writes what its engine's own reader takes, and refuses what that reader would refuse
or, worse, load wrongly.
"""

from __future__ import annotations

from pathlib import Path

from moesim.errors import UsageError
from moesim.placement import Placement
from moesim.planners.exports.common import Exporter, ExportResult, ModelShape
from moesim.planners.exports.megatron import MEGATRON
from moesim.planners.exports.sglang import SGLANG
from moesim.planners.exports.tensorrt_llm import TENSORRT_LLM
from moesim.planners.exports.vllm import VLLM
from moesim.planners.exports.vllm_ascend import VLLM_ASCEND

__all__ = ["EXPORTERS", "ExportResult", "Exporter", "export", "find_exporter", "read_export"]

EXPORTERS: dict[str, Exporter] = {
    exporter.name: exporter for exporter in (SGLANG, VLLM, VLLM_ASCEND, TENSORRT_LLM, MEGATRON)
}
"""By the name that ``--export`` takes."""


def find_exporter(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        UsageError: If there is none.
    """
    if name not in EXPORTERS:
        raise UsageError(f"no exporter is called {name!r}\nfix: choose from {', '.join(EXPORTERS)}")
    return EXPORTERS[name]


def export(name: str, placement: Placement, model: ModelShape, folder: Path) -> ExportResult:
    """Write a placement for an engine.

    Args:
        name: A key of :data:`EXPORTERS`.
        placement: Covers every MoE layer of the model.
        model: The model that the engine will load.
        folder: Receives the files; made if it is not there.

    Raises:
        UsageError: If the name is unknown, or the engine cannot express this placement.
        InputError: If placement and model do not belong together, or the folder cannot be written.
    """
    return find_exporter(name).write(placement, model, Path(folder))


def read_export(name: str, path: str | Path, model: ModelShape, devices: int) -> Placement:
    """Read a file that :func:`export`, or the engine itself, has written.

    Slots come back as they were written; ``megatron`` says nothing about the order of experts
    within a device and gives them in ascending order.

    Args:
        name: A key of :data:`EXPORTERS`.
        path: The file.
        model: Gives the MoE layers and experts, which most formats leave out.
        devices: G, which most formats leave out.

    Raises:
        UsageError: If the name is unknown.
        InputError: If the file is not of that format, or not for that model and device count.
    """
    return find_exporter(name).read(Path(path), model, devices)
