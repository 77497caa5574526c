"""The benchmark: its plan, its file and how it goes on, its checks, its goals, one real run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.errors import InputError, UsageError
from moesim.kernels import bench_run
from moesim.kernels.bench import summary
from moesim.kernels.bench_cases import CPU_SCALE, MODELS, Case, Scale, plan_cases
from moesim.kernels.bench_check import check_cases, check_kernel
from moesim.kernels.bench_file import (
    add_samples,
    case_entries,
    read_bench,
    recorded_command,
    write_bench,
)
from moesim.kernels.bench_inputs import Source
from moesim.kernels.bench_kernels import Kernel, own_kernels
from moesim.kernels.bench_loads import LOADS, rows_per_expert
from moesim.kernels.bench_peers import align_blocks, peer_kernels, vllm_config, vllm_module
from moesim.kernels.bench_run import BenchOptions, bench, chosen_cases, run_plan
from moesim.kernels.bench_score import GOALS, score_bench, score_text
from moesim.model import load_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine two threads of torch wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@given(
    st.sampled_from(LOADS),
    st.sampled_from([4, 8, 32, 64, 128]),
    st.integers(1, 40_000),
    st.integers(0, 5),
)
def test_loads_hold_all_rows_and_repeat(load: str, experts: int, rows: int, seed: int) -> None:
    found = rows_per_expert(load, experts, rows, seed)
    assert found.shape == (experts,)
    assert found.sum() == rows
    assert found.min() >= 0
    assert (found == rows_per_expert(load, experts, rows, seed)).all()


def test_loads_differ_in_skew() -> None:
    share = {load: rows_per_expert(load, 128, 128 * 256, 0).max() / 256 for load in LOADS}
    assert share["even"] == 1
    assert 20 < share["zipf"] < 25  # 128 / Σ 1/r over 128 ranks is 23.6
    assert 1.3 < share["trace"] < 20


def test_shapes_are_those_of_the_registry() -> None:
    for shape in MODELS.values():
        model = load_model(shape.name)
        assert (shape.hidden, shape.inter) == (model.hidden_size, model.expert_width)
        assert shape.top_k == model.top_k
        assert model.experts % shape.experts == 0


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_plan_begins_with_something_for_every_goal(on_gpu: bool) -> None:
    plan = plan_cases(on_gpu)
    assert len({case.name for case in plan}) == len(plan)
    assert max(case.memory_bytes for case in plan) < 60e9
    assert [case.op for case in plan[:2]] == ["copy", "dense"]
    wanted = {"ceiling", "large", "decode", "ragged", "experts"}
    assert {case.regime for case in plan[:9]} == wanted | ({"fp8", "choice"} if on_gpu else set())
    large = [case for case in plan if case.regime == "large" and on_gpu]
    assert all(8 <= case.active <= 32 and min(case.n, case.k) >= 4096 for case in large)
    streamed = [c for c in plan if c.regime == "decode" and c.weight_bytes >= 1e9]
    assert len(streamed) >= 10 or not on_gpu


def test_a_cpu_runs_the_same_list_smaller() -> None:
    plan = plan_cases(False)
    assert all(case.flops <= CPU_SCALE.flops for case in plan)
    assert all(case.width_divisor == 4 for case in plan if case.regime != "ceiling")
    distinct = {(c.op, c.n, c.k, c.rows) for c in plan}
    assert len(distinct) == len(plan)
    for case in plan:
        assert all(rows >= 0 for rows in case.rows)


def test_work_of_a_case() -> None:
    case = Case("x", "grouped-gemm", "ragged", "", "bf16", 8, 4, (3, 0, 1), "even")
    assert case.flops == 2 * 4 * 8 * 4
    assert case.moved_bytes == 2 * (2 * 8 * 4) + 4 * 2 * (4 + 8)
    layer = replace(case, op="experts", n=4, inter=6)
    assert layer.flops == 2 * 4 * 3 * 4 * 6
    assert layer.weight_bytes == 2 * 3 * 4 * 6 * 2


class Pretended:
    """A machine whose calls take a known time on a clock of its own."""

    def __init__(self, call_s: float = 2.0, stop_at: int | None = None) -> None:
        self.now_s, self.call_s, self.stop_at = 0.0, call_s, stop_at
        self.visited: list[str] = []

    def time(self, case: Case, first: bool) -> tuple[dict[Any, Any], list[dict[str, str]]]:
        assert first == (case.name not in self.visited)
        if len(self.visited) == self.stop_at:
            raise KeyboardInterrupt
        self.visited.append(case.name)
        self.now_s += self.call_s
        if case.name.endswith("down/trace-4/fp32"):
            return {}, [{"case": case.name, "kernel": "x", "config": "", "reason": "no"}]
        return {("moesim", ""): ("wall", [1e-3, 2e-3]), ("torch-loop", ""): ("wall", [3e-3])}, []


def begun(tmp_path: Path, **changes: Any) -> tuple[BenchOptions, tuple[Case, ...], dict[str, Any]]:
    scale = Scale(width=16, flops=1e6, dtype="fp32")
    given: dict[str, Any] = {"models": ("qwen3-30b-a3b",), "scale": scale} | changes
    options = BenchOptions("cpu", tmp_path / "bench.json", **given)
    plan = chosen_cases(options)
    return options, plan, bench_run._begun(torch, options, plan)


def test_a_run_goes_on_where_its_file_ends(tmp_path: Path) -> None:
    options, plan, document = begun(tmp_path)
    first = Pretended()
    run_plan(plan, first, document, options, budget_s=10.0, now=lambda: first.now_s)
    assert first.visited == [case.name for case in plan[:5]]
    held = read_bench(options.out)
    assert len(held["left_out"]["no time left: run again to continue"]) == len(plan) - 5
    assert not held["complete"]

    options, plan, document = begun(tmp_path)  # a later call finds the file
    assert document["cases"] == held["cases"]

    class Rest(Pretended):
        def time(self, case: Case, first: bool) -> Any:
            assert first == (case.name not in self.visited and case.name not in before)
            self.visited.append(case.name)
            return Pretended().time(case, True)

    before = set(first.visited)
    rest = Rest()
    run_plan(plan, rest, document, options, budget_s=1e9, now=lambda: rest.now_s)
    count = {case.name: (first.visited + rest.visited).count(case.name) for case in plan}
    assert set(count.values()) == {3}, "three passes over every case, over both runs"
    held = read_bench(options.out)
    assert held["complete"]
    assert not any(held["left_out"].values())
    entry = case_entries(held, plan[2].name)[0]
    assert entry["samples_s"] == [1e-3, 2e-3] * 3
    assert entry["time_s"] == 1.5e-3
    assert entry["ratio_vs"] == {"torch-loop": 2.0}


def test_interruption_keeps_what_is_there(tmp_path: Path) -> None:
    options, plan, document = begun(tmp_path)
    machine = Pretended(stop_at=4)
    run_plan(plan, machine, document, options, budget_s=1e9, now=lambda: machine.now_s)
    assert document["interrupted"]
    assert {entry["case"] for entry in read_bench(options.out)["cases"]} == set(machine.visited)


def test_a_case_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    options, plan, document = begun(tmp_path)
    machine = Pretended()
    run_plan(plan, machine, document, options, budget_s=1e9, now=lambda: machine.now_s)
    failed = {entry["case"] for entry in read_bench(options.out)["failed"]}
    assert failed
    options, plan, document = begun(tmp_path)
    again = Pretended()
    run_plan(plan, again, document, options, budget_s=1e9, now=lambda: again.now_s)
    assert not again.visited


@pytest.mark.parametrize(
    ("change", "says"),
    [({"seed": 1}, "seed"), ({"system": "other"}, "system"), ({"cases": ("decode",)}, "plan_sha")],
)
def test_another_run_is_not_continued(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    options, _, document = begun(tmp_path)
    write_bench(options.out, document)
    with pytest.raises(UsageError, match=says):
        begun(tmp_path, **change)
    begun(tmp_path, **change, fresh=True)


def test_checks_catch_wrong_kernels() -> None:
    source = Source(torch, "cpu", 0)
    cases = check_cases("cpu", "fp32")
    right = [k for k in own_kernels(torch, "cpu") if k.name != "torch-copy"]
    for kernel in right:
        found = check_kernel(torch, kernel, cases, source, lambda _: None)
        assert found, kernel.name
        assert all(entry["ok"] for entry in found), found

    loop = next(kernel for kernel in right if kernel.name == "torch-loop")

    def spoiled(spoil: Any) -> Kernel:
        def prepare(operands: Any) -> Any:
            call = loop.prepare(operands)
            return lambda: spoil(call())

        return replace(loop, prepare=prepare)

    def one_wrong_row(out: Any) -> Any:
        out[-1] = out[-1].flip(0)
        return out

    def unwritten(out: Any) -> Any:
        out[0, 0] = float("nan")
        return out

    def raising(out: Any) -> Any:
        raise RuntimeError("no kernel image")

    for spoil in (one_wrong_row, unwritten, raising, torch.zeros_like):
        found = check_kernel(torch, spoiled(spoil), cases, source, lambda _: None)
        assert not all(entry["ok"] for entry in found), spoil


def test_a_real_run_on_this_machine(tmp_path: Path) -> None:
    options = BenchOptions(
        "cpu",
        tmp_path / "bench.json",
        minutes=5,
        models=("qwen3-30b-a3b",),
        cases=("decode/qwen3-30b-a3b/down/trace-4", "experts/qwen3-30b-a3b/trace-4"),
        scale=Scale(width=16, flops=2e7, dtype="fp32"),
        command="test",
    )
    document = bench(options)
    assert all(check["ok"] for check in document["checks"])
    assert document["ceilings"]["copy_bytes_per_s"] > 1e8
    assert document["environment"]["clock"] == "thread-cpu"
    again = read_bench(options.out)
    assert again["cases"] == document["cases"]
    for entry in again["cases"]:
        assert entry["time_s"] == pytest.approx(np.median(entry["samples_s"]), rel=1e-3)
        if entry["op"] != "copy":
            rows = again["loads"][entry["case"]]
            assert entry["shape"]["active"] == sum(1 for count in rows if count)
    kernels = {entry["kernel"] for entry in again["cases"]}
    assert {"moesim", "torch-loop", "torch-grouped-mm"} <= kernels
    assert "torch-loop" in summary(again)


def gpu_file() -> dict[str, Any]:
    """A made-up file of a GPU with a dense peak of 800 TFLOP/s and a copy of 4 TB/s."""
    document: dict[str, Any] = {
        "schema": "moesim.kernels/1",
        "kind": "bench",
        "device": "cuda",
        "system": "made_up",
        "environment": {},
        "ceilings": {"copy_bytes_per_s": 4e12, "dense_flop_per_s": 8e14},
        "loads": {},
        "cases": [],
    }
    for case in plan_cases(True):
        if not case.rows or case.regime == "ceiling":
            continue
        ours_s = max(case.flops / 6.4e14, case.moved_bytes / 3.6e12)  # 80 % and 90 %
        times = {
            ("moesim", ""): ours_s,
            ("torch-loop", ""): 3 * ours_s,
            ("torch-grouped-mm", ""): 1.25 * ours_s,
        }
        if case.regime == "experts":
            times["vllm-fused-moe", ""] = 1.1 * ours_s
        if case.every_config:
            times |= {("moesim", "a"): ours_s / 1.02, ("moesim", "b"): 2 * ours_s}
            times["moesim", "chosen"] = ours_s
        add_samples(document, case, {key: ("cuda-graph", [s]) for key, s in times.items()})
    return document


def test_goals_on_a_made_up_file() -> None:
    found = {row.goal.id: row for row in score_bench(gpu_file())}
    assert set(found) == {goal.id for goal in GOALS}
    near = {
        "large": 0.8,
        "decode": 0.9,
        "loop-few": 3.0,
        "loop-many": 3.0,
        "grouped-mm": 1.25,
        "grouped-mm-worst": 1.25,
        "grouped-mm-decode": 1.25,
        "vllm-decode": 1.1,
        "vllm-prefill": 1.1,
        "regret-mean": 0.02,
        "regret-p95": 0.02,
    }
    for name, value in near.items():
        assert found[name].value == pytest.approx(value, rel=2e-3), name
        assert found[name].ok == (name != "vllm-prefill"), name
    assert found["triton-kernels"].ok is None
    assert found["triton-kernels"].note == "no data"
    assert found["error-median"].ok is None
    assert found["large"].cases >= 5
    assert found["decode"].cases >= 10
    text = score_text(list(found.values()))
    assert "no data" in text
    assert "NO" in text


def test_errors_of_the_wave_model_on_held_out_loads() -> None:
    from moesim.kernels.bench_held_out import held_out_errors
    from moesim.kernels.config import Part
    from moesim.kernels.config_table import default_table
    from moesim.kernels.wave_model import Coefficients, GemmShape, part_seconds

    table = default_table()
    entries = [entry for entry in table.of("sm_90a", "bf16")][:3]
    truth = Coefficients(share=0.6, reach=0.9, latency_s=1.1e-6, tile_s=2e-6, launch_s=3e-6)
    environment = {"compute_capability": "9.0", "cores": 132}
    document = gpu_file() | {"cases": [], "environment": environment}
    rng = np.random.default_rng(0)

    def measure(noise: float) -> list[float]:
        document["cases"] = []
        for case in plan_cases(True):
            if case.every_config and case.dtype == "bf16":
                shape, rows = GemmShape(case.n, case.k), np.array(case.rows)
                times = {}
                for entry in entries:
                    speeds = table.speeds["sm_90a"]["bf16"]
                    own_s = part_seconds(Part(entry.config), truth, rows, shape, speeds)
                    own_s *= float(np.exp(noise * rng.standard_normal()))
                    times["moesim", entry.config.name] = ("cuda-graph", [own_s])
                add_samples(document, case, times)
        return held_out_errors(document)

    exact = measure(0.0)
    plan = [case for case in plan_cases(True) if case.every_config and case.dtype == "bf16"]
    assert len(exact) == 3 * len(plan)
    assert np.median(exact) < 0.01
    assert 0.05 < np.median(measure(0.1)) < 0.15


def test_goals_that_are_missed() -> None:
    document = gpu_file()
    slow = next(e for e in document["cases"] if e["regime"] == "large" and e["kernel"] == "moesim")
    slow["tflops"] = 500.0
    row = next(row for row in score_bench(document) if row.goal.id == "large")
    assert row.ok is False
    assert row.value == pytest.approx(0.625)


def test_a_file_of_a_cpu_says_nothing_of_the_goals() -> None:
    rows = score_bench(gpu_file() | {"device": "cpu"})
    assert all(row.ok is None and row.value is None for row in rows)


def test_the_measured_files_hold_together() -> None:
    for file in (ROOT / "kernels" / "measured").glob("*.json"):
        document = read_bench(file)
        assert document["environment"]["processor"]
        assert all(check["ok"] for check in document["checks"]), file
        score_bench(document)


BROKEN = {
    "not-json": ("{", "is not JSON"),
    "other": ('{"schema": "moesim.plan/1"}', "no benchmark"),
    "list": ("[]", "no benchmark"),
    "bare": ('{"schema": "moesim.kernels/1", "kind": "bench"}', "incomplete"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    content, says = BROKEN[name]
    file = tmp_path / "bench.json"
    file.write_text(content)
    with pytest.raises(InputError, match=says) as error:
        read_bench(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"samples_s": [-1.0]}, {"samples_s": None}, {"time_s": 0.0}, {"kernel": 3}, {"shape": None}],
)
def test_broken_entries_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    document = gpu_file()
    document["cases"][3] |= change
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"cases\[3\]"):
        read_bench(file)


def test_missing_rows_are_named(tmp_path: Path) -> None:
    document = gpu_file()
    document["loads"][document["cases"][0]["case"]] = [1, -2]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="loads"):
        read_bench(file)


def test_score_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    write_bench(file, gpu_file())
    assert run(app, ["kernels", "bench", "--score", str(file), "--json"]) == 6
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert {row["id"]: row["ok"] for row in found["goals"]}["large"] is True


def test_dry_run_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["kernels", "bench", "--device", "cuda", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["cases"]) == len(plan_cases(True))
    assert sum(case["pass_s"] for case in found["cases"]) < 8 * 60


BARE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ("pydantic", "yaml", "typer", "rich", "numba", "scipy", "pandas", "matplotlib",
                   "networkx", "pulp", "safetensors", "transformers"):
            raise ImportError(f"{top} is not on that machine")
sys.meta_path.insert(0, Refuse())
sys.argv = ["kernels/bench.py", *sys.argv[1:]]
sys.path[0] = "kernels"
import runpy
runpy.run_path("kernels/bench.py", run_name="__main__")
"""


def test_a_bare_copy_needs_torch_and_numpy_alone(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--minutes", "0.01", "--models", "qwen3-30b-a3b", "--json"]
    words += ["--out", str(tmp_path / "bare.json"), "--cases", "decode/qwen3-30b-a3b/down"]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "bench"
    assert all(check["ok"] for check in read_bench(tmp_path / "bare.json")["checks"])


@given(st.lists(st.integers(0, 70), min_size=1, max_size=6), st.sampled_from([16, 64]))
def test_blocks_of_a_peer_hold_every_row_once(counts: list[int], block: int) -> None:
    places, experts, count = align_blocks(torch, counts, block, "cpu")
    assert len(places) == count == block * len(experts)
    rows = [row for row in places.tolist() if row < sum(counts)]
    assert rows == list(range(sum(counts)))
    owner = np.repeat(np.arange(len(counts)), counts)
    for number, expert in enumerate(experts.tolist()):
        own = [row for row in places[number * block : (number + 1) * block].tolist()]
        assert all(owner[row] == expert for row in own if row < sum(counts))


def test_configurations_of_a_peer(tmp_path: Path) -> None:
    table = {"1": {"BLOCK_SIZE_M": 16}, "64": {"BLOCK_SIZE_M": 32}, "triton_version": "3"}
    (tmp_path / "E=8,N=512,device_name=X.json").write_text(json.dumps(table))
    assert vllm_config(tmp_path, "X", 8, 512, 50) == {"BLOCK_SIZE_M": 32}
    assert vllm_config(tmp_path, "X", 8, 512, 3) == {"BLOCK_SIZE_M": 16}
    assert vllm_config(tmp_path, "X", 8, 513, 4096)["BLOCK_SIZE_M"] == 128
    assert vllm_config(tmp_path, "Y", 8, 512, 8)["BLOCK_SIZE_N"] == 64


def test_a_peers_kernel_is_taken_out_of_its_file(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="there is no Triton for this system")
    file = tmp_path / "fused_moe.py"
    body = "import vllm_that_is_not_there\n\n\n"
    for name in ("write_zeros_to_output", "another", "fused_moe_kernel"):
        body += f"@triton.jit\ndef {name}(x, N: tl.constexpr):\n    tl.store(x, N)\n\n\n"
    file.write_text(body)
    module = vllm_module(file)
    assert hasattr(module, "fused_moe_kernel")
    assert not hasattr(module, "another")
    file.write_text("x = 1\n")
    with pytest.raises(ImportError, match="fused_moe_kernel"):
        vllm_module(file)


def test_absent_peers_are_named(tmp_path: Path) -> None:
    assert set(peer_kernels(torch, "cpu", None)[1]) == {"vllm-fused-moe", "triton-kernels"}
    found, absent = peer_kernels(torch, "cuda", tmp_path)
    assert not found
    assert "FileNotFoundError" in absent["triton-kernels"]
    assert absent["vllm-fused-moe"]


def test_the_recorded_command_names_no_folder_of_the_machine():
    words = ["python", "kernels/bench.py", "--out", "/home/me/h100.json", "--peers", "build/peers"]
    told = "python kernels/bench.py --out h100.json --peers build/peers"
    assert recorded_command(words) == told
