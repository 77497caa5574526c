"""Markdown: the same content, in tables that hold together."""

import re
from dataclasses import replace

from moesim.reports import render_markdown
from moesim.reports.plan_report import build_report
from tests.reports.outcome_fixture import make_outcome


def _tables(text):
    """Runs of table lines as lists of unescaped cells."""
    tables, current = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            current.append([cell.strip().strip("*") for cell in cells])
        elif current:
            tables.append(current)
            current = []
    return tables


def test_planner_table_is_the_reports(large):
    head, rule, *rows = _tables(render_markdown(large))[0]
    table = build_report(large).planner_table
    assert tuple(head) == table.columns
    assert [tuple(row) for row in rows] == list(table.rows)
    assert rule[0].strip("-") == ""
    assert all(cell.endswith("-:") for cell in rule[1:])


def test_all_rows_of_a_table_have_its_columns(small, large, odd, hostile):
    for outcome in (small, large, hostile, *odd.values()):
        for table in _tables(render_markdown(outcome)):
            assert len({len(row) for row in table}) == 1


def test_it_says_what_the_page_says(small):
    text = render_markdown(small)
    for words in (
        small.trace_note, small.model.note, small.command, *small.inputs.values(),
        "--init-expert-location moesim-plan/sglang.json", build_report(small).bound,
        "home-rank", "`moesim-plan/plan.json`", *build_report(small).lead,
    ):  # fmt: skip
        assert words in text, words
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\n\n\n" not in text


def test_hostile_text_is_inert(hostile):
    text = render_markdown(hostile)
    assert "\x1b" not in text
    prose = re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.DOTALL)  # code blocks show anything
    prose = re.sub(r"(?<![`\\])(`+)(?!`) ?.*?(?<!`)\1(?!`)", "", prose)  # so do code spans
    assert "<script" not in prose
    assert "<img" not in prose
    assert not re.search(r"(?<!\\)\[a\]", prose)


def test_fences_are_longer_than_what_they_hold(small):
    text = render_markdown(replace(small, command="moesim plan ```` end"))
    assert "`````\nmoesim plan ```` end\n`````" in text


def test_names_with_underscores_stay_readable(small):
    assert "2x8xh100_sxm" in render_markdown(small)
    assert r"\_x\_" in render_markdown(replace(small, trace_name="_x_"))


def test_sparklines_rise_with_the_time():
    outcome = make_outcome()
    bars = re.findall("[▁▂▃▄▅▆▇█]+", render_markdown(outcome))
    assert [len(bar) for bar in bars] == [16, 16, 8, 8]  # devices, then layers, twice each
    before, after = (outcome.scores[k].cost for k in ("contiguous", "lpt-swap"))
    assert "█" in bars[2]
    assert max(bars[3]) < max(bars[2])
    total = after.layer_compute_s + after.layer_dispatch_s + after.layer_combine_s
    assert bars[3][int(total.argmin())] == min(bars[3])
    assert before.step_s > after.step_s


def test_edges(odd):
    for outcome in odd.values():
        assert render_markdown(outcome).startswith("# ")
    assert "Where to load" not in render_markdown(odd["nothing written"])
