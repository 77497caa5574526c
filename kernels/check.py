"""Every shipped configuration compiled for every target, with the facts that it must hold.

A case fails if its code spills registers or uses stack, takes more shared memory or registers than
the target has, or does not use the matrix units and copies that the kernel is made for. The
compiler does not complain of any of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from moesim.errors import InputError, UsageError
from moesim.kernels.aot import Constant, Facts, compile_kernel, need_compiler
from moesim.kernels.config import UNALIGNED, GemmConfig
from moesim.kernels.config_table import ConfigTable, default_table
from moesim.kernels.launch import check_block_scales
from moesim.kernels.small_kernels import ELEMENTS, Arguments, small_kernels
from moesim.kernels.targets import TARGETS, Target

__all__ = [
    "Case",
    "Outcome",
    "cases",
    "compile_case",
    "gemm_cases",
    "representative",
    "run_cases",
    "violations",
]

MATRIX_UNITS = {
    ("sm_80", "bf16"): "HMMA",
    ("sm_90a", "bf16"): "HGMMA",
    ("sm_90a", "fp8"): "QGMMA",
    ("sm_100a", "bf16"): "UTCHMMA",
    ("sm_100a", "fp8"): "UTCQMMA",
    ("gfx942", "bf16"): "MFMA",
    ("gfx942", "fp8"): "MFMA",
}
"""The instruction that a product of a type must become: wgmma on Hopper, tcgen05 on Blackwell."""

MOST_REGISTERS = {"cuda": 255, "hip": 512}
"""Per thread."""


@dataclass(frozen=True)
class Case:
    """A kernel as one op launches it.

    Attributes:
        kernel: ``tile``, ``row``, or the name of one of the small kernels.
        target: Name of the target.
        variant: ``up`` (gather, SwiGLU), ``down`` (router weight), ``unaligned`` (operands whose
            rows lie no multiple of 16 elements apart); empty for the small kernels.
        dtype: ``bf16`` or ``fp8``; empty for the small kernels.
        config: Configuration of a GEMM.
    """

    kernel: str
    target: str
    variant: str = ""
    dtype: str = ""
    config: GemmConfig | None = None

    @property
    def name(self) -> str:
        """E.g. ``tile-128x256x64-w8-s3/bf16/up``."""
        if self.config is None:
            return self.kernel
        return f"{self.config.name}/{self.dtype}/{self.variant}"


@dataclass(frozen=True)
class Outcome:
    """A case and what came of it.

    Attributes:
        case: The case.
        facts: What the compiler made; None if it refused.
        violations: What does not hold, in words.
    """

    case: Case
    facts: Facts | None
    violations: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As in ``moesim.kernels/1``."""
        return {
            "name": self.case.name,
            "target": self.case.target,
            "ok": not self.violations,
            "facts": {} if self.facts is None else self.facts.to_dict(),
            "violations": list(self.violations),
        }


def cases(targets: Sequence[str] | None = None, table: ConfigTable | None = None) -> list[Case]:
    """All cases of some targets.

    Raises:
        UsageError: If a target is unknown.
    """
    table = table or default_table()
    found: list[Case] = []
    for name in targets or TARGETS:
        if name not in TARGETS:
            raise UsageError(f"unknown target {name}\nfix: choose among {', '.join(TARGETS)}")
        seen = set()
        for entry in table.entries.get(name, ()):
            for case in gemm_cases(name, entry.dtype, representative(entry.config)):
                if case.name not in seen:
                    seen.add(case.name)
                    found.append(case)
        found.append(Case("tile", name, "unaligned", "bf16", UNALIGNED))
        found += [Case(kernel, name) for kernel in small_kernels(TARGETS[name])]
    return found


def representative(config: GemmConfig) -> GemmConfig:
    """The configuration that is compiled for this one: splits differ in one constant only."""
    return config if config.split_k == 1 else replace(config, split_k=4)


def gemm_cases(target: str, dtype: str, config: GemmConfig) -> Iterator[Case]:
    """How the two GEMMs of a layer launch a configuration."""
    yield Case(config.kernel, target, "up", dtype, config)
    if config.split_k == 1:  # a split leaves both epilogues to one and the same kernel
        yield Case(config.kernel, target, "down", dtype, config)


def run_cases(chosen: Sequence[Case], workers: int = 1) -> Iterator[Outcome]:
    """Compile cases, in as many processes as asked, and yield outcomes in the cases' order."""
    need_compiler()
    if workers <= 1 or len(chosen) <= 1:
        yield from map(compile_case, chosen)
        return
    # torch's threads do not survive a fork.
    with ProcessPoolExecutor(min(workers, len(chosen)), get_context("spawn")) as pool:
        yield from pool.map(compile_case, chosen)


def compile_case(case: Case) -> Outcome:
    """Compile one case and hold it against what it must be."""
    target = TARGETS[case.target]
    try:
        kernel, arguments, warps, stages = _launch_of(case, target)
        facts = compile_kernel(kernel, arguments, target, num_warps=warps, num_stages=stages)
    except InputError as error:
        return Outcome(case, None, (error.problem,))
    return Outcome(case, facts, tuple(violations(case, facts)))


def violations(case: Case, facts: Facts) -> Iterator[str]:
    """What does not hold."""
    target = TARGETS[case.target]
    if facts.spills:
        yield f"{facts.spills} spills"
    if facts.stack_bytes:
        yield f"{facts.stack_bytes} bytes of stack"
    programs = case.config.programs_per_core if case.config else 1
    shared = min(target.shared_bytes, target.core_shared_bytes // programs - target.reserved_bytes)
    if facts.shared_bytes > shared:
        yield f"{facts.shared_bytes} bytes of shared memory, at most {shared}"
    if case.config is None:
        return
    registers = target.registers // (case.config.num_warps * target.warp_size * programs)
    registers = min(MOST_REGISTERS[target.backend], registers)
    if facts.registers > registers:
        yield f"{facts.registers} registers per thread, at most {registers}"
    unit = MATRIX_UNITS.get((case.target, case.dtype), "no unit for this type")
    if not facts.instructions.get(unit):
        yield f"no {unit}"
    if unit != "HMMA" and facts.instructions.get("HMMA"):
        yield "HMMA beside it: some products take the path of an older generation"
    if target.backend == "cuda" and case.variant != "unaligned":  # which is too narrow for both
        copy = "UTMALDG" if _describes(case, target) else "LDGSTS"
        if not facts.instructions.get(copy):
            yield f"no {copy}"


def _describes(case: Case, target: Target) -> bool:
    """Whether the case loads weights through a descriptor."""
    return case.kernel == "tile" and target.descriptors and case.variant != "unaligned"


def _launch_of(case: Case, target: Target) -> tuple[Any, Arguments, int, int]:
    """Kernel, arguments, warps and stages of a case."""
    if case.config is None:
        kernel, arguments = small_kernels(target)[case.kernel]
        return kernel, arguments, 4, 3
    if case.dtype == "fp8":
        check_block_scales(case.config)
    arguments = _gemm_arguments(case, target)
    if case.kernel == "tile":
        from moesim.kernels.tile_kernel import tile_kernel as kernel
    else:
        from moesim.kernels.row_kernel import row_kernel as kernel
    return kernel, arguments, case.config.num_warps, case.config.num_stages


def _gemm_arguments(case: Case, target: Target) -> Arguments:
    config = case.config
    assert config is not None  # noqa: S101 (callers have looked)
    up, fp8 = case.variant == "up", case.dtype == "fp8"
    element = ELEMENTS[case.dtype][target.backend]
    split, aligned = config.split_k > 1, case.variant != "unaligned"
    multiple = "i32:16" if aligned else "i32"
    arguments: Arguments = {
        "x": f"*{element}",
        "w": f"*{element}",
        "out": "*fp32" if split else "*bf16",
        "gather": "*i32" if up else Constant(None),
        "row_scale": Constant(None) if up or split else "*fp32",
        "x_scale": "*fp32" if fp8 else Constant(None),
        "w_scale": "*fp32" if fp8 else Constant(None),
        "tiles": "*i32",
        "used": "*i32",
        "capacity": "i32",
        "n": multiple,
        "k": multiple,
        "stride_xm": multiple,
        "stride_we": multiple,
        "stride_wn": multiple,
        "stride_om": multiple,
        # quantise_rows leaves the scales of one block of columns side by side.
        "stride_xsm": Constant(1 if fp8 else 0),
        "stride_xsk": "i32" if fp8 else Constant(0),
        "stride_wse": "i32" if fp8 else Constant(0),
        "stride_wsn": "i32" if fp8 else Constant(0),
        "BLOCK_M": Constant(config.block_m),
        "BLOCK_N": Constant(config.block_n),
        "BLOCK_K": Constant(config.block_k),
        "GATHER": Constant(up),
        "GATED": Constant(up and not split),
        "ROW_SCALE": Constant(not up and not split),
        "BLOCK_SCALES": Constant(fp8),
        "EVEN_K": Constant(aligned),
        "UPCAST": Constant(False),
    }
    if case.kernel == "row":
        return arguments | {"SPLIT_K": Constant(config.split_k)}
    describe = _describes(case, target)
    if describe:
        arguments["w"] = f"tensordesc<{element}[1,{config.block_n},{config.block_k}]>"
        if not up:
            arguments["x"] = f"tensordesc<{element}[{config.block_m},{config.block_k}]>"
    return arguments | {
        "GROUP_M": Constant(config.group_m),
        "X_DESCRIPTOR": Constant(describe and not up),
        "W_DESCRIPTOR": Constant(describe),
        "FLATTEN": Constant(not fp8),
    }
