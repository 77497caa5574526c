"""Grids: what is read, in which order, and what a key depends on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.sweep.grid import Grid, code_version, read_grid


def written(tmp_path, text, name="grid.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_last_option_changes_fastest(tmp_path):
    grid = read_grid(written(tmp_path, "verb: simulate step\nbatch: [1, 2]\ncontext: [8, 9]\n"))
    assert grid.verb == "simulate step"
    assert [(p["batch"], p["context"]) for p in grid.points()] == [(1, 8), (1, 9), (2, 8), (2, 9)]


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
        min_size=1,
        max_size=3,
    )
)
def test_every_point_has_its_own_key(values):
    grid = Grid("v", {name: tuple(items) for name, items in values.items()})
    keys = grid.keys("1")
    assert len(set(keys)) == len(grid) == len(list(grid.points()))
    # Not the order of the file, but what is asked, and by which code, makes a key.
    turned = Grid("v", dict(reversed(grid.options.items())))
    assert set(turned.keys("1")) == set(keys)
    assert not set(keys) & set(grid.keys("2"))


def test_files_count_by_what_they_hold(tmp_path):
    def key(text, inner):
        written(tmp_path, inner, "inner.yaml")
        path = written(tmp_path, text, "outer.yaml")
        return Grid("v", {"file": (str(path),)}).keys("1")[0]

    first = key("use: inner.yaml", "a: 1")
    assert key("use: inner.yaml", "a: 1") == first
    assert key("use: inner.yaml", "a: 2") != first
    assert key("use: inner.yaml\nmore: 1", "a: 1") != first
    copy = written(tmp_path, "use: inner.yaml", "copy.yaml")
    key("use: inner.yaml", "a: 1")
    assert Grid("v", {"file": (str(copy),)}).keys("1")[0] == first


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("batch: [1]", "verb"),
        ("[1, 2]", "verb"),
        ("verb: v\nbatch: []", "batch"),
        ("verb: v\nbatch: [1, 1]", "batch"),
        ("verb: v\nbatch: [{a: 1}]", "batch[0]"),
    ],
)
def test_bad_grids_name_the_field(tmp_path, text, field):
    with pytest.raises(InputError) as error:
        read_grid(written(tmp_path, text))
    assert error.value.field == field


def test_a_grid_too_large_is_refused(tmp_path):
    numbers = ", ".join(map(str, range(1100)))
    path = written(tmp_path, f"verb: v\na: [{numbers}]\nb: [{numbers}]")
    with pytest.raises(InputError, match="too large"):
        read_grid(path)


def test_code_has_a_version():
    assert code_version() == code_version()
    assert "+" in code_version()
