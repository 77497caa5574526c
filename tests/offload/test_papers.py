"""Scenarios of offloading papers: the documents, the made-up router, and a small prediction."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from moesim.errors import InfeasibleError, InputError
from moesim.offload.router_process import (
    RouterProcess,
    fit_to_lru,
    hit_rate,
    router_scores,
    top_k_of,
)
from moesim.offload.scores import lru
from moesim.reports.offload_papers import run_offload_scenario
from moesim.reports.offload_scenario import OffloadScenario
from moesim.reports.scenario import scenario_ids, scenario_path, scenario_schema

PAPERS = ("expertflow", "fate", "hybrimoe")


def test_bundled_scenarios_are_found_and_state_their_figures():
    ours = [
        name
        for name in scenario_ids()
        if scenario_schema(scenario_path(name)) == OffloadScenario.schema_id
    ]
    assert tuple(ours) == PAPERS
    published = {
        "hybrimoe": {"prefill-average": 1.33, "decode-average": 1.70, "scheduling-prefill": 1.26,
                     "scheduling-decode": 1.46, "prefetch-prefill": 1.06, "prefetch-decode": 1.15,
                     "cache-decode": 1.38, "all-prefill": 1.31, "all-decode": 1.86},
        "fate": {"decode-vs-on-demand-4bit": 4.1, "decode-vs-paths-4bit": 2.2,
                 "prefill-vs-on-demand-4bit": 4.5, "prefill-vs-paths-4bit": 1.9},
        "expertflow": {"scheduler-switch-32": 1.03, "scheduler-switch-128": 1.17},
    }  # fmt: skip
    for name, figures in published.items():
        scenario = OffloadScenario.load(scenario_path(name))
        assert scenario.id == name
        found = {figure.id: figure.reference for figure in scenario.figures}
        assert found | figures == found


def test_the_made_up_router_is_as_local_as_asked():
    process = fit_to_lru(2, 32, 4, 8, 0.5)
    chosen = top_k_of(router_scores(process, 1500, seed=3), 4)
    assert (chosen.sum(axis=2) == 4).all()
    assert hit_rate(chosen, lru(chosen), 8) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(InfeasibleError, match="from"):
        fit_to_lru(2, 32, 4, 8, 0.05)


def test_requests_share_what_is_popular_and_nothing_else():
    process = RouterProcess(1, 16, 2, strength=0.0, popularity=2.0)
    loads = [top_k_of(router_scores(process, 2000, 0, n), 2).mean(axis=0)[0] for n in (0, 1)]
    other = top_k_of(router_scores(process, 2000, 1, 0), 2).mean(axis=0)[0]
    assert np.abs(loads[0] - loads[1]).max() < 0.08
    assert np.abs(loads[0] - other).max() > 0.2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """HybriMoE's scenario on one model, few tokens and three figures."""
    data = yaml.safe_load(scenario_path("hybrimoe").read_text())
    data |= {"decode_tokens": 12, "learned_tokens": 64}
    data["models"] = data["models"][:1]
    wanted = ("decode-average", "prefill-average-cpu-baseline", "mrs-deepseek")
    data["figures"] = [
        figure | {"models": ["deepseek"], "shares": [0.25], "prompts": [16]}
        for figure in data["figures"]
        if figure["id"] in wanted
    ]
    file = tmp_path_factory.mktemp("papers") / "small.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def test_a_small_scenario(small):
    speedup, other, hits = run_offload_scenario(small).rows
    assert speedup.predicted > 1.2
    assert speedup.error == pytest.approx(speedup.predicted / 1.70 - 1)
    assert other.predicted is None
    assert "our set-up gives" in other.note
    assert 0.25 < hits.predicted < 0.8
    again = run_offload_scenario(small).rows
    assert [row.predicted for row in again] == [speedup.predicted, None, hits.predicted]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"system": "nobody"}, "no such system"),
        ({"models": ["gpt"]}, "no such model"),
        ({"baseline": None}, "names 2 systems"),
        ({"shares": [1.5]}, "less than or equal to 1"),
    ],
)
def test_scenarios_that_contradict_themselves_are_refused(small, tmp_path, change, says):
    data = yaml.safe_load(small.read_text())
    data["figures"][0] |= change
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=says):
        run_offload_scenario(file)
