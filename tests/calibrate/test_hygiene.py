"""Hygiene on tables with planted faults: what is found, and what is left alone."""

import numpy as np
import pytest

from moesim.calibrate.frame import Frame, concatenate
from moesim.calibrate.hygiene import RULES, clean, repeat_noise
from tests.calibrate.synthetic import TOKENS, changed, moe_frame, pair


def dropped(frame, **options):
    kept, report = clean(frame, **options)
    assert [finding.rule for finding in report.findings] == list(RULES)
    found = {finding.rule: set(finding.rows.tolist()) for finding in report.findings}
    assert report.kept == len(kept) == len(frame) - sum(len(rows) for rows in found.values())
    return found, report


def slowed(frame, rows, factor):
    latency = frame["latency_s"].copy()
    latency[rows] *= factor
    return changed(frame, latency_s=latency)


@pytest.mark.parametrize("frame", [pair(series=48, noise=0.04), moe_frame(series=48, noise=0.04)])
def test_a_sound_table_keeps_every_row(frame):
    found, report = dropped(frame)
    assert not any(found.values())
    assert report.to_dict()["dropped_share"] == 0


def test_disturbed_rows_are_found_beside_a_sibling():
    """Single points, runs, a whole series, on either system, at the ends and inside."""
    frame = pair(series=48, noise=0.04)
    source = np.random.default_rng(1)
    single = source.choice(len(frame) // 2, 15, replace=False)
    run = len(frame) // 2 + 20 * len(TOKENS) + np.arange(4, 8)
    series = len(frame) // 2 + 30 * len(TOKENS) + np.arange(len(TOKENS))
    planted = set(single.tolist()) | set(run.tolist()) | set(series.tolist())
    found, report = dropped(slowed(frame, sorted(planted), 4.0))
    assert found.pop("sibling-outlier") == planted
    assert not any(found.values())
    finding = next(f for f in report.findings if f.rule == "sibling-outlier")
    assert sum(finding.by_table.values()) == len(planted)
    assert finding.examples[0]["times_too_slow"] == pytest.approx(4.0, rel=0.3)


def test_precision_and_recall_at_the_edge_of_the_threshold():
    """Slowed 1.3 to 6 times: all beyond 2.5 are found, none below 1.6."""
    frame = pair(series=96, noise=0.03)
    source = np.random.default_rng(2)
    rows = source.choice(len(frame) // 2, 60, replace=False)
    factor = source.uniform(1.3, 6.0, 60)
    found, _ = dropped(slowed(frame, rows, factor))
    assert set(rows[factor > 2.5].tolist()) <= found["sibling-outlier"]
    assert found["sibling-outlier"] <= set(rows[factor > 1.6].tolist())
    assert not found["spike"]


def test_without_a_sibling_spikes_inside_a_series_are_found():
    frame = moe_frame(series=48, noise=0.03)
    inside = np.arange(48) * len(TOKENS) + 3 + np.arange(48) % 7
    # On the steep part twice the time may be one step of tokens: four times is beyond doubt.
    found, _ = dropped(slowed(frame, inside[:24], 4.0))
    assert found["spike"] == set(inside[:24].tolist())
    flat = 2 * len(TOKENS) + np.array([2, 3, 4])
    found, _ = dropped(slowed(frame, flat, 5.0))
    assert found["spike"] == set(flat.tolist())


def test_a_kernel_switch_that_siblings_share_is_kept():
    both = pair(series=24)
    switch = np.isin(both["tokens"], [64, 128]) & (both["hidden"] == 1024)
    frame = slowed(both, switch, 3.0)
    found, report = dropped(frame)
    assert not any(found.values())
    assert any("siblings agree: kept" in note for note in report.notes)
    alone = frame.take(np.arange(len(frame) // 2))
    assert dropped(alone)[0]["spike"]


def test_siblings_may_be_given_for_comparison_alone():
    frame = slowed(moe_frame(series=48), [0], 5.0)  # an end, which no series judges
    assert not dropped(frame)[0]["spike"]
    found, _ = dropped(frame, siblings=moe_frame("h200_sxm", series=48))
    assert found["sibling-outlier"] == {0}


def test_latencies_that_are_none():
    frame = moe_frame()
    latency = frame["latency_s"].copy()
    latency[[0, 40, 41, 42]] = [0.0, -1e-3, np.nan, np.inf]
    found, _ = dropped(changed(frame, latency_s=latency))
    assert found.pop("non-positive") == {0, 40, 41, 42}
    assert not any(found.values())


def test_zero_is_a_value_of_a_difference():
    rows = 40
    zeros = np.zeros(rows, np.int32)
    texts = ("system", "engine", "version", "device", "kernel", "dtype")
    columns = {name: zeros for name in texts}
    columns |= {"m": np.arange(rows) + 1, "k": np.full(rows, 128)}
    columns |= {"latency_s": np.where(np.arange(rows) < 5, 0.0, 1e-6)}
    columns["latency_s"][7] = -1e-9
    labels = {name: ("h100_sxm" if name == "system" else "x",) for name in texts}
    found, _ = dropped(Frame("compute_scale", columns, labels))
    assert found.pop("non-positive") == {7}
    assert not any(found.values())


def test_of_repeats_the_median_stays_and_their_spread_is_told():
    once = moe_frame(series=2)
    frame = concatenate([once] * 3)
    latency = frame["latency_s"].copy()
    n = len(once)
    latency[n : 2 * n] *= 1.02
    latency[2 * n :] *= 1.10
    frame = changed(frame, latency_s=latency)
    found, report = dropped(frame)
    assert found["repeat"] == set(range(n)) | set(range(2 * n, 3 * n))
    assert report.to_dict()["dropped_share"] == pytest.approx(2 / 3)
    assert report.to_dict()["faulty_share"] == 0
    noise = repeat_noise(frame)
    assert noise["keys"] == n
    assert noise["median"] == pytest.approx(0.10)
    assert repeat_noise(once) == {}


def test_rows_of_another_gpu():
    frame = moe_frame("h200_sxm")
    codes = np.zeros(len(frame), np.int32)
    codes[:9] = 1
    labels = {**frame.labels, "device": ("NVIDIA H200", "NVIDIA H100 80GB HBM3")}
    found, _ = dropped(Frame("moe", {**frame.columns, "device": codes}, labels))
    assert found["device"] == set(range(9))
    # A name without any known model says nothing.
    labels["device"] = ("NVIDIA H200", "Graphics [0xe211]")
    assert not dropped(Frame("moe", {**frame.columns, "device": codes}, labels))[0]["device"]


def test_a_table_measured_under_other_conditions():
    """One of five is 11.8 times too slow; an honest system is 6 times slower than the others."""
    tables = [
        moe_frame("h100_sxm", "1.0", scale=11.8),
        moe_frame("h100_sxm", "1.1"),
        moe_frame("h200_sxm", "1.0", scale=0.9),
        moe_frame("h200_sxm", "1.1", scale=0.9, seed=1),
        moe_frame("l40s", "1.1", scale=6.0),
    ]
    found, report = dropped(concatenate(tables))
    assert found.pop("broken-table") == set(range(len(tables[0])))
    assert not any(found.values())
    finding = next(f for f in report.findings if f.rule == "broken-table")
    assert list(finding.by_table) == ["h100_sxm/sglang/1.0"]
    assert finding.examples[0]["times_too_slow"] == pytest.approx(11.8, rel=0.05)


def test_two_tables_that_contradict_each_other_are_both_kept_and_told():
    tables = [moe_frame("h100_sxm", "1.0", scale=8.0), moe_frame("h100_sxm", "1.1")]
    found, report = dropped(concatenate(tables))
    assert not any(found.values())
    assert "differ by a factor of 8.0" in report.notes[0]


def test_two_systems_that_one_engine_serves_badly_are_no_broken_tables():
    """Slow on both Hoppers alike, against a newer system: another kernel, not a disturbance."""
    tables = [
        moe_frame("h100_sxm", scale=5.0),
        moe_frame("h200_sxm", scale=4.5),
        moe_frame("b200_sxm"),
    ]
    tables += [
        Frame("moe", table.columns, {**table.labels, "engine": ("vllm",)})
        for table in (moe_frame("h100_sxm"), moe_frame("h200_sxm"), moe_frame("b200_sxm"))
    ]
    found, _ = dropped(concatenate(tables))
    assert not found["broken-table"]
