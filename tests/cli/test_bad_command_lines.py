"""Bad inputs through the whole command line: the exit code, and a message that helps.

Every row is run twice, for a person and with ``--json``. Whatever is wrong, the message names the
file and the field where there is one and says what to do; there is never a traceback.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.hardware import profiles_folder
from moesim.safe_io import sha256_file

from .commands import (
    EXPERTS,
    LAYERS,
    TINY_CONFIG,
    Answer,
    moesim,
    tiny_counts,
    tiny_model,
    tiny_routing,
    tiny_trace,
)

USAGE, INFEASIBLE, BAD_INPUT = 2, 3, 4

Make = Callable[[Path], object]

ON_TINY = "plan {dir}/trace --model {dir}/config.json --cluster 2xh100_sxm --planner contiguous"
COUNTS = "--model {dir}/config.json --cluster 2xh100_sxm --planner contiguous"


@dataclass(frozen=True)
class Case:
    """A command line that must be refused.

    Attributes:
        name: Of the test.
        command: Words; ``{dir}`` is a folder with config.json, counts.npy and trace/ of one model.
        code: Exit code.
        says: Words that the message must hold: field, value, range.
        file: Name of the file that the message must hold, if a file is at fault.
        make: Makes or breaks files in the folder first.
    """

    name: str
    command: str
    code: int
    says: tuple[str, ...]
    file: str | None = None
    make: Make = lambda _: None


def text(name: str, content: str, encoding: str = "utf-8") -> Make:
    return lambda folder: (folder / name).write_bytes(content.encode(encoding))


def raw(name: str, content: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content)


def array(name: str, values: Any, **options: Any) -> Make:
    def make(folder: Path) -> None:
        np.save(folder / name, np.array(values, **options), allow_pickle=True)

    return make


def loads(**at: float) -> np.ndarray:
    """Counts with one entry replaced: ``loads(l1e2=nan)``."""
    table = np.ones((LAYERS, EXPERTS))
    for where, value in at.items():
        layer, expert = where[1:].split("e")
        table[int(layer), int(expert)] = value
    return table


def manifest(**changes: object) -> Make:
    def make(folder: Path) -> None:
        file = folder / "trace" / "manifest.json"
        data = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in data.items() if value != "-"}))

    return make


def config(**changes: object) -> Make:
    data = TINY_CONFIG | changes
    return text("other.json", json.dumps({k: v for k, v in data.items() if v != "-"}))


def routing(values: np.ndarray) -> Make:
    """Another routing, with the manifest's hash to match."""

    def make(folder: Path) -> None:
        file = folder / "trace" / "routing.npy"
        np.save(file, values)
        manifest(sha256={"routing.npy": sha256_file(file)})(folder)

    return make


def device(old: str, new: str) -> Make:
    """The bundled profile of the H100 with one text replaced."""
    body = (profiles_folder() / "h100_sxm.yaml").read_text(encoding="utf-8")
    assert body.count(old) == 1
    return text("in.yaml", body.replace(old, new))


def several(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def hostile_torch_file(name: str) -> Make:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("executed"),)

    def make(folder: Path) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"logical_count": Touch()}))
            archive.writestr("archive/version", "3\n")
        (folder / name).write_bytes(stream.getvalue())

    return make


def npy_with_header(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)


def plan_file(**changes: object) -> Make:
    plan = {
        "schema": "moesim.placement/1",
        "model": "tiny",
        "cluster": "2xh100_sxm",
        "planner": "contiguous",
        "experts": EXPERTS,
        "devices": 2,
        "slots_per_device": EXPERTS // 2,
        "moe_layers": list(range(LAYERS)),
        "physical_to_logical": [list(range(EXPERTS))] * LAYERS,
    }
    return text("now.json", json.dumps(plan | changes))


def another_plan(folder: Path) -> None:
    (folder / "out").mkdir()
    plan_file(physical_to_logical=[list(range(EXPERTS))[::-1]] * LAYERS)(folder)
    (folder / "now.json").rename(folder / "out" / "plan.json")


CLUSTER = """\
schema: moesim.cluster/1
name: mine
device: h100_sxm
nodes: 1
devices_per_node: 2
"""
IMPORT = "trace import {dir}/in --experts 8 --out {dir}/new --format "

STEP = "simulate step --model {dir}/config.json --cluster 2xh100_sxm --batch 8"

STEP_CASES = [
    Case("step-model", "simulate step --model mixtral-9x7b --cluster 2xh100_sxm", USAGE, ("9x7b",)),
    Case("step-cluster", "simulate step --model mixtral-8x7b --cluster 2xh1", USAGE, ("h1",)),
    Case("step-batch", f"{STEP} --batch 0", USAGE, ("--batch", "found 0")),
    Case("step-context", f"{STEP} --context -1", USAGE, ("--context", "found -1")),
    Case("step-prefix", f"{STEP} --prefix -1", USAGE, ("--prefix", "found -1")),
    Case(
        "step-too-long",
        f"{STEP} --phase prefill --batch 4096 --context 65536",
        USAGE,
        ("--batch 4096", "--context 65536"),
    ),
    Case("step-tp", f"{STEP} --tp 3", USAGE, ("--tp 3", "2 devices")),
    Case("step-tp-dp", f"{STEP} --tp 2 --dp 2", USAGE, ("--tp 2", "--dp 2")),
    Case("step-ep-zero", f"{STEP} --ep 0", USAGE, ("--ep", "found 0")),
    Case("step-pp", f"{STEP} --pp 3", USAGE, ("--pp 3", "2 devices")),
    Case(
        "step-heads",
        "simulate step --model {dir}/config.json --cluster 8xh100_sxm",
        USAGE,
        ("--tp 8", "4 attention heads"),
    ),
    Case("step-dispatch", f"{STEP} --dispatch deepep", USAGE, ("--dispatch deepep", "--dp 1")),
    Case(
        "step-dispatch-cut",
        f"{STEP} --dp 2 --moe-tp 2 --dispatch deepep",
        USAGE,
        ("--dispatch deepep", "--moe-tp 2"),
    ),
    Case("step-routing", f"{STEP} --routing skewed", USAGE, ("--routing 'skewed'", "zipf:S")),
    Case("step-exponent", f"{STEP} --routing zipf:x", USAGE, ("zipf:x", "exponent")),
    Case("step-format", f"{STEP} --gemm-dtype fp3", USAGE, ("--gemm-dtype 'fp3'", "bfloat16")),
    Case("step-no-fp4", f"{STEP} --expert-dtype nvfp4", USAGE, ("h100_sxm has no fp4",)),
    Case("step-plan", f"{STEP} --plan {{dir}}/now.json", USAGE, ("--plan", "--trace")),
    Case(
        "step-trace-and-routing",
        f"{STEP} --trace {{dir}}/trace --routing uniform",
        USAGE,
        ("--trace and --routing",),
    ),
    Case(
        "step-other-trace",
        "simulate step --model mixtral-8x7b --cluster 8xh100_sxm --trace {dir}/trace",
        BAD_INPUT,
        ("layers", "found 3", "allowed: 32"),
        "manifest.json",
    ),
    Case(
        "step-other-plan",
        f"{STEP} --ep 1 --trace {{dir}}/trace --plan {{dir}}/now.json",
        BAD_INPUT,
        ("devices", "found 2", "allowed: 1"),
        "now.json",
        make=plan_file(),
    ),
    Case(
        "step-memory",
        "simulate step --model deepseek-v3 --cluster 8xh100_sxm --batch 8",
        INFEASIBLE,
        ("does not fit", "weights"),
    ),
]

ON_TRACE = "--trace {dir}/trace --model {dir}/config.json"
OFFLOAD_CASES = [
    Case("whatif-slots", f"whatif cache {ON_TRACE} --slots 0", USAGE, ("--slots", "'0'", "8")),
    Case("whatif-slots-word", f"whatif cache {ON_TRACE} --slots 2,x", USAGE, ("--slots", "'x'")),
    Case("whatif-batch", f"whatif cache {ON_TRACE} --batch 9999", USAGE, ("--batch 9999",)),
    Case("whatif-policies", "whatif cache --policies lruu", USAGE, ("lruu", "lru")),
    Case("whatif-no-policy", "whatif cache --policies ,", USAGE, ("--policies",)),
    Case("whatif-hardware", "whatif cache --hardware rtx4091", USAGE, ("rtx4091", "rtx4090")),
    Case("whatif-cpu", "whatif cache --hardware rtx4090+h100_sxm", USAGE, ("h100_sxm", "gpu")),
    Case("whatif-cores", "whatif cache --hardware rtx4090+epyc_9554:65", USAGE, ("65", "64")),
    Case("whatif-memory", "whatif cache --memory 24", USAGE, ("--memory", "'24'")),
    Case("whatif-memory-small", "whatif cache --memory 1MB", INFEASIBLE, ("1 MB",)),
    Case("whatif-context", "whatif cache --context 9999999", INFEASIBLE, ("9,999,999",)),
    Case("whatif-bits", "whatif cache --bits 99", USAGE, ("--bits", "99")),
    Case("whatif-no-model", "whatif cache --trace {dir}/trace", USAGE, ("--model",)),
    Case("whatif-other-model", "whatif cache --trace {dir}/trace --model mixtral-8x7b", BAD_INPUT,
         ("mixtral-8x7b",), "manifest.json"),
    Case("whatif-no-trace", "whatif cache --trace {dir}/none --model mixtral-8x7b", BAD_INPUT,
         (), "none"),
    Case("offload-system", "simulate offload --system hybrid", USAGE, ("'hybrid'", "hybrimoe")),
    Case("offload-schedule", "simulate offload --schedule best", USAGE, ("--schedule", "split")),
    Case("offload-policy", "simulate offload --policy fifo", USAGE, ("--policy", "lru")),
    Case("offload-quota", "simulate offload --quota none", USAGE, ("--quota", "shallow")),
    Case("offload-predictor", "simulate offload --predictor me", USAGE, ("--predictor", "paths")),
    Case("offload-slots", "simulate offload --slots 33", USAGE, ("--slots", "33", "32")),
    Case("offload-lengths", "simulate offload --prompt 200 --output 200", USAGE, ("400", "256")),
    Case("offload-no-cpu", "simulate offload --hardware rtx4090 --system static-split", USAGE,
         ("static-split", "rtx4090+")),
    Case("offload-nvme", "simulate offload --nvme fast", USAGE, ("--nvme", "GB/s")),
    Case("offload-mrs", f"simulate offload {ON_TRACE} --policy mrs --prompt 8 --output 8", USAGE,
         ("mrs", "weights")),
]  # fmt: skip
USAGE_CASES = [
    Case("trace-and-load", f"{ON_TINY} --load {{dir}}/counts.npy", USAGE, ("TRACE or --load",)),
    Case(
        "load-without-model",
        "plan --load {dir}/counts.npy --cluster 2xh100_sxm",
        USAGE,
        ("--load needs --model",),
    ),
    Case("max-moves-alone", f"{ON_TINY} --max-moves 3", USAGE, ("--max-moves", "--warm-start")),
    Case(
        "max-moves-negative",
        f"{ON_TINY} --warm-start {{dir}}/now.json --max-moves -1",
        USAGE,
        ("--max-moves",),
        make=plan_file(),
    ),
    Case("holdout-1", f"{ON_TINY} --holdout 1", USAGE, ("--holdout", "found 1")),
    Case("holdout-nan", f"{ON_TINY} --holdout nan", USAGE, ("--holdout", "nan")),
    Case("holdout-negative", f"{ON_TINY} --holdout -0.5", USAGE, ("--holdout", "-0.5")),
    Case("holdout-word", f"{ON_TINY} --holdout half", USAGE, ("--holdout",)),
    Case(
        "no-tokens-per-device", f"{ON_TINY} --tokens-per-device 0", USAGE, ("--tokens-per-device",)
    ),
    Case(
        "no-tokens-per-device-of-counts",
        f"plan --load {{dir}}/counts.npy {COUNTS} --tokens-per-device 0",
        USAGE,
        ("--tokens-per-device",),
    ),
    Case(
        "tokens-beyond-memory",
        f"{ON_TINY} --tokens-per-device 99999999999",
        USAGE,
        ("--tokens-per-device",),
    ),
    Case("redundant-negative", f"{ON_TINY} --redundant -1", USAGE, ("--redundant", "-1")),
    Case("time-limit-0", f"{ON_TINY} --time-limit 0", USAGE, ("--time-limit", "0")),
    Case("time-limit-nan", f"{ON_TINY} --time-limit nan", USAGE, ("--time-limit", "nan")),
    Case("seed-negative", f"{ON_TINY} --seed -1", USAGE, ("--seed",)),
    Case("unknown-option", f"{ON_TINY} --plannr lpt", USAGE, ("--plannr",)),
    Case("unknown-verb", "plann", USAGE, ("plann",)),
    Case("unknown-planner", f"{ON_TINY} --planner lpt-swp", USAGE, ("lpt-swp", "near: lpt-swap")),
    Case("unknown-engine", f"{ON_TINY} --export sglan", USAGE, ("sglan", "near: sglang")),
    Case("unknown-comm", f"{ON_TINY} --comm ring", USAGE, ("--comm", "ring", "chain")),
    Case("unknown-phase", f"{ON_TINY} --phase train", USAGE, ("--phase", "train", "decode")),
    Case("unknown-model", "plan --model deepseek-v33", USAGE, ("deepseek-v33", "deepseek-v3")),
    Case("unknown-cluster", "plan --cluster 8xh1000_sxm", USAGE, ("h1000_sxm", "near: h100_sxm")),
    Case("cluster-of-no-devices", "plan --cluster 0xh100_sxm", USAGE, ("0",)),
    Case(
        "free-clusters-for-sglang",
        f"{ON_TINY} --planner moetuner-free --export sglang",
        USAGE,
        ("sglang", "moetuner-free"),
    ),
    Case(
        "copies-for-megatron",
        f"{ON_TINY} --redundant 2 --export megatron",
        USAGE,
        ("megatron", "--redundant"),
    ),
    Case(
        "another-plan-in-out",
        f"{ON_TINY} --holdout 0 --export none --out {{dir}}/out",
        USAGE,
        ("holds another plan", "--force"),
        file="out/plan.json",
        make=another_plan,
    ),
    Case("synth-without-shape", "trace synth --out {dir}/new", USAGE, ("--like",)),
    Case("synth-without-out", "trace synth --like deepseek-v3", USAGE, ("--out",)),
    Case(
        "synth-like-nobody", "trace synth --like gpt-7 --out {dir}/new", USAGE, ("qwen3-30b-a3b",)
    ),
    Case(
        "synth-two-lengths",
        "trace synth --like deepseek-v3 --tokens 9 --sequences 9 --out {dir}/new",
        USAGE,
        ("--sequences",),
    ),
    Case(
        "synth-top-k-above-experts",
        "trace synth --layers 2 --experts 4 --top-k 5 --tokens 9 --out {dir}/new",
        BAD_INPUT,
        ("top_k", "5"),
    ),
    Case("window-0", "trace stats {dir}/trace --window-tokens 0", USAGE, ("--window-tokens",)),
    Case("locality-window-0", "trace locality {dir}/trace --window 4,0", USAGE, ("--window",)),
    Case("locality-ratio-word", "trace locality {dir}/trace --ratio two", USAGE, ("--ratio",)),
    Case(
        "locality-unknown-policy",
        "trace locality {dir}/trace --policy lfuu",
        USAGE,
        ("lfuu", "near: lfu"),
    ),
    Case(
        "locality-unknown-contract",
        "trace locality {dir}/trace --contract atomic",
        USAGE,
        ("contract", "event-atomic"),
    ),
    Case(
        "locality-policy-without-weights",
        "trace locality {dir}/trace --policy mrs",
        USAGE,
        ("router weights",),
    ),
    Case("unknown-format", IMPORT + "onnx", USAGE, ("onnx", "sglang"), make=text("in", "")),
    Case("unknown-device", "hw show h1000", USAGE, ("h1000",)),
    Case(
        "validate-time",
        f"{ON_TINY} --validate --validate-minutes 0",
        USAGE,
        ("--validate-minutes", "0"),
    ),
    Case(
        "validate-device",
        f"{ON_TINY} --validate --validate-device tpu",
        USAGE,
        ("tpu", "cpu or cuda"),
    ),
    Case("validate-device-alone", f"{ON_TINY} --validate-device cpu", USAGE, ("add --validate",)),
    Case(
        "validate-profile",
        f"{ON_TINY} --validate --validate-profile {{dir}}/config.json",
        BAD_INPUT,
        ("schema", "moesim.cpu-experts/1"),
        "config.json",
    ),
    Case("check-target", "kernels check --targets sm_75", USAGE, ("sm_75", "sm_90a", "gfx942")),
    Case("check-only", "kernels check --only nothing", USAGE, ("no case begins with nothing",)),
    Case(
        "check-table",
        "kernels check --table {dir}/config.json",
        BAD_INPUT,
        ("schema", "moesim.kernel-configs/1"),
        "config.json",
    ),
    Case(
        "check-readme",
        "kernels check --only combine --targets sm_80 --workers 1 --readme {dir}/page.md",
        BAD_INPUT,
        ("no place for the facts",),
        "page.md",
        text("page.md", "# nothing"),
    ),
    Case("select-nothing", "kernels select", USAGE, ("--histogram", "--rows")),
    Case("select-both", "kernels select --rows 5 --histogram 1,2", USAGE, ("one of",)),
    Case("select-words", "kernels select --histogram 1,x", USAGE, ("1,x", "whole numbers")),
    Case("select-negative", "kernels select --histogram=4,-1", BAD_INPUT, ("histogram", "from 0")),
    Case("select-target", "kernels select --rows 5 --target h100", USAGE, ("h100", "sm_90a")),
    Case("select-type", "kernels select --rows 5 --dtype int4", USAGE, ("int4", "fp8")),
    Case(
        "select-fp8",
        "kernels select --rows 5 --dtype fp8 --target sm_80",
        USAGE,
        ("fp8 on sm_80",),
    ),
    Case("select-odd", "kernels select --rows 5 --gated --n 7", USAGE, ("--n is 7",)),
    Case("select-measured", "kernels select --rows 5 --measured x.json", USAGE, ("--tune",)),
    Case(
        "select-file",
        "kernels select --histogram {dir}/h.json",
        BAD_INPUT,
        ("list of whole numbers",),
        "h.json",
        text("h.json", "[1, 2.5]"),
    ),
    Case(
        "tune-cpu",
        "kernels select --tune --table {dir}/t.json --measured {dir}/b.json",
        BAD_INPUT,
        ("schema",),
        "t.json",
        several(text("t.json", "{}"), text("b.json", "{}")),
    ),
    Case("bench-device", "kernels bench --device tpu --dry-run", USAGE, ("tpu", "cuda")),
    Case(
        "bench-model",
        "kernels bench --device cpu --models gpt-5 --dry-run",
        USAGE,
        ("gpt-5", "qwen3-30b-a3b"),
    ),
    Case(
        "bench-case",
        "kernels bench --device cpu --cases prefill --dry-run",
        USAGE,
        ("prefill", "--dry-run"),
    ),
    Case(
        "bench-time",
        "kernels bench --device cpu --minutes 0 --out {dir}/b.json",
        USAGE,
        ("--minutes", "0"),
    ),
    Case("bench-peers", "kernels bench --device cpu --peers {dir}/none", BAD_INPUT, ("--peers",)),
    Case(
        "bench-score-nothing",
        "kernels bench --score {dir}/config.json",
        BAD_INPUT,
        ("schema", "moesim.kernels/1"),
        "config.json",
    ),
    Case(
        "bench-into-another-file",
        "kernels bench --device cpu --out {dir}/config.json",
        BAD_INPUT,
        ("moesim.kernels/1",),
        "config.json",
    ),
]

COUNTS_CASES = [
    Case("counts-nan", "", BAD_INPUT, ("row 1, expert 2", "nan"), "in.npy",
         array("in.npy", loads(l1e2=np.nan))),
    Case("counts-negative", "", BAD_INPUT, ("row 0, expert 3", "-4"), "in.npy",
         array("in.npy", loads(l0e3=-4))),
    Case("counts-infinite", "", BAD_INPUT, ("row 0, expert 0", "inf"), "in.npy",
         array("in.npy", loads(l0e0=np.inf))),
    Case("counts-huge", "", BAD_INPUT, ("1e+300",), "in.npy",
         array("in.npy", loads(l0e0=1e300))),
    Case("counts-idle-layer", "", BAD_INPUT, ("layer 2", "no tokens"), "in.npy",
         array("in.npy", loads() * [[1], [1], [0]])),
    Case("counts-too-few-experts-used", "", BAD_INPUT, ("top-k",), "in.npy",
         array("in.npy", np.eye(LAYERS, EXPERTS))),
    Case("counts-of-another-shape", "", BAD_INPUT, ("shape", "2 rows", "3 rows"), "in.npy",
         array("in.npy", np.ones((2, 8)))),
    Case("counts-of-one-axis", "", BAD_INPUT, ("shape", "(8,)"), "in.npy",
         array("in.npy", np.ones(8))),
    Case("counts-empty", "", BAD_INPUT, ("(0, 8)",), "in.npy",
         array("in.npy", np.ones((0, 8)))),
    Case("counts-truncated", "", BAD_INPUT, ("cut short",), "in.npy",
         several(array("in.npy", loads()),
                 lambda f: (f / "in.npy").write_bytes((f / "in.npy").read_bytes()[:-3]))),
    Case("counts-fortran", "", BAD_INPUT, ("Fortran",), "in.npy",
         array("in.npy", loads(), order="F")),
    Case("counts-of-objects", "", BAD_INPUT, ("not plain numbers",), "in.npy",
         array("in.npy", [[{}] * 8] * 3, dtype=object)),
    Case("counts-of-words", "", BAD_INPUT, ("not plain numbers",), "in.npy",
         array("in.npy", [["a"] * 8] * 3)),
    Case("counts-claim-a-petabyte", "", BAD_INPUT, ("cut short",), "in.npy",
         raw("in.npy", npy_with_header(
             "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 134217728)}"))),
    Case("counts-without-ending", "", BAD_INPUT, ("file name",), "in.dat", text("in.dat", "1")),
    Case("counts-missing", "", BAD_INPUT, ("no such file",), "in.npy"),
    Case("csv-ragged", "", BAD_INPUT, ("line 3", "0,1"), "in.csv",
         text("in.csv", "layer,expert,count\n0,0,5\n0,1\n")),
    Case("csv-header", "", BAD_INPUT, ("line 1", "layer,expert,count"), "in.csv",
         text("in.csv", "layer;expert;count\n0;0;5\n")),
    Case("csv-twice", "", BAD_INPUT, ("line 3",), "in.csv",
         text("in.csv", "layer,expert,count\n0,0,5\n0,0,6\n")),
    Case("csv-negative-expert", "", BAD_INPUT, ("line 2", "0,-1,5"), "in.csv",
         text("in.csv", "layer,expert,count\n0,-1,5\n")),
    Case("csv-nan", "", BAD_INPUT, ("nan",), "in.csv",
         text("in.csv", "layer,expert,count\n0,0,nan\n1,0,1\n2,0,1\n")),
    Case("csv-empty", "", BAD_INPUT, ("layer,expert,count",), "in.csv", text("in.csv", "")),
    Case("json-ragged", "", BAD_INPUT, ("logical_count",), "in.json",
         text("in.json", '{"logical_count": [[1, 2], [3]]}')),
    Case("json-huge-number", "", BAD_INPUT, ("number too long",), "in.json",
         text("in.json", '{"logical_count": [[' + "9" * 5000 + "]]}")),
    Case("json-cut-short", "", BAD_INPUT, ("line 1",), "in.json",
         text("in.json", '{"logical_count": [[1,')),
    Case("json-without-counts", "", BAD_INPUT, ("logical_count",), "in.json",
         text("in.json", "{}")),
]  # fmt: skip

TRACE_CASES = [
    Case("no-trace", "plan {dir}/none", BAD_INPUT, ("no such folder",), "none"),
    Case("trace-is-a-file", "plan {dir}/config.json", BAD_INPUT, ("folder",), "config.json"),
    Case("no-manifest", ON_TINY, BAD_INPUT, ("no such file",), "trace/manifest.json",
         lambda f: (f / "trace" / "manifest.json").unlink()),
    Case("manifest-schema", ON_TINY, BAD_INPUT, ("schema", "moesim.trace/9", "moesim.trace/1"),
         "trace/manifest.json", manifest(schema="moesim.trace/9")),
    Case("manifest-dtype", ON_TINY, BAD_INPUT, ("dtype", "int64", "uint8"),
         "trace/manifest.json", manifest(dtype="int64")),
    Case("manifest-of-another-file", ON_TINY, BAD_INPUT, ("sha256", "record the trace again"),
         "trace/manifest.json", manifest(sha256={"routing.npy": "0" * 64})),
    Case("manifest-key-missing", ON_TINY, BAD_INPUT, ("top_k", "missing"),
         "trace/manifest.json", manifest(top_k="-")),
    Case("manifest-no-tokens", ON_TINY, BAD_INPUT, ("tokens", "0"),
         "trace/manifest.json", manifest(tokens=0)),
    Case("manifest-top-k-above-experts", ON_TINY, BAD_INPUT, ("top_k", "9", "1 … 8"),
         "trace/manifest.json", manifest(top_k=9)),
    Case("manifest-duplicate-key", ON_TINY, BAD_INPUT, ("model", "duplicate key"),
         "trace/manifest.json", text("trace/manifest.json", '{"model": "a", "model": "b"}')),
    Case("manifest-huge-int", ON_TINY, BAD_INPUT, ("tokens",),
         "trace/manifest.json", manifest(tokens=10**400)),
    Case("no-model-of-that-name", "plan {dir}/trace", USAGE, ("tiny", "--model")),
    Case("routing-cut-short", ON_TINY, BAD_INPUT, ("cut short",), "trace/routing.npy",
         lambda f: (f / "trace/routing.npy").write_bytes(
             (f / "trace/routing.npy").read_bytes()[:-1])),
    Case("routing-fortran", ON_TINY, BAD_INPUT, ("Fortran",), "trace/routing.npy",
         routing(np.asfortranarray(tiny_routing()))),
    Case("routing-of-another-type", ON_TINY, BAD_INPUT, ("uint16", "uint8"), "trace/routing.npy",
         routing(tiny_routing().astype(np.uint16))),
    Case("expert-out-of-range", ON_TINY, BAD_INPUT, ("8", "0 … 7"), "trace",
         routing(np.where(tiny_routing() == 7, 8, tiny_routing()).astype(np.uint8))),
    Case("trace-of-fewer-layers", ON_TINY.replace("/trace", "/short"), BAD_INPUT,
         ("layers", "2", "3", "--model"), "short/manifest.json",
         lambda f: (tiny_trace(f / "short", routing=tiny_routing(2)),)),
    Case("trace-of-another-model", "plan {dir}/trace --model mixtral-8x7b --cluster 8xh100_sxm",
         BAD_INPUT, ("layers", "found 3", "allowed: 32"), "trace/manifest.json"),
    Case("trace-too-short-to-hold-out", ON_TINY.replace("/trace", "/short"), BAD_INPUT,
         ("tokens", "--holdout 0"), "short",
         lambda f: (tiny_trace(f / "short", routing=tiny_routing()[:, :100]),)),
    Case("stats-without-a-trace", "trace stats {dir}/none", BAD_INPUT, ("no such folder",), "none"),
    Case("locality-expert-out-of-range", "trace locality {dir}/trace", BAD_INPUT, ("8", "0 … 7"),
         "trace", routing(np.where(tiny_routing() == 7, 8, tiny_routing()).astype(np.uint8))),
    Case("locality-without-a-trace", "trace locality {dir}/none", BAD_INPUT, ("no such folder",),
         "none"),
    Case("synth-into-a-trace", "trace synth --layers 1 --experts 4 --top-k 2 --tokens 9 "
         "--out {dir}/trace", BAD_INPUT, ("holds a trace",), "trace"),
]  # fmt: skip

MODEL_CASES = [
    Case("config-without-width", "", BAD_INPUT, ("intermediate_size",), "other.json",
         config(intermediate_size="-")),
    Case("config-text-for-number", "", BAD_INPUT, ("num_local_experts", "eight"), "other.json",
         config(num_local_experts="eight")),
    Case("config-negative", "", BAD_INPUT, ("hidden_size", "-256"), "other.json",
         config(hidden_size=-256)),
    Case("config-huge-int", "", BAD_INPUT, ("num_local_experts",), "other.json",
         config(num_local_experts=10**30)),
    Case("config-top-k-above-experts", "", BAD_INPUT, ("num_experts_per_tok", "9"), "other.json",
         config(num_experts_per_tok=9)),
    Case("config-dense", "", BAD_INPUT, ("opt",), "other.json",
         text("other.json", json.dumps({"model_type": "opt", "hidden_size": 64,
              "architectures": ["OPTForCausalLM"], "intermediate_size": 128,
              "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}))),
    Case("config-not-json", "", BAD_INPUT, ("line 1",), "other.json", text("other.json", "model")),
    Case("config-a-list", "", BAD_INPUT, ("mapping",), "other.json", text("other.json", "[]")),
    Case("config-utf-16", "", BAD_INPUT, ("UTF-8",), "other.json",
         text("other.json", "{}", "utf-16")),
]  # fmt: skip

HARDWARE_CASES = [
    Case("cluster-duplicate-key", "", BAD_INPUT, ("line 6", "duplicate key 'name'"), "in.yaml",
         text("in.yaml", CLUSTER + "name: again\n")),
    Case("cluster-aliases", "", BAD_INPUT, ("aliases are not allowed", "line 2"), "in.yaml",
         text("in.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")),
    Case("cluster-unknown-key", "", BAD_INPUT, ("speed", "unknown key"), "in.yaml",
         text("in.yaml", CLUSTER + "speed: 1\n")),
    Case("cluster-unknown-device", "", BAD_INPUT, ("h1000",), "in.yaml",
         text("in.yaml", CLUSTER.replace("h100_sxm", "h1000"))),
    Case("cluster-speed-factors", "", BAD_INPUT, ("speed_factors",), "in.yaml",
         text("in.yaml", CLUSTER + "speed_factors: [1.0, 0.5, 1.0]\n")),
    Case("cluster-no-devices", "", BAD_INPUT, ("devices_per_node",), "in.yaml",
         text("in.yaml", CLUSTER.replace("devices_per_node: 2", "devices_per_node: 0"))),
    Case("cluster-not-utf-8", "", BAD_INPUT, ("UTF-8",), "in.yaml",
         raw("in.yaml", b"name: \xff\xfe\n")),
    Case("cluster-executes", "", BAD_INPUT, ("constructor",), "in.yaml",
         text("in.yaml", "!!python/object/apply:pathlib.Path.touch [executed]\n")),
    Case("cluster-disconnected", "", BAD_INPUT, ("gpu0", "gpu1"), "in.yaml",
         text("in.yaml", "schema: moesim.cluster/1\nname: mine\ndevice: rtx_a6000\n"
              "devices:\n  - {name: gpu0, node: 0}\n  - {name: gpu1, node: 0}\n"
              "  - {name: gpu2, node: 0}\nlinks:\n"
              "  - {between: [gpu1, gpu2], bandwidth: 32 GB/s, latency: 5 us, tier: scale-up}\n")),
    Case("link-bandwidth-negative", "", BAD_INPUT, ("bandwidth", "-32 GB/s"), "in.yaml",
         text("in.yaml", CLUSTER + "nic: {bandwidth: -32 GB/s}\n")),
    Case("link-bandwidth-unit", "", BAD_INPUT, ("bandwidth", "unknown unit", "GB/s"), "in.yaml",
         text("in.yaml", CLUSTER + "nic: {bandwidth: 32 GB/h}\n")),
]  # fmt: skip

DEVICE_CASES = [
    Case("memory-larger-than-itself", "", BAD_INPUT, ("memory.addressable", "81559 GB"), "in.yaml",
         device("81559 MiB", "81559 GB")),
    Case("memory-without-unit", "", BAD_INPUT, ("memory.capacity", "80"), "in.yaml",
         device("capacity: {value: 80 GB", "capacity: {value: 80")),
    Case("bandwidth-in-bits", "", BAD_INPUT, ("memory.bandwidth", "Tb/s", "TB/s"), "in.yaml",
         device("3.352 TB/s", "3.352 Tb/s")),
    Case("bandwidth-negative", "", BAD_INPUT, ("memory.bandwidth", "-3.352"), "in.yaml",
         device("3.352 TB/s", "-3.352 TB/s")),
    Case("source-unknown", "", BAD_INPUT, ("peak.bf16", "nowhere"), "in.yaml",
         device("bf16: {value: 989.4 TFLOP/s, source: hmc-tech}",
                "bf16: {value: 989.4 TFLOP/s, source: nowhere}")),
]  # fmt: skip

PLAN_CASES = [
    Case("warm-start-of-other-slots", "", BAD_INPUT, ("slots", "found 16", "allowed: 8"),
         "now.json", plan_file(slots_per_device=8,
                               physical_to_logical=[list(range(EXPERTS)) * 2] * LAYERS)),
    Case("warm-start-of-other-devices", "", BAD_INPUT, ("devices", "found 4", "allowed: 2"),
         "now.json", plan_file(devices=4, slots_per_device=2)),
    Case("warm-start-of-other-layers", "", BAD_INPUT, ("moe_layers",), "now.json",
         plan_file(moe_layers=[1, 2, 3])),
    Case("warm-start-without-an-expert", "", BAD_INPUT, ("physical_to_logical[0]", "expert 7"),
         "now.json", plan_file(physical_to_logical=[[0, 1, 2, 3, 4, 5, 6, 6]] * LAYERS)),
    Case("warm-start-not-a-plan", "", BAD_INPUT, ("schema",), "now.json", text("now.json", "{}")),
    Case("warm-start-missing", "", BAD_INPUT, ("no such file",), "now.json"),
]  # fmt: skip

SET_UP_CASES = [
    Case("slots-do-not-divide", f"{ON_TINY} --redundant 1", BAD_INPUT,
         ("--redundant", "8 experts + 1 redundant on 2 devices", "pass --redundant 0")),
    Case("model-does-not-fit", "plan --model deepseek-v3 --cluster 4xh100_sxm --redundant 0 "
         "--load {dir}/counts.npy", INFEASIBLE, ("deepseek-v3", "4xh100_sxm", "per device")),
    Case("groups-do-not-divide", ON_TINY.replace("2xh", "2x2xh") + " --planner eplb-hierarchical",
         INFEASIBLE, ("8 experts in 1 groups", "2 nodes", "eplb-global")),
    Case("fewer-experts-than-devices", ON_TINY.replace("2xh", "2x8xh") + " --redundant 8 "
         "--planner moetuner-free", INFEASIBLE, ("8 experts", "16 devices")),
    Case("out-is-a-file", f"{ON_TINY} --out {{dir}}/config.json", BAD_INPUT, ("--out",),
         "config.json"),
    Case("out-in-a-file", f"{ON_TINY} --out {{dir}}/config.json/below", BAD_INPUT, ("--out",),
         "config.json"),
    Case("out-cannot-be-written", f"{ON_TINY} --out /proc/moesim", BAD_INPUT, (), "/proc/moesim"),
    Case("result-out-cannot-be-written", "model list --out /proc/moesim.json", BAD_INPUT, (),
         "/proc/moesim.json"),
    Case("calibrate-operator", "calibrate evaluate --operator gem", USAGE, ("gem", "attention")),
    Case("calibrate-split", "calibrate evaluate --operator gemm --source {dir}", BAD_INPUT,
         ("no measured tables",)),
    Case("calibrate-rows", "calibrate evaluate --rows-per-kernel 0", USAGE, ("rows-per-kernel",)),
    Case("calibrate-fit-operator", "calibrate fit --operator gem", USAGE, ("gem", "gemm")),
    Case("validate-goal", "validate comm --only unheard", USAGE, ("unheard", "nccl")),
    Case("validate-size", "validate kernels --size huge", USAGE, ("huge",)),
    Case("validate-source", "validate kernels --source {dir}", BAD_INPUT, ("no measured tables",)),
]  # fmt: skip

IMPORT_CASES = [
    Case("import-missing", "jsonl", BAD_INPUT, ("no such",), "in"),
    Case("import-ragged", "vllm", BAD_INPUT, ("routed_experts",), "in.json",
         text("in.json", '{"routed_experts": [[[0, 1], [2]]]}')),
    Case("import-id-too-large", "jsonl", BAD_INPUT, ("8",), "in",
         text("in", '{"layer": 0, "token": 0, "experts": [1, 8]}\n')),
    Case("import-not-json", "jsonl", BAD_INPUT, ("line 1",), "in", text("in", "not json\n")),
    Case("import-csv-ragged", "csv", BAD_INPUT, ("line 3",), "in",
         text("in", "request,token,layer,expert\n0,0,0,1\n0,0\n")),
    Case("import-hostile-pt", "sglang", BAD_INPUT, (), "in.pt", hostile_torch_file("in.pt")),
    Case("import-pt-of-text", "sglang", BAD_INPUT, (), "in.pt", text("in.pt", "hello")),
    Case("import-logits-nan", "llamacpp --top-k 2", BAD_INPUT, ("nan",), "ffn_moe_logits-0.npy",
         several(lambda f: (f / "in").mkdir(),
                 array("in/ffn_moe_logits-0.npy", np.full((4, 8), np.nan, np.float32)))),
    Case("import-logits-of-other-width", "llamacpp --top-k 2", BAD_INPUT, ("8",),
         "ffn_moe_logits-0.npy",
         several(lambda f: (f / "in").mkdir(),
                 array("in/ffn_moe_logits-0.npy", np.zeros((4, 7), np.float32)))),
    Case("import-top-k-missing", "llamacpp", USAGE, ("--top-k",), None,
         lambda f: (f / "in").mkdir()),
]  # fmt: skip
RECORDINGS = ("in.pt", "in.json")


def under(prefix: str, suffix: str, cases: list[Case]) -> list[Case]:
    """The cases with their commands completed: what they have in common."""
    return [replace(case, command=f"{prefix} {case.command} {suffix}") for case in cases]


CASES = [
    *STEP_CASES,
    *OFFLOAD_CASES,
    *USAGE_CASES,
    *(replace(c, command=f"plan --load {{dir}}/{c.file} {COUNTS}") for c in COUNTS_CASES),
    *TRACE_CASES,
    *under("model show {dir}/other.json", "", MODEL_CASES),
    *under("hw show {dir}/in.yaml", "", HARDWARE_CASES + DEVICE_CASES),
    *under(f"{ON_TINY} --warm-start {{dir}}/now.json", "", PLAN_CASES),
    *SET_UP_CASES,
    *(
        replace(c, command=f"trace import {{dir}}/{c.file if c.file in RECORDINGS else 'in'} "
                f"--experts 8 --out {{dir}}/new --format {c.command}")
        for c in IMPORT_CASES
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with a sound model, counts and trace."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(folder)
    tiny_counts(folder / "counts.npy")
    tiny_trace(folder / "trace")
    return folder


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_is_refused_with_help(case, inputs, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "dir"
    shutil.copytree(inputs, folder)
    case.make(folder)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = case.command.replace("{dir}", str(folder)).split()

    plain = moesim(capsys, *words)
    message = plain.err.removeprefix("moesim: ")
    assert plain.code == case.code, plain.err
    assert plain.out == ""
    assert plain.err.startswith("moesim: ")
    assert "Traceback" not in plain.err
    assert "bug in moesim" not in plain.err
    assert message.count("\n") <= 2
    assert len(message) < 700

    error = check_json(moesim(capsys, *words, "--json"), case.code)
    assert error["message"] == message.removesuffix("\n")
    for said in case.says:
        assert said in message
    assert "\nfix: " in message
    if case.file is not None:
        assert case.file in message
        assert error.get("file") is None or case.file in error["file"]
    assert sorted(tmp_path.rglob("*")) == before, "something was written or executed"


def check_json(answer: Answer, code: int) -> dict[str, Any]:
    assert answer.code == code
    assert answer.err == ""
    data = answer.json
    assert set(data) == {"schema", "ok", "error"}
    assert (data["schema"], data["ok"]) == ("moesim.error/1", False)
    assert data["error"]["exit_code"] == code
    error: dict[str, Any] = data["error"]
    return error


def test_the_catalogue_is_large_and_its_names_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 45


def test_debug_shows_the_traceback_wherever_it_stands(capsys):
    for words in (["--debug", "model", "show", "none"], ["model", "show", "none", "--debug"]):
        answer = moesim(capsys, *words)
        assert answer.code == USAGE
        assert "Traceback" in answer.err
        assert "moesim: " in answer.err


GOOD = [
    (
        "bom",
        text("other.json", json.dumps(TINY_CONFIG), "utf-8-sig"),
        "model show {dir}/other.json",
    ),
    (
        "crlf",
        text("other.json", json.dumps(TINY_CONFIG, indent=1).replace("\n", "\r\n")),
        "model show {dir}/other.json",
    ),
    (
        "yaml-bom-crlf",
        text("in.yaml", CLUSTER.replace("\n", "\r\n"), "utf-8-sig"),
        "hw show {dir}/in.yaml",
    ),
    (
        "csv-bom-crlf",
        text(
            "in.csv",
            "layer,expert,count\r\n"
            + "".join(f"{n},{e},{e + 1}\r\n" for n in range(LAYERS) for e in range(EXPERTS)),
            "utf-8-sig",
        ),
        f"plan --load {{dir}}/in.csv {COUNTS} --export none --tokens-per-device 64",
    ),
    ("one-device", lambda _: None, ON_TINY.replace("2xh100_sxm", "1xh100_sxm")
     + " --export none --tokens-per-device 64"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "command"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_odd_but_sound(make, command, inputs, tmp_path, capsys):
    folder = tmp_path / "Zoë’s 実験 🧪"
    shutil.copytree(inputs, folder)
    make(folder)
    words = [word.replace("{dir}", str(folder)) for word in command.split()]
    if words[0] == "plan":
        words += ["--out", folder / "ausführung"]
    answer = moesim(capsys, *words, "--json")
    assert answer.code == 0, answer.out
    assert answer.json["ok"] is True
    assert moesim(capsys, *words).code == 0


def test_one_device_and_an_engine_that_cannot(inputs, tmp_path, capsys):
    """The plan is made and kept, the engine named: a partial result."""
    words = ON_TINY.replace("2xh100_sxm", "1xh100_sxm").replace("{dir}", str(inputs)).split()
    answer = moesim(
        capsys, *words, "--export", "sglang,vllm", "--tokens-per-device", 64, "--json",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert answer.code == 5
    assert answer.json["ok"] is False
    assert answer.json["left_out"].keys() == {"vllm"}
    assert "single device" in answer.err
    assert (tmp_path / "out" / "plan.json").is_file()
    assert (tmp_path / "out" / "sglang_expert_location.json").is_file()
