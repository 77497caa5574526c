"""``moesim plan`` from the command line to the files on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.model import load_model
from moesim.placement import read_plan
from moesim.planners.exports import read_export
from moesim.planners.moves import count_moves
from moesim.planners.registry import PLANNERS
from moesim.traces.bundle import open_trace, sample_path, write_trace
from moesim.traces.statistics import loads

from .commands import (
    EXPERTS,
    LAYERS,
    TOKENS,
    TOP_K,
    Answer,
    moesim,
    tiny_model,
    tiny_routing,
    tiny_trace,
)

ENGINES = ("sglang", "vllm", "vllm-ascend", "tensorrt-llm", "megatron")

KEYS = {
    "schema", "ok", "model", "cluster", "planner", "layers", "experts", "slots", "devices",
    "solve_s", "objective", "planners", "holdout", "speedup_vs", "files",
}  # fmt: skip
PRICES = {"step_s", "balance", "remote_fraction", "internode_fraction"}


def check_plan(data: dict[str, Any]) -> None:
    """What holds for the JSON of every plan, and for the files that it names."""
    assert data.keys() >= KEYS
    assert (data["schema"], data["ok"]) == ("moesim.plan/1", True)
    assert data["slots"] % data["devices"] == 0
    assert data["planner"] in data["planners"]
    for prices in [*data["planners"].values(), *data["holdout"].values()]:
        assert prices.keys() >= PRICES
        assert prices["step_s"] > 0
        assert 0 < prices["balance"] <= 1
        assert 0 <= prices["internode_fraction"] <= prices["remote_fraction"] <= 1
    objective = data["objective"]
    chosen_s = data["planners"][data["planner"]]["step_s"]
    assert objective["value"] == chosen_s
    assert 0 < objective["lower_bound"] <= chosen_s * (1 + 1e-9)
    assert objective["gap"] == pytest.approx(chosen_s / objective["lower_bound"] - 1)
    assert objective["proven"] == (objective["gap"] <= 1e-9)
    for name, speedup in data["speedup_vs"].items():
        assert speedup == pytest.approx(data["planners"][name]["step_s"] / chosen_s)
    for file in data["files"].values():
        assert Path(file).stat().st_size > 0
    _, placement = read_plan(data["files"]["plan"])
    shape = (placement.layers, placement.experts, placement.slots, placement.devices)
    assert shape == (data["layers"], data["experts"], data["slots"], data["devices"])


def placements_of(data: dict[str, Any], model: Any) -> dict[str, list[list[int]]]:
    """What plan.json and every exported file say, engine by engine."""
    _, planned = read_plan(data["files"]["plan"])
    found = {"plan": planned.physical_to_logical.tolist()}
    for engine in ENGINES:
        if engine in data["files"]:
            read = read_export(engine, data["files"][engine], model, planned.devices)
            found[engine] = read.physical_to_logical.tolist()
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with a model and its trace."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(folder)
    tiny_trace(folder / "trace")
    return folder


def plan_tiny(capsys, tiny: Path, out: Path, *words: object) -> Answer:
    """Plan the tiny model on 4 devices, in 2 nodes unless the words say otherwise."""
    cluster = [] if "--cluster" in words else ["--cluster", "2x2xh100_sxm"]
    return moesim(
        capsys, "plan", tiny / "trace", "--model", tiny / "config.json", *cluster,
        "--tokens-per-device", 64, "--out", out, "--json", *words,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sample_twice(tmp_path_factory) -> list[tuple[subprocess.CompletedProcess[str], Path]]:
    """``moesim plan --json`` on the bundled sample in two processes, each in its own folder."""
    runs = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("sample")
        command = [sys.executable, "-m", "moesim", "plan", "--json", "--phase", "decode"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        runs.append((done, folder))
    return runs


def test_the_sample_by_default(sample_twice):
    done, folder = sample_twice[0]
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "moesim" not in done.stderr
    data = json.loads(done.stdout)
    for kind, file in data["files"].items():
        data["files"][kind] = str(folder / file)
    check_plan(data)
    trace = open_trace(sample_path())
    assert data["trace_sha256"] == trace.sha256
    assert (data["layers"], data["experts"]) == (trace.manifest.layers, trace.manifest.experts)
    assert data["files"].keys() >= {"plan", "report", "markdown", *ENGINES[:4]}
    assert data["left_out"] == {}
    assert {path.name for path in folder.iterdir()} == {"moesim-plan"}
    assert data["holdout"].keys() == data["planners"].keys()
    assert data["speedup_vs"]["contiguous"] >= 1
    found = placements_of(data, load_model(data["model"]))
    assert len(found) == 5
    assert all(table == found["plan"] for table in found.values())
    # Redone by hand: tokens of the busiest device against the mean.
    table = np.array(found["plan"]).reshape(data["layers"], data["devices"], -1)
    counts = loads(trace)
    held = np.take_along_axis(counts, table.reshape(len(counts), -1), 1).reshape(table.shape)
    balance = (held.sum(-1).mean(1) / held.sum(-1).max(1)).mean()
    contiguous = counts.reshape(data["layers"], data["devices"], -1).sum(-1)
    assert balance >= (contiguous.mean(1) / contiguous.max(1)).mean()


def test_the_same_seed_gives_the_same_plan_in_another_process(sample_twice):
    texts, results = [], []
    for done, folder in sample_twice:
        texts.append((folder / "moesim-plan" / "plan.json").read_bytes())
        data = json.loads(done.stdout)
        data.pop("solve_s")
        for score in data["planners"].values():
            score.pop("solve_s")
        results.append(data)
    assert texts[0] == texts[1]
    assert results[0] == results[1]


def test_without_json_a_person_reads_it(capsys, tiny, tmp_path):
    words = ["plan", tiny / "trace", "--model", tiny / "config.json", "--cluster", "2x2xh100_sxm"]
    words += ["--tokens-per-device", 64, "--out", tmp_path, "--planner", "moetuner-free"]
    answer = moesim(capsys, *words)
    assert answer.code == 0
    for said in ("planner", "contiguous", "moetuner-free", str(tmp_path / "plan.json")):
        assert said in answer.out
    assert "no file for sglang" in answer.err
    quiet = moesim(capsys, *words, "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    assert str(tmp_path / "plan.json") in quiet.out


@pytest.mark.parametrize("redundant", [0, 4])
@pytest.mark.parametrize("planner", [*PLANNERS, "auto"])
def test_every_planner(planner, redundant, capsys, tiny, tmp_path):
    # The tiny model's router knows one group of experts, which only one node keeps whole.
    cluster = "4xh100_sxm" if planner.endswith("-hierarchical") else "2x2xh100_sxm"
    answer = plan_tiny(
        capsys, tiny, tmp_path, "--planner", planner, "--redundant", redundant,
        "--time-limit", 5, "--cluster", cluster,
    )  # fmt: skip
    assert answer.code == 0, answer.out
    data = answer.json
    check_plan(data)
    assert data["planners"].keys() >= {"contiguous", *(set() if planner == "auto" else {planner})}
    assert planner in ("auto", data["planner"])
    _, placement = read_plan(data["files"]["plan"])
    if planner in ("moetuner-free", "lpt-swap-free"):
        assert placement.has_empty_slots or "sglang" in data["files"]
    else:
        assert data["slots"] == EXPERTS + redundant
    # Whatever is exported is the plan; whatever is not is named with its reason.
    serving = set(ENGINES[:4])
    assert serving == (data["files"].keys() | data["left_out"].keys()) & serving
    found = placements_of(data, load_model(tiny / "config.json"))
    for engine, table in found.items():
        if engine != "megatron":
            assert table == found["plan"]
    for engine, reason in data["left_out"].items():
        assert f"no file for {engine}: {reason}" in answer.err
    if placement.has_empty_slots:
        assert data["left_out"].keys() == serving
        assert sorted(map(sorted, found["megatron"])) == sorted(map(sorted, found["plan"]))
        report = Path(data["files"]["markdown"]).read_text(encoding="utf-8")
        assert "No file for" in report


def test_auto_goes_on_without_a_planner_that_has_no_answer(capsys, tiny, tmp_path):
    """36 slots for 8 experts on 4 devices: some device must hold an expert twice."""
    answer = plan_tiny(capsys, tiny, tmp_path, "--redundant", 28)
    assert answer.code == 0, answer.out
    data = answer.json
    check_plan(data)
    assert data["slots"] == 36
    assert data["skipped"].keys() == {"moetuner"}
    assert "moetuner" not in data["planners"]
    assert "no plan by moetuner: copies of an expert" in answer.err
    assert "No plan by" in Path(data["files"]["markdown"]).read_text(encoding="utf-8")


def test_counts_of_a_large_model(capsys, tmp_path):
    model = load_model("deepseek-v3")
    shape = (len(model.moe_layers), model.experts)
    np.save(tmp_path / "counts.npy", np.random.default_rng(0).zipf(1.5, shape).clip(1, 10**6))
    answer = moesim(
        capsys, "plan", "--load", tmp_path / "counts.npy", "--model", "deepseek-v3", "--cluster",
        "4x8xh200_sxm", "--redundant", 32, "--planner", "eplb", "--phase", "decode",
        "--out", tmp_path / "plan", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.out
    data = answer.json
    check_plan(data)
    assert (data["layers"], data["experts"], data["slots"], data["devices"]) == (58, 256, 288, 32)
    assert (data["planner"], data["phase"], data["tokens_per_device"]) == ("eplb", "decode", 128)
    assert data["holdout"] == {}
    assert data["evidence"] == "assumed"
    assert set(ENGINES[:4]) == (data["files"].keys() | data["left_out"].keys()) & set(ENGINES)
    rows = json.loads(Path(data["files"]["sglang"]).read_text())["physical_to_logical_map"]
    assert len(rows) == model.layers
    assert read_plan(data["files"]["plan"])[1].moe_layers == tuple(range(3, 61))


@pytest.mark.parametrize("comm", ["chain", "home-rank"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_forms_and_phases(comm, phase, capsys, tiny, tmp_path):
    answer = plan_tiny(
        capsys, tiny, tmp_path, "--comm", comm, "--phase", phase, "--planner", "lpt",
        "--export", "none", "--holdout", 0,
    )  # fmt: skip
    assert answer.code == 0
    data = answer.json
    check_plan(data)
    assert (data["comm"], data["phase"], data["holdout"]) == (comm, phase, {})
    assert data["files"].keys() == {"plan", "report", "markdown"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"plan.json", "report.html", "report.md"}


@pytest.mark.parametrize("engine", ["sglang", "trtllm", "vllm"])
def test_cost_models(engine, capsys, tiny, tmp_path):
    """The same placement, priced twice: what priced it is named, and rooflines are optimistic."""
    words = ["--planner", "lpt", "--export", "none", "--engine", engine]
    fitted = plan_tiny(capsys, tiny, tmp_path / "fitted", *words).json
    roofline = plan_tiny(capsys, tiny, tmp_path / "roofline", *words, "--cost", "roofline").json
    check_plan(roofline)
    assert (fitted["cost"], roofline["cost"]) == ("fitted", "roofline")
    assert fitted["kernels"]["experts"].startswith(f"{engine} ")
    assert fitted["kernels"]["experts"].endswith("(fitted)")
    assert roofline["kernels"] == {"experts": "roofline (spec)", "communication": "roofline (spec)"}
    one, other = (data["planners"]["lpt"] for data in (fitted, roofline))
    assert one["compute_s"] > other["compute_s"]
    assert one["balance"] == other["balance"]
    for data in (fitted, roofline):
        assert 0 < data["objective"]["lo"] < data["objective"]["hi"]


def test_a_plan_is_not_replaced_unasked(capsys, tiny, tmp_path):
    first = plan_tiny(capsys, tiny, tmp_path, "--planner", "lpt", "--export", "none")
    before = (tmp_path / "plan.json").read_bytes()
    assert plan_tiny(capsys, tiny, tmp_path, "--planner", "lpt", "--export", "none").code == 0
    refused = plan_tiny(capsys, tiny, tmp_path, "--planner", "round-robin", "--export", "none")
    assert refused.code == 2
    assert "--force" in refused.json["error"]["message"]
    assert (tmp_path / "plan.json").read_bytes() == before
    forced = plan_tiny(
        capsys, tiny, tmp_path, "--planner", "round-robin", "--export", "none", "--force"
    )
    assert (first.code, forced.code) == (0, 0)
    assert read_plan(tmp_path / "plan.json")[0].planner == "round-robin"


@pytest.mark.parametrize("max_moves", [None, 0, 2, 5, 1000])
def test_warm_start(max_moves, capsys, tiny, tmp_path):
    plan_tiny(capsys, tiny, tmp_path / "now", "--planner", "contiguous", "--export", "none")
    file = tmp_path / "now" / "plan.json"
    words = ["--planner", "lpt-swap", "--warm-start", file, "--export", "none"]
    words += [] if max_moves is None else ["--max-moves", max_moves]
    answer = plan_tiny(capsys, tiny, tmp_path / "next", *words)
    assert answer.code == 0, answer.out
    data = answer.json
    check_plan(data)
    prices = {name: score["step_s"] for name, score in data["planners"].items()}
    assert prices[data["planner"]] <= prices["current"]
    current, chosen = read_plan(file)[1], read_plan(data["files"]["plan"])[1]
    moves = int(count_moves(current, chosen).sum())
    change = data["migration"]
    assert change["moves"] == moves
    gained_s = prices["current"] - prices[data["planner"]]
    if moves:
        assert change["sent_bytes"] == change["moved_bytes"] > 0
        assert change["break_even_steps"] * gained_s == pytest.approx(change["seconds"])
    else:
        assert (change["seconds"], change["break_even_steps"]) == (0.0, None)
    assert data["inputs"].keys() >= {"warm start", "trace"}
    if max_moves is not None:
        assert moves <= max_moves
    if max_moves == 0:
        np.testing.assert_array_equal(chosen.physical_to_logical, current.physical_to_logical)


def test_a_good_current_plan_is_kept(capsys, tiny, tmp_path):
    plan_tiny(capsys, tiny, tmp_path, "--planner", "lpt-swap", "--export", "none")
    answer = plan_tiny(
        capsys, tiny, tmp_path, "--planner", "random", "--export", "none",
        "--warm-start", tmp_path / "plan.json",
    )  # fmt: skip
    assert answer.code == 0
    assert answer.json["planner"] == "current"


def test_many_experts_and_short_rows(capsys, tmp_path):
    """More than 256 experts need 16-bit ids, and not every token has all its experts."""
    experts, rng = 320, np.random.default_rng(1)
    routing = np.argsort(rng.random((LAYERS, TOKENS, experts)), axis=-1)[..., :TOP_K]
    valid_k = rng.integers(0, TOP_K + 1, (LAYERS, TOKENS))
    write_trace(
        tmp_path / "trace", routing, model="wide", experts=experts, source="test", valid_k=valid_k
    )
    tiny_model(tmp_path, num_local_experts=experts)
    assert open_trace(tmp_path / "trace").routing.dtype == np.uint16
    for comm in ("home-rank", "chain"):
        answer = plan_tiny(
            capsys, tmp_path, tmp_path / comm, "--comm", comm, "--planner", "lpt", "--export",
            "sglang",
        )  # fmt: skip
        assert answer.code == 0, answer.out
        check_plan(answer.json)
        assert answer.json["experts"] == experts


def test_from_a_synthetic_trace_to_a_plan(capsys, tmp_path):
    """The verbs hand on to each other: synth, validate, stats, plan."""
    made = moesim(
        capsys, "trace", "synth", "--layers", LAYERS, "--experts", EXPERTS, "--top-k", TOP_K,
        "--tokens", 2000, "--skew", 0.8, "--seed", 3, "--out", tmp_path / "trace", "--json",
    )  # fmt: skip
    assert (made.code, made.json["ok"], made.json["schema"]) == (0, True, "moesim.trace/1")
    checked = moesim(capsys, "trace", "validate", tmp_path / "trace", "--json")
    assert (checked.code, checked.json["ok"]) == (0, True)
    told = moesim(capsys, "trace", "stats", tmp_path / "trace", "--json")
    assert (told.code, told.json["tokens"], told.json["experts"]) == (0, 2000, EXPERTS)
    assert told.json["assignments"] == LAYERS * 2000 * TOP_K
    tiny_model(tmp_path)
    planned = plan_tiny(capsys, tmp_path, tmp_path / "plan", "--planner", "lpt")
    assert planned.code == 0
    check_plan(planned.json)


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        (["hw", "list"], "moesim.hw/1"),
        (["hw", "show", "h100_sxm"], "moesim.hw/1"),
        (["hw", "show", "2x8xh100_sxm"], "moesim.hw/1"),
        (["hw", "schema"], "moesim.hw/1"),
        (["model", "list"], "moesim.model-list/1"),
        (["model", "show", "mixtral-8x7b"], "moesim.model/1"),
        (["trace", "stats"], "moesim.trace/1"),
        (["trace", "validate", str(sample_path())], "moesim.trace/1"),
        (["doctor"], "moesim.doctor/1"),
    ],
)
def test_other_verbs_print_one_object(words, schema, capsys):
    answer = moesim(capsys, *words, "--json", "--seed", 5, "--quiet")
    assert (answer.code, answer.err) == (0, "")
    assert (answer.json["schema"], answer.json["ok"]) == (schema, True)


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def running(process: int) -> bool:
    """Whether it still works; one that has ended may wait for init to collect it."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_ctrl_c_while_solving(tmp_path):
    """Exit code 130, no half of a file, no solver left behind."""
    code = (
        "import moesim.planners.moetuner as moetuner, sys\n"
        "from moesim.cli import app, console\n"
        "moetuner.choose_solver = lambda name: 'cbc'  # a child process, unlike HiGHS\n"
        "sys.exit(console.run(app.app, sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "plan", "--planner", "moetuner", "--json"]
    command += ["--time-limit", "60", "--phase", "decode", "--comm", "chain"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        children: list[int] = []
        deadline_s = time.monotonic() + 60
        while not children and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
            children = children_of(process.pid)
        assert children, "no solver was seen"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert json.loads(out)["error"]["exit_code"] == 130
    assert "Traceback" not in err
    deadline_s = time.monotonic() + 10
    while any(map(running, children)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not any(map(running, children))
    assert list(tmp_path.iterdir()) == []


def test_the_sample_of_the_helpers_is_uneven():
    """The tests above would say little of an even load."""
    counts = np.array([np.bincount(layer.ravel(), minlength=EXPERTS) for layer in tiny_routing()])
    assert (counts.max(1) > 1.3 * counts.mean(1)).all()
