"""Devices that differ in speed and memory, and free slots, through ``moesim plan``."""

import json

import numpy as np

from moesim.cluster import load_cluster
from moesim.memory import check_memory, expert_memory_bytes, weight_bytes_per_device
from moesim.model import load_model
from moesim.placement import read_plan
from tests.cli.commands import EXPERTS, LAYERS, moesim

EXPERT_BYTES = 3 * 256 * 512 * 2
REFUSED = 3


def write_cluster(folder, name, **fields):
    body = {"schema": "moesim.cluster/1", "name": name, "device": "h100_sxm"}
    body |= {"nodes": 1, "devices_per_node": 4}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(body | fields))
    return file


def plan(capsys, folder, cluster, *words):
    return moesim(
        capsys, "plan", folder / "trace", "--model", folder / "config.json", "--cluster", cluster,
        "--tokens-per-device", 512, "--time-limit", 4, "--out", folder / "plan", "--force",
        "--json", *words,
    )  # fmt: skip


def held(placement):
    table = placement.physical_to_logical.reshape(placement.layers, placement.devices, -1)
    return (table >= 0).sum((0, 2))


def test_free_slots_even_out_what_equal_ones_cannot(folder, capsys):
    answer = plan(capsys, folder, "4xh100_sxm", "--slots", "free-per-layer")
    assert answer.code == 0, answer.out
    planners = answer.json["planners"]
    assert {"lpt-swap", "lpt-swap-free", "moetuner-free", "joint"} <= set(planners)
    assert planners["lpt-swap-free"]["balance"] > planners["lpt-swap"]["balance"]
    _, placement = read_plan(answer.json["files"]["plan"])
    if placement.has_empty_slots:
        assert set(answer.json["left_out"]) == {"sglang", "vllm", "vllm-ascend", "tensorrt-llm"}
        assert "megatron" in answer.json["files"]


def test_a_planner_of_equal_slots_is_refused(folder, capsys):
    answer = plan(
        capsys, folder, "4xh100_sxm", "--slots", "free-per-layer", "--planner", "lpt-swap"
    )
    assert answer.code == 2
    assert "lpt-swap gives every device equally many slots" in answer.out


def test_experts_follow_memory(folder, capsys):
    """Two devices with little memory: equal slots do not fit there."""
    model = load_model(str(folder / "config.json"))
    memory = load_cluster("4xh100_sxm").device.memory_bytes
    other = (
        weight_bytes_per_device(model, load_cluster("4xh100_sxm"), 8) - LAYERS * 2 * EXPERT_BYTES
    )
    factors = [(other + slots * EXPERT_BYTES) / memory for slots in (4.5, 4.5, 9.5, 9.5)]
    cluster = write_cluster(folder, "unequal", memory_factors=factors)
    left = expert_memory_bytes(model, load_cluster(str(cluster))) / EXPERT_BYTES
    np.testing.assert_allclose(left, [4.5, 4.5, 9.5, 9.5])
    refused = plan(capsys, folder, cluster)
    assert refused.code == REFUSED
    assert "the smallest h100_sxm has" in refused.out
    answer = plan(capsys, folder, cluster, "--slots", "free-per-layer", "--export", "none")
    assert answer.code == 0, answer.err
    assert answer.json["planner"] == "lpt-swap-free"
    assert "does not fit" in answer.json["skipped"]["lpt-swap"]
    _, placement = read_plan(answer.json["files"]["plan"])
    assert (held(placement) <= left).all()
    assert held(placement).sum() == LAYERS * EXPERTS
    crowded = plan(
        capsys, folder, cluster, "--slots", "free-per-layer", "--redundant", 4, "--export", "none"
    )
    assert crowded.code == REFUSED
    assert "the mean h100_sxm has" in crowded.out


def test_load_follows_speed(folder, capsys):
    cluster = write_cluster(folder, "mixed", speed_factors=[2.0, 1.0, 1.0, 1.0])
    answer = plan(capsys, folder, cluster, "--planner", "lpt-swap", "--redundant", 8)
    assert answer.code == 0
    _, placement = read_plan(answer.json["files"]["plan"])
    planners = answer.json["planners"]
    assert planners["lpt-swap"]["balance"] > planners["contiguous"]["balance"]
    assert planners["lpt-swap"]["compute_s"] < planners["contiguous"]["compute_s"]
    assert held(placement).tolist() == [LAYERS * 4] * 4  # slots stay equal: the hot ones go there


def test_cluster_files_with_memory(folder, capsys):
    cluster = load_cluster(str(write_cluster(folder, "half", memory_factors={2: 0.5})))
    full = cluster.device.memory_bytes
    assert cluster.memory_bytes.tolist() == [full, full, full / 2, full]
    assert load_cluster("4xh100_sxm").memory_factors is None
    model = load_model(str(folder / "config.json"))
    check_memory(model, cluster, EXPERTS)
    shown = moesim(capsys, "hw", "show", write_cluster(folder, "half", memory_factors={2: 0.5}))
    assert "memory factors other than 1: 2: 0.5" in shown.out
    bad = moesim(capsys, "hw", "show", write_cluster(folder, "bad", memory_factors=[1.0, 1.0]))
    assert bad.code == 4
    assert "one memory factor per device is needed" in bad.err
