"""``moesim trace import`` and ``moesim trace validate`` as commands."""

import json
import subprocess
import sys

import numpy as np
import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.cli.trace import parse_layers
from moesim.errors import UsageError
from moesim.traces.bundle import sample_path
from tests.traces import import_samples as samples

ROUTING = samples.known_routing()


@pytest.fixture
def command(capsys):
    def call(*words):
        code = run(app, [str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def array(tmp_path):
    file = tmp_path / "routed.npy"
    np.save(file, ROUTING.transpose(1, 0, 2))
    return file


def test_import_json(command, array, tmp_path):
    words = ["--format", "vllm", "--experts", 8, "--moe-layers", "1,2,4", "--model", "m"]
    out = tmp_path / "out"
    code, stdout, stderr = command("trace", "import", array, *words, "--out", out, "--json")
    assert (code, stderr) == (0, "")
    assert json.loads(stdout) == {
        "schema": "moesim.trace/1",
        "ok": True,
        "format": "vllm",
        "kind": "routing",
        "dialect": "array",
        "model": "m",
        "layers": 3,
        "moe_layers": [1, 2, 4],
        "experts": 8,
        "tokens": 12,
        "top_k": 2,
        "steps": None,
        "assignments": 72,
        "path": str(out),
        "dropped": {},
        "warnings": [],
    }
    code, stdout, _ = command("trace", "validate", out, "--json")
    assert code == 0
    data = json.loads(stdout)
    assert (data["schema"], data["ok"], data["problems"]) == ("moesim.trace/1", True, [])


def test_import_text_and_warning(command, array, tmp_path):
    words = ["--format", "vllm", "--experts", 8, "--out", tmp_path / "out"]
    code, stdout, stderr = command("trace", "import", array, *words)
    assert code == 0
    assert "3 MoE layers (0-2), 8 experts, 12 tokens, top-2" in stdout
    assert "--moe-layers" in stderr
    (tmp_path / "second").mkdir()
    words[-1] = tmp_path / "second"
    assert command("trace", "import", array, *words, "--quiet")[2] == ""


def test_import_counts(command, tmp_path):
    folder = samples.write_trtllm(tmp_path / "stat", ROUTING, raw=False)
    words = ["--format", "trtllm", "--experts", 8, "--iterations", "50-50", "--out"]
    code, stdout, _ = command("trace", "import", folder, *words, tmp_path / "out", "--json")
    data = json.loads(stdout)
    assert code == 0
    assert (data["kind"], data["steps"], data["tokens"]) == ("counts", 1, None)
    assert data["assignments"] == 6 * 3 * 2


def test_bad_input_is_an_object_and_exit_code_4(command, array, tmp_path):
    words = ["--format", "vllm", "--experts", 5, "--out", tmp_path / "out", "--json"]
    code, stdout, _ = command("trace", "import", array, *words)
    data = json.loads(stdout)
    assert code == 4
    assert data["ok"] is False
    assert data["error"]["file"] == str(array)
    assert data["error"]["allowed"].startswith("0 … 4")


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "other", "--experts", 8],
        ["--format", "vllm"],
        ["--experts", 8],
        ["--format", "vllm", "--experts", "x"],
        ["--format", "vllm", "--experts", 8, "--moe-layers", "3-1"],
        ["--format", "vllm", "--experts", 8, "--moe-layers", "a"],
        ["--format", "trtllm", "--experts", 8, "--iterations", "5-"],
    ],
)
def test_usage_errors(command, array, tmp_path, words):
    code, _, stderr = command("trace", "import", array, *words, "--out", tmp_path / "out")
    assert code == 2
    assert "fix:" in stderr


def test_validate_exit_code_and_list(command, tmp_path):
    out = tmp_path / "bad"
    out.mkdir()
    for file in sample_path().iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    routing = np.load(out / "routing.npy")
    routing[5, 7] = 99
    np.save(out / "routing.npy", routing)
    code, stdout, _ = command("trace", "validate", out, "--json")
    data = json.loads(stdout)
    assert (code, data["ok"]) == (4, False)
    assert {problem["field"] for problem in data["problems"]} == {"sha256", "layer 5, token 7"}
    code, stdout, _ = command("trace", "validate", out)
    assert code == 4
    assert "routing.npy, layer 5, token 7" in stdout
    assert command("trace", "validate", tmp_path / "none")[0] == 4


@pytest.mark.parametrize(
    ("text", "layers"),
    [("3-6", (3, 4, 5, 6)), ("5,1,3", (1, 3, 5)), ("0", (0,)), (" 1-2 , 7", (1, 2, 7))],
)
def test_layer_ranges(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "3-", "-3", "1,1", "1-3,2", "0-99999999", "1;2", "³"])
def test_bad_layer_ranges(text):
    with pytest.raises(UsageError, match="fix"):
        parse_layers(text)


def test_help_loads_nothing_heavy():
    program = (
        "import sys; from moesim.cli.app import app; from moesim.cli.console import run; "
        "run(app, ['trace', 'import', '--help']); "
        "heavy = {'numpy', 'torch', 'pandas', 'matplotlib', 'pyarrow', 'pulp'} & set(sys.modules); "
        "sys.exit(len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
