"""The wave model and what is chosen by it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError, UsageError
from moesim.kernels import targets
from moesim.kernels.choose import (
    candidates,
    choose,
    choose_for_rows,
    configurations,
    plausible_histograms,
)
from moesim.kernels.config import GemmConfig, Part
from moesim.kernels.config_table import default_table, load_table
from moesim.kernels.launch import check_block_scales, check_parts
from moesim.kernels.targets import TARGETS, Chip, check_type
from moesim.kernels.tile_table import ANY_ROWS
from moesim.kernels.tune import Measured, fit, measured_of, refit
from moesim.kernels.wave_model import Coefficients, GemmShape, Speeds, moved_bytes, part_seconds

TILE = GemmConfig("tile", 128, 256, 64, 8, 3)
SHAPE = GemmShape(4096, 2048)
SPEEDS = Speeds(100, 1e15, 1e12, 50e6)
FREE = Coefficients(share=0.5, reach=1.0, latency_s=0.0, tile_s=1e-6, launch_s=0.0)

HISTOGRAMS = st.lists(st.integers(0, 3000), min_size=1, max_size=64).map(np.array)


def test_waves_by_hand():
    """Two experts of 128 rows are 2 · 16 tiles: one wave of 100 slots, of 32 steps each."""
    step_s = 2 * 128 * 256 * 64 / (1e15 / 100 * 0.5)
    compute_s = 1e-6 + 32 * step_s
    memory_s = (2 * 4096 * 2048 * 2 + 256 * (2048 + 4096) * 2) / 1e12
    expected = (compute_s**4 + memory_s**4) ** 0.25
    got = part_seconds(Part(TILE), FREE, np.array([128, 128]), SHAPE, SPEEDS)
    assert got == pytest.approx(expected)
    more = part_seconds(Part(TILE), FREE, np.array([129] * 6), SHAPE, SPEEDS)  # 192 tiles, 2 waves
    memory_s = (6 * 4096 * 2048 * 2 + 6 * 129 * (2048 + 4096) * 2) / 1e12
    assert more == pytest.approx(((2 * compute_s) ** 4 + memory_s**4) ** 0.25)


def test_a_shallow_pipeline_waits():
    late = replace(FREE, latency_s=1e-5)
    few = part_seconds(Part(replace(TILE, num_stages=2)), late, np.array([128]), SHAPE, SPEEDS)
    many = part_seconds(Part(replace(TILE, num_stages=5)), late, np.array([128]), SHAPE, SPEEDS)
    assert few > 3 * many


@given(histogram=HISTOGRAMS, grow=st.integers(0, 63), by=st.integers(1, 500))
def test_more_rows_never_take_less_time(histogram, grow, by):
    part = Part(TILE)
    more = histogram.copy()
    more[grow % len(more)] += by
    before = part_seconds(part, FREE, histogram, SHAPE, SPEEDS)
    assert part_seconds(part, FREE, more, SHAPE, SPEEDS) >= before


@given(histogram=HISTOGRAMS)
def test_no_time_beats_the_roofline(histogram):
    part = Part(TILE)
    rows, active = int(histogram.sum()), int((histogram > 0).sum())
    flops = 2.0 * rows * SHAPE.n * SHAPE.k
    moved = 2.0 * (active * SHAPE.n * SHAPE.k + rows * (SHAPE.n + SHAPE.k))
    least = max(flops / SPEEDS.flop_per_s, moved / SPEEDS.bytes_per_s)
    assert part_seconds(part, FREE, histogram, SHAPE, SPEEDS) >= least * (1 - 1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_the_histogram_decides_and_not_only_the_number_of_rows(target):
    """As many rows, spread over all experts or all with one."""
    rows, experts = 2048, 128
    spread = choose([rows // experts] * experts, SHAPE, "bf16", target)[0]
    one = choose([rows] + [0] * (experts - 1), SHAPE, "bf16", target)[0]
    assert spread.parts[0].config.block_m < one.parts[-1].config.block_m
    assert {part.config.kernel for part in one.parts} == {"tile"}


def test_choices_are_sorted_and_complete():
    entries = default_table().of("sm_90a", "bf16")
    found = choose(plausible_histograms(3000, 64)[1], SHAPE, "bf16", "sm_90a")
    assert len(found) == len(candidates(entries)) > len(entries)
    assert [c.predicted_s for c in found] == sorted(c.predicted_s for c in found)
    for choice in found:
        check_parts(choice.parts)


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("rows", [1, 100, 100_000])
def test_without_a_histogram_the_regret_is_bounded(rows, dtype):
    choice = choose_for_rows(rows, 128, SHAPE, dtype, "sm_90a", Chip(132))
    check_parts(choice.parts)
    for histogram in plausible_histograms(rows, 128):
        assert histogram.sum() == rows
        best = choose(histogram, SHAPE, dtype, "sm_90a")
        own = next(other for other in best if other.parts == choice.parts)
        assert own.predicted_s < 1.5 * best[0].predicted_s


def test_configurations_of_a_device_can_all_be_listed(monkeypatch):
    monkeypatch.setattr("moesim.kernels.choose.target_of", lambda device: TARGETS["sm_90a"])
    found = configurations(torch.device("cuda"), torch.float8_e4m3fn)
    assert found
    for name, parts in found.items():
        assert parts[0].config.name == name
        check_parts(parts)
        check_block_scales(parts[0].config)


def test_a_fit_recovers_the_coefficients_it_was_made_with():
    true = Coefficients(0.62, 0.85, 0.9e-6, 2.1e-6, 3.3e-6)
    speeds = default_table().speeds["sm_90a"]["bf16"]
    rng = np.random.default_rng(0)
    points = []
    for place in range(40):
        rows = int(np.exp(rng.uniform(3, 11)))
        shape = GemmShape(int(rng.choice([768, 2048, 4096])), int(rng.choice([512, 2048, 7168])))
        histogram = plausible_histograms(rows, 32)[place % 3]
        time_s = part_seconds(Part(TILE), true, histogram, shape, speeds)
        time_s *= np.exp(rng.normal(0, 0.01))
        points.append(Measured("sm_90a", "bf16", TILE, histogram, shape, speeds, time_s))
    start = Coefficients(0.3, 1.0, 2e-6, 0.5e-6, 8e-6)
    got = fit(TILE, points[:30], start)
    assert got.share == pytest.approx(true.share, rel=0.03)
    assert got.reach == pytest.approx(true.reach, rel=0.03)
    assert got.launch_s == pytest.approx(true.launch_s, rel=0.05)
    errors = [
        abs(part_seconds(Part(TILE), got, p.histogram, p.shape, speeds) / p.time_s - 1)
        for p in points[30:]
    ]
    assert np.median(errors) < 0.02


def bench_document(times=8):
    rows = [64, 32, 0, 16]
    entry = {
        "kernel": "moesim", "config": TILE.name, "op": "grouped-gemm", "dtype": "bf16",
        "case": "a", "time_s": 1e-4, "shape": {"n": 4096, "k": 2048},
    }  # fmt: skip
    other = entry | {"kernel": "torch-loop", "config": ""}
    return {
        "schema": "moesim.kernels/1",
        "kind": "bench",
        "environment": {"compute_capability": "9.0", "cores": 114},
        "ceilings": {"copy_bytes_per_s": 1.9e12},
        "loads": {"a": rows},
        "cases": [entry] * times + [other],
    }


def test_a_benchmark_refits_the_table():
    table = default_table()
    own = tuple(replace(entry, evidence="assumed") for entry in table.of("sm_90a", "bf16"))
    table = replace(table, entries={**table.entries, "sm_90a": own})
    found = measured_of(bench_document(), table)
    assert len(found) == 8
    assert found[0].histogram.tolist() == [64, 32, 0, 16]
    assert (found[0].speeds.cores, found[0].speeds.bytes_per_s) == (114, 1.9e12)
    tuned = refit(table, found)
    kinds = {e.config.name: e.evidence for e in tuned.of("sm_90a", "bf16")}
    assert kinds.pop(TILE.name) == "measured"
    assert set(kinds.values()) == {"assumed"}


def test_too_few_times_fit_nothing():
    table = default_table()
    with pytest.raises(InputError, match="nothing to fit"):
        refit(table, measured_of(bench_document(3), table))
    with pytest.raises(InputError, match="compute_capability"):
        measured_of(bench_document() | {"environment": {}}, table, "cpu.json")
    with pytest.raises(InputError, match="cores"):
        measured_of(bench_document() | {"environment": {"compute_capability": "9.0"}}, table)
    broken = bench_document()
    del broken["cases"][0]["shape"]["n"]
    with pytest.raises(InputError, match=r"cases\[0\]"):
        measured_of(broken, table, "gpu.json")


def test_a_table_is_read_as_it_is_written(tmp_path):
    import json

    table = default_table()
    file = tmp_path / "table.json"
    file.write_text(json.dumps(table.to_dict()))
    assert load_table(file) == table
    for path, value, field in (
        (("schema",), "x", "schema"),
        (("targets", "sm_90a", "entries", 1, "config", "block_m"), 48, "block_m"),
        (("targets", "sm_90a", "entries", 0, "coefficients", "share"), -1, "share"),
        (("targets", "sm_80", "entries", 0, "config"), {}, "sm_80"),
    ):
        data = table.to_dict()
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        file.write_text(json.dumps(data))
        with pytest.raises(InputError) as caught:
            load_table(file)
        assert field in caught.value.field
        assert "table.json" in str(caught.value)


@pytest.mark.parametrize(
    ("fewest", "most"), [(2, ANY_ROWS), (1, 100)], ids=["begins-late", "ends-early"]
)
def test_parts_that_leave_out_an_expert_are_refused(fewest, most):
    with pytest.raises(InputError, match="parts"):
        check_parts([Part(TILE, fewest, most)])


def test_what_a_target_cannot_multiply_is_refused():
    with pytest.raises(UsageError, match=r"sm_80 multiplies torch\.bfloat16"):
        check_type(torch.float8_e4m3fn, TARGETS["sm_80"])
    with pytest.raises(UsageError, match="float8_e4m3fnuz"):
        check_type(torch.float8_e4m3fn, TARGETS["gfx942"])
    with pytest.raises(InputError, match="one scale per step"):
        check_block_scales(TILE)
    with pytest.raises(InputError, match="histogram"):
        choose([1.5, 2.0], SHAPE, "bf16", "sm_90a")
    with pytest.raises(UsageError, match="no configurations for fp8 on sm_80"):
        choose([1], SHAPE, "fp8", "sm_80")


@pytest.mark.parametrize(
    "change",
    [{"kernel": "x"}, {"block_m": 48}, {"block_k": 8}, {"num_stages": 0}, {"split_k": 2}],
)
def test_configurations_that_cannot_be_are_refused(change):
    with pytest.raises(InputError):
        replace(TILE, **change)


def test_weights_of_an_expert_come_again_where_the_cache_does_not_hold_them():
    """The row kernel takes row tiles of an expert one after another, each through all weights."""
    row = GemmConfig("row", 16, 128, 128, 4, 4)
    own = np.array([160])  # 10 row tiles; 32 column tiles fill 32 of 100 cores, so 3 run together
    shape = GemmShape(4096, 4096)  # 33.6 MB
    weight_bytes, row_bytes = 2.0 * 4096 * 4096, 2.0 * 160 * (4096 + 4096)

    def read(cache_bytes):
        speeds = replace(SPEEDS, cache_bytes=cache_bytes)
        return (moved_bytes(row, own, shape, speeds) - row_bytes) / weight_bytes

    assert read(70e6) == pytest.approx(1.0)
    assert read(33e6) == pytest.approx(10 / (100 / 32))
    assert 1.0 < read(45e6) < 10 / (100 / 32)


def test_a_slower_memory_of_the_same_chip_counts():
    histogram = [2] * 64
    fast = choose(histogram, SHAPE, "bf16", "sm_90a", chip=Chip(132, 4e12))[0]
    slow = choose(histogram, SHAPE, "bf16", "sm_90a", chip=Chip(132, 1e12))[0]
    assert 3.0 < slow.predicted_s / fast.predicted_s < 4.0


def test_the_bandwidth_at_hand_is_two_transfers_per_clock(monkeypatch):
    """An H100 SXM: 2619 MHz on 5120 bits are 3.35 TB/s in its data sheet."""
    h100 = SimpleNamespace(
        multi_processor_count=132, memory_clock_rate=2_619_000, memory_bus_width=5120
    )
    monkeypatch.setattr(targets, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h100)
    found = targets.chip_of.__wrapped__(torch.device("cuda"))
    assert found.bytes_per_s == pytest.approx(0.9 * 3.35e12, rel=2e-3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=7)
    )
    assert targets.chip_of.__wrapped__(torch.device("cuda")) == Chip(7, None)
