"""Every exported file, as the engine's own reader would take it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from moesim.errors import UsageError
from moesim.placement import Placement
from moesim.planners.exports import EXPORTERS, export, read_export
from tests.exports import engine_readers
from tests.exports.engine_readers import ReaderError
from tests.exports.placements import DEEPSEEK_V3, Shape, cases, free_placement, random_placement

QUICK = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def option(launch: tuple[str, ...], name: str) -> str:
    return launch[launch.index(name) + 1]


def as_engine_reads(name: str, placement: Placement, shape: Shape, folder: Path):
    """Export, and let the transcribed reader load it with nothing but files and launch words."""
    result = export(name, placement, shape, folder)
    launch = result.launch
    assert shlex.split(shlex.join(launch)) == list(launch)
    model = {"moe_layers": shape.moe_layers, "experts": shape.experts}
    if name == "sglang":
        assert option(launch, "--tp-size") == option(launch, "--ep-size")
        return engine_readers.sglang(
            Path(option(launch, "--init-expert-location")),
            layers=shape.layers,
            redundant=int(option(launch, "--ep-num-redundant-experts")),
            ep=int(option(launch, "--ep-size")),
            **model,
        )
    if name == "vllm":
        config = json.loads(option(launch, "--eplb-config"))
        ranks = int(option(launch, "--tensor-parallel-size"))
        return engine_readers.vllm(
            result.files["vllm"],
            redundant=config["num_redundant_experts"],
            ep=ranks * int(option(launch, "--data-parallel-size")),
            **model,
        )
    if name == "vllm-ascend":
        config = json.loads(option(launch, "--additional-config"))["eplb_config"]
        return engine_readers.vllm_ascend(
            Path(config["expert_map_path"]),
            redundant=config["num_redundant_experts"],
            ep=int(option(launch, "--tensor-parallel-size")),
            **model,
        )
    return engine_readers.tensorrt_llm(
        Path(option(launch, "--extra_llm_api_options")),
        ep=int(option(launch, "--ep_size")),
        **model,
    )


def planned_hosting(placement: Placement) -> engine_readers.Hosting:
    device = placement.device_of_slot()
    return {
        (layer, expert): sorted(device[slots[slots >= 0]].tolist())
        for layer, table in zip(placement.moe_layers, placement.logical_to_physical(), strict=True)
        for expert, slots in enumerate(table)
    }


def copies_share_a_device(placement: Placement) -> bool:
    return any(len(set(r)) < len(r) for r in planned_hosting(placement).values())


@pytest.mark.parametrize("name", ["sglang", "vllm", "vllm-ascend", "tensorrt-llm"])
@QUICK
@given(case=cases())
def test_the_engine_loads_every_expert_where_it_was_planned(name, case, tmp_path):
    placement, shape = case
    if name == "vllm-ascend" and copies_share_a_device(placement):
        with pytest.raises(UsageError, match="two copies"):
            export(name, placement, shape, tmp_path)
        return
    assert as_engine_reads(name, placement, shape, tmp_path) == planned_hosting(placement)
    for file in export(name, placement, shape, tmp_path).files.values():
        if "options" not in file.name:
            back = read_export(name, file, shape, placement.devices)
            assert np.array_equal(back.physical_to_logical, placement.physical_to_logical)
            assert back.moe_layers == placement.moe_layers
            assert (back.devices, back.experts) == (placement.devices, placement.experts)


@pytest.mark.parametrize("name", ["sglang", "vllm", "vllm-ascend", "tensorrt-llm"])
def test_deepseek_v3_keeps_its_dense_layer_offset(name, tmp_path):
    placement = random_placement(np.random.default_rng(0), DEEPSEEK_V3, 32, 32, spread=True)
    assert as_engine_reads(name, placement, DEEPSEEK_V3, tmp_path) == planned_hosting(placement)


def test_layer_numbers_of_deepseek_v3_per_format(tmp_path):
    placement = random_placement(np.random.default_rng(0), DEEPSEEK_V3, 32, 0)
    first = placement.physical_to_logical[0].tolist()
    last = placement.physical_to_logical[-1].tolist()
    files = {n: export(n, placement, DEEPSEEK_V3, tmp_path).files[n] for n in EXPORTERS}

    rows = json.loads(files["sglang"].read_text())["physical_to_logical_map"]
    assert len(rows) == 61
    assert (rows[3], rows[60]) == (first, last)
    assert rows[0] == rows[1] == rows[2] == list(range(256))

    rows = json.loads(files["vllm"].read_text())
    assert len(rows) == 58
    assert (rows[0], rows[57]) == (first, last)

    layers = json.loads(files["vllm-ascend"].read_text())["layer_list"]
    assert [layer["layer_id"] for layer in layers] == list(range(58))
    assert layers[57]["device_list"][31]["device_expert"] == last[-8:]

    text = files["tensorrt-llm"].read_text()
    assert f"\n  3: {first}\n" in text
    assert f"\n  60: {last}\n" in text
    assert "\n  0:" not in text
    assert "\n  61:" not in text

    ranks = np.load(files["megatron"])
    assert ranks.shape == (58, 256)
    assert ranks[57, last[0]] == 0
    assert ranks[57, last[-1]] == 31


def test_a_wrong_layer_offset_would_be_noticed(tmp_path):
    """The transcribed readers are no rubber stamp: shifted rows load experts elsewhere."""
    shape = Shape("shifted", 5, (2, 3, 4), 8)
    placement = random_placement(np.random.default_rng(1), shape, 4, 0)
    file = export("sglang", placement, shape, tmp_path).files["sglang"]
    rows = json.loads(file.read_text())["physical_to_logical_map"]
    file.write_text(json.dumps({"physical_to_logical_map": rows[1:] + rows[:1]}))
    options = {"layers": 5, "moe_layers": (2, 3, 4), "experts": 8, "redundant": 0, "ep": 4}
    assert engine_readers.sglang(file, **options) != planned_hosting(placement)
    file.write_text(json.dumps({"physical_to_logical_map": rows[2:]}))
    with pytest.raises(ReaderError, match="one row per model layer"):
        engine_readers.sglang(file, **options)
    file.write_text(json.dumps({"physical_to_logical_map": rows, "ep_size": 4}))
    with pytest.raises(ReaderError, match="only that key"):
        engine_readers.sglang(file, **options)


def test_two_copies_on_a_device_would_break_vllm_ascend(tmp_path):
    """Why the exporter refuses them: the reader's map of a rank has one entry per expert."""
    devices = [[0, 0, 1], [1, 2, 3]]
    entries = [{"device_id": d, "device_expert": row} for d, row in enumerate(devices)]
    layer = {"layer_id": 0, "device_count": 2, "device_list": entries}
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"moe_layer_count": 1, "layer_list": [layer]}))
    with pytest.raises(ReaderError, match="overwritten"):
        engine_readers.vllm_ascend(file, moe_layers=(0,), experts=4, redundant=2, ep=2)


@QUICK
@given(case=cases(replicas=False))
def test_megatron_gives_every_expert_its_rank(case, tmp_path):
    placement, shape = case
    file = export("megatron", placement, shape, tmp_path).files["megatron"]
    ranks = np.load(file)
    assert ranks.dtype == np.int32
    assert {
        (layer, expert): [int(rank)]
        for layer, row in zip(shape.moe_layers, ranks, strict=True)
        for expert, rank in enumerate(row)
    } == planned_hosting(placement)
    back = read_export("megatron", file, shape, placement.devices)
    width = placement.slots_per_device
    expected = np.sort(placement.physical_to_logical.reshape(len(ranks), -1, width), axis=2)
    assert np.array_equal(back.physical_to_logical, expected.reshape(len(ranks), -1))


def test_megatron_takes_free_cluster_sizes(tmp_path):
    shape = Shape("free", 4, (1, 2), 9)
    placement = free_placement(np.random.default_rng(3), shape, 4)
    assert placement.has_empty_slots
    result = export("megatron", placement, shape, tmp_path)
    assert any("different numbers" in note for note in result.notes)
    back = read_export("megatron", result.files["megatron"], shape, 4)
    assert planned_hosting(back) == planned_hosting(placement)
    again = export("megatron", back, shape, tmp_path / "again")
    assert again.files["megatron"].read_bytes() == result.files["megatron"].read_bytes()
