"""The page: whole, closed to the outside, the same every time, and usable by everyone."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moesim.reports import render_html, write_report
from moesim.reports.explorer import script_policy, script_text
from moesim.reports.plan_report import build_report
from tests.reports.html_elements import Elements
from tests.reports.outcome_fixture import HOSTILE


@pytest.fixture(scope="module")
def page(small):
    return render_html(small)


@pytest.fixture(scope="module")
def big_page(large):
    return render_html(large)


def test_tags_balance(page, big_page):
    for text in (page, big_page):
        assert text.startswith("<!DOCTYPE html>")
        assert Elements(text).open == []


def only_own_scripts(text):
    """Scripts are data, or the one that the policy names by its hash."""
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.S)
    own = [body for attributes, body in scripts if "application/json" not in attributes]
    assert own == [script_text()]
    assert script_policy() in text
    return [json.loads(body) for attributes, body in scripts if "application/json" in attributes]


def test_nothing_is_loaded_and_nothing_else_runs(page, big_page):
    for text in (page, big_page):
        parsed = Elements(text)
        assert len(only_own_scripts(text)) == 2
        tags = {tag for tag, _ in parsed.elements}
        assert not tags & {"link", "iframe", "object", "embed", "form", "base", "img"}
        for tag, attrs in parsed.elements:
            for name, value in attrs.items():
                assert not name.startswith("on"), tag
                if name in ("src", "href", "xlink:href", "data", "action", "poster"):
                    assert value.startswith(("#", "data:image/png;base64,")), (tag, value[:40])
        css = text[text.index("<style>") : text.index("</style>")]
        assert "@import" not in css
        assert "url(" not in css
        policy = next(m for m in parsed.all("meta") if "http-equiv" in m)["content"]
        assert "default-src 'none'" in policy


def test_hostile_text_stays_text(hostile):
    text = render_html(hostile)
    parsed = Elements(text)
    assert parsed.open == []
    only_own_scripts(text)
    assert not parsed.all("img")
    assert not any(name.startswith("on") for _, attrs in parsed.elements for name in attrs)
    assert "\x1b" not in text
    shown = HOSTILE.replace("\x1b", "\ufffd")
    assert "".join(parsed.text).count(shown) >= 12


def test_hostile_text_cannot_reach_a_template_placeholder(small):
    text = render_html(replace(small, trace_name="$style ${facts}"))
    assert "$style ${facts}" in "".join(Elements(text).text)


def test_every_cell_of_the_planner_table_is_shown(small, page):
    cells = [cell.strip() for cell in Elements(page).cells]
    for row in build_report(small).planner_table.rows:
        start = next(i for i, cell in enumerate(cells) if cell.startswith(row[0]))
        assert tuple(cells[start + 1 : start + len(row)]) == row[1:]


def test_sections_say_what_they_must(small, page):
    text = " ".join("".join(Elements(page).text).split())
    for words in (
        small.trace_note, small.model.note, small.command, f"moesim {small.version}",
        *small.inputs, *small.inputs.values(), *small.files.values(), "Seed",
        "--enable-expert-parallel --expert-placement moesim-plan/vllm.json",
        "home-rank", "spec", "decode", "128 tokens", "43,008 tokens",
    ):  # fmt: skip
        assert words in text, words


def test_same_outcome_same_bytes_in_any_process(small, page, tmp_path):
    assert render_html(small) == page
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.reports.outcome_fixture import make_outcome\n"
        "from moesim.reports import render_html\n"
        "import hashlib; print(hashlib.sha256(render_html(make_outcome()).encode()).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[2])],
        capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(filter(None, sys.path)),
             "HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path),
             "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert run.stdout.strip() == hashlib.sha256(page.encode()).hexdigest()


def test_it_is_small(page, big_page):
    assert len(page.encode()) < 150_000
    assert len(big_page.encode()) < 1_000_000


def test_every_picture_is_described_and_every_heading_scoped(page):
    parsed = Elements(page)
    pictures = [attrs for _, attrs in parsed.elements if attrs.get("role") == "img"]
    assert len(pictures) == len(parsed.all("svg")) == 7
    assert all(len(attrs["aria-label"]) > 40 for attrs in pictures)
    assert len({attrs["aria-label"] for attrs in pictures}) == 7
    assert all(attrs["aria-hidden"] == "true" for attrs in parsed.all("svg"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in parsed.all("th"))
    assert parsed.all("html")[0]["lang"] == "en"
    assert len(parsed.all("h1")) == 1
    assert any(m.get("name") == "viewport" for m in parsed.all("meta"))


def test_ids_are_unique_and_references_resolve(big_page):
    ids = re.findall(r'\sid="([^"]+)"', big_page)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:url\(|href=")#([\w.-]+)', big_page)) == set(ids)


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_has_contrast_in_light_and_dark(page):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    css = page[page.index("<style>") : page.index("</style>")]
    schemes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes[:2]:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", scheme))
        for text in ("ink", "muted", "accent"):
            for ground in ("page", "card", "accent-soft"):
                a, b = sorted(_luminance(colours[name]) for name in (text, ground))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (text, ground)


def test_edges(odd):
    for name, outcome in odd.items():
        parsed = Elements(render_html(outcome))
        assert parsed.open == [], name
    assert len(Elements(render_html(odd["baseline chosen"])).all("svg")) == 4
    assert "Where to load" not in render_html(odd["nothing written"])


def test_write_report(small, page, tmp_path):
    written = write_report(small, tmp_path / "new" / "folder")
    assert set(written) == {"report.md", "report.html"}
    assert written["report.html"].read_text(encoding="utf-8") == page
    assert written["report.md"].read_text(encoding="utf-8").startswith("# lpt-swap")
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2
