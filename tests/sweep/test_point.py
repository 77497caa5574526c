"""Calls of points against the command line's own parser."""

import itertools

import pytest

from moesim.cli.sweep_point import SweptVerb, _calls, _words

GRIDS = {
    "simulate step": {
        "model": ["qwen3-30b-a3b"],
        "cluster": ["4xh100_sxm", "8xh200_sxm"],
        "batch": [1, 64],
        "tp": [None, 2],
        "cost": ["fitted", "roofline"],
        "transform": [None, ("double-size",), ("double-size", "half-experts")],
        "trace": [None, "some/folder"],
        "acceptance": [0, 0.5, "0.5"],
    },
    "model show": {"name-or-file": ["deepseek-v3", "mixtral-8x7b", "-x"]},
    "plan": {
        "trace": ["a", "b"],
        "planner": ["eplb", "joint"],
        "redundant": [0, 8],
        "validate": [True, False],
    },
}


@pytest.mark.parametrize("verb", GRIDS)
def test_values_parsed_once_mean_what_they_mean_on_a_command_line(verb):
    _calls.cache_clear()
    calls, grid = _calls(verb, frozenset(GRIDS[verb])), GRIDS[verb]
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for point in [*points, *reversed(points)]:
        words = _words(calls._parameters, point)
        wanted = calls.command.make_context(verb, words).params
        found = calls.context(point).params
        assert found == wanted
        assert {name: type(value) for name, value in found.items()} == {
            name: type(value) for name, value in wanted.items()
        }


def test_a_value_that_cannot_be_parsed_fails_its_points_alone():
    run = SweptVerb("simulate step")
    point = {"model": "qwen3-30b-a3b", "cluster": "4xh100_sxm", "batch": 1}
    found = [run(point | {"batch": batch}) for batch in (1, "many", 2, "many", 1)]
    assert [result["ok"] for result in found] == [True, False, True, False, True]
    assert found[1] == found[3]
    assert "'--batch'" in found[1]["error"]["message"]
    assert found[0] == found[4] != found[2]
