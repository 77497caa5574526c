"""What tests of planners share."""

import pytest

from tests.cli.commands import tiny_model, tiny_trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model (``config.json``) and a trace of it (``trace``)."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(folder)
    tiny_trace(folder / "trace")
    return folder
