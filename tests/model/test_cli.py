"""``moesim model`` on the command line."""

import json
import subprocess
import sys

import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.model import dense_model_names, load_model, model_names

from .test_specs import MIXTRAL


def test_show_json(capsys, tmp_path):
    assert run(app, ["model", "show", "deepseek-ai/DeepSeek-V3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "moesim.model/1"
    assert shown["ok"] is True
    assert shown["total_parameters"] == 671026404352
    assert shown["moe_layers"] == list(range(3, 61))
    for key in ("name", "architecture", "active_parameters", "layers", "experts", "top_k"):
        assert key in shown
    path = tmp_path / "model.json"
    path.write_text(json.dumps(shown))
    assert load_model(path) == load_model("deepseek-v3")


def test_show_text(capsys):
    assert run(app, ["model", "show", "deepseek-v3"]) == 0
    out = capsys.readouterr().out
    for words in ("671.03 B total", "37.55 B active", "3-60 (58 layers)", "256 per MoE layer"):
        assert words in out
    assert run(app, ["model", "show", "small-moe-30b-dims"]) == 0
    assert "recorded from a small real Mixture-of-Experts model" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*model_names(), *dense_model_names()])
def test_every_model_can_be_shown(name, capsys):
    assert run(app, ["model", "show", name]) == 0
    assert "per token" in capsys.readouterr().out


def test_list(capsys):
    assert run(app, ["model", "list"]) == 0
    assert "deepseek-v3 " in capsys.readouterr().out
    assert run(app, ["model", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed["models"]] == [*model_names(), *dense_model_names()]


def test_errors(capsys, tmp_path):
    assert run(app, ["model", "show", "nothing-like-it"]) == 2
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MIXTRAL | {"num_experts_per_tok": 9}))
    assert run(app, ["model", "show", str(path)]) == 4
    assert "num_experts_per_tok" in capsys.readouterr().err
    assert run(app, ["model", "show", str(path), "--json"]) == 4
    error = json.loads(capsys.readouterr().out)
    assert error["ok"] is False
    assert error["error"]["field"] == "num_experts_per_tok"


def test_help_and_model_load_nothing_heavy():
    code = (
        "import sys, moesim.cli.app, moesim.model; moesim.model.load_model('mixtral-8x7b');"
        "print([m for m in ('torch', 'transformers', 'pandas', 'matplotlib', 'pulp', 'numba')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
