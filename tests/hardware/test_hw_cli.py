"""``moesim hw``."""

import json
import subprocess
import sys

import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.cluster import cluster_names
from moesim.hardware import device_names, load_device


def hw(capsys, *arguments):
    code = run(app, ["hw", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def hw_json(capsys, *arguments):
    code, out, _ = hw(capsys, *arguments, "--json")
    assert out.count("\n") == 1
    return code, json.loads(out)


def test_list_json(capsys):
    code, data = hw_json(capsys, "list")
    assert (code, data["schema"], data["ok"]) == (0, "moesim.hw/1", True)
    assert [row["name"] for row in data["devices"]] == device_names()
    assert [row["name"] for row in data["clusters"]] == cluster_names()
    h100 = next(row for row in data["devices"] if row["name"] == "h100_sxm")
    assert h100["memory_bytes_per_s"] == 3.352e12
    assert h100["peak_flop_per_s"]["bf16"] == 989.4e12
    assert h100["scale_up_bytes_per_s"] == 450e9


def test_list_for_people(capsys):
    code, out, err = hw(capsys, "list")
    assert code == 0
    for name in (*device_names(), *cluster_names()):
        assert name in out
    assert "2x8xh100_sxm" in err
    assert hw(capsys, "list", "--quiet")[2] == ""


@pytest.mark.parametrize("name", device_names())
def test_show_prints_every_number_with_unit_evidence_and_source(capsys, name):
    device = load_device(name)
    code, data = hw_json(capsys, "show", name)
    assert (code, data["type"], data["name"]) == (0, "device", name)
    assert len(data["numbers"]) == len(list(device.quantities()))
    for row in data["numbers"]:
        assert row["title"]
        assert row["evidence"] in ("measured", "fitted", "spec", "assumed")
        assert row["si"] > 0
    code, out, _ = hw(capsys, "show", name)
    assert code == 0
    for field, number in device.quantities():
        line = next(line for line in out.splitlines() if f"│ {field} " in line)
        for shown in (str(number.value), str(number.evidence), number.source):
            assert shown in line
    for source in device.sources.values():
        assert source.title in out
        assert (source.url or "") in out


def test_show_cluster(capsys):
    code, data = hw_json(capsys, "show", "2x8xh100_sxm")
    assert (code, data["type"], data["devices"], data["nodes"]) == (0, "cluster", 16, 2)
    assert len(data["links"]) == 96
    assert data["links"][0] == {
        "source": "gpu0",
        "target": "nvswitch0",
        "bandwidth_bytes_per_s": 450e9,
        "latency_s": pytest.approx(1.665e-6),
        "tier": "scale-up",
    }
    assert [(row["pairs"], row["bandwidth_bytes_per_s"]) for row in data["pair_kinds"]] == [
        (112, 450e9),
        (128, 50e9),
    ]
    assert sum(row["links"] for row in data["link_kinds"]) == 48
    code, out, _ = hw(capsys, "show", "h100_mixed_speed")
    assert code == 0
    assert "speed factors other than 1: 3: 0.8, 12: 0.9" in out
    assert "leaf – spine" in out


def test_show_one_device_cluster_and_large_cluster(capsys):
    assert hw_json(capsys, "show", "1xh100_sxm")[1]["pair_kinds"] == []
    code, data = hw_json(capsys, "show", "128x8xh100_sxm")
    assert code == 0
    assert "links" not in data
    assert sum(row["links"] for row in data["link_kinds"]) == 3072


def test_show_writes_a_profile_to_start_from(capsys, tmp_path):
    file = tmp_path / "mine.json"
    code, _, err = hw(capsys, "show", "h100_sxm", "--out", str(file))
    assert code == 0
    assert "mine.json" in err
    assert load_device(file) == load_device("h100_sxm")
    assert hw_json(capsys, "show", str(file))[1]["name"] == "h100_sxm"
    code, data = hw_json(capsys, "show", "8xh100_sxm", "--out", str(file))
    assert (code, data["error"]["type"]) == (2, "UsageError")


def test_show_cluster_file(capsys):
    from moesim.hardware import profiles_folder

    code, data = hw_json(
        capsys, "show", str(profiles_folder() / "clusters" / "rtx_a6000_bridged.yaml")
    )
    assert (code, data["devices"]) == (0, 4)
    assert [row["bandwidth_bytes_per_s"] for row in data["pair_kinds"]] == [56.25e9, 32e9]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "h100"], 2, "near: h100_sxm"),
        (["show", "axbxh100"], 2, "unknown device or cluster 'axbxh100'"),
        (["show", "2x0xh100"], 2, "has 0 devices"),
        (["show", "none.yaml"], 4, "none.yaml: no such file"),
        (["show", "q" * 500], 2, "unknown device or cluster"),
        (["show"], 2, "Missing argument"),
        (["schema", "gpu"], 2, "allowed: device, cluster"),
        (["nothing"], 2, "nothing"),
    ],
)
def test_errors(capsys, arguments, code, message):
    found, out, err = hw(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    found, data = hw_json(capsys, *arguments)
    assert (found, data["ok"], data["error"]["exit_code"]) == (code, False, code)


def test_schema(capsys, tmp_path):
    code, data = hw_json(capsys, "schema")
    assert (code, set(data["schemas"])) == (0, {"device", "cluster"})
    code, out, _ = hw(capsys, "schema", "device", "--out", str(tmp_path / "s.json"))
    body = json.loads(out)
    assert body == json.loads((tmp_path / "s.json").read_text())
    assert body["properties"]["schema"] == {"const": "moesim.device/1"}
    assert "schema" in body["required"]
    assert set(load_device("h100_sxm").to_dict()) <= set(body["properties"])
    cluster = json.loads(hw(capsys, "schema", "cluster")[1])
    assert [kind["properties"]["schema"]["const"] for kind in cluster["oneOf"]] == [
        "moesim.cluster/1"
    ] * 2


def test_every_reference_of_the_schema_has_a_target(capsys):
    for name in ("device", "cluster"):
        body = json.loads(hw(capsys, "schema", name)[1])
        text = json.dumps(body)
        used = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
        assert used
        assert used <= set(body["$defs"])


def test_hw_loads_nothing_heavy():
    script = (
        "import sys; from moesim.cli.console import run; from moesim.cli.app import app;"
        "run(app, ['hw', 'show', 'h100_sxm', '--json']);"
        "bad = {'torch', 'triton', 'matplotlib', 'pandas', 'pulp', 'networkx', 'numba'};"
        "sys.exit(sorted(bad & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
