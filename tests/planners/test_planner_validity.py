"""Whatever a heuristic planner returns: valid, reproducible, not below the bound."""

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError, MoesimError, UsageError
from moesim.planners.load_bound import finish_load_bound
from moesim.planners.problem import SolveOutcome, device_finish_load
from moesim.planners.registry import PLANNERS, run_planner
from moesim.planners.verify import largest_finish_load, verify_placement
from tests.planners.problems import make_problem, random_problem

ROOT = Path(__file__).parents[2]
HEURISTICS = [name for name, entry in PLANNERS.items() if not entry.exact]


def test_five_thousand_problems():
    rng = np.random.default_rng(0)
    layers = strictly_better = 0
    for index in range(5000):
        problem = random_problem(rng, experts_max=14, layers_max=2)
        bound = finish_load_bound(problem)
        largest = {}
        for name in ("contiguous", "round-robin", "random", "lpt", "eplb", "lpt-swap"):
            if name == "lpt-swap" and index % 4:  # takes twice as long as the others together
                continue
            # run_planner verifies: ids, slots per device, every expert somewhere, distinct copies.
            table = run_planner(name, problem).physical_to_logical
            assert table.dtype == np.int32
            largest[name] = np.array(largest_finish_load(table, problem))
            assert (largest[name] >= bound * (1 - 1e-9)).all(), (name, problem)
        if "lpt-swap" in largest:
            numpy_load = device_finish_load(table, problem).max(1)
            np.testing.assert_allclose(numpy_load, largest["lpt-swap"], rtol=1e-12)
            assert (largest["lpt-swap"] <= largest["eplb"] * (1 + 1e-9)).all(), problem
            assert (largest["lpt-swap"] <= largest["lpt"] * (1 + 1e-9)).all(), problem
            strictly_better += int((largest["lpt-swap"] < largest["eplb"] * (1 - 1e-6)).sum())
            layers += problem.layers
    assert strictly_better > layers / 20


def test_engine_shapes():
    """The shapes that are planned for in practice, DeepSeek-V3 and Qwen3-235B among them."""
    rng = np.random.default_rng(1)
    for experts, slots, devices, groups, nodes in (
        (256, 288, 32, 8, 4),
        (256, 320, 64, 8, 8),
        (128, 128, 8, 1, 1),
        (8, 8, 4, 1, 1),
        (60, 64, 16, 1, 2),
    ):
        loads = rng.gamma(0.7, 100.0, (3, experts))
        problem = make_problem(loads, devices, slots, nodes=nodes, routing_groups=groups)
        for name in HEURISTICS:
            if name.endswith("-hierarchical") and groups % nodes:
                continue
            answer = run_planner(name, problem)
            assert answer.outcome is SolveOutcome.HEURISTIC
            assert answer.solve_s >= 0


def test_one_device_and_one_expert():
    for loads, devices, slots in (([[5.0, 0.0, 3.0]], 1, 3), ([[7.0]], 1, 1), ([[7.0]], 3, 3)):
        problem = make_problem(loads, devices, slots)
        for name in HEURISTICS:
            run_planner(name, problem)
    crowded = make_problem([[5.0, 1.0]], 1, 4)  # copies cannot but share the device
    for name in HEURISTICS:
        assert set(run_planner(name, crowded).physical_to_logical[0]) == {0, 1}


def test_contiguous_and_round_robin_are_the_engines_layouts():
    problem = make_problem(np.ones((2, 6)), 3, 6)
    assert (
        run_planner("contiguous", problem).physical_to_logical.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    )
    assert (
        run_planner("round-robin", problem).physical_to_logical.tolist() == [[0, 3, 1, 4, 2, 5]] * 2
    )
    redundant = make_problem(np.ones((1, 6)), 3, 9)
    contiguous = run_planner("contiguous", redundant).physical_to_logical
    assert contiguous.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2]]


def test_random_depends_on_the_seed_alone():
    one = make_problem(np.ones((3, 16)), 4, 20, seed=1)
    two = make_problem(np.arange(48.0).reshape(3, 16), 4, 20, seed=1)
    other = replace(one, seed=2)
    table = run_planner("random", one).physical_to_logical
    np.testing.assert_array_equal(table, run_planner("random", two).physical_to_logical)
    assert (table != run_planner("random", other).physical_to_logical).any()
    assert (table[0] != table[1]).any()


SCRIPT = """
import hashlib, numpy as np
from moesim.planners.registry import PLANNERS, run_planner
from tests.planners.problems import random_problem
rng = np.random.default_rng(7)
digest = hashlib.sha256()
for _ in range(20):
    problem = random_problem(rng)
    for name, entry in PLANNERS.items():
        if not entry.exact:
            digest.update(run_planner(name, problem).physical_to_logical.tobytes())
print(digest.hexdigest())
"""


def test_same_bytes_in_every_process():
    outputs = set()
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            cwd=ROOT,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


@pytest.mark.parametrize("name", ["lpt", "lpt-swap", "eplb-global"])
def test_relabelling_changes_no_load(name):
    rng = np.random.default_rng(5)
    for _ in range(100):
        devices, experts = int(rng.integers(1, 7)), int(rng.integers(1, 25))
        # Distinct loads: among equal ones EPLB goes by the labels.
        problem = make_problem(
            rng.gamma(0.5, 1.0, (2, experts)),
            devices,
            (-(-experts // devices) + int(rng.integers(0, 3))) * devices,
            speed_factors=rng.choice([1.0, 0.5, 1.25], devices),
        )
        experts_order, devices_order = rng.permutation(experts), rng.permutation(devices)
        renamed = replace(
            problem,
            loads=problem.loads[:, experts_order],
            speed_factors=problem.speed_factors[devices_order],
        )
        if name == "eplb-global":  # it knows no speeds
            problem, renamed = (
                replace(p, speed_factors=np.ones(devices)) for p in (problem, renamed)
            )
        before, after = (
            device_finish_load(run_planner(name, p).physical_to_logical, p)
            for p in (problem, renamed)
        )
        np.testing.assert_allclose(np.sort(before, 1), np.sort(after, 1), rtol=1e-9)


@pytest.mark.parametrize(("name", "redundant"), [("lpt", 2), ("lpt", 0), ("lpt-swap", 0)])
def test_relabelling_among_ties(name, redundant):
    rng = np.random.default_rng(6)
    for _ in range(100):
        devices = int(rng.integers(1, 5))
        experts = devices * int(rng.integers(1, 5))
        loads = rng.integers(0, 4, (1, experts)).astype(float)
        problem = make_problem(loads, devices, experts + redundant * devices)
        renamed = replace(problem, loads=loads[:, rng.permutation(experts)])
        before, after = (
            largest_finish_load(run_planner(name, p).physical_to_logical, p)
            for p in (problem, renamed)
        )
        assert before == pytest.approx(after)


def test_unknown_names_and_bad_problems():
    with pytest.raises(UsageError, match="unknown planner 'lptt'; near: lpt"):
        run_planner("lptt", make_problem([[1.0]], 1))
    good = {"loads": [[1.0, 2.0]], "devices": 2, "slots": 2}
    for change, field in (
        ({"loads": [[1.0, -2.0]]}, r"loads\[0, 1\]"),
        ({"loads": [[1.0, float("nan")]]}, r"loads\[0, 1\]"),
        ({"loads": [[1.0, 1e38]]}, r"loads\[0, 1\]"),
        ({"loads": [1.0, 2.0]}, "loads"),
        ({"loads": [[]]}, "loads"),
        ({"slots": 3}, "slots"),
        ({"loads": [[1.0] * 5], "slots": 4}, "slots"),
        ({"nodes": 3}, "devices"),
        ({"nodes": 0}, "nodes"),
        ({"seed": -1}, "seed"),
        ({"routing_groups": 0}, "routing_groups"),
        ({"speed_factors": np.array([1.0, 0.0])}, "speed_factors"),
        ({"speed_factors": np.ones(3)}, "speed_factors"),
        ({"pair_bandwidth_bytes_per_s": np.zeros((2, 2))}, "pair_bandwidth"),
        ({"transitions": np.ones((1, 2, 2))}, "transitions"),
        ({"time_limit_s": 0.0}, "time_limit_s"),
    ):
        with pytest.raises(InputError, match=field):
            make_problem(**(good | change))
    with pytest.raises(UsageError, match="unknown solver 'gurobi'"):
        make_problem(**good, solver="gurobi")


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ([[0, 1, 2, 3, 0, 1]], "1 rows for 2 layers"),
        ([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 4]], "layer 1: slot 5 holds 4"),
        ([[0, 1, 2, 3, 0, 1], [0, 1, 2, 2, 0, 1]], "layer 1: expert 3 has no slot"),
        ([[0, 1, 2, 3], [0, 1, 2, 3]], "layer 0: 4 slots on 3 devices"),
        ([[0, 1, 2, 3, 0, 1, 2, 3, 0]] * 2, "layer 0: 9 slots instead of 6"),
        ([[0, 1, 2, 3, -1, -1]] * 2, "layer 0: device 2 holds no expert"),
        ([[0, 1, 2, 3, -2, 1]] * 2, "layer 0: slot 4 holds -2"),
        ([[0, 0, 1, 2, 3, 1]] * 2, "layer 0: device 0 holds 2 copies of expert 0"),
    ],
)
def test_verification_refuses(table, complaint):
    problem = make_problem(np.ones((2, 4)), 3, 6)
    with pytest.raises(MoesimError, match=complaint):
        verify_placement(np.array(table), problem, distinct_copies=True)


def test_verification_accepts_unequal_devices():
    problem = make_problem(np.ones((1, 4)), 3, 6)
    verify_placement(np.array([[0, 1, 2, -1, 3, -1]]), problem, distinct_copies=True)
    verify_placement(np.array([[0, 1, 2, 3, -1, -1, 2, -1, -1]]), problem)
    with pytest.raises(MoesimError, match="device 1 holds no expert"):
        verify_placement(np.array([[0, 1, 2, -1, -1, -1, 3, -1, -1]]), problem)


def test_verification_shares_no_code():
    lines = Path(inspect.getfile(verify_placement)).read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import", "from"))]
    assert sorted(line.split()[1] for line in imports) == [
        "__future__",
        "collections",
        "collections.abc",
        "moesim.errors",
        "typing",
    ]
