"""``moesim simulate fpga`` from the command line."""

import json
import math

import numpy as np
import pytest
import yaml

from moesim.fpga.documents import load_design, load_network
from moesim.hardware import load_device
from moesim.traces.bundle import write_trace

from ..cli.commands import moesim

OP_KEYS = {
    "name", "flops", "bytes", "op_per_byte", "time_s", "lo_s", "hi_s", "bound", "device",
    "evidence",
}  # fmt: skip


def edited(tmp_path, document, **changes):
    """A document as a file, with some fields changed; ``a.b`` is within ``a``."""
    body = document.to_dict()
    for path, value in changes.items():
        *outer, last = path.split("__")
        inside = body
        for name in outer:
            inside = inside[name]
        inside[last] = value
    file = tmp_path / f"{body['name']}.yaml"
    file.write_text(yaml.safe_dump(body))
    return file


def test_an_image(capsys, tmp_path):
    file = tmp_path / "result.json"
    answer = moesim(capsys, "simulate", "fpga", "--json", "--out", file)
    assert answer.code == 0
    data = answer.json
    assert json.loads(file.read_text()) == data
    assert (data["schema"], data["ok"], data["simulation"]) == ("moesim.simulate/1", True, "fpga")
    assert data["lo_s"] < data["step_s"] < data["hi_s"]
    assert data["energy_j"] == pytest.approx(data["power_w"] * data["step_s"])
    assert data["step_s"] == pytest.approx(sum(op["time_s"] for op in data["ops"]))
    for op in data["ops"]:
        assert op.keys() == OP_KEYS
        assert all(math.isfinite(op[key]) for key in ("flops", "bytes", "time_s", "lo_s", "hi_s"))
    traffic = data["traffic"]
    assert traffic["expert_bytes_token_order"] == 16.125 * traffic["expert_bytes"]
    assert traffic["key_value_read_bytes_query_order"] == pytest.approx(
        129 / 33 * traffic["key_value_read_bytes"]
    )
    assert sum(port["bytes"] for port in data["ports"]) == pytest.approx(traffic["bytes"])
    assert data["ablations"]["expert-reordering"]["slowdown"] > 3


def test_what_a_person_reads(capsys):
    answer = moesim(capsys, "simulate", "fpga", "--without", "unified-unit", "--images", 1)
    assert answer.code == 0
    for part in ("An image takes", "unified-unit", "experts", "left out", "DSP slices"):
        assert part in answer.out


def test_same_seed_same_answer(capsys):
    words = ("simulate", "fpga", "--json", "--routing", "zipf:2.5", "--seed")
    first, again, other = (moesim(capsys, *words, seed).json for seed in (1, 1, 2))
    assert first == again
    assert first["experts_hit_per_layer"] < 16
    assert first["step_s"] != other["step_s"]


def test_a_trace(capsys, tmp_path):
    rng = np.random.default_rng(0)
    routing = np.argsort(rng.random((3, 300, 16)), axis=-1)[..., :2].astype(np.uint8)
    write_trace(tmp_path / "t", model="m3vit", experts=16, source="made for a test",
                routing=routing)  # fmt: skip
    words = ("simulate", "fpga", "--json", "--trace", tmp_path / "t", "--images")
    data = moesim(capsys, *words, 2).json
    hit = [len(np.unique(routing[layer, i * 129 : (i + 1) * 129])) for layer in range(3)
           for i in range(2)]  # fmt: skip
    assert data["experts_hit_per_layer"] == pytest.approx(np.mean(hit))
    short = moesim(capsys, *words, 3)
    assert short.code == 4
    assert "too few tokens" in short.json["error"]["message"]
    both = moesim(capsys, *words, 2, "--routing", "uniform")
    assert (both.code, both.json["error"]["type"]) == (2, "UsageError")


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--device", "h100_sxm"], 2, "is no FPGA"),
        (["--device", "fpga_zcu"], 2, "fpga_zcu102"),
        (["--design", "edge"], 2, "edge_moe"),
        (["--model", "vit"], 2, "m3vit_tiny"),
        (["--model", "none.yaml"], 4, "none.yaml"),
        (["--without", "gelu"], 2, "expert-reordering"),
        (["--top-k", "17"], 2, "1 … 16"),
        (["--images", "0"], 2, "--images"),
        (["--pin-experts", "-1"], 2, "negative"),
        (["--pin-experts", "96"], 3, "room for 11"),
        (["--routing", "power-law:1.2"], 2, "zipf:S"),
        (["--routing", "odd"], 2, "--routing"),
    ],
)
def test_bad_options(capsys, words, code, part):
    answer = moesim(capsys, "simulate", "fpga", "--json", *words)
    assert answer.code == code
    assert part in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"moe__top_k": 99}, 4, "top_k"),
        ({"heads": 5}, 4, "heads"),
        ({"image__width": 250}, 4, "image.width"),
        ({"layers": 0}, 4, "layers"),
        ({"colour": 1}, 4, "unknown key"),
        ({"image__width": 2**20}, 2, "fewer --images"),
        ({"dense_hidden": 16384}, 3, "weight buffers"),
    ],
)
def test_bad_networks(capsys, tmp_path, changes, code, part):
    file = edited(tmp_path, load_network("m3vit_tiny"), **changes)
    answer = moesim(capsys, "simulate", "fpga", "--json", "--model", file)
    assert answer.code == code
    assert part in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"weight_buffers": 1}, 4, "weight_buffers"),
        ({"linear__outputs": 64}, 3, "DSP slices"),
        ({"axi__width_bits": 100}, 4, "width_bits"),
        ({"ports__hidden": "inout5", "ports__softmax": "inout6"}, 2, "memory ports"),
    ],
)
def test_bad_designs(capsys, tmp_path, changes, code, part):
    file = edited(tmp_path, load_design("edge_moe"), **changes)
    answer = moesim(capsys, "simulate", "fpga", "--json", "--design", file)
    assert answer.code == code
    assert part in answer.json["error"]["message"]


def test_a_network_without_experts(capsys, tmp_path):
    file = edited(tmp_path, load_network("m3vit_tiny"), moe__every=13)
    data = moesim(capsys, "simulate", "fpga", "--json", "--model", file).json
    assert (data["moe_layers"], data["traffic"]["expert_bytes"]) == (0, 0)
    assert data["ablations"]["expert-reordering"]["slowdown"] == 1
    assert moesim(capsys, "simulate", "fpga", "--model", file).code == 0


def test_a_board_of_ones_own(capsys, tmp_path):
    zcu102 = load_device("fpga_zcu102")
    file = edited(tmp_path, zcu102, fabric__port_latency={"value": "1 us", "source": "edgemoe"})
    slow = moesim(capsys, "simulate", "fpga", "--json", "--device", file).json
    plain = moesim(capsys, "simulate", "fpga", "--json").json
    assert slow["step_s"] > 1.2 * plain["step_s"]
    file = edited(tmp_path, zcu102, fabric__memory_ports=None)
    answer = moesim(capsys, "simulate", "fpga", "--json", "--device", file)
    assert (answer.code, answer.json["error"]["field"]) == (4, "fabric.memory_ports")
    file = edited(tmp_path, zcu102, fabric__refresh_time=None)
    assert moesim(capsys, "simulate", "fpga", "--json", "--device", file).code == 4
