"""``moesim capacity`` from the command line."""

import json

import pytest

from tests.cli.commands import moesim

WORDS = [
    "capacity", "--model", "qwen3-30b-a3b", "--devices", "h100_sxm", "--max-devices", "2",
    "--concurrency", "16", "--isl", "256", "--osl", "64",
]  # fmt: skip


def test_the_answer_as_json(capsys, tmp_path):
    answer = moesim(
        capsys, *WORDS, "--tpot", "0.05", "--ttft", "1", "--out", tmp_path / "r", "--json"
    )
    assert answer.code == 0
    data = answer.json
    assert data["schema"] == "moesim.capacity/1"
    assert data["ok"] is True
    for entry in (data["best"], *data["frontier"]):
        assert entry["devices"] <= 2
        assert entry["lo"] <= entry["tokens_per_s_per_device"] <= entry["hi"]
        assert entry["ttft_s"] > 0
        assert entry["usd_per_mtok"] > 0
        assert entry["energy_j_per_token"] > 0
        assert set(entry["layout"]) == {
            "tp", "dp", "ep", "moe_tp", "pp", "dispatch", "redundant"
        }  # fmt: skip
    assert data["best"]["ttft_s"] <= 1
    assert data["best"]["tpot_s"] <= 0.05
    assert any("sglang.launch_server" in line for line in data["best"]["launch"]["replica"])
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("<script") == 2  # data, and the page's own
    assert data["best"]["name"] in page
    assert (tmp_path / "r" / "report.md").read_text().startswith("# ")
    assert "<svg" in (tmp_path / "r" / "frontier.svg").read_text()


def test_the_answer_for_a_person(capsys):
    answer = moesim(capsys, *WORDS, "--engine", "vllm", "--quiet")
    assert answer.code == 0
    assert "vllm serve" in answer.out
    assert "layouts that fit" in answer.out


def test_same_seed_same_bytes(capsys):
    first, second = (moesim(capsys, *WORDS, "--json").json for _ in range(2))
    first.pop("solve_s")
    second.pop("solve_s")
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_launch_flags_name_every_size_of_the_layout(capsys, engine):
    words = ["--engine", engine, "--kv-dtypes", "fp8", "--mode", "aggregated", "--json"]
    data = moesim(capsys, *WORDS, *words).json
    launch = " ".join(data["best"]["launch"]["replica"])
    layout = data["best"]["layout"]
    assert "fp8" in launch
    if layout["tp"] * layout["dp"] > 1:
        size = layout["tp"] if engine == "vllm" else layout["tp"] * layout["dp"]
        assert f"size {size}" in launch.replace("tp_size", "tp-size")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--rps", "1"], 2, "exactly one"),
        (["--devices", "h1000"], 2, "h1000"),
        (["--devices", ","], 2, "--devices"),
        (["--devices", "fpga_zcu102"], 2, "fpga_zcu102"),
        (["--max-devices", "0"], 2, "--max-devices"),
        (["--isl", "0"], 2, "--isl"),
        (["--tpot", "0"], 2, "--tpot"),
        (["--percentile", "42"], 2, "--percentile"),
        (["--price", "h100_sxm"], 2, "--price"),
        (["--price", "b200_sxm=1"], 2, "b200_sxm"),
        (["--redundant", "x"], 2, "--redundant"),
        (["--kv-dtypes", "int3"], 2, "int3"),
        (["--routing", "flat"], 2, "flat"),
        (["--lengths", "normal"], 2, "normal"),
        (["--tpot", "0.000001"], 3, "keeps the targets"),
        (["--model", "deepseek-v3"], 3, "fits on no layout"),
        (["--model", "nobody"], 2, "nobody"),
    ],
)
def test_bad_questions_are_refused_with_help(capsys, words, code, says):
    answer = moesim(capsys, *WORDS, *words)
    assert answer.code == code, answer.err
    assert says in answer.err
    assert "fix: " in answer.err
    assert "Traceback" not in answer.err
    error = moesim(capsys, *WORDS, *words, "--json").json["error"]
    assert says in error["message"]
