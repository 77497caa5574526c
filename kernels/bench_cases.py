"""What a benchmark times: cases in the order of their importance, with their cost in advance.

Shapes are those of published models, loads from decode (a few rows per expert) to prefill. A CPU
runs the same list at reduced width and with fewer rows, and says so in every case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from moesim.kernels.bench_loads import rows_per_expert

__all__ = ["CEILINGS", "MODELS", "Case", "ModelShape", "Scale", "plan_cases"]

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1}

CEILINGS = ("copy", "dense")
"""Operations that measure the machine itself, in the same run as everything else."""


@dataclass(frozen=True)
class ModelShape:
    """Experts of a published model, as many as one device holds.

    Attributes:
        name: In the model registry, whose figures these are.
        hidden: Width of the residual stream.
        inter: Width of an expert.
        experts: On the device.
        top_k: Experts per token.
        fp8: Whether the published weights are fp8 by blocks.
    """

    name: str
    hidden: int
    inter: int
    experts: int
    top_k: int
    fp8: bool = False


MODELS = {
    shape.name: shape
    for shape in (
        ModelShape("mixtral-8x7b", 4096, 14336, 8, 2),
        ModelShape("qwen3-30b-a3b", 2048, 768, 128, 8),
        ModelShape("qwen3-235b-a22b", 4096, 1536, 128, 8),
        # 32 of its 256 experts: one of the 8 devices of a node.
        ModelShape("deepseek-v3", 7168, 2048, 32, 8, fp8=True),
        ModelShape("gpt-oss-120b", 2880, 2880, 128, 4),
    )
}


@dataclass(frozen=True)
class Scale:
    """How much smaller than the published shape a case is.

    Attributes:
        width: Hidden and expert width are divided by it.
        flops: Most arithmetic of one call; rows are halved until it holds.
        dtype: Number type in the place of bf16.
    """

    width: int = 1
    flops: float = float("inf")
    dtype: str = "bf16"


GPU_SCALE = Scale()
CPU_SCALE = Scale(width=4, flops=3e9)
"""One thread does 50 to 200 GFLOP/s in the type that suits it: a call takes at most some 60 ms."""


@dataclass(frozen=True)
class Case:
    """One operation on one shape and load.

    Attributes:
        name: Unique in the plan.
        op: ``grouped-gemm`` (``x[rows of e] @ w[e].T``), ``experts`` (gate and up, SwiGLU, down),
            ``copy`` (device memory to device memory) or ``dense`` (one square product).
        regime: What it tells about: ``ceiling``, ``large``, ``ragged``, ``decode``, ``loop``,
            ``experts``, ``fp8`` or ``choice`` (all configurations are timed).
        model: Whose shape it is.
        dtype: Of the operands.
        n: Columns of the product; of the second one for ``experts``.
        k: Inner dimension; of the first product for ``experts``.
        inter: Width between the two products of ``experts``.
        rows: [experts] rows of each expert.
        load: Name of the histogram.
        width_divisor: Hidden and expert width are the model's over this.
        rows_divisor: Rows are those of the regime over this.
    """

    name: str
    op: str
    regime: str
    model: str
    dtype: str
    n: int
    k: int
    rows: tuple[int, ...]
    load: str
    inter: int = 0
    width_divisor: int = 1
    rows_divisor: int = 1

    @property
    def every_config(self) -> bool:
        """Whether every configuration of our kernels is timed."""
        return self.regime == "choice"

    @property
    def active(self) -> int:
        """Experts with rows."""
        return sum(1 for rows in self.rows if rows)

    @property
    def flops(self) -> float:
        """Useful arithmetic: padding does not count."""
        if self.op == "copy":
            return 0.0
        if self.op == "experts":
            return 2.0 * sum(self.rows) * 3 * self.k * self.inter
        return 2.0 * sum(self.rows) * self.n * self.k

    @property
    def weight_bytes(self) -> float:
        """Of the active experts, each read once."""
        element = ELEMENT_BYTES[self.dtype]
        if self.op == "experts":
            return 3.0 * self.active * self.k * self.inter * element
        return float(self.active) * self.n * self.k * element

    @property
    def moved_bytes(self) -> float:
        """Fewest bytes through memory: weights, input and output once; a copy reads and writes."""
        if self.op == "copy":
            return 2.0 * self.n
        element = ELEMENT_BYTES[self.dtype]
        return self.weight_bytes + sum(self.rows) * (self.k * element + self.n * 2.0)

    @property
    def memory_bytes(self) -> float:
        """Needed on the device.

        All experts' weights, once more for a kernel that wants them in another order, the input,
        what lies between two products, and results of ours and a peer's.
        """
        if self.op == "copy":
            return 2.0 * self.n
        element = ELEMENT_BYTES[self.dtype]
        per_expert = self.k * self.inter * 3 if self.op == "experts" else self.n * self.k
        weights = 2.0 * len(self.rows) * per_expert * element
        wide = self.k + self.n + 3 * self.inter
        return weights + sum(self.rows) * (2.0 * self.n + 4.0 * wide)


def plan_cases(
    on_gpu: bool, seed: int = 0, scale: Scale | None = None, models: Sequence[str] | None = None
) -> tuple[Case, ...]:
    """The plan, the most important first: a part of it says something about every goal.

    Args:
        on_gpu: Whether fp8 and the choice among configurations are in it; a CPU has neither.
        seed: Of the loads.
        scale: What to divide by; of the device if not given.
        models: Names of :data:`MODELS`; all if not given.
    """
    scale = scale or (GPU_SCALE if on_gpu else CPU_SCALE)
    shapes = [MODELS[name] for name in models or MODELS]
    groups = [
        list(_large(shapes, seed)),
        list(_decode(shapes, seed)),
        list(_ragged(shapes, seed)),
        list(_experts(shapes, seed)),
    ]
    if on_gpu:
        groups += [list(_fp8(shapes, seed)), list(_choice(shapes, seed))]
    mixed = [case for row in zip_longest(*groups) for case in row if case is not None]
    distinct: dict[tuple[object, ...], Case] = {}
    for case in (_scaled(case, scale) for case in mixed):
        # Scaled down, loads of 2048 and 4096 rows may be one.
        distinct.setdefault((case.op, case.every_config, case.dtype, case.n, case.k, case.rows),
                            case)  # fmt: skip
    return (*_ceilings(scale), *distinct.values())


def _ceilings(scale: Scale) -> Iterator[Case]:
    """A copy far larger than any cache, and the square product that vendors' peaks are shown by."""
    size, side = (2**32, 8192) if scale.width == 1 else (2**27, 1024)
    if scale.width > 8:  # a test
        size, side = 2**20, 256
    name = f"dense/{side}/{scale.dtype}"
    yield Case(f"copy/{size}", "copy", "ceiling", "", "bytes", size, 0, (), "")
    yield Case(name, "dense", "ceiling", "", scale.dtype, side, side, (side,), "even")


def _gemm(
    shape: ModelShape, part: str, regime: str, load: str, mean: int, seed: int, dtype: str = "bf16"
) -> Case:
    """One of a model's two products; ``mean`` rows per expert, or fewer experts if negative."""
    n, k = (2 * shape.inter, shape.hidden) if part == "gate-up" else (shape.hidden, shape.inter)
    rows = rows_per_expert(load, shape.experts, shape.experts * mean, seed)
    name = f"{regime}/{shape.name}/{part}/{load}-{mean}/{dtype}"
    return Case(name, "grouped-gemm", regime, shape.name, dtype, n, k, tuple(rows.tolist()), load)


def _large(shapes: Iterable[ModelShape], seed: int) -> Iterator[Case]:
    """8 to 32 groups of 2048 to 8192 rows: what the matrix units can do."""
    for mean in (4096, 2048, 8192):
        for shape in shapes:
            wide = min(shape.hidden, 2 * shape.inter) >= 4096
            if wide and shape.experts <= 32 and shape.experts * mean <= 2**17:
                yield _gemm(shape, "gate-up", "large", "even", mean, seed)
                if mean == 4096:
                    yield _gemm(shape, "gate-up", "large", "zipf", mean, seed)


def _decode(shapes: Iterable[ModelShape], seed: int) -> Iterator[Case]:
    """1 to 16 rows per expert: streaming the weights."""
    for mean, load in ((4, "trace"), (1, "even"), (8, "zipf"), (2, "zipf"), (16, "trace")):
        for shape in shapes:
            yield _gemm(shape, "gate-up", "decode", load, mean, seed)
            if mean in (4, 8):
                yield _gemm(shape, "down", "decode", load, mean, seed)


def _ragged(shapes: Iterable[ModelShape], seed: int) -> Iterator[Case]:
    """Uneven loads of a mean of 32 to 2048 rows."""
    heavy = ((2048, "trace"), (512, "zipf"), (128, "trace"), (1024, "zipf"))
    for mean, load in ((256, "zipf"), (256, "trace"), (64, "zipf"), (32, "trace"), *heavy):
        for shape in shapes:
            if shape.experts * mean > 2**18:
                continue
            yield _gemm(shape, "gate-up", "ragged", load, mean, seed)
            if mean == 256:
                yield _gemm(shape, "down", "ragged", load, mean, seed)


def _experts(shapes: Iterable[ModelShape], seed: int) -> Iterator[Case]:
    """Whole expert layers: gate and up, SwiGLU, down."""
    loads = ((4, "trace"), (256, "trace"), (32, "zipf"), (1, "even"), (1024, "zipf"))
    for mean, load in loads:
        for shape in shapes:
            if shape.experts * mean > 2**17:
                continue
            rows = rows_per_expert(load, shape.experts, shape.experts * mean, seed + 1)
            yield Case(
                f"experts/{shape.name}/{load}-{mean}/bf16",
                "experts",
                "experts",
                shape.name,
                "bf16",
                shape.hidden,
                shape.hidden,
                tuple(rows.tolist()),
                load,
                inter=shape.inter,
            )


def _fp8(shapes: Iterable[ModelShape], seed: int) -> Iterator[Case]:
    """Models served in fp8 by blocks, at DeepGEMM's published sizes and in decode."""
    for shape in shapes:
        if shape.fp8:
            four = replace(shape, experts=4)
            yield _gemm(four, "gate-up", "fp8", "even", 8192, seed, "fp8")
            yield _gemm(shape, "gate-up", "fp8", "trace", 256, seed, "fp8")
            yield _gemm(shape, "gate-up", "fp8", "trace", 4, seed, "fp8")


def _choice(shapes: Iterable[ModelShape], seed: int) -> Iterator[Case]:
    """Every configuration on some loads, so that a choice among them can be judged."""
    for mean, load in ((256, "zipf"), (4, "trace"), (32, "zipf"), (1024, "trace")):
        for shape in shapes:
            if shape.experts * mean > 2**17:
                continue
            yield _gemm(shape, "gate-up", "choice", load, mean, seed + 2)
            if mean in (4, 256):
                yield _gemm(shape, "down", "choice", load, mean, seed + 2)
            if shape.fp8:
                yield _gemm(shape, "gate-up", "choice", load, mean, seed + 2, "fp8")
                yield _gemm(shape, "down", "choice", load, mean, seed + 2, "fp8")


def _scaled(case: Case, scale: Scale) -> Case:
    """The case at reduced width, its rows halved until one call is small enough."""
    if case.dtype == "bf16" and scale.dtype != "bf16":
        name = case.name.removesuffix("bf16") + scale.dtype
        case = replace(case, dtype=scale.dtype, name=name)
    if scale.width > 1:
        n, k, inter = (_narrow(value, scale.width) for value in (case.n, case.k, case.inter))
        case = replace(case, n=n, k=k, inter=inter, width_divisor=scale.width)
    divisor = 1
    while case.flops > scale.flops * divisor and sum(case.rows) > len(case.rows) * divisor:
        divisor *= 2
    if divisor > 1:
        rows = np.array(case.rows)
        case = replace(
            case,
            rows=tuple(np.where(rows > 0, np.maximum(1, rows // divisor), 0).tolist()),
            rows_divisor=divisor,
        )
    return case


def _narrow(value: int, divisor: int) -> int:
    """A width over the divisor, as a multiple of 16 that matrix kernels take."""
    return -(-value // divisor // 16) * 16 if value else 0
