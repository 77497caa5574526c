import contextlib
import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moesim.errors import InputError
from moesim.safe_io import (
    map_npy,
    read_json,
    read_json_lines,
    read_safetensors,
    read_text,
    read_yaml,
    write_atomic,
    write_json,
    write_npy,
)


def test_npy_round_trip_is_mapped_and_read_only(tmp_path):
    array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    mapped = map_npy(write_npy(tmp_path / "a.npy", array[:, ::-1]))
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, array[:, ::-1])
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1


def header(text, version=1):
    raw = text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(raw)) + raw


HOSTILE = {
    "empty": b"",
    "not npy": b"PK\x03\x04" + b"\0" * 20,
    "pickled objects": header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"\0" * 8,
    "structured": header("{'descr': [('a','<i4')], 'fortran_order': False, 'shape': (1,)}"),
    "too large for the file": header(
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}"
    ),
    "overflowing": header("{'descr': '<i8', 'fortran_order': False, 'shape': (" + "9" * 60 + ",)}"),
    "negative": header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}"),
    "fortran": header("{'descr': '<i8', 'fortran_order': True, 'shape': (1,1)}") + b"\0" * 8,
    "code": header("__import__('os').system('true')"),
    "deep": header("(" * 5000),
    "header cut": b"\x93NUMPY\x01\x00\xff\xff{}",
    "huge header": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}",
    "version": b"\x93NUMPY\x09\x00\x10\x00" + b"{}" * 8,
    "trailing": header("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}") + b"\0\0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_npy_is_refused(tmp_path, name):
    file = tmp_path / "x.npy"
    file.write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=r"x\.npy"):
        map_npy(file)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(data=st.data())
def test_flipped_bytes_of_an_npy_never_crash(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("npy") / "a.npy"
    raw = bytearray(write_npy(file, np.arange(60, dtype=np.int32).reshape(3, 20)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    file.write_bytes(
        raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    )
    with contextlib.suppress(InputError):
        assert map_npy(file).size >= 0


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: 1\na: 2", "duplicate key"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("[" * 60 + "]" * 60, "nested deeper"),
        ("a: [1, 2", "not usable YAML"),
        ("!!python/object/apply:os.system ['true']", "not usable YAML"),
        ("? [a]\n: 1", "not usable YAML"),
        ("a: 2026-99-99", "not usable YAML"),
        ("\x00", "not usable YAML"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path, text, match):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=match):
        read_yaml(file)


def test_yaml_is_capped_before_it_is_read(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a: " + "1" * 2**20)
    with pytest.raises(InputError, match="too large"):
        read_yaml(file)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', "[NaN]", "[1e999, Infinity]", "{", "[" * 100_000, "1" * 5000 + "e"]
)
def test_hostile_json_is_refused(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        read_json(file)


def test_text_with_byte_order_mark_and_crlf(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b'\xef\xbb\xbf{"a":\r\n1}')
    assert read_json(file) == {"a": 1}
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="UTF-8"):
        read_text(file)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(InputError, match="a folder"):
        read_text(tmp_path)


def test_json_lines_name_the_line(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(read_json_lines(file)) == [(1, {"a": 1}), (3, {"a": 2})]
    file.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(InputError, match="line 2"):
        list(read_json_lines(file))


def test_safetensors(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": np.arange(3)}, file)
    np.testing.assert_array_equal(read_safetensors(file)["a"], [0, 1, 2])
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="safetensors"):
        read_safetensors(file)


def test_writes_are_whole_or_absent(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "x.json"
    write_json(file, {"a": 1})
    assert json.loads(file.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("nan")})

    def broken(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(InputError, match="No space left"):
        write_atomic(file, "new")
    assert json.loads(file.read_text()) == {"a": 1}
    assert [f.name for f in file.parent.iterdir()] == ["x.json"]
