"""Peers from other packages, where their files are put beside the benchmark.

Nothing of them is part of this project. A folder (``--peers``) may hold, as they lie in a wheel of
vLLM (Apache-2.0; files of 0.20.0 were looked at):

    vllm/model_executor/layers/fused_moe/   its Triton kernel, and tuned configurations as JSON
    vllm/third_party/triton_kernels/        of triton-lang/triton (MIT); or triton_kernels/ itself

for example after

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --abi cp312 --abi abi3 --platform manylinux_2_35_x86_64 -d wheels vllm==0.20.0
    unzip -q wheels/vllm*.whl 'vllm/model_executor/layers/fused_moe/*' \
        'vllm/third_party/triton_kernels/*' -d peers

Importing vLLM needs all of it, so the kernel's own source is taken out of its file as it stands and
loaded alone. The tables that sort rows by expert are made beforehand and not timed, in favour of
the peers: theirs are compiled operations of their own packages.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from moesim.kernels.bench_cases import MODELS, Case
from moesim.kernels.bench_inputs import Operands
from moesim.kernels.bench_kernels import Call, Kernel

__all__ = ["TRITON_KERNELS", "VLLM", "align_blocks", "peer_kernels", "vllm_config"]

VLLM, TRITON_KERNELS = "vllm-fused-moe", "triton-kernels"

FUSED_MOE = Path("vllm/model_executor/layers/fused_moe")
FUNCTIONS = ("write_zeros_to_output", "fused_moe_kernel")
HEAD = "import triton\nimport triton.language as tl\n\n\n"

SILU_SOURCE = '''

@triton.jit
def silu_and_mul(both, out, rows, inter, BLOCK: tl.constexpr):
    """out = silu(gate) · up; gate beside up in each row, as vLLM keeps them."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < inter
    gate = tl.load(both + row * 2 * inter + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * inter + inter + columns, mask=mask, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(out + row * inter + columns, product.to(out.dtype.element_ty), mask=mask)
'''
SILU_BLOCK = 1024


def peer_kernels(
    torch: Any, device: str, folder: Path | None
) -> tuple[list[Kernel], dict[str, str]]:
    """Peers found, and why others are absent.

    Args:
        torch: The module.
        device: Peers run on a GPU only.
        folder: Where their files are, if anywhere.
    """
    finders: dict[str, Callable[[Any, Path], Kernel]] = {VLLM: _vllm, TRITON_KERNELS: _ogs}
    found, absent = [], {}
    for name, finder in finders.items():
        if folder is None:
            absent[name] = "no folder was given (--peers)"
        elif device != "cuda":
            absent[name] = "runs on a GPU only"
        else:
            try:
                found.append(finder(torch, folder))
            except Exception as problem:  # whatever is wrong with a peer, the rest goes on
                absent[name] = f"{type(problem).__name__}: {problem}".replace("\n", " ")[:300]
    return found, absent


def _vllm(torch: Any, folder: Path) -> Kernel:
    module = vllm_module(folder / FUSED_MOE / "fused_moe.py")
    configs = folder / FUSED_MOE / "configs"
    device_name = torch.cuda.get_device_name().replace(" ", "_")

    def takes(case: Case) -> str | None:
        if case.op not in ("grouped-gemm", "experts") or case.dtype != "bf16":
            return "bf16 experts only"
        return None

    return Kernel(VLLM, takes, partial(_vllm_call, torch, module, configs, device_name))


def vllm_module(file: Path) -> ModuleType:
    """The kernel's functions alone, as a module of their own."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    parts = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            parts.append("".join(lines[first - 1 : node.end_lineno]))
    if len(parts) != len(FUNCTIONS):
        raise ImportError(f"{file} does not hold {' and '.join(FUNCTIONS)}")
    # Triton reads a kernel's source from its file, which has to stay.
    target = Path(tempfile.mkdtemp(prefix="moesim-peer-")) / "vllm_fused_moe_kernel.py"
    target.write_text(HEAD + "\n\n".join(parts) + SILU_SOURCE, encoding="utf-8")
    return _loaded("vllm_fused_moe_kernel", target)


def _loaded(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def vllm_config(
    configs: Path, device_name: str, experts: int, inter: int, tokens: int
) -> dict[str, int]:
    """The tuned configuration nearest to so many tokens; vLLM's default rule where there is none.

    Args:
        configs: Folder of JSON files by experts, expert width and device.
        device_name: As torch names the GPU, spaces as underscores.
        experts: On the device.
        inter: Width of an expert.
        tokens: Before they are repeated top-k times.
    """
    file = configs / f"E={experts},N={inter},device_name={device_name}.json"
    if file.is_file():
        table = {
            int(key): value
            for key, value in json.loads(file.read_text(encoding="utf-8")).items()
            if key.isdigit()
        }
        return dict(table[min(table, key=lambda count: abs(count - tokens))])
    # The bounds of get_default_config in fused_moe.py of 0.20.0, for bf16.
    block_m = next((m for most, m in ((32, 16), (96, 32), (512, 64)) if tokens <= most), 128)
    return {
        "BLOCK_SIZE_M": block_m,
        "BLOCK_SIZE_N": 64 if tokens <= 64 else 128,
        "BLOCK_SIZE_K": 128 if tokens <= 64 else 64,
        "GROUP_SIZE_M": 16 if tokens // experts > 128 else 1,
        "num_warps": 4 if tokens <= 128 else 8,
        "num_stages": 4 if tokens <= 32 else 3,
    }


def align_blocks(torch: Any, counts: list[int], block_m: int, device: str) -> tuple[Any, Any, int]:
    """Rows padded to blocks of one expert each.

    Returns:
        Row of each place (the number of rows where there is none), expert of each block, places.
    """
    rows = sum(counts)
    places: list[int] = []
    experts: list[int] = []
    start = 0
    for expert, count in enumerate(counts):
        blocks = -(-count // block_m)
        places += [*range(start, start + count), *[rows] * (blocks * block_m - count)]
        experts += [expert] * blocks
        start += count
    options = {"dtype": torch.int32, "device": device}
    return torch.tensor(places, **options), torch.tensor(experts, **options), len(places)


def _vllm_call(
    torch: Any, module: ModuleType, configs: Path, device_name: str, operands: Operands
) -> Call:
    case = operands.case
    rows, experts = sum(case.rows), len(case.rows)
    top_k = MODELS[case.model].top_k if case.model in MODELS else 1
    width = case.inter or case.n // 2
    config = vllm_config(configs, device_name, experts, width, max(1, rows // top_k))
    run = partial(_vllm_gemm, torch, module, config, _aligned(torch, operands, config))
    options = {"dtype": operands.x.dtype, "device": operands.x.device}
    out = torch.empty(rows, case.n, **options)
    if case.op == "grouped-gemm":
        return lambda: run(operands.x, operands.w, out)
    both = torch.empty(rows, 2 * case.inter, **options)
    product = torch.empty(rows, case.inter, **options)
    grid = (rows, -(-case.inter // SILU_BLOCK))

    def layer() -> Any:
        run(operands.x, operands.w, both)
        module.silu_and_mul[grid](both, product, rows, case.inter, BLOCK=SILU_BLOCK)
        return run(product, operands.down, out)

    return layer


def _aligned(torch: Any, operands: Operands, config: dict[str, int]) -> tuple[Any, Any, Any, int]:
    device = str(operands.x.device)
    counts = list(operands.case.rows)
    places, experts, count = align_blocks(torch, counts, config["BLOCK_SIZE_M"], device)
    padded = torch.tensor([count], dtype=torch.int32, device=device)
    return places, experts, padded, count


def _vllm_gemm(
    torch: Any,
    module: ModuleType,
    config: dict[str, int],
    tables: tuple[Any, Any, Any, int],
    x: Any,
    w: Any,
    out: Any,
) -> Any:
    """One launch; every row is its own token (top-k of 1)."""
    import triton
    import triton.language as tl

    places, experts, padded, count = tables
    n, k = w.shape[1], w.shape[2]
    types = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
    tiles = triton.cdiv(count, config["BLOCK_SIZE_M"]) * triton.cdiv(n, config["BLOCK_SIZE_N"])
    module.fused_moe_kernel[(tiles,)](
        x, w, out, None, None, None, None, places, experts, padded,
        n, k, count, x.shape[0],
        x.stride(0), x.stride(1), w.stride(0), w.stride(2), w.stride(1),
        out.stride(0), out.stride(1), 0, 0, 0, 0, 0, 0, 0,
        group_n=0, group_k=0, naive_block_assignment=False,
        MUL_ROUTED_WEIGHT=False, top_k=1, compute_type=types[out.dtype],
        use_fp8_w8a8=False, use_int8_w8a8=False, use_int8_w8a16=False, per_channel_quant=False,
        HAS_BIAS=False, **({"SPLIT_K": 1} | config),
    )  # fmt: skip
    return out


def _ogs(torch: Any, folder: Path) -> Kernel:
    """``matmul_ogs`` of triton_kernels: one grouped product over ragged rows."""
    places = (folder, folder / "vllm" / "third_party")
    home = next((place for place in places if (place / "triton_kernels").is_dir()), None)
    if home is None:
        raise FileNotFoundError(f"no triton_kernels in {folder}")
    sys.path.append(str(home))
    from triton_kernels.matmul_ogs import RoutingData, matmul_ogs
    from triton_kernels.tensor import make_ragged_tensor_metadata

    def takes(case: Case) -> str | None:
        return None if case.op == "grouped-gemm" and case.dtype == "bf16" else "one bf16 product"

    def prepare(operands: Operands) -> Call:
        rows, counts = sum(operands.case.rows), operands.counts
        metadata = make_ragged_tensor_metadata(counts, rows)
        routing = RoutingData(None, counts, len(operands.case.rows), 1, metadata)
        w = operands.w.transpose(1, 2)
        return lambda: matmul_ogs(operands.x, w, None, routing_data=routing)

    return Kernel(TRITON_KERNELS, takes, prepare)
