"""The documentation does what it says: commands run, links lead somewhere, every verb is there."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from moesim.cli.app import app
from tests.cli.commands import moesim
from tests.docs import accuracy
from tests.docs.notebooks import NOTEBOOKS
from tests.docs.pages import (
    DOCS,
    LINKED,
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    commands,
    links,
)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _verbs(command: Any, name: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name
        return
    for word, verb in inner.items():
        yield from _verbs(verb, f"{name} {word}")


VERBS = sorted(_verbs(typer.main.get_command(app), "moesim"))
RUN = [
    page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))
]


@pytest.mark.parametrize("page", RUN, ids=_name)
def test_blocks_of_a_page_run_in_order_and_print_what_it_shows(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "kernels").symlink_to(ROOT / "kernels")  # paths of a checkout
    printed: set[str] = set()
    shown_was_run = True
    for block in blocks(page):
        if block.not_run is not None:
            assert block.not_run, f"a block of {_name(page)} does not say why it is not run"
            shown_was_run = False
            continue
        if block.title is not None:
            file = tmp_path / block.title
            assert file.resolve().is_relative_to(tmp_path), block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        if block.language in ("bash", "python"):
            printed |= _lines(_output(block, page, capsys))
            shown_was_run = True
        if block.language == "text" and shown_was_run:
            _assert_printed(block.text, printed)


def _output(block: Block, page: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the commands of a block, or its Python file, print."""
    if block.language == "python":
        assert block.title, f"{_name(page)}: a Python block is a file with a title"
        runpy.run_path(block.title, run_name="__main__")
        return capsys.readouterr().out
    text = ""
    for words in commands(block.text):
        assert words[0] == "moesim", f"{_name(page)}: not a moesim command: {words}"
        answer = moesim(capsys, *words[1:])
        assert answer.code == 0, f"{_name(page)}: {' '.join(words)}\n{answer.err}"
        text += answer.out + answer.err
    return text


def _lines(text: str) -> set[str]:
    """Lines without the time at their end, which may be that of the machine that ran them.

    Widths of columns depend on such times: spaces count once.
    """
    words = (" ".join(line.split()) for line in text.splitlines())
    return {re.sub(r" ?[\d.]+ (µs|ms|s)\.?$", "", line) for line in words}


def _assert_printed(shown: str, printed: set[str]) -> None:
    """Nearly all lines: the last digit of a fit may differ between machines."""
    lines = {line for line in _lines(shown) if line and not line.endswith("…")}
    absent = lines - printed
    assert len(absent) <= 0.2 * len(lines), "\n".join(["shown, but not printed:", *absent])


@pytest.mark.parametrize("page", LINKED, ids=_name)
def test_links_of_a_page_lead_somewhere(page):
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        outside = DOCS in page.parents and not target.is_relative_to(DOCS)
        if outside or not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken, f"{_name(page)} links to {broken}"


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](gone.md) [y](#a-b) `[z](code.md)` [h](https://example.org)\n")
    assert links(page) == ["gone.md", "#a-b"]
    assert anchors(page) == {"a-b"}


def test_every_verb_is_documented():
    assert len(VERBS) > 30
    text = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    absent = [verb for verb in VERBS if not re.search(rf"\b{verb}\b", text)]
    assert not absent, f"no page of docs/ mentions {absent}"


def test_pages_ask_nothing_of_other_hosts():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in site
    for page in PAGES:
        remote = re.findall(r"!\[[^\]]*\]\(https?:|<(?:script|img|link|iframe)\b", page.read_text())
        assert not remote, f"{_name(page)}: {remote}"


def test_every_page_is_in_the_navigation():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\S+\.md)$", site, re.MULTILINE))
    made = {path.relative_to(DOCS).with_suffix(".md").as_posix() for path in NOTEBOOKS}
    assert named == {page.relative_to(DOCS).as_posix() for page in PAGES} | made


def test_commands_that_are_not_run_have_known_options():
    for page in PAGES:
        for block in blocks(page):
            if block.not_run is None or block.language != "bash":
                continue
            for words in commands(block.text):
                if words[0] != "moesim":
                    continue
                verb, rest = typer.main.get_command(app), words[1:]
                while rest and (inner := getattr(verb, "commands", {}).get(rest[0])):
                    verb, rest = inner, rest[1:]
                known = {name for option in verb.params for name in option.opts}
                used = {word.partition("=")[0] for word in rest if word.startswith("--")}
                assert used <= known, f"{_name(page)}: {' '.join(words)}: {used - known}"


def test_accuracy_page_is_up_to_date():
    page = accuracy.PAGE.read_text(encoding="utf-8")
    assert page == accuracy.render(), "run python -m tests.docs.accuracy"


def test_files_named_in_the_model_reference_exist():
    text = (DOCS / "reference" / "model.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    assert len(named) > 15
    absent = [file for file in named if not (ROOT / "moesim" / file).is_file()]
    assert not absent


def test_tests_named_as_evidence_exist():
    text = (DOCS / "reference" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", text))
    assert len(named) > 50
    tests = ROOT / "tests"
    absent = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if f"def {name}(" not in (tests / file).read_text(encoding="utf-8")
    ]
    assert not absent


def test_output_that_was_not_printed_is_found():
    printed = _lines("a  1\nb  2  30 µs\nc\nd\ne\n")
    _assert_printed("a  1\nb  2  59 µs\n…\n", printed)
    with pytest.raises(AssertionError, match="b 3"):
        _assert_printed("a  1\nb  3\nc\nd\n", printed)
