"""What a report says equals what the outcome holds."""

import shlex
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from moesim.reports.plan_report import build_report
from moesim.reports.text import clean, count, duration, excess, keep_units, percent, ratio, share
from moesim.units import format_seconds, format_si
from tests.reports.outcome_fixture import Bound, make_outcome

_UNIT = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "%": 0.01}


def _number(cell):
    """A printed cell back as a float in SI."""
    if cell.endswith("×"):
        return float(cell[:-1])
    number, _, unit = cell.partition(" ")
    return float(number) * _UNIT.get(unit, 1.0)


def test_every_number_of_the_planner_table_is_the_outcomes(large):
    table = build_report(large).planner_table
    base = large.scores["contiguous"]
    for cells, (key, score) in zip(table.rows, large.scores.items(), strict=True):
        row = dict(zip(table.columns, cells, strict=True))
        expected = {
            "step time": score.cost.step_s,
            "speedup": base.cost.step_s / score.cost.step_s,
            "balance": score.cost.balance,
            "remote": score.cost.remote_fraction,
            "inter-node": score.cost.internode_fraction,
            "above bound": score.cost.step_s / large.bound.lower_bound_s - 1,
            "holdout step": score.holdout.step_s,
            "holdout speedup": base.holdout.step_s / score.holdout.step_s,
        }
        for column, value in expected.items():
            half_digit = 0.0051 if column in ("balance", "speedup") else 0.00051
            assert _number(row[column]) == pytest.approx(value, rel=0.006, abs=half_digit), column
        assert _number(row["solve time"]) == pytest.approx(score.solve_s, rel=0.05)
        assert row["planner"] == key
        assert row["outcome"] == score.outcome
    assert table.rows[table.marked][0] == large.chosen


def test_headline_names_planner_and_speedup(small):
    report = build_report(small)
    gain = small.scores["contiguous"].cost.step_s / small.scores["lpt-swap"].cost.step_s
    assert f"lpt-swap runs the expert layers {gain:.2f}× as fast" in report.headline
    assert "small-moe" in report.lead[0]
    assert "2x8xh100_sxm" in report.lead[0]
    assert format_seconds(small.scores["lpt-swap"].holdout.step_s) in report.lead[2]
    assert "25 %" in report.lead[2]


def _with_step(outcome, key, *, planned=1.0, unseen=1.0):
    score = outcome.scores[key]
    base = outcome.scores["contiguous"]
    changed = replace(
        score,
        cost=replace(score.cost, step_s=base.cost.step_s / planned),
        holdout=replace(score.holdout, step_s=base.holdout.step_s / unseen),
    )
    return replace(outcome, scores=outcome.scores | {key: changed})


@pytest.mark.parametrize(
    ("planned", "unseen", "words"),
    [
        (1.5, 1.4, "lpt-swap runs the expert layers 1.50× as fast as contiguous placement"),
        (1.5, 0.9, "but not on the held-out part"),
        (1.001, 1.0, "as fast as contiguous placement, within 0.5 %"),
        (0.8, 0.8, "slower than contiguous placement: 0.80× its speed"),
    ],
)
def test_headline_does_not_boast(small, planned, unseen, words):
    outcome = _with_step(small, "lpt-swap", planned=planned, unseen=unseen)
    assert words in build_report(outcome).headline


def test_headline_when_the_baseline_is_chosen(small, odd):
    assert build_report(odd["baseline chosen"]).headline == (
        "contiguous placement takes 1.73 ms per step; lpt-swap is 1.37× as fast"
    )
    few = {key: small.scores[key] for key in ("contiguous", "round-robin")}
    assert few["round-robin"].cost.step_s > few["contiguous"].cost.step_s
    worse = replace(small, chosen="contiguous", scores=few)
    assert build_report(worse).headline == "No planner beats contiguous placement here"
    alone = replace(worse, scores={"contiguous": few["contiguous"]})
    assert build_report(alone).headline == "contiguous placement takes 1.73 ms per step"


def test_singular_and_plural(small):
    assert (
        "2 expert slots per device and layer, no replicas per layer" in build_report(small).lead[0]
    )
    one = make_outcome(experts=16, redundant=1)
    assert "1 expert slot per device and layer, 1 replica per layer" in build_report(one).lead[0]


def test_bound_is_called_proven_only_if_it_is(small):
    assert "Proven optimal" not in build_report(small).bound
    assert "3.1 %" in build_report(small).bound
    best = small.scores["lpt-swap"].cost.step_s
    proven = build_report(replace(small, bound=Bound(best, 0.0, True)))
    assert proven.bound.startswith("Proven optimal")
    assert proven.facts[-1].value == "0.0 %"
    assert "each by itself" not in build_report(small).bound
    assert "each by itself" in build_report(replace(small, comm="chain")).bound
    none = build_report(replace(small, bound=Bound(0.0, float("inf"), False)))
    assert "No useful lower bound" in none.bound
    assert none.facts[-1].value == "–"


def test_without_holdout_no_number_is_invented():
    report = build_report(make_outcome(holdout=False))
    assert "held out" in report.lead[2]
    assert all(row.holdout_s is None and row.holdout_speedup is None for row in report.planners)
    assert {cells[7] for cells in report.planner_table.rows} == {"–"}


def test_notes_carry_what_trace_and_model_say(small, large):
    trace, model, cost = build_report(small).notes
    assert (trace.detail, model.detail) == (small.trace_note, small.model.note)
    assert cost.value == "fitted"
    assert "DeepEP normal of sglang" in cost.detail
    assert "80 % interval" in cost.detail
    assert len(build_report(large).notes) == 2


def test_notes_become_sentences(small):
    terse = replace(small, trace_note="counts only; layers are independent")
    assert build_report(terse).notes[0].detail == "Counts only; layers are independent."


def test_launch_words_are_quoted_for_a_shell(small):
    words = ["--map", "a folder/plan.json", "--config", '{"a": 1}']
    ((engine, line),) = build_report(replace(small, launch={"vllm": words})).launch
    assert (engine, shlex.split(line)) == ("vllm", words)


def test_a_fast_device_that_carries_more_is_not_overloaded(small):
    tokens = np.tile([2.0, 1.0] * 8, (8, 1))
    cluster = SimpleNamespace(**vars(small.cluster))
    cluster.speed_factors = np.array([2.0, 1.0] * 8)
    cost = replace(small.scores["lpt-swap"].cost, device_tokens=tokens)
    score = replace(small.scores["lpt-swap"], cost=cost)
    mixed = replace(small, cluster=cluster, scores=small.scores | {"lpt-swap": score})
    rows = {row[0]: row[1:] for row in build_report(mixed).limits.rows}
    assert rows["fullest device ÷ layer mean"][1] == "1.00×"


def test_limits_sum_to_the_step_and_name_the_busiest_link(small):
    rows = {row[0]: row[1:] for row in build_report(small).limits.rows}
    for column, key in enumerate(("contiguous", "lpt-swap")):
        parts = [_number(rows[f"time in {part}"][column]) for part in
                 ("dispatch", "experts", "combine")]  # fmt: skip
        assert sum(parts) == pytest.approx(1, abs=0.002)
        cost, worst_s, worst = small.scores[key].cost, 0.0, ""
        for link, link_bytes in zip(small.cluster.links, cost.link_bytes, strict=True):
            if link_bytes / link.bandwidth_bytes_per_s > worst_s:
                worst_s = link_bytes / link.bandwidth_bytes_per_s
                worst = f"{link.source} → {link.target}"
        assert rows["busiest link"][column] == worst
        assert _number(rows["time of that link"][column]) == pytest.approx(worst_s, rel=0.006)


def test_slowest_layers_come_first(large):
    rows = build_report(large).slowest.rows
    worst = [max(_number(a), _number(b)) for _, a, b, _ in rows]
    assert worst == sorted(worst, reverse=True)
    cost = large.scores["contiguous"].cost
    total = cost.layer_compute_s + cost.layer_dispatch_s + cost.layer_combine_s
    assert rows[0][0] == str(large.moe_layers[int(np.argmax(total))])


def test_inputs_list_the_trace_once(small):
    rows = build_report(small).inputs.rows
    assert [digest for _, digest in rows].count(small.trace_sha256) == 1
    lonely = build_report(replace(small, inputs={})).inputs.rows
    assert lonely == ((f"trace {small.trace_name}", small.trace_sha256),)


def test_expert_load_facts(small):
    hottest, busiest, unused = build_report(small).load
    relative = small.loads / small.loads.mean(axis=1, keepdims=True)
    layer, expert = np.argwhere(relative == relative.max())[0]
    assert hottest.value == f"{relative.max():.2f}× the mean"
    assert hottest.detail == f"expert {expert} in layer {small.moe_layers[layer]}"
    top = sum(sorted(row)[-3:][i] for row in small.loads.tolist() for i in range(3))
    assert busiest.value == f"{100 * top / small.loads.sum():.1f} % of the load"
    assert unused.value == "0"


def test_text_from_outside_is_one_line_without_controls():
    assert clean("a\nb\t c") == "a b  c"
    assert clean("\x1b[31mred\x07") == "\ufffd[31mred\ufffd"
    assert clean("gpj\u202e.exe") == "gpj\ufffd.exe"
    assert clean("größe µs ×") == "größe µs ×"


def test_numbers_stay_with_their_units():
    kept = keep_units("takes 1.5 ms, 3.1 % above, 8 GB in 2 nodes on 16 × gpu, 3 steps")
    assert kept.replace("\u00a0", "_") == (
        "takes 1.5_ms, 3.1_% above, 8_GB in 2 nodes on 16_× gpu, 3 steps"
    )


def test_numbers_as_text():
    assert percent(0.1234) == "12.3 %"
    assert percent(None) == percent(float("nan")) == ratio(None) == "–"
    assert excess(0.0001) == "< 0.1 %"
    assert excess(0.0) == "0.0 %"
    assert ratio(1.337) == "1.34×"
    assert ratio(12.34) == "12.3×"
    assert share(0.25) == "25 %"
    assert count(43008) == "43,008"
    assert duration(123.0) == "120 s"
    assert duration(0.0382) == "38 ms"
    assert format_si(8.4e-3, "s", pad=True) == "8.40 ms"
    assert format_si(130e-6, "s", pad=True) == "130 µs"
    assert format_si(8.4e-3, "s") == "8.4 ms"
