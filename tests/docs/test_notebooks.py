"""Notebooks print what they show, and hold nothing of the machine that ran them."""

import re

import nbformat
import pytest

from tests.docs.notebooks import NOTEBOOKS, executed, read, texts

NUMBER = r"\d[\d,]*(?:\.\d+)?"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def differences(stored: str, now: str) -> list[str]:
    """Lines whose words differ, or a number by more than 2 %: last digits of fits may."""
    before, after = stored.splitlines(), now.splitlines()
    found = [] if len(before) == len(after) else [f"{len(before)} lines, now {len(after)}"]
    for old, new in zip(before, after, strict=False):
        numbers = [
            [float(one.replace(",", "")) for one in re.findall(NUMBER, line)] for line in (old, new)
        ]
        same_words = re.sub(NUMBER, "#", old).split() == re.sub(NUMBER, "#", new).split()
        if not same_words or numbers[0] != pytest.approx(numbers[1], rel=0.02, abs=0.011):
            found.append(f"{old}\n{new}")
    return found


def test_a_notebook_prints_what_it_shows(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    shown, now = texts(read(path)), texts(executed(path, tmp_path))
    assert len(shown) >= 4
    for before, after in zip(shown, now, strict=True):
        assert before
        assert differences(before, after) == []


def test_differences_are_found():
    assert differences("a 1.00 b", "a 1.01 b") == []
    assert differences("a 1,000 b", "a 1,100 b")
    assert differences("a 1 b", "c 1 b")
    assert differences("a 1", "a 1\nb")


def test_a_notebook_is_valid_small_and_of_no_machine(path):
    notebook = read(path)
    nbformat.validate(notebook)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/(?:home|root|tmp|work|usr|Users)/", text)
    assert not re.search(r'"(?:execution|collapsed|iopub[.\w]*)":', text)
    assert not re.search(r"<(?:script|img|link|iframe)\b", text)
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    drawn = [out["data"] for cell in cells for out in cell["outputs"] if "data" in out]
    assert any("text/html" in data for data in drawn)
