"""Compile a kernel for a processor that is not here, and read facts off the result.

Triton's compiler and the assemblers in its wheel need no GPU. What they say is exact: registers,
stack, spills, shared memory, and which instructions the machine code holds. What only a GPU can
tell is speed, and whether descriptors are accepted at run time.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesim.errors import InputError, MissingExtraError, UsageError
from moesim.kernels.language import HAS_TRITON, INTERPRETED, triton
from moesim.kernels.targets import Target

__all__ = ["Constant", "Facts", "compile_kernel", "need_compiler"]

SASS = ("HGMMA", "QGMMA", "HMMA", "UTCHMMA", "UTCQMMA", "UTMALDG", "LDGSTS", "LDL", "STL")
"""Instructions that are counted: matrix units of Hopper (bf16, fp8), Ampere and Blackwell (bf16,
fp8); the copy engine; asynchronous copies; loads and stores of spilled registers."""


@dataclass(frozen=True)
class Constant:
    """The value of a compile-time argument, or of one that is specialised away."""

    value: Any


@dataclass(frozen=True)
class Facts:
    """What the compiler made.

    Attributes:
        registers: 32-bit registers per thread; on AMD with the accumulation registers.
        stack_bytes: Of a thread; beyond spills it holds arrays with computed indices.
        spills: Loads and stores of spilled registers, in NVIDIA's code; spilled registers in AMD's.
        shared_bytes: Shared memory of a program.
        instructions: How often each counted instruction stands in the code.
    """

    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    instructions: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def need_compiler() -> None:
    """Say so if kernels cannot be compiled in this process.

    Raises:
        MissingExtraError: If Triton is not installed.
        UsageError: If the process interprets kernels instead.
    """
    if not HAS_TRITON:
        raise MissingExtraError("triton", "kernels", "compiling kernels")
    if INTERPRETED:
        raise UsageError(
            "TRITON_INTERPRET is set, so that kernels are interpreted, not compiled\n"
            "fix: unset TRITON_INTERPRET"
        )


def compile_kernel(
    kernel: Any,
    arguments: Mapping[str, str | Constant],
    target: Target,
    *,
    num_warps: int,
    num_stages: int,
) -> Facts:
    """Compile a kernel.

    Args:
        kernel: A ``triton.jit`` function.
        arguments: Of every argument its type as Triton writes it (``*bf16``, ``i32``, ``i32:16``
            for a multiple of 16, ``tensordesc<bf16[128,64]>``) or its constant. Pointers count
            as aligned to 16 bytes, as those of torch's allocator are.
        target: What to compile for.
        num_warps: Warps of a program.
        num_stages: Depth of the pipeline.

    Raises:
        InputError: If the compiler refuses; the message is its reason.
    """
    need_compiler()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        argument = arguments[name]
        if isinstance(argument, Constant):
            signature[name], constants[(place,)] = "constexpr", argument.value
            continue
        signature[name], _, multiple = argument.partition(":")
        if multiple or argument.startswith("*"):
            attributes[(place,)] = [["tt.divisibility", int(multiple or 16)]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget(target.backend, target.arch, target.warp_size),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise InputError(
            f"the compiler refuses {kernel.__name__} for {target.name}: {reason[-1]}",
            fix="choose another type, target or configuration",
        ) from error
    return _of_amd(compiled) if target.backend == "hip" else _of_nvidia(compiled)


def _of_nvidia(compiled: Any) -> Facts:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(file))
        code = _tool("nvdisasm", "-c", str(file))
    counts = Counter(re.findall(rf"\b({'|'.join(SASS)})\b", code))
    return Facts(
        registers=_number(r"REG:(\d+)", usage),
        stack_bytes=_number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage),
        spills=counts["LDL"] + counts["STL"],
        shared_bytes=int(compiled.metadata.shared),
        instructions={name: counts[name] for name in SASS if counts[name]},
    )


def _of_amd(compiled: Any) -> Facts:
    code = compiled.asm["amdgcn"]
    # Matrix instructions by their operands' type: v_mfma_f32_32x32x8_bf16, …_fp8_fp8.
    counts = Counter("MFMA" for _ in re.findall(r"\bv_mfma_f32_\d+x\d+x\d+_?(?:bf16|fp8)", code))
    spills = _number(r"\.vgpr_spill_count:\s*(\d+)", code)
    return Facts(
        registers=_number(r"\.vgpr_count:\s*(\d+)", code),
        stack_bytes=_number(r"\.private_segment_fixed_size:\s*(\d+)", code),
        spills=spills + _number(r"\.sgpr_spill_count:\s*(\d+)", code),
        shared_bytes=int(compiled.metadata.shared),
        instructions=dict(counts),
    )


def _tool(name: str, *arguments: str) -> str:
    """Run one of the tools in Triton's wheel."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    done = subprocess.run(
        [str(folder / name), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise InputError(f"the compiler's report does not say {pattern}")
    return int(found[1])
