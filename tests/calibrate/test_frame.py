"""Columnar frames against plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.calibrate.frame import Frame, concatenate, dense_groups
from moesim.errors import InputError

WIDE = st.integers(-(2**62), 2**62)
COLUMN = st.one_of(st.integers(0, 3), st.integers(-5, 5), WIDE)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    st.integers(0, 30).flatmap(
        lambda n: st.lists(st.lists(COLUMN, min_size=n, max_size=n), min_size=1, max_size=6)
    )
)
def test_groups_are_the_ranks_of_the_tuples(columns):
    rows = len(columns[0])
    tuples = list(zip(*columns, strict=True))
    ranks = {value: rank for rank, value in enumerate(sorted(set(tuples)))}
    ids = dense_groups([np.array(column, np.int64) for column in columns], rows)
    assert ids.tolist() == [ranks[value] for value in tuples]


def test_many_wide_columns_do_not_overflow():
    source = np.random.default_rng(0)
    columns = [source.integers(0, 5000, 5000) for _ in range(12)]
    ids = dense_groups(columns, 5000)
    assert len(set(ids.tolist())) == len(set(zip(*map(np.ndarray.tolist, columns), strict=True)))


def frame(words, numbers):
    labels = tuple(dict.fromkeys(words))
    codes = np.array([labels.index(word) for word in words], np.int32)
    return Frame("gemm", {"dtype": codes, "m": np.array(numbers)}, {"dtype": labels})


def test_concatenation_merges_labels():
    both = concatenate([frame(["fp8", "bf16"], [1, 2]), frame(["bf16", "int8"], [3, 4])])
    assert both.text("dtype").tolist() == ["fp8", "bf16", "bf16", "int8"]
    assert both["m"].tolist() == [1, 2, 3, 4]
    assert both.is_label("dtype", "bf16", "absent").tolist() == [False, True, True, False]
    assert both.take(both["m"] > 2).describe(1) == {"dtype": "int8", "m": 4}


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no such column; found k; allowed: dtype, m"):
        frame(["fp8"], [1])["k"]
    with pytest.raises(InputError, match="no tables"):
        concatenate([])
    with pytest.raises(InputError, match="different columns"):
        concatenate([frame(["fp8"], [1]), Frame("gemm", {"m": np.array([1])}, {})])
