"""The terminal: nothing too wide, nothing wrapped in tables, no colour where none is wanted."""

import io
import re

import pytest
from rich.console import Console

from moesim.cli.plan_terminal import terminal_summary
from moesim.reports.plan_report import build_report


def _show(outcome, width=80, **options):
    stream = options.pop("file", None) or io.StringIO()
    terminal_summary(outcome, Console(file=stream, width=width, **options))
    return stream.getvalue() if isinstance(stream, io.StringIO) else stream


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_line_is_wider_than_the_console(small, large, odd, width):
    for outcome in (small, large, *odd.values()):
        lines = _show(outcome, width).splitlines()
        assert max(len(line.rstrip()) for line in lines) <= width


@pytest.mark.parametrize("width", range(80, 100))
def test_no_line_starts_with_a_unit(small, width):
    assert not re.search(r"^(%|ms|×) ", _show(small, width), re.MULTILINE)


@pytest.mark.parametrize("width", [80, 120])
def test_each_planner_has_one_line_with_its_numbers(large, width):
    lines = _show(large, width).splitlines()
    table = build_report(large).planner_table
    columns = ["step time", "speedup", "holdout speedup", "balance", "inter-node"]
    columns += ["above bound", "solve time"]
    columns += ["remote", "holdout step", "outcome"] if width == 120 else []
    for cells in table.rows:
        row = dict(zip(table.columns, cells, strict=True))
        (line,) = (x for x in lines if x.strip(" ▸").startswith(f"{row['planner']} ")
                   and x.count("×") == 2)  # fmt: skip
        for column in columns:
            assert row[column] in line, column
        assert ("▸" in line) == (row["planner"] == large.chosen)
        assert "…" not in line


def test_headline_bound_and_files_are_there(small):
    text = " ".join(_show(small).split())
    report = build_report(small)
    assert text.startswith(report.headline)
    for words in (*report.lead, report.bound, small.trace_note, small.model.note):
        assert " ".join(words.split()) in text
    for kind, path in small.files.items():
        assert f"{kind} {path}" in text


def test_bars_are_in_proportion(large):
    lines = [line for line in _show(large, 120).splitlines() if "━" in line]
    assert len(lines) == 8
    values = [float(re.search(r"([\d.]+) µs", line)[1]) for line in lines]
    bars = [line.count("━") for line in lines]
    assert bars[0] == max(bars)
    assert [b / bars[0] for b in bars] == pytest.approx([v / values[0] for v in values], abs=0.02)
    assert f"layer {build_report(large).slowest.rows[0][0]} " in lines[0]


def test_a_long_path_is_not_broken(small):
    from dataclasses import replace

    path = "/a" * 80 + "/plan.json"
    assert path in _show(replace(small, files={"plan": path}))


def test_plain_when_not_a_terminal_and_colour_when_it_is(small, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in _show(small)
    terminal = {"force_terminal": True, "color_system": "standard", "legacy_windows": False}
    assert re.search("\x1b\\[[0-9;]*36m", _show(small, **terminal))
    monkeypatch.setenv("NO_COLOR", "1")
    coloured = re.findall("\x1b\\[([0-9;]*)m", _show(small, **terminal))
    assert all(int(code) < 30 for codes in coloured for code in codes.split(";") if code)


def test_names_are_neither_markup_nor_escape_sequences(hostile):
    text = _show(hostile)
    assert "\x1b" not in text
    assert "[red]" in text


def test_ascii_terminals_get_ascii(small):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    terminal_summary(small, Console(file=stream, width=80))
    stream.flush()
    text = raw.getvalue().decode("ascii")
    assert "1.37x" in text
    assert "> lpt-swap" in text
