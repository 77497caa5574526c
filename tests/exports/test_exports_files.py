"""Golden files, refusals, and files that a reader must not take."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError, UsageError
from moesim.placement import Placement
from moesim.planners.exports import EXPORTERS, export, find_exporter, read_export
from tests.exports.placements import (
    DEEPSEEK_V3,
    SMALL,
    SMALL_PLACEMENT,
    Shape,
    free_placement,
    random_placement,
)

GOLDEN = Path(__file__).parent / "golden"
EQUAL_SLOTS = ("sglang", "vllm", "vllm-ascend", "tensorrt-llm")
NO_REPLICAS = Placement(np.array([[5, 1, 0, 2, 3, 4], [0, 3, 1, 4, 2, 5]]), 3, 6, SMALL.moe_layers)


@pytest.mark.parametrize("name", EXPORTERS)
def test_files_are_the_golden_ones(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    placement = NO_REPLICAS if name == "megatron" else SMALL_PLACEMENT
    result = export(name, placement, SMALL, Path("out"))
    for file in result.files.values():
        assert file.read_bytes() == (GOLDEN / file.name).read_bytes(), file.name
    launch = json.loads((GOLDEN / "launch.json").read_text())
    assert list(result.launch) == launch[name]
    assert all(note.endswith(".") for note in result.notes)


def test_no_two_exporters_write_the_same_name(tmp_path):
    files = [
        item
        for name in EXPORTERS
        for item in export(name, NO_REPLICAS, SMALL, tmp_path).files.items()
    ]
    assert len({key for key, _ in files}) == len({path for _, path in files}) == len(files)
    assert {path for _, path in files} == set(tmp_path.iterdir())


def test_the_note_for_vllm_is_honest(tmp_path):
    notes = export("vllm", SMALL_PLACEMENT, SMALL, tmp_path).notes
    assert "No released vLLM" in notes[0]
    assert "initial_expert_map_path" in " ".join(notes)


def test_unknown_names_are_listed():
    with pytest.raises(UsageError, match=r"'tgi'.*\nfix: choose from sglang, vllm, vllm-ascend"):
        find_exporter("tgi")


@pytest.mark.parametrize("name", EQUAL_SLOTS)
def test_equal_slot_engines_refuse_empty_slots(name, tmp_path):
    placement = free_placement(np.random.default_rng(0), SMALL, 3)
    with pytest.raises(UsageError, match=f"^{name} needs the same number.*\nfix: .* megatron"):
        export(name, placement, SMALL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_megatron_refuses_replicas(tmp_path):
    with pytest.raises(UsageError, match=r"replicas\nfix: .*sglang, vllm, vllm-ascend"):
        export("megatron", SMALL_PLACEMENT, SMALL, tmp_path)


@pytest.mark.parametrize("name", ["vllm", "vllm-ascend", "tensorrt-llm"])
def test_one_device_is_not_expert_parallel(name, tmp_path):
    placement = random_placement(np.random.default_rng(0), SMALL, 1, 0)
    with pytest.raises(UsageError, match="2 or more devices"):
        export(name, placement, SMALL, tmp_path)


@pytest.mark.parametrize("name", EXPORTERS)
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((60, 61), "beyond the model's last; found 61; allowed: 0 … 60"),
        ((0, 1), "layer 0 of deepseek-v3 is dense; found .*; allowed: .* layers 3 … 60"),
        ((3, 4), "missing; found .*no row for layers 5 … 60"),
    ],
)
def test_layers_that_are_not_the_models(name, layers, message, tmp_path):
    shape = dataclasses.replace(DEEPSEEK_V3, moe_layers=layers)
    placement = random_placement(np.random.default_rng(0), shape, 8, 0)
    with pytest.raises(InputError, match=message) as caught:
        export(name, placement, DEEPSEEK_V3, tmp_path)
    assert caught.value.field == "moe_layers"


@pytest.mark.parametrize("name", EXPORTERS)
def test_experts_that_are_not_the_models(name, tmp_path):
    with pytest.raises(InputError, match=r"experts: .*found 6; allowed: 7"):
        export(name, NO_REPLICAS, dataclasses.replace(SMALL, experts=7), tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export("sglang", SMALL_PLACEMENT, SMALL, tmp_path / "out")


def test_vllm_takes_one_row_for_all_layers(tmp_path):
    file = tmp_path / "map.json"
    file.write_text("[0, 1, 2, 3, 4, 5, 5, 4]")
    back = read_export("vllm", file, SMALL, 4)
    assert back.physical_to_logical.tolist() == [[0, 1, 2, 3, 4, 5, 5, 4]] * 2


def test_tensorrt_llm_takes_a_file_that_names_its_ep_size(tmp_path):
    file = tmp_path / "map.yaml"
    file.write_text(
        "ep_size: 3\nnum_slots: 6\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n"
        "  1: [0, 1, 2, 3, 4, 5]\n  3: [5, 4, 3, 2, 1, 0]\n"
    )
    assert read_export("tensorrt-llm", file, SMALL, 3).moe_layers == (1, 3)
    with pytest.raises(InputError, match=r"ep_size: .*found 3; allowed: 2"):
        read_export("tensorrt-llm", file, SMALL, 2)


ROW = "0, 1, 2, 3, 4, 5"
ASCEND = (
    '{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, "device_list": ['
    '{"device_id": 0, "device_expert": [0, 1, 2]}, {"device_id": 1, "device_expert": [3, 4, 5]}]}]}'
)
TRT = f"num_slots: 6\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n  1: [{ROW}]\n"
BAD = [
    ("sglang", "{", "not valid JSON"),
    ("sglang", "[]", "one key"),
    ("sglang", f'{{"physical_to_logical_map": [[{ROW}]], "ep_size": 2}}', "one key"),
    ("sglang", '{"logical_count": [[1, 2]]}', "loads, not a placement"),
    ("sglang", f'{{"physical_to_logical_map": [[{ROW}]]}}', "found 1 rows; allowed: 2"),
    ("sglang", f'{{"physical_to_logical_map": [[{ROW}], [0]]}}', r"\[1\]: rows differ in length"),
    ("sglang", f'{{"physical_to_logical_map": [[{ROW}], [1, 1, 2, 3, 4, 5]]}}', "has no slot"),
    ("vllm", "[]", "non-empty list"),
    ("vllm", "{}", "non-empty list"),
    ("vllm", f"[[{ROW}], [{ROW}]]", "found 2 rows; allowed: 1"),
    ("vllm", "[[0, 1, 2, 3, 4, 6]]", r"map\[0\]\[5\]: not an expert id; found 6; allowed: 0 … 5"),
    ("vllm", "[[0, 1, 2, 3, 4, -1]]", "not an expert id"),
    ("vllm", "[[0, true, 2, 3, 4, 5]]", "not an expert id"),
    ("vllm", "[[0, 1.0, 2, 3, 4, 5]]", "not an expert id"),
    ("vllm", "[[], []]", "a row of expert ids"),
    ("vllm", "[[0, 1, 2, 3, 4, 5, 0]]", "do not divide by the devices"),
    ("vllm-ascend", "[]", "object with certain keys"),
    ("vllm-ascend", ASCEND.replace('count": 1', 'count": 2'), "length of layer_list"),
    ("vllm-ascend", ASCEND.replace('layer_id": 0', 'layer_id": 1'), "allowed: 0, a running index"),
    ("vllm-ascend", ASCEND.replace('device_count": 2', 'device_count": 3'), "device_count"),
    ("vllm-ascend", ASCEND.replace('device_id": 1', 'device_id": 0'), "devices in order"),
    ("vllm-ascend", ASCEND.replace("[3, 4, 5]", "[3, 4]"), r"device_list\[1\]: rows differ"),
    ("vllm-ascend", ASCEND.replace("[3, 4, 5]", "[3, 4, 9]"), r"\[1\]\[2\]: not an expert id"),
    ("vllm-ascend", ASCEND.replace("[3, 4, 5]", "null"), "a row of expert ids"),
    (
        "vllm-ascend",
        ASCEND.replace(', {"device_id": 1, "device_expert": [3, 4, 5]}', ""),
        "found 1",
    ),
    ("tensorrt-llm", "- 1", "not a static load-balancer file"),
    ("tensorrt-llm", "num_slots: 6\nlayer_updates_per_iter: 2\n", "not a static load-balancer"),
    ("tensorrt-llm", TRT.replace("iter: 0", "iter: 2"), "layer_updates_per_iter"),
    ("tensorrt-llm", TRT.replace("1:", "0:"), "model layer index"),
    ("tensorrt-llm", TRT.replace(": 6", ": 8"), "num_slots: .*found 8; allowed: 6"),
    ("tensorrt-llm", TRT + f"  1: [{ROW}]\n", "duplicate key"),
    ("tensorrt-llm", TRT + "speed: 1\n", "not a static load-balancer file"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_bad_files_are_refused_by_name_and_field(name, text, message, tmp_path):
    shape = Shape("two-layers", 2, (1,), 6)
    file = tmp_path / ("map.yaml" if name == "tensorrt-llm" else "map.json")
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_export(name, file, shape, 2)
    assert caught.value.file == str(file)


@pytest.mark.parametrize(("name", "text"), [("vllm-ascend", ASCEND), ("tensorrt-llm", TRT)])
def test_the_texts_above_are_bad_only_where_they_were_changed(name, text, tmp_path):
    file = tmp_path / "map.yaml"
    file.write_text(text)
    if name == "vllm-ascend":
        file = file.rename(tmp_path / "map.json")
    back = read_export(name, file, Shape("two-layers", 2, (1,), 6), 2)
    assert back.physical_to_logical.tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 6)), "integer ranks"),
        (np.zeros((2, 5), np.int32), "integer ranks"),
        (np.zeros(6, np.int32), "integer ranks"),
        (np.zeros((0, 6), np.int32), "out of range"),
        (np.full((2, 6), 3, np.int32), "out of range; .*allowed: 0 … 2"),
        (np.full((2, 6), -1, np.int32), "out of range"),
        (np.zeros((3, 6), np.int32), "found 3 rows; allowed: 2"),
    ],
)
def test_bad_rank_tables_are_refused(array, message, tmp_path):
    file = tmp_path / "ranks.npy"
    np.save(file, array)
    with pytest.raises(InputError, match=message):
        read_export("megatron", file, SMALL, 3)


def test_a_missing_file(tmp_path):
    for name in EXPORTERS:
        with pytest.raises(InputError, match="no such file"):
            read_export(name, tmp_path / "none", SMALL, 2)
