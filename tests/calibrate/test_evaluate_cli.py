"""``moesim calibrate evaluate`` and ``fit`` on a made-up table."""

import json

import numpy as np
import pytest

from moesim.calibrate.registry import CALIBRATED, calibrated_operator
from moesim.cli.app import app
from moesim.cli.console import run
from moesim.errors import UsageError
from moesim.operators.moe_fits import FittedMoe
from tests.calibrate.synthetic import write_table
from tests.calibrate.test_fit_moe import rows, timed

RENAMED = {
    "tokens": "num_tokens",
    "hidden": "hidden_size",
    "inter": "inter_size",
    "top_k": "topk",
    "experts": "num_experts",
    "moe_tp": "moe_tp_size",
    "moe_ep": "moe_ep_size",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables of two systems whose times the physics made."""
    folder = tmp_path_factory.mktemp("measured")
    for system in ("h100_sxm", "h200_sxm"):
        frame = timed(rows(system), noise=0.03).frame
        columns = {new: frame[old].tolist() for old, new in RENAMED.items()}
        columns["distribution"] = frame.text("distribution").tolist()
        columns["latency"] = (frame["latency_s"] * 1e3).tolist()
        text = {"kernel_source": "moe_torch_flow_cutlass", "moe_dtype": "bfloat16"}
        columns |= {name: [value] * len(frame) for name, value in text.items()}
        write_table(folder, f"{system}/moe/trtllm/1.0", "moe", columns)
    return folder


def call(capsys, *arguments):
    code = run(app, ["calibrate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_evaluate(capsys, folder):
    arguments = ("--source", str(folder), "--operator", "moe", "--split", "random")
    options = ("--fit-fraction", "0.5", "--seed", "1", "--no-residual", "--json")
    code, out, _ = call(capsys, "evaluate", *arguments, *options)
    data = json.loads(out)
    assert code == 0
    assert (data["schema"], data["ok"], data["seed"]) == ("moesim.calibrate/1", True, 1)
    assert data["systems"] == ["h100_sxm", "h200_sxm"]
    assert data["rows"] == data["covered"] == pytest.approx(len(rows()), abs=5)
    for name in ("mape", "median_ape", "p90_ape"):
        assert 0 < data[name] < 0.2
    assert 0.6 < data["interval_coverage"] <= 1
    assert {"tokens<=64", "tokens>1024", "system=h200_sxm"} <= set(data["by_regime"])
    (fits,) = data["coefficients"].values()
    assert fits["h100_sxm/trtllm/1.0/moe_torch_flow_cutlass/bfloat16"]["rows"] > 100
    assert data["hygiene"]["kept"] <= data["hygiene"]["rows"]
    again = json.loads(call(capsys, "evaluate", *arguments, *options)[1])
    assert again == data


def test_evaluate_holds_out_one_system(capsys, folder):
    arguments = ("--source", str(folder), "--split", "leave-system-out")
    code, out, _ = call(capsys, "evaluate", *arguments, "--hold-out", "h200_sxm")
    assert code == 0
    assert "system=h200_sxm" in out
    assert "system=h100_sxm" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--operator", "unheard"), "no fitted model of operator unheard"),
        (("--split", "unheard"), "unknown split unheard"),
        (("--hold-out", "b200"), "nothing is held out under b200"),
        (("--split", "random", "--fit-fraction", "1"), "fit fraction"),
    ],
)
def test_what_evaluate_refuses(capsys, folder, arguments, message):
    code, _, err = call(capsys, "evaluate", "--source", str(folder), *arguments)
    assert code == 2
    assert message in err


def test_the_residual_is_reported_beside_the_physics(capsys, folder):
    arguments = ("--source", str(folder), "--split", "random", "--fit-fraction", "0.5")
    code, out, _ = call(capsys, "evaluate", *arguments, "--residual", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["residual"] is True
    (fits,) = data["coefficients"].values()
    assert all(fit["residual"]["trees"] > 0 for fit in fits.values())


def test_an_operator_without_residual_says_so(monkeypatch):
    monkeypatch.setitem(CALIBRATED, "plain", "builtins:object")
    with pytest.raises(UsageError, match="plain has no learned residual"):
        calibrated_operator("plain", residual=True)


def test_fit_writes_what_running_reads(capsys, folder, tmp_path):
    arguments = ("--source", str(folder), "--date", "2026-01-01", "--out", str(tmp_path))
    code, out, _ = call(capsys, "fit", *arguments, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["schema"] == "moesim.calibrate-fit/1"
    (written,) = data["operators"]  # all operators that the folder has tables of
    assert (written["operator"], written["fits"]) == ("moe", 2)
    document = FittedMoe.load(tmp_path / "moe.json")
    assert document.date == "2026-01-01"
    assert "calibrate fit" in document.command
    fit = document.find("h200_sxm", "trtllm", "bfloat16")
    assert set(fit.intervals) == {"decode", "mixed", "prefill"}
    for low, high in fit.intervals.values():
        assert 0.5 < low < high < 2
    assert np.isfinite(fit.coefficients.vector()).all()
