"""Papers' figures: documents, errors of every check, the accepted table, the verb."""

import json
from importlib import import_module

import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.errors import InputError
from moesim.reports.paper import Paper
from moesim.reports.paper_drift import accept, find_drift
from moesim.reports.paper_figures import PAPERS
from moesim.reports.paper_run import paper_rows, run_paper
from moesim.reports.papers_page import render_papers
from moesim.reports.prediction import Prediction
from moesim.reports.scenario import scenario_ids, scenario_path, scenario_schema
from moesim.reports.validation import count_checks, summarise

POINT = {"id": "speed", "title": "t", "where": "table 1", "reference": 10.0, "tolerance": 0.1}
BAND = POINT | {"id": "range", "reference": [1.0, 2.0], "check": "band", "tolerance": 0.0}
SMALL = {
    "schema": "moesim.paper/1",
    "id": "small",
    "title": "<b>Small</b>",
    "source": {"authors": "A. Author", "url": "https://example.org"},
    "fitted_on": ["speed"],
    "figures": [POINT, BAND],
}


@pytest.mark.parametrize(
    ("predicted", "error", "ok"),
    [(9.0, -0.1, True), (8.9, -0.11, False), (11.0, 0.1, True)],
)
def test_a_point_is_within_its_tolerance(predicted, error, ok):
    rows = paper_rows(Paper.parse(SMALL), {"speed": Prediction(predicted), "range": Prediction(1)})
    assert rows[0].error == pytest.approx(error)
    assert rows[0].ok is ok
    assert "fitted on this figure" in rows[0].note


@pytest.mark.parametrize(
    ("predicted", "error", "ok"),
    [(1.0, 0.0, True), (1.7, 0.0, True), (2.2, 0.1, False), (0.9, -0.1, False)],
)
def test_a_band_is_its_ends(predicted, error, ok):
    rows = paper_rows(
        Paper.parse(SMALL), {"speed": Prediction(10), "range": Prediction(predicted, 0, 3)}
    )
    assert rows[1].error == pytest.approx(error)
    assert rows[1].ok is ok
    assert rows[1].to_dict()["band"] == [1.0, 2.0]
    assert count_checks(rows)["band"] == {"n": 1, "covered": 1, "ok": int(ok)}
    assert summarise(rows)["mape"] == 0  # of the point alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"check": "band"}, "two ends"),
        ({"reference": [1, 2]}, "two ends"),
        ({"check": "band", "reference": [2, 1]}, "empty"),
        ({"check": "exact"}, "wider than rounding"),
        ({"check": "near"}, "exact"),
        ({"tolerance": -1}, "greater than"),
    ],
)
def test_figures_that_contradict_themselves(changes, words):
    with pytest.raises(InputError, match=words):
        Paper.parse(SMALL | {"figures": [POINT | changes]})


def test_only_figures_that_the_file_lists_are_fitted_on():
    assert Paper.parse(SMALL).fitted("speed") == 10.0
    with pytest.raises(InputError, match="is scored") as caught:
        Paper.parse(SMALL | {"fitted_on": []}).fitted("speed")
    assert "no figure" in str(caught.value)
    with pytest.raises(InputError, match="is scored"):
        Paper.parse(SMALL).fitted("no-such-figure")
    with pytest.raises(InputError, match="band"):
        Paper.parse(SMALL | {"fitted_on": ["range"]}).fitted("range")


@pytest.mark.parametrize(
    ("paper", "figure"), [("duplex", "choose-best"), ("pangu-pro-moe", "decode-moe-1")]
)
def test_modules_that_fit_need_their_figure_listed(paper, figure):
    found = Paper.load(scenario_path(paper))
    assert figure in found.fitted_on
    with pytest.raises(InputError, match="is scored"):
        import_module(PAPERS[paper]).predict(found.model_copy(update={"fitted_on": ()}))


def test_every_figure_is_predicted_or_says_why_not():
    paper = Paper.parse(SMALL)
    with pytest.raises(InputError, match="neither"):
        paper_rows(paper, {"speed": Prediction(1)})
    with pytest.raises(InputError, match="not a figure"):
        paper_rows(paper, {"speed": Prediction(1), "range": Prediction(1), "x": Prediction(1)})
    silent = Paper.parse(SMALL | {"figures": [POINT | {"not_covered": "unknown"}, BAND]})
    with pytest.raises(InputError, match="and not covered"):
        paper_rows(silent, {"speed": Prediction(1), "range": Prediction(1)})
    rows = paper_rows(silent, {"range": Prediction(1)})
    assert (rows[0].predicted, rows[0].ok, rows[0].note) == (None, None, "not covered: unknown")
    with pytest.raises(InputError, match="not a number"):
        paper_rows(paper, {"speed": Prediction(float("nan")), "range": Prediction(1)})


def test_drift_is_what_moved_or_got_worse(tmp_path):
    paper, table = Paper.parse(SMALL), tmp_path / "accepted.json"

    def rows(speed):
        return paper_rows(paper, {"speed": Prediction(speed), "range": Prediction(1.5)})

    accept(rows(9.02), table, complete=True)
    assert find_drift(rows(9.09), table, complete=True) == ()
    assert [item.what for item in find_drift(rows(9.2), table, complete=True)] == ["moved"]
    assert [item.what for item in find_drift(rows(8.99), table, complete=True)] == ["worse"]
    assert [item.what for item in find_drift(rows(9.02)[:1], table, complete=True)] == ["gone"]
    assert find_drift(rows(9.02)[:1], table, complete=False) == ()
    table.write_text('{"schema": "x"}')
    with pytest.raises(InputError, match="accepted"):
        find_drift(rows(9.0), table, complete=True)


def test_every_paper_has_a_module_and_every_module_a_paper():
    ids = [name for name in scenario_ids() if scenario_schema(scenario_path(name)) == SCHEMA]
    assert sorted(ids) == sorted(PAPERS)


SCHEMA = Paper.schema_id
QUICK = sorted(PAPERS)


@pytest.mark.parametrize("name", QUICK)
def test_predictions_are_as_accepted(name):
    result = run_paper(scenario_path(name))
    moved = [item for item in find_drift(result.rows, complete=False) if item.what != "new"]
    assert moved == []
    for row in result.rows:
        assert row.check != "exact" or row.ok is not False, row.id


def test_page_escapes_and_holds_every_figure():
    result = run_paper(scenario_path("transforms"))
    text = render_papers([result])
    assert all(row.id.partition(":")[2] in text for row in result.rows)
    assert text.count("<script") == 2  # data, and the page's own


def test_verb(capsys, tmp_path):
    def call(*arguments):
        code = run(app, ["validate", "papers", "--only", "transforms", "--json", *arguments])
        return code, json.loads(capsys.readouterr().out)

    table = str(tmp_path / "accepted.json")
    code, found = call("--accept", "--table", table, "--html", str(tmp_path / "page.html"))
    assert code == 0
    assert (tmp_path / "page.html").is_file()
    assert found["summary"]["checks"]["exact"]["n"] > 10
    assert call("--drift", "--table", table)[0] == 0
    stored = json.loads((tmp_path / "accepted.json").read_text())
    stored["rows"]["transforms:jamba-cache"]["predicted"] *= 1.02
    (tmp_path / "accepted.json").write_text(json.dumps(stored))
    code, found = call("--drift", "--table", table)
    assert code == 6
    assert [item["what"] for item in found["drift"]] == ["moved"]
