"""What holds for the whole run of the suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parent.parent)
LINKED_FOLDERS = ("planners", "kernels", "traces", "reports", "hwprofiles")


# `python -m pytest` puts the checkout on the path, where other packages would find the linked
# folders: transformers looks for a package called kernels.
sys.path[:] = [entry for entry in sys.path if entry not in (ROOT, "")]


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_imported_past_the_package() -> Iterator[None]:
    """The top-level folders are parts of moesim: imported bare, every class would exist twice."""
    yield
    bare = sorted(name for name in LINKED_FOLDERS if name in sys.modules)
    assert not bare, f"imported without moesim.: {', '.join(bare)}"
