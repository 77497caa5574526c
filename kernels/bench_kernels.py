"""What a benchmark compares: our kernels, and the peers that torch always brings.

A kernel takes operands and returns a call; making it ready (allocating the result, bringing
weights into its own layout) is not timed. Peers that other packages bring are in
:mod:`moesim.kernels.bench_peers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesim.kernels.bench_cases import Case
from moesim.kernels.bench_inputs import Operands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesim.kernels.config import Part

__all__ = ["OURS", "Kernel", "own_kernels", "own_product"]

OURS = "moesim"
"""Name of our kernels, with the configuration that they choose themselves."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Kernel:
    """Something that can run cases.

    Attributes:
        name: In files and tables.
        takes: Says why it cannot run a case, or nothing.
        prepare: Operands to a call without arguments that returns ``[rows, n]``.
        config: Configuration it is held to, where it has several.
    """

    name: str
    takes: Callable[[Case], str | None]
    prepare: Callable[[Operands], Call]
    config: str = ""


def own_kernels(torch: Any, device: str) -> list[Kernel]:
    """Ours and torch's."""

    def bf16(case: Case) -> str | None:
        if case.op == "copy" or case.dtype == "fp8":
            return f"no {case.op} in {case.dtype}"
        return None

    def grouped(case: Case) -> str | None:
        if not hasattr(torch, "_grouped_mm"):
            return "this torch has none"
        return "one product only" if case.op == "dense" else bf16(case)

    def even(case: Case) -> str | None:
        if len({rows for rows in case.rows if rows}) > 1 or case.op != "grouped-gemm":
            return "takes equal groups of one product"
        return bf16(case)

    def ours(case: Case) -> str | None:
        return "takes groups" if case.op in ("copy", "dense") else None

    return [
        Kernel(OURS, ours, lambda operands: _ours(torch, operands)),
        Kernel("torch-loop", bf16, lambda operands: _loop(torch, operands)),
        Kernel("torch-grouped-mm", grouped, lambda operands: _grouped_mm(torch, operands)),
        Kernel("torch-bmm", even, lambda operands: _bmm(torch, operands)),
        Kernel(
            "torch-copy", lambda case: None if case.op == "copy" else "copies only", _timed_apart
        ),
    ]


def _timed_apart(operands: Operands) -> Call:
    """A copy has no operands: the run times it by itself."""
    raise TypeError(f"{operands.case.name} takes no operands")


def _ours(torch: Any, operands: Operands) -> Call:
    """The product's own entry points; on a CPU they run a loop of torch products."""
    from moesim.kernels.experts import ExpertWeights, expert_ffn
    from moesim.kernels.grouped_gemm import interleave_gate_up

    case, x, w, counts = operands.case, operands.x, operands.w, operands.counts
    if case.op == "experts":
        gate_up = w
        if not operands.timing_only:
            gate_up = interleave_gate_up(w[:, : case.inter], w[:, case.inter :]).contiguous()
        weights = ExpertWeights(gate_up, operands.down)
        return lambda: expert_ffn(x, weights, counts)
    return own_product(operands, None)


def own_product(operands: Operands, parts: Sequence[Part] | None) -> Call:
    """One grouped product of ours, quantised beforehand where the case is in fp8.

    Args:
        operands: Of a ``grouped-gemm``.
        parts: Configurations; its own choice if None.
    """
    from moesim.kernels.grouped_gemm import grouped_gemm
    from moesim.kernels.quantise import BlockScales, quantise_rows, quantise_weights

    x, w, counts = operands.x, operands.w, operands.counts
    if operands.case.dtype != "fp8":
        return lambda: grouped_gemm(x, w, counts, parts=parts)
    x8, x_scale = quantise_rows(x)
    w8, w_scale = quantise_weights(w)
    scales = BlockScales(x_scale, w_scale)
    return lambda: grouped_gemm(x8, w8, counts, scales=scales, parts=parts)


def _loop(torch: Any, operands: Operands) -> Call:
    """A product of the vendor's library per expert: cuBLAS on a GPU, oneDNN on a CPU."""
    case, silu = operands.case, torch.nn.functional.silu
    out = torch.full((sum(case.rows), case.n), float("nan"), dtype=operands.x.dtype,
                     device=operands.x.device)  # fmt: skip
    wide = 2 * case.inter if case.op == "experts" else case.n
    most = max(case.rows)
    both = torch.empty(most, wide, dtype=out.dtype, device=out.device).zero_()
    product = torch.empty(most, max(1, case.inter), dtype=out.dtype, device=out.device).zero_()
    parts, start = [], 0
    for expert, count in enumerate(case.rows):
        if count:
            rows = slice(start, start + count)
            down = None if operands.down is None else operands.down[expert].t()
            parts.append((count, operands.x[rows], operands.w[expert].t(), down, out[rows]))
        start += count

    def run() -> Any:
        for count, x, w, down, part in parts:
            if down is None:
                torch.mm(x, w, out=part)
                continue
            torch.mm(x, w, out=both[:count])
            gate = silu(both[:count, : case.inter], inplace=True)
            torch.mul(gate, both[:count, case.inter :], out=product[:count])
            torch.mm(product[:count], down, out=part)
        return out

    return run


def _grouped_mm(torch: Any, operands: Operands) -> Call:
    """Torch's own grouped product (CUTLASS on Hopper)."""
    case, x, ends = operands.case, operands.x, operands.ends
    first = operands.w.transpose(1, 2)
    if case.op != "experts":
        return lambda: torch._grouped_mm(x, first, offs=ends)
    second, inter = operands.down.transpose(1, 2), case.inter

    def run() -> Any:
        both = torch._grouped_mm(x, first, offs=ends)
        product = torch.nn.functional.silu(both[:, :inter]) * both[:, inter:]
        return torch._grouped_mm(product, second, offs=ends)

    return run


def _bmm(torch: Any, operands: Operands) -> Call:
    """A batched product, for groups of one size."""
    case = operands.case
    active = [expert for expert, rows in enumerate(case.rows) if rows]
    whole = len(active) == len(case.rows)
    w = operands.w if whole else operands.w[torch.tensor(active, device=operands.w.device)]
    w = w.transpose(1, 2)
    x = operands.x.view(len(active), -1, case.k)
    return lambda: torch.bmm(x, w).view(-1, case.n)
