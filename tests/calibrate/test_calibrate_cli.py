"""``moesim calibrate tables``, on made-up tables and on the installed ones."""

import importlib.util
import json

import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from tests.calibrate.synthetic import moe_columns, write_table

installed = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="the extra measured is not installed",
)


def tables(capsys, *arguments):
    code = run(app, ["calibrate", "tables", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def tables_json(capsys, *arguments):
    code, out, _ = tables(capsys, *arguments, "--json")
    assert out.count("\n") == 1
    return code, json.loads(out)


@pytest.fixture
def folder(tmp_path):
    columns = moe_columns(8)
    columns["latency"][3] = 0.0
    write_table(tmp_path, "h100_sxm/moe/sglang/0.5.14", "moe", columns)
    write_table(tmp_path, "h100_sxm/new/sglang/0.5.14", "unheard_of", {"latency": [1.0]})
    reuse = "reuse:\n- {table: moe_perf, from_version: 0.5.9, reason: same}\n"
    (tmp_path / "h100_sxm/moe/sglang/0.5.14/reuse.yaml").write_text(reuse)
    return tmp_path


def test_listing(capsys, folder):
    code, data = tables_json(capsys, "--source", str(folder))
    assert (code, data["schema"], data["ok"], data["rows"]) == (
        0,
        "moesim.calibrate-tables/1",
        True,
        9,
    )
    moe, unknown = data["tables"]
    assert moe == {
        "system": "h100_sxm",
        "engine": "sglang",
        "version": "0.5.14",
        "family": "moe",
        "file": "moe",
        "operator": "moe",
        "rows": 8,
        "completed_from": "0.5.9",
        "completed_because": "same",
        "path": "h100_sxm/moe/sglang/0.5.14/moe_perf.parquet",
    }
    assert unknown["operator"] is None
    assert "hygiene" not in data
    code, out, err = tables(capsys, "--source", str(folder))
    assert code == 0
    assert "(not read)" in out
    assert "--operator" in err


def test_hygiene_of_an_operator(capsys, folder):
    arguments = ("--source", str(folder), "--operator", "moe", "--systems", "h100_sxm")
    code, data = tables_json(capsys, *arguments)
    assert code == 0
    hygiene = data["hygiene"]
    assert (hygiene["rows"], hygiene["kept"]) == (8, 7)
    rules = {rule["rule"]: rule["rows"] for rule in hygiene["rules"]}
    assert rules == {**dict.fromkeys(rules, 0), "non-positive": 1}
    code, out, _ = tables(capsys, *arguments)
    assert code == 0
    assert "1 of 8 rows dropped" in out
    assert "completed from 0.5.9" in out


@pytest.mark.parametrize(
    ("arguments", "expected", "words"),
    [
        (("--operator", "moes"), 2, "unknown operator moes"),
        (("--systems", "h300"), 4, "no tables of that name"),
        (("--operator", "gemm"), 2, "no measured table of gemm"),
        (("--operator", "moe", "--versions", "9"), 2, "no measured table of moe"),
    ],
)
def test_bad_options(capsys, folder, arguments, expected, words):
    code, _, err = tables(capsys, "--source", str(folder), *arguments)
    assert code == expected
    assert words in err
    code, data = tables_json(capsys, "--source", str(folder), *arguments)
    assert data["ok"] is False


def test_bad_source(capsys, tmp_path):
    code, _, err = tables(capsys, "--source", str(tmp_path))
    assert code == 4
    assert "no measured tables" in err


@installed
def test_the_installed_moe_tables_of_h100_and_h200(capsys):
    arguments = ("--operator", "moe", "--systems", "h100_sxm,h200_sxm")
    code, data = tables_json(capsys, *arguments)
    assert code == 0
    assert data["rows"] > 500_000
    assert {row["engine"] for row in data["tables"]} == {"sglang", "trtllm", "vllm"}
    assert all(row["rows"] > 40_000 for row in data["tables"])  # no mere additions
    hygiene = data["hygiene"]
    assert 0.001 < hygiene["dropped_share"] < 0.03
    outliers = next(rule for rule in hygiene["rules"] if rule["rule"] == "sibling-outlier")
    assert outliers["examples"][0]["times_too_slow"] > 10


@installed
def test_installed_tables_state_their_repeats_and_foreign_rows(capsys):
    code, data = tables_json(capsys, "--operator", "collective", "--versions", "all")
    assert code == 0
    assert data["repeat_noise"]["keys"] > 1000
    assert 0 < data["repeat_noise"]["median"] < 0.1
    code, data = tables_json(capsys, "--operator", "deepep_normal", "--versions", "all")
    rules = {rule["rule"]: rule for rule in data["hygiene"]["rules"]}
    # 23 rows of the H200 folder were taken on an H100, each a dispatch and a combine.
    assert rules["device"]["by_table"] == {"h200_sxm/sglang/0.5.6.post2": 46}


@installed
def test_every_installed_operator_that_is_small_can_be_read():
    from moesim.calibrate.hygiene import clean
    from moesim.calibrate.operators import OPERATORS, read_operator
    from moesim.calibrate.tables import open_catalogue

    catalogue = open_catalogue()
    seen = 0
    for operator in OPERATORS.values():
        if not operator.files:  # measured on one's own machine
            continue
        if sum(table.rows for table in catalogue.select(operator.files)) > 50_000:
            continue
        frame = read_operator(catalogue, operator.name)
        kept, report = clean(frame)
        repeats = next(f for f in report.findings if f.rule == "repeat")
        assert len(kept) > 0.97 * (len(frame) - len(repeats.rows)), operator.name
        seen += 1
    assert seen > 15
