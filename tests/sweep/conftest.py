"""Worker processes import the tests' points by name."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    # A spawned process takes its path from this one.
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
