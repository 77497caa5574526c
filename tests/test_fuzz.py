"""A few mutated files at every reader; ``python -m tests.benchmarks.fuzz`` takes thousands."""

import pytest

from tests.benchmarks.fuzz import failures, readers


@pytest.mark.parametrize("name", list(readers()))
def test_readers_read_or_refuse(name):
    assert list(failures(name, 40, seed=1)) == []
