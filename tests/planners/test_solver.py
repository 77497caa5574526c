"""How solves end: proven, cut off, infeasible, interrupted; the same with both solvers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pulp
import pytest

from moesim.errors import InfeasibleError, MissingExtraError
from moesim.planners import solver as solver_module
from moesim.planners.solver import (
    MilpStatus,
    choose_solver,
    raise_infeasible,
    relative_gap,
    solve_milp,
)

ROOT = Path(__file__).parents[2]
SOLVERS = ["cbc", "highs"]


def makespan_model(experts, clusters, seed=0):
    """Spread experts over equally large clusters, minimise the largest load."""
    loads = np.random.default_rng(seed).gamma(1.0, 1.0, experts)
    loads *= clusters / loads.sum()
    model = pulp.LpProblem("makespan", pulp.LpMinimize)
    x = [
        [model.add_variable(f"x_{e}_{c}", cat=pulp.LpBinary) for c in range(clusters)]
        for e in range(experts)
    ]
    largest = model.add_variable("largest", 0)
    model += largest
    for e in range(experts):
        model += (pulp.lpSum(x[e]) == 1, f"placed__{e}")
    for c in range(clusters):
        column = [x[e][c] for e in range(experts)]
        model += (pulp.lpSum(column) == experts // clusters, f"sizes__{c}")
        load = pulp.lpSum(float(loads[e]) * x[e][c] for e in range(experts))
        model += (load <= largest, f"load__{c}")
    return model


@pytest.mark.parametrize("name", SOLVERS)
def test_solved_means_proven(name):
    result = solve_milp(makespan_model(10, 5), solver=name, time_limit_s=30, stop_gap=0.0)
    assert result.status is MilpStatus.SOLVED
    assert result.bound == pytest.approx(result.values["largest"], rel=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_bound_is_one_also_with_a_stop_gap(name):
    """CBC rounds the bound that it prints; a rounded-up one would prove too much."""
    early = 0
    for seed in range(12):
        optimum = solve_milp(
            makespan_model(12, 4, seed), solver="highs", time_limit_s=30, stop_gap=0.0
        ).values["largest"]
        result = solve_milp(makespan_model(12, 4, seed), solver=name, time_limit_s=30, stop_gap=0.2)
        assert result.status is MilpStatus.SOLVED
        assert result.bound <= optimum * (1 + 1e-7)
        assert result.bound >= 0.8 * result.values["largest"] - 1e-6
        early += result.bound < optimum * (1 - 1e-6)
    assert early > 0


@pytest.mark.parametrize("name", SOLVERS)
def test_time_limit_is_told_from_a_proof(name):
    model = makespan_model(96, 8)
    start_s = time.perf_counter()
    result = solve_milp(model, solver=name, time_limit_s=1.0, stop_gap=0.0)
    assert time.perf_counter() - start_s < 1.0 + 5.0
    assert result.status is MilpStatus.LIMIT
    assert result.bound < result.values["largest"]


@pytest.mark.parametrize("name", SOLVERS)
def test_start_is_used(name):
    """With no time for a search, the answer is at least as good as the start."""
    full = solve_milp(makespan_model(40, 4), solver="highs", time_limit_s=1.0, stop_gap=0.0)
    again = solve_milp(
        makespan_model(40, 4), solver=name, time_limit_s=0.3, stop_gap=0.9, start=full.values
    )
    assert again.values["largest"] <= full.values["largest"] * (1 + 1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_infeasible_names_the_group(name):
    model = makespan_model(8, 4)
    model += (pulp.lpSum(model.variablesDict()[f"x_{e}_0"] for e in range(3)) >= 3, "together__0")
    result = solve_milp(model, solver=name, time_limit_s=10, stop_gap=0.0)
    assert result.status is MilpStatus.INFEASIBLE
    assert not result.values
    with pytest.raises(InfeasibleError, match=r"^clusters: no answer .*: sizes, together\n"):
        raise_infeasible(model, solver=name, what="clusters")


def test_a_solver_that_overstays_is_killed(monkeypatch, tmp_path):
    stubborn = tmp_path / "cbc"
    stubborn.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    stubborn.chmod(0o755)
    monkeypatch.setattr(solver_module, "_cbc_binary", lambda: str(stubborn))
    monkeypatch.setattr(solver_module, "GRACE_S", 0.5)
    start_s = time.perf_counter()
    result = solve_milp(makespan_model(4, 2), solver="cbc", time_limit_s=0.2, stop_gap=0.0)
    assert result.status is MilpStatus.NOTHING
    assert time.perf_counter() - start_s < 5
    assert not _alive(int((tmp_path / "pid").read_text()))


SCRIPT = """
from tests.planners.test_solver import makespan_model
from moesim.planners.solver import solve_milp
import sys, threading, time
model = makespan_model(96, 8)
print("solving", flush=True)
try:
    solve_milp(model, solver=sys.argv[1], time_limit_s=60, stop_gap=0.0)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("name", SOLVERS)
def test_interrupt_stops_the_solver_and_leaves_no_child(name):
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        cwd=ROOT,
    )
    assert child.stdout.readline() == "solving\n"
    deadline_s = time.perf_counter() + 20
    while name == "cbc" and not _children(child.pid) and time.perf_counter() < deadline_s:
        time.sleep(0.05)
    time.sleep(0.8)
    solvers = _children(child.pid)
    assert bool(solvers) == (name == "cbc")
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=10)
    assert (output, child.returncode) == ("interrupted\n", 130)
    assert not any(_alive(pid) for pid in solvers)


def test_choice_of_solver(monkeypatch):
    assert choose_solver("auto") == "highs"
    assert choose_solver("cbc") == "cbc"
    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    assert choose_solver("auto") == "cbc"
    with pytest.raises(MissingExtraError, match=r"pip install 'moesim\[highs\]'"):
        choose_solver("highs")


def test_relative_gap():
    assert relative_gap(0.0, 0.0) == 0.0
    assert relative_gap(2.0, 1.5) == 0.25
    assert relative_gap(1.0, 1.0 + 1e-9) == 0.0
    assert relative_gap(0.0, -1.0) == np.inf


def _children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
