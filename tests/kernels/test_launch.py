"""What the launcher passes on a GPU, compiled without one: the code that the check has looked at.

A stand-in for the driver names Hopper as the device, and launches end after compilation. So the
arguments' types, alignments, descriptors and constants are those of a real launch.
"""

from __future__ import annotations

import pytest
import torch

from moesim.errors import InputError, UsageError
from moesim.kernels import aot, check
from moesim.kernels import choose as choose_module
from moesim.kernels import combine as combine_module
from moesim.kernels import grouped_gemm as gemm_module
from moesim.kernels import launch as launch_module
from moesim.kernels import permute as permute_module
from moesim.kernels import quantise as quantise_module
from moesim.kernels import routing as routing_module
from moesim.kernels import tile_table as table_module
from moesim.kernels.check import Case, compile_case
from moesim.kernels.choose import Choice
from moesim.kernels.config import UNALIGNED, GemmConfig, Part
from moesim.kernels.experts import ExpertWeights
from moesim.kernels.grouped_gemm import grouped_gemm
from moesim.kernels.layer import moe_forward
from moesim.kernels.quantise import BlockScales, quantise_weights
from moesim.kernels.routing import Router
from moesim.kernels.targets import TARGETS, Chip

triton = pytest.importorskip("triton", reason="there is no Triton for this system")

MODULES = (
    combine_module,
    gemm_module,
    permute_module,
    quantise_module,
    routing_module,
    table_module,
)


GEMM_KERNELS = {"tile_table_kernel", "tile_kernel", "row_kernel", "sum_kernel"}


class Hopper:
    """As much of a driver as compiling asks for."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def launched(monkeypatch):
    """(name, grid, compiled kernel) of every launch, none of which runs."""
    found = []
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append((self.fn.__name__, grid, compiled))
        return compiled

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
    for module in MODULES:
        monkeypatch.setattr(module, "runs_triton", lambda *tensors: True)
    for module in (gemm_module, quantise_module, launch_module, choose_module):
        monkeypatch.setattr(module, "target_of", lambda device: TARGETS["sm_90a"])
    for module in (gemm_module, launch_module):
        monkeypatch.setattr(module, "chip_of", lambda device: Chip(132))
    # reset_active would ask for the driver of a GPU that is not here.
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    return found


def operands(rows, experts, n, k, dtype=torch.bfloat16):
    x = torch.zeros(rows, k).to(dtype)
    w = torch.zeros(experts, n, k).to(dtype)
    return x, w, torch.full((experts,), rows // experts, dtype=torch.int32)


@pytest.mark.parametrize("variant", ["up", "down", "unaligned"])
def test_large_groups_launch_what_was_checked(launched, variant):
    config = GemmConfig("tile", 128, 256, 64, 8, 3)
    rows, k = 1024, 512
    x, w, counts = operands(rows, 4, 512, k)
    if variant == "unaligned":  # rows that are no multiple of 16 elements apart
        x, w = x[:, : k - 4], torch.zeros(4, 512, k - 1, dtype=w.dtype)[:, :, : k - 4]
    up = variant == "up"
    grouped_gemm(
        x,
        w,
        counts,
        gather=torch.zeros(rows, dtype=torch.int32) if up else None,
        gated=up,
        row_scale=None if up else torch.ones(rows),
        parts=(Part(config),),
    )
    names = [name for name, _, _ in launched]
    assert names == ["tile_table_kernel", "tile_kernel"]
    grid, compiled = launched[1][1:]
    used = UNALIGNED if variant == "unaligned" else config
    # Every expert may end in a tile that is not full.
    tiles = (4 + (rows - 4) // used.block_m) * (512 // used.block_n)
    assert grid == (min(132, tiles),)
    got = aot._of_nvidia(compiled)
    checked = compile_case(Case("tile", "sm_90a", variant, "bf16", used)).facts
    assert got.spills == got.stack_bytes == 0
    assert got.instructions.get("UTMALDG") == checked.instructions.get("UTMALDG")
    assert got.instructions["HGMMA"] == checked.instructions["HGMMA"]
    if variant != "unaligned":  # there its result is aligned all the same
        assert got == checked


def test_few_rows_launch_what_was_checked(launched):
    config = GemmConfig("row", 16, 128, 128, 4, 4, split_k=4)
    x, w, counts = operands(64, 8, 512, 1024)
    gather = torch.zeros(64, dtype=torch.int32)
    grouped_gemm(x, w, counts, gather=gather, gated=True, parts=(Part(config),))
    assert [name for name, _, _ in launched] == ["tile_table_kernel", "row_kernel", "sum_kernel"]
    tiles = (8 + (64 - 8) // 16) * 4
    assert [grid for _, grid, _ in launched[1:]] == [(tiles * 4,), (tiles,)]
    checked = compile_case(Case("row", "sm_90a", "up", "bf16", config)).facts
    assert aot._of_nvidia(launched[1][2]) == checked


def test_fp8_launches_what_was_checked(launched):
    config = GemmConfig("tile", 128, 128, 128, 8, 3)
    x, w, counts = operands(512, 4, 256, 512)
    w8, w_scale = quantise_weights(w)
    x8, x_scale = quantise_module.quantise_rows(x)
    scales = BlockScales(x_scale, w_scale)
    row_scale = torch.ones(512)
    grouped_gemm(x8, w8, counts, scales=scales, row_scale=row_scale, parts=(Part(config),))
    names = [name for name, _, _ in launched]
    assert names == ["quantise_rows_kernel", "tile_table_kernel", "tile_kernel"]
    checked = compile_case(Case("tile", "sm_90a", "down", "fp8", config)).facts
    assert aot._of_nvidia(launched[2][2]).instructions == checked.instructions


def test_a_whole_layer_compiles_and_reads_nothing_back(launched, monkeypatch):
    """Both GEMMs in the same configuration share one tile table."""
    config = Part(GemmConfig("tile", 64, 128, 64, 4, 4))
    monkeypatch.setattr(gemm_module, "choose_for_rows", lambda *_: Choice((config,), 1e-6, "test"))
    for name in ("item", "tolist", "cpu", "numpy", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the host waits"))
    weights = ExpertWeights(
        torch.zeros(8, 256, 256, dtype=torch.float16), torch.zeros(8, 256, 128, dtype=torch.float16)
    )
    hidden = torch.zeros(40, 256, dtype=torch.float16)
    out = moe_forward(hidden, torch.zeros(40, 8), weights, Router(2))
    assert out.shape == hidden.shape
    names = [name for name, _, _ in launched]
    assert names[:4] == ["route_kernel", "count_kernel", "scan_kernel", "place_kernel"]
    assert names[-1] == "combine_kernel"
    assert {name for name in names[4:-1]} <= GEMM_KERNELS
    assert names.count("tile_table_kernel") == 1


def test_numbers_that_vary_do_not_compile_anew(launched):
    config = GemmConfig("row", 16, 64, 64, 4, 3)
    for rows in (16, 48, 112, 128):
        x, w, counts = operands(rows, 4, 128, 128)
        grouped_gemm(x, w, counts, parts=(Part(config),))
    for kernel in ("row_kernel", "tile_table_kernel"):
        assert len({id(compiled) for name, _, compiled in launched if name == kernel}) == 1


def test_fp8_must_be_aligned(launched):
    x, w, counts = operands(16, 2, 128, 136)
    w8, w_scale = quantise_weights(w)
    scales = BlockScales(torch.ones(16, 2), w_scale)
    parts = (Part(GemmConfig("tile", 64, 128, 128, 4, 3)),)
    with pytest.raises(InputError, match="must be aligned"):
        grouped_gemm(x.to(w8.dtype), w8, counts, scales=scales, parts=parts)


def test_fp8_is_refused_on_ampere(launched, monkeypatch):
    for module in (gemm_module, quantise_module, launch_module):
        monkeypatch.setattr(module, "target_of", lambda device: TARGETS["sm_80"])
    x, w, counts = operands(16, 2, 128, 128)
    with pytest.raises(UsageError, match=r"sm_80 multiplies torch\.bfloat16"):
        quantise_module.quantise_rows(x)
    w8, w_scale = quantise_weights(w)
    scales = BlockScales(torch.ones(16, 1), w_scale)
    parts = (Part(GemmConfig("tile", 64, 128, 128, 4, 3)),)
    with pytest.raises(UsageError, match=r"not torch\.float8_e4m3fn"):
        grouped_gemm(x.to(w8.dtype), w8, counts, scales=scales, parts=parts)
    assert launched == []
    assert check.MATRIX_UNITS.get(("sm_80", "fp8")) is None
