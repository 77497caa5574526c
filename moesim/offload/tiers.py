"""What an expert costs where: GPU memory, host memory and CPU, PCIe, and a disk.

A machine is written ``GPU``, ``GPU+CPU`` or ``GPU+CPU:CORES``: names or files of device profiles
(``moesim hw list``); in place of the CPU also the profile that ``moesim calibrate measure
--profile`` wrote. Without a CPU experts come over the GPU's host link and nothing else computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moesim.cost import RooflineCost
from moesim.errors import InputError, UsageError
from moesim.hardware import Device, load_device, looks_like_file, profiles_folder
from moesim.operators.cpu_experts import (
    ELEMENT_BYTES,
    CpuExpertCoefficients,
    CpuExpertProfile,
    ExpertShape,
    cpu_experts_s,
)
from moesim.safe_io import read_json
from moesim.schema import Evidence

if TYPE_CHECKING:
    from moesim.model import ModelSpec
    from moesim.offload.replay import Timing
    from moesim.offload.steps import Steps

__all__ = ["LINK_SHARE", "NVME_BYTES_PER_S", "Formats", "Machine", "load_machine"]

LINK_SHARE = 0.78
"""Of a link's nominal bandwidth that copies of pinned memory reach. Published runs of CUDA's
bandwidthTest and of expert copies: 26.1 of 32 GB/s (A100), 24.7 of 32 (RTX 4090, a Mixtral expert:
github.com/efeslab/fiddler/issues/7), 25 of 32 (BaM, arXiv 2203.04910), 12.4 of 16 (GTX 1650)."""

NVME_BYTES_PER_S = 7.45e9
"""Sequential reads of a PCIe 4.0 drive, Samsung 990 PRO as announced (slashcam.com, 28 Aug 2022);
a data-sheet figure."""

HOST_MEMORY_SHARE = 0.8
"""Of a CPU's nominal memory bandwidth that many cores reach together; assumed, as STREAM results
of servers usually are."""

CPU_FLOP_SHARE = 0.75
"""Of a core's nominal peak that matrix products reach: 87 GFLOP/s measured on one EPYC (Zen 3)
core with 32 FLOP per cycle at up to 3.6 GHz."""

EXPERT_KERNELS = 3
"""Kernels per expert on the GPU: gate with up, activation, down. Engines that offload launch them
per expert, since experts arrive one at a time."""


@dataclass(frozen=True)
class Formats:
    """Bits per expert weight in each tier, scales included.

    Attributes:
        slots: In GPU memory and on the link.
        host: What the CPU computes with.
        disk: What is read from the disk.
        narrow: On the link, of unpopular experts in prefill (Fate); None if there is no such form.
    """

    slots: float
    host: float
    disk: float
    narrow: float | None = None

    @classmethod
    def same(cls, bits: float) -> Formats:
        """One format everywhere."""
        return cls(bits, bits, bits)


@dataclass(frozen=True)
class Machine:
    """A GPU, what feeds it and what helps it.

    Attributes:
        name: As it was asked for.
        gpu: Computes the experts in its memory.
        cpu: Its profile; None if only the link is known.
        cores: Cores of the CPU that compute.
        coefficients: Cost of experts on the CPU by number type; empty without one.
        link_bytes_per_s: From host to GPU memory, nominal.
        nvme_bytes_per_s: From disk to host memory.
        evidence: Of the CPU's cost.
    """

    name: str
    gpu: Device
    cpu: Device | None
    cores: int
    coefficients: tuple[CpuExpertCoefficients, ...]
    link_bytes_per_s: float
    nvme_bytes_per_s: float = NVME_BYTES_PER_S
    evidence: Evidence = Evidence.ASSUMED

    def timing(self, model: ModelSpec, formats: Formats, steps: Steps) -> Timing:
        """Seconds of every part for steps of a model.

        Args:
            model: Sizes.
            formats: How experts are stored.
            steps: Tokens of every expert, and what else a step has to do.
        """
        from moesim.offload.replay import Timing

        gpu = RooflineCost.of(model, self.gpu)
        weights = model.expert_parameters / 8
        rows = np.arange(max(int(steps.tokens.max()), 1) + 1, dtype=float)
        launch_s = self.gpu.launch_overhead_s or 0.0
        gpu_s = EXPERT_KERNELS * launch_s + np.maximum(
            (weights * formats.slots + rows * gpu.token_bytes) / gpu.memory_bytes_per_s,
            rows * gpu.token_flops / gpu.peak_flop_per_s,
        )
        gpu_s[0] = 0.0
        cpu_s, first_s = self._cpu(model, formats, rows)
        link = self.link_bytes_per_s * LINK_SHARE
        latency_s = self.gpu.host_link and self.gpu.host_link.latency
        begin_s = latency_s.si if latency_s else 0.0
        narrow = formats.slots if formats.narrow is None else formats.narrow
        return Timing(
            gpu_s=gpu_s,
            cpu_s=cpu_s,
            cpu_first_s=first_s,
            copy_s=begin_s + weights * formats.slots / link,
            copy_narrow_s=begin_s + weights * narrow / link,
            read_s=weights * formats.disk / self.nvme_bytes_per_s,
            other_s=self._other_s(model, steps),
        )

    def _other_s(self, model: ModelSpec, steps: Steps) -> np.ndarray:
        """[S] seconds per MoE layer outside the routed experts."""
        from moesim.offload.other_layers import other_seconds

        other_s = np.empty(len(steps.tokens))
        for prefill in (False, True):
            chosen = steps.prefill == prefill
            if chosen.any():
                other_s[chosen] = other_seconds(
                    model,
                    self.gpu,
                    "prefill" if prefill else "decode",
                    steps.batch,
                    np.maximum(steps.context[chosen], 1),
                )
        return other_s

    def _cpu(
        self, model: ModelSpec, formats: Formats, rows: np.ndarray
    ) -> tuple[np.ndarray, float]:
        if not self.coefficients:
            return np.full(rows.shape, np.inf), 0.0
        tables = [_table(of, model, rows) for of in self.coefficients]
        seconds, first_s = min(tables, key=lambda table: table[0][1])
        # For more rows another number type may be faster; an engine takes the fastest kernel.
        seconds = np.minimum.reduce([table for table, _ in tables])
        if self.cpu is not None:
            read = self.cpu.memory_bytes_per_s * HOST_MEMORY_SHARE
            seconds = np.maximum(seconds, model.expert_parameters * formats.host / 8 / read)
        seconds[0] = 0.0
        return seconds, first_s


def load_machine(text: str, nvme_bytes_per_s: float = NVME_BYTES_PER_S) -> Machine:
    """A machine by name; see the module.

    Raises:
        UsageError: If a device is unknown, or of the wrong kind.
        InputError: If a profile lacks what is needed.
    """
    first, _, second = text.partition("+")
    gpu = load_device(first.strip())
    if gpu.kind == "cpu":
        raise UsageError(
            f"--hardware begins with the device that holds the slots; {gpu.name} is a CPU\n"
            "fix: write it like rtx4090+xeon_gold_6454s"
        )
    if gpu.host_link is None:
        raise InputError(
            f"{gpu.name} has no link to a host, over which experts would come",
            field="host_link",
            fix="name another device, or a profile of your own with host_link.bandwidth",
        )
    link = gpu.host_link.bandwidth.si
    if not second.strip():
        return Machine(text, gpu, None, 0, (), link, nvme_bytes_per_s)
    name, cores = _cores(second.strip())
    if looks_like_file(name) and Path(name).suffix == ".json":
        data = read_json(Path(name))
        if isinstance(data, dict) and data.get("schema") == CpuExpertProfile.schema_id:
            profile = CpuExpertProfile.parse(data, file=name)
            if cores is not None:
                raise UsageError(
                    f"{name} was measured with {profile.threads} threads; it cannot be scaled to "
                    f"{cores} cores\nfix: leave out :{cores}, or measure with --threads {cores}"
                )
            fits = tuple(fit.coefficients for fit in profile.fits)
            threads = profile.threads
            return Machine(text, gpu, None, threads, fits, link, nvme_bytes_per_s, Evidence.FITTED)
    cpu = load_device(name)
    if cpu.kind != "cpu":
        raise UsageError(
            f"--hardware names {cpu.name} as the CPU, and it is a {cpu.kind}\n"
            "fix: write it like rtx4090+xeon_gold_6454s"
        )
    if cpu.cores is None:
        raise InputError(f"{cpu.name} does not say how many cores it has", field="cores")
    cores = cores or cpu.cores.value
    if not 1 <= cores <= cpu.cores.value:
        raise UsageError(
            f"--hardware asks for {cores} cores of {cpu.name}; it has {cpu.cores.value}\n"
            f"fix: pass {gpu.name}+{cpu.name}:{cpu.cores.value} or fewer"
        )
    if cpu.host_link is not None:
        link = min(link, cpu.host_link.bandwidth.si)
    return Machine(text, gpu, cpu, cores, (_scaled(cpu, cores),), link, nvme_bytes_per_s)


def _cores(text: str) -> tuple[str, int | None]:
    name, colon, count = text.rpartition(":")
    if not colon or not count.isdigit():
        return text, None
    return name, int(count)


def _table(
    of: CpuExpertCoefficients, model: ModelSpec, rows: np.ndarray
) -> tuple[np.ndarray, float]:
    """Seconds of one expert with each number of rows, and the fixed time of a layer."""
    shape = ExpertShape(
        model.expert_input_size, model.expert_width, model.expert_matrices, of.dtype
    )
    return cpu_experts_s(of, rows[:, None], shape).total_s - of.call_s, of.call_s


@cache
def _measured_core() -> CpuExpertCoefficients:
    profile = CpuExpertProfile.load(profiles_folder() / "measured" / "epyc_zen3_core.json")
    return profile.fit("fp32").coefficients


def _scaled(cpu: Device, cores: int) -> CpuExpertCoefficients:
    """A CPU known from its data sheet, from one measured core.

    An expert's weights are streamed once, at the rate that the measured core has with one row; a
    kernel for quantised weights is taken to spend on unpacking what it saves on reading. Each row
    adds arithmetic at a share of the CPU's peak: kernels made for experts (llamafile's, AMX) use
    unpacked weights for several rows, where a matrix library copies them first. So time is linear
    in the rows, as HybriMoE measured it. Memory bandwidth is a bound beside it.
    """
    core = _measured_core()
    one_row = 1.0 / core.memory_bytes_per_s + 2.0 / ELEMENT_BYTES[core.dtype] / (
        core.few_rows_flop_per_s
    )
    peak = cpu.peak_flop_per_s("fp32") * cores / (cpu.cores.value if cpu.cores else cores)
    return core.model_copy(
        update={
            "memory_bytes_per_s": cores / one_row,
            "few_rows": 0,
            "flop_per_s": peak * CPU_FLOP_SHARE,
            "pack_bytes_per_s": None,
            "overlap_exponent": 1.0,
        }
    )
