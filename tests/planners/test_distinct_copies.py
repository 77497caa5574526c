"""No two copies of an expert on one device, where that is asked for."""

import numpy as np
import pytest

from moesim.errors import InfeasibleError
from moesim.planners.load_bound import finish_load_bound
from moesim.planners.problem import device_finish_load
from moesim.planners.registry import run_planner
from tests.cli.commands import moesim, tiny_model, tiny_trace
from tests.planners.problems import make_problem, random_problem


def shared(table, devices):
    """Pairs of copies of an expert on one device, over all layers."""
    return sum(len(shelf) - len(set(shelf)) for row in table for shelf in np.split(row, devices))


def test_random_problems():
    rng = np.random.default_rng(0)
    refused = kept = 0
    for _ in range(200):
        loose = random_problem(rng, layers_max=2, experts_max=20)
        if loose.slots > loose.experts * loose.devices:
            with pytest.raises(InfeasibleError, match="no two copies of an expert on one device"):
                random_problem_again(loose)
            continue
        problem = random_problem_again(loose)
        for name in ("lpt", "lpt-swap", "joint"):
            table = run_planner(name, problem).physical_to_logical
            assert shared(table, problem.devices) == 0
            kept += 1
        for name in ("eplb-global", "lpt-swap-hierarchical"):
            try:
                table = run_planner(name, problem).physical_to_logical
            except InfeasibleError:
                refused += 1
            else:
                assert shared(table, problem.devices) == 0
    assert kept > 300
    assert refused > 5


def random_problem_again(loose):
    return make_problem(
        loose.loads,
        loose.devices,
        loose.slots,
        nodes=loose.nodes,
        routing_groups=loose.routing_groups,
        speed_factors=loose.speed_factors,
        distinct_copies=True,
    )


def test_what_it_costs_in_deepseek_shape():
    """Nothing to speak of: the bound is reached without sharing."""
    rng = np.random.default_rng(1)
    popularity = np.arange(1.0, 257) ** -1.0
    loads = np.stack([rng.permutation(popularity) for _ in range(4)])
    problem = make_problem(loads, 32, 320, distinct_copies=True)
    table = run_planner("lpt-swap", problem).physical_to_logical
    assert shared(table, 32) == 0
    assert (device_finish_load(table, problem).max(1) <= finish_load_bound(problem) * 1.002).all()


def test_on_the_command_line(capsys, tmp_path):
    model, trace = tiny_model(tmp_path), tiny_trace(tmp_path / "trace")
    words = ["plan", trace, "--model", model, "--cluster", "4xh100_sxm", "--tokens-per-device", 64]
    words += ["--redundant", 8, "--distinct-copies", "--time-limit", 4, "--export", "vllm-ascend"]
    answer = moesim(capsys, *words, "--out", tmp_path / "plan", "--json")
    assert answer.code == 0, answer.out
    assert "vllm-ascend" in answer.json["files"]  # which refuses copies on one device
    words[words.index(8)] = 28
    answer = moesim(capsys, *words, "--out", tmp_path / "more")
    assert answer.code == 3
    assert "fewer --redundant, or leave out --distinct-copies" in answer.err
