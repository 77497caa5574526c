"""What holds for the whole run of the suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

LINKED_FOLDERS = ("planners", "kernels", "traces", "reports", "hwprofiles")


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_imported_past_the_package() -> Iterator[None]:
    """The top-level folders are parts of moesim: imported bare, every class would exist twice."""
    yield
    bare = sorted(name for name in LINKED_FOLDERS if name in sys.modules)
    assert not bare, f"imported without moesim.: {', '.join(bare)}"
