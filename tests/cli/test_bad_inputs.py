"""The catalogue of broken and hostile files: each is refused in two lines that name the file.

A row is a name, what goes into the file, the reader, and words that its message must hold. Whatever
the file, nothing of it is executed, nothing of the size that it claims is allocated, and the error
is an InputError (exit code 4), never another exception and never a result.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement import read_plan
from moesim.safe_io import (
    map_npy,
    read_json,
    read_json_lines,
    read_safetensors,
    read_text,
    read_yaml,
)
from moesim.traces.bundle import open_trace, write_trace

Reader = Callable[[Path], Any]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_header(header: str, data: bytes = b"", version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


def tensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def shape_of(shape: str, descr: str = "'<i4'", fortran: bool = False) -> bytes:
    return npy_header(
        f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}", bytes(16)
    )


def all_lines(path: Path) -> list[Any]:
    return list(read_json_lines(path))


GRID = npy(np.arange(12, dtype=np.int32).reshape(3, 4))
EXECUTES = (
    b"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [executed]]"
)

FILES: list[tuple[str, bytes, Reader, str]] = [
    ("json-empty", b"", read_json, "not valid JSON"),
    ("json-cut-short", b'{"a": [1, 2', read_json, "line 1"),
    ("json-null-bytes", b"\0\0\0\0", read_json, "not valid JSON"),
    ("json-latin-1", '{"a": "é"}'.encode("latin-1"), read_json, "not UTF-8"),
    ("json-utf-16", '{"a": 1}'.encode("utf-16"), read_json, "not UTF-8"),
    ("json-duplicate-key", b'{"a": 1, "a": 2}', read_json, "a: duplicate key"),
    ("json-nan", b'{"a": NaN}', read_json, "found NaN; allowed: finite"),
    ("json-infinity", b'{"a": -Infinity}', read_json, "found -Infinity"),
    ("json-nested", b"[" * 200_000 + b"]" * 200_000, read_json, "nested too deep"),
    ("json-long-number", b"[" + b"9" * 10_000 + b"]", read_json, "number too long"),
    ("json-trailing", b'{"a": 1} {"b": 2}', read_json, "Extra data"),
    ("json-lines-broken", b'{"a": 1}\n{"b": \n', all_lines, "line 2"),
    ("json-lines-duplicate", b'{"a": 1}\n\n{"a": 1, "a": 1}\n', all_lines, "line 3"),
    ("json-lines-latin-1", '{"a": "é"}\n'.encode("latin-1"), all_lines, "line 1"),
    ("text-not-utf-8", b"\xff\xfe\x00", read_text, "byte 0 is not UTF-8"),
    ("yaml-tab", b"a:\n\tb: 1\n", read_yaml, "line 2"),
    ("yaml-duplicate-key", b"a: 1\nb: 2\na: 3\n", read_yaml, "duplicate key 'a'"),
    ("yaml-alias", b"a: &x [1, 2]\nb: *x\n", read_yaml, "aliases are not allowed"),
    ("yaml-bomb", b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", read_yaml, "aliases"),
    ("yaml-merge-key", b"a: &a {x: 1}\nb:\n  <<: *a\n", read_yaml, "aliases"),
    ("yaml-executes", EXECUTES, read_yaml, "could not determine a constructor"),
    ("yaml-nested", b"[" * 100 + b"]" * 100, read_yaml, "nested deeper than 50"),
    ("yaml-list-as-key", b"? [1, 2]\n: 3\n", read_yaml, "unhashable key"),
    ("yaml-two-documents", b"a: 1\n---\nb: 2\n", read_yaml, "another document"),
    ("yaml-too-large", b"#" * (2**20 + 1), read_yaml, "at most 1048576 bytes"),
    ("yaml-bad-date", b"a: 2026-13-45\n", read_yaml, "not usable YAML"),
    ("npy-empty", b"", map_npy, "not a .npy file"),
    ("npy-text", b"1,2,3,4,5,6,7,8\n", map_npy, "not a .npy file"),
    ("npy-cut-short", GRID[:-1], map_npy, "cut short"),
    ("npy-header-cut-short", GRID[:40], map_npy, "header cannot be read"),
    ("npy-too-long", GRID + b"\0", map_npy, "longer than its header says"),
    ("npy-pickle", npy(np.array([{"a": 1}], dtype=object)), map_npy, "not plain numbers"),
    ("npy-structured", npy(np.zeros(2, "i4,f4")), map_npy, "not plain numbers"),
    ("npy-strings", npy(np.array(["a", "b"])), map_npy, "not plain numbers"),
    ("npy-complex", npy(np.zeros(2, np.complex64)), map_npy, "not plain numbers"),
    ("npy-fortran", shape_of("(2, 2)", fortran=True), map_npy, "Fortran"),
    ("npy-negative-shape", shape_of("(-2, 2)"), map_npy, "not a tuple of sizes"),
    ("npy-bool-shape", shape_of("(True, 4)"), map_npy, "not a tuple of sizes"),
    ("npy-claims-a-petabyte", shape_of("(10**3, 4)"), map_npy, "header cannot be read"),
    ("npy-larger-than-memory", shape_of(f"({2**50},)"), map_npy, "cut short"),
    ("npy-overflow", shape_of(f"({2**40}, {2**40})"), map_npy, "too large"),
    ("npy-code", shape_of("__import__('os').getcwd()"), map_npy, "header cannot be read"),
    ("npy-version-9", b"\x93NUMPY\x09\x00" + bytes(8), map_npy, "unknown .npy version"),
    ("npy-long-header", npy_header(" " * 70_000, version=2), map_npy, "header is too long"),
    ("safetensors-empty", b"", read_safetensors, "not a usable safetensors file"),
    ("safetensors-text", b"hello, world, hello", read_safetensors, "not a usable safetensors"),
    ("safetensors-cut-short", tensors(b"{}")[:-1], read_safetensors, "not a usable"),
    ("safetensors-long-header", struct.pack("<Q", 2**62) + b"{}", read_safetensors, "not a usable"),
    (
        "safetensors-offsets",
        tensors(b'{"a": {"dtype": "I32", "shape": [4], "data_offsets": [0, 16]}}', bytes(8)),
        read_safetensors,
        "not a usable",
    ),
]


def check(caught: pytest.ExceptionInfo[InputError], path: Path, words: str) -> None:
    error = caught.value
    message = str(error)
    assert type(error) is InputError
    assert error.exit_code == 4
    assert error.file is not None
    assert Path(error.file).is_relative_to(path)
    assert words in message
    assert message.count("\n") <= 1
    assert len(message) < 600
    assert json.loads(json.dumps(error.to_dict()))["file"] == error.file


@pytest.mark.parametrize(
    ("data", "read", "words"), [row[1:] for row in FILES], ids=[row[0] for row in FILES]
)
def test_files(data, read, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "input"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(path)
    check(caught, path, words)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "read", [read_json, all_lines, read_text, read_yaml, map_npy, read_safetensors]
)
def test_missing_files_and_folders(read, tmp_path):
    for path, words in [(tmp_path / "none", "no such file"), (tmp_path, "a file is needed")]:
        with pytest.raises(InputError) as caught:
            read(path)
        check(caught, path, words)


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as stream:
        stream.truncate(2**40)  # sparse: it takes no room on the disk
    with pytest.raises(InputError) as caught:
        read_json(path)
    check(caught, path, "too large")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


PLAN: dict[str, Any] = {
    "schema": "moesim.placement/1",
    "model": "small",
    "cluster": "1x2",
    "planner": "contiguous",
    "experts": 3,
    "devices": 2,
    "slots_per_device": 2,
    "moe_layers": [1, 3],
    "physical_to_logical": [[0, 1, 2, 0], [2, 1, 0, 2]],
}
PLANS: list[tuple[str, object, str]] = [
    ("not-an-object", [PLAN], "a mapping is needed"),
    ("no-schema", {k: v for k, v in PLAN.items() if k != "schema"}, "schema"),
    ("other-schema", PLAN | {"schema": "moesim.placement/2"}, "allowed: moesim.placement/1"),
    ("unknown-key", PLAN | {"speed": 1}, "speed: unknown key; found 1"),
    ("missing-key", {k: v for k, v in PLAN.items() if k != "planner"}, "planner: a required key"),
    ("no-experts", PLAN | {"experts": 0}, "experts"),
    ("text-for-number", PLAN | {"devices": "two"}, "devices"),
    ("fraction", PLAN | {"devices": 1.5}, "devices"),
    ("ragged", PLAN | {"physical_to_logical": [[0, 1, 2, 0], [2, 1, 0]]}, "lengths [3, 4]"),
    ("narrow", PLAN | {"slots_per_device": 3}, "allowed: 6"),
    ("no-rows", PLAN | {"physical_to_logical": [], "moe_layers": []}, "physical_to_logical"),
    ("id-too-large", PLAN | {"physical_to_logical": [[0, 1, 2, 3]] * 2}, "found 3; allowed: 0 … 2"),
    ("id-negative", PLAN | {"physical_to_logical": [[0, 1, 2, -2]] * 2}, "found -2"),
    ("expert-nowhere", PLAN | {"physical_to_logical": [[0, 1, 2, 0], [0, 1, 1, 0]]}, "expert 2 is"),
    ("layer-missing", PLAN | {"moe_layers": [1]}, "1 indices for 2 rows"),
    ("layers-descend", PLAN | {"moe_layers": [3, 1]}, "must ascend"),
    ("layer-twice", PLAN | {"moe_layers": [3, 3]}, "must ascend"),
    ("layer-negative", PLAN | {"moe_layers": [-1, 3]}, "must ascend"),
    ("id-huge", PLAN | {"physical_to_logical": [[0, 1, 2, 2**40]] * 2}, "found 1099511627776"),
    ("id-wraps-to-0", PLAN | {"physical_to_logical": [[0, 1, 2, 2**32]] * 2}, "found 4294967296"),
    ("id-beyond-64-bits", PLAN | {"physical_to_logical": [[0, 1, 2, 2**70]] * 2}, "64 bits"),
]


@pytest.mark.parametrize(
    ("plan", "words"), [row[1:] for row in PLANS], ids=[row[0] for row in PLANS]
)
def test_plans(plan, words, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(InputError) as caught:
        read_plan(path)
    check(caught, path, words)


def test_the_plan_itself_is_good(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    assert read_plan(path)[1].replica_count().tolist() == [[2, 1, 1], [1, 1, 2]]


def change(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


def replace(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


TRACES: list[tuple[str, Callable[[Path], object], str]] = [
    ("no-manifest", lambda f: (f / "manifest.json").unlink(), "no such file"),
    ("no-routing", lambda f: (f / "routing.npy").unlink(), "no such file"),
    ("empty-manifest", replace("manifest.json", b"{}"), "schema"),
    ("more-tokens", change(tokens=9), "not what the manifest says"),
    ("fewer-experts", change(experts=1), "top-k is larger"),
    ("more-experts", change(experts=300), "found uint8; allowed: uint16"),
    ("other-type", change(dtype="int64"), "found int64; allowed: uint8"),
    ("layer-missing", change(moe_layers=[0]), "1 indices"),
    ("no-tokens", change(tokens=0), "tokens"),
    ("too-many-experts", change(experts=10**9), "experts"),
    ("routing-cut-short", replace("routing.npy", GRID[:-1]), "cut short"),
    ("routing-of-floats", replace("routing.npy", npy(np.zeros((2, 5, 2)))), "float64"),
    ("gates-of-another-shape", replace("gates.npy", npy(np.zeros((2, 5, 1), "f2"))), "(2, 5, 1)"),
    ("valid-k-of-another-shape", replace("valid_k.npy", npy(np.zeros((5, 2), "u1"))), "(5, 2)"),
    ("broken-parquet", replace("requests.parquet", b"PAR1"), "not a usable parquet file"),
]


@pytest.mark.parametrize(
    ("damage", "words"), [row[1:] for row in TRACES], ids=[row[0] for row in TRACES]
)
def test_traces(damage, words, tmp_path):
    folder = tmp_path / "trace"
    routing = np.arange(20, dtype=np.uint8).reshape(2, 5, 2) % 4
    write_trace(folder, routing, model="small", experts=4, source="made for this test")
    assert open_trace(folder).requests() is None
    damage(folder)
    with pytest.raises(InputError) as caught:
        open_trace(folder).requests()
    check(caught, folder, words)


def test_a_trace_is_a_folder(tmp_path):
    file = tmp_path / "trace.npy"
    file.write_bytes(GRID)
    for path, words in [(file, "found a file"), (tmp_path / "none", "no such folder")]:
        with pytest.raises(InputError) as caught:
            open_trace(path)
        check(caught, path, words)
