"""The benchmark's path on a GPU, rehearsed without one: torch pretends, numbers stay on the CPU.

What is real here is the order of things (check, prepare, warm up, capture, flush, time, free), the
plan with fp8 and every configuration, and the file. What is not is the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moesim.kernels import bench_run, bench_timing
from moesim.kernels.bench_cases import Scale
from moesim.kernels.bench_file import read_bench
from moesim.kernels.bench_run import BenchOptions, TorchMachine, chosen_cases, run_plan
from moesim.kernels.bench_score import score_bench
from moesim.kernels.bench_timing import CudaTimer

PROPERTIES = SimpleNamespace(
    name="Pretended GPU",
    major=9,
    minor=0,
    multi_processor_count=132,
    L2_cache_size=2**20,
    total_memory=80 * 10**9,
)
CASES = (
    "large/deepseek-v3/gate-up/even-2048",
    "decode/deepseek-v3/gate-up/trace-4",
    "ragged/deepseek-v3/gate-up/zipf-256",
    "experts/deepseek-v3/trace-4",
    "fp8/deepseek-v3/gate-up/trace-4",
    "choice/deepseek-v3/gate-up/trace-4",
)
MADE = ("empty", "ones", "zeros", "full", "tensor")


class Pretended:
    """Torch with a GPU: tensors for ``cuda`` are made on the CPU, calls and flushes are counted."""

    def __init__(self, *, captures: bool = True) -> None:
        self.log: list[str] = []
        self.captures = captures
        self.cuda = SimpleNamespace(
            get_device_properties=lambda _: PROPERTIES,
            get_device_name=lambda: PROPERTIES.name,
            is_available=lambda: True,
            synchronize=lambda: None,
            empty_cache=lambda: self.log.append("freed"),
            graph_pool_handle=lambda: "pool",
            current_stream=lambda: SimpleNamespace(wait_stream=lambda _: None),
            Stream=lambda: SimpleNamespace(wait_stream=lambda _: None),
            stream=self._stream,
            graph=self._graph,
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            Event=self._event,
        )
        self.version = SimpleNamespace(cuda="13.0")

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        if name not in MADE:
            return found

        def made(*arguments: Any, **options: Any) -> Any:
            if str(options.get("device", "")).startswith("cuda"):
                options["device"] = "cpu"
            return found(*arguments, **options)

        return made

    def Generator(self, device: str) -> Any:
        return torch.Generator()

    @contextmanager
    def _stream(self, _: Any) -> Iterator[None]:
        yield

    @contextmanager
    def _graph(self, graph: Any, pool: str) -> Iterator[None]:
        assert pool == "pool"
        yield
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")

    def _event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        return SimpleNamespace(
            record=lambda: self.log.append("event"),
            synchronize=lambda: None,
            elapsed_time=lambda end: 0.5,
        )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine two threads of torch wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of Hopper's configurations."""
    from moesim.kernels import targets

    monkeypatch.setattr(targets, "target_of", lambda device: targets.TARGETS["sm_90a"])
    monkeypatch.setattr(targets, "chip_of", lambda device: targets.Chip(132))


@pytest.mark.parametrize("captures", [True, False])
def test_a_call_is_timed_from_a_graph_or_as_it_is(captures: bool) -> None:
    pretended = Pretended(captures=captures)
    calls: list[int] = []
    timed = CudaTimer(pretended).ready(lambda: lambda: calls.append(1))
    assert timed.clock == ("cuda-graph" if captures else "cuda-event")
    assert len(calls) == 4  # three to warm up, one while it is captured
    pretended.log.clear()
    assert timed.sample_s() == pytest.approx(5e-4)
    between = ["replay"] if captures else []
    assert pretended.log == ["event", *between, "event"]
    assert len(calls) == (4 if captures else 5)


def test_the_whole_plan(tmp_path: Path, hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended()
    monkeypatch.setattr(bench_timing, "LEAST_FLUSH_BYTES", 2**12)
    options = BenchOptions(
        "cuda",
        tmp_path / "gpu.json",
        models=("deepseek-v3",),
        cases=CASES,
        scale=Scale(width=16, flops=1e5),
        minutes=60,
    )
    monkeypatch.setitem(bench_run.PASSES, "cuda", 1)
    monkeypatch.setitem(bench_run.CALLS, "cuda", 1)
    plan = chosen_cases(options)
    document = bench_run._begun(pretended, options, plan)
    assert document["environment"]["compute_capability"] == "9.0"
    kernels = bench_run._checked_kernels(pretended, options, document, lambda _: None)
    checks = {(check["kernel"], check["case"]): check["ok"] for check in document["checks"]}
    assert all(checks.values()), document["checks"]
    assert checks["moesim", "check/fp8"]
    machine = TorchMachine(pretended, options, plan, kernels)
    run_plan(plan, machine, document, options, budget_s=1e4)
    found = read_bench(options.out)
    assert found["complete"], found["left_out"]
    assert not found["failed"], found["failed"]
    assert {entry["regime"] for entry in found["cases"]} == {case.regime for case in plan}
    clocks = {entry["op"] == "copy": entry["clock"] for entry in found["cases"]}
    assert clocks == {True: "cuda-event", False: "cuda-graph"}
    choice = {entry["config"] for entry in found["cases"] if entry["regime"] == "choice"}
    assert "chosen" in choice
    assert len(choice) > 10
    fp8 = [entry for entry in found["cases"] if entry["dtype"] == "fp8"]
    assert {entry["kernel"] for entry in fp8} == {"moesim"}
    assert pretended.log.count("freed") == len(plan)
    rows = {row.goal.id: row for row in score_bench(found)}
    assert rows["regret-mean"].value == 0.0, "all calls pretend to take the same time"
    assert rows["triton-kernels"].note == "no data"
