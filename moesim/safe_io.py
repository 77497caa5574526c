"""Reading files that may be broken or hostile, and writing files that are whole or absent.

Every file that a user hands to moesim passes through here: sizes are capped before reading, YAML
aliases and duplicate keys are refused, ``.npy`` headers are checked against the file's length
before anything is mapped, and nothing is ever unpickled in this process.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from moesim.errors import InputError

__all__ = [
    "NpyWriter",
    "map_npy",
    "npy_writer",
    "open_text",
    "parse_json",
    "parse_npy",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_safetensors",
    "read_text",
    "read_yaml",
    "sha256_file",
    "write_atomic",
    "write_json",
    "write_npy",
]

MAX_TEXT_BYTES = 64 * 2**20
MAX_YAML_BYTES = 2**20
MAX_DEPTH = 50
MAX_NPY_HEADER_BYTES = 64 * 2**10


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise InputError("a file is needed", file=path, found="a folder", fix="name the file in it")
    if not path.is_file():
        raise InputError("no such file", file=path, fix="check the path")
    return path


def read_bytes(path: str | Path, limit_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The whole file, refused if it is longer than ``limit_bytes``."""
    path = _existing(Path(path))
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise InputError(
                "the file is too large",
                file=path,
                found=f"{size} bytes",
                allowed=f"at most {limit_bytes} bytes",
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error


def read_text(path: str | Path, limit_bytes: int = MAX_TEXT_BYTES) -> str:
    """The file as UTF-8 text; a byte-order mark is dropped."""
    data = read_bytes(path, limit_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            "not UTF-8 text",
            file=path,
            found=f"byte {error.start} is not UTF-8",
            fix="save the file as UTF-8",
        ) from error


@contextmanager
def open_text(path: str | Path, limit_bytes: int = 2**34) -> Iterator[IO[str]]:
    """A UTF-8 file to be read as a stream, line ends as they are; a byte-order mark is dropped."""
    path = _existing(Path(path))
    if path.stat().st_size > limit_bytes:
        raise InputError(
            "the file is too large",
            file=path,
            found=f"{path.stat().st_size} bytes",
            allowed=f"at most {limit_bytes} bytes",
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise InputError(
            "not UTF-8 text", file=path, found=str(error), fix="save the file as UTF-8"
        ) from error


def read_json(path: str | Path) -> Any:
    """JSON with duplicate keys, NaN and infinities refused."""
    return parse_json(read_text(path), file=path)


def parse_json(text: str, *, file: str | Path | None = None, non_finite: bool = False) -> Any:
    """As :func:`read_json`, from a string.

    ``non_finite`` lets ``NaN`` and ``Infinity`` pass as floats, for files of other programs that
    hold them in fields we do not read (Python's own ``json`` writes them).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise InputError("duplicate key", file=file, field=key, fix="keep one of them")
            result[key] = value
        return result

    def constant(name: str) -> Any:
        if non_finite:
            return float(name)
        raise InputError("not a JSON number", file=file, found=name, allowed="finite numbers")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise InputError(
            "not valid JSON",
            file=file,
            field=f"line {error.lineno}",
            found=error.msg,
            fix="check the file at that line",
        ) from error
    except InputError:
        raise  # a ValueError too, and already says what is wrong
    except (RecursionError, ValueError) as error:
        raise InputError(
            "not usable JSON: nested too deep or a number too long", file=file
        ) from error


def read_json_lines(path: str | Path, limit_bytes: int = 2**34) -> Iterator[tuple[int, Any]]:
    """Line number (from 1) and value of every non-empty line, read as a stream."""
    path = _existing(Path(path))
    if path.stat().st_size > limit_bytes:
        raise InputError(
            "the file is too large",
            file=path,
            found=f"{path.stat().st_size} bytes",
            allowed=f"at most {limit_bytes} bytes",
        )
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_TEXT_BYTES + 1):
            number += 1
            if len(line) > MAX_TEXT_BYTES:
                raise InputError(
                    "the line is too long",
                    file=path,
                    field=f"line {number}",
                    allowed=f"at most {MAX_TEXT_BYTES} bytes",
                )
            if not line.strip():
                continue
            try:
                yield number, parse_json(line.decode("utf-8-sig"))
            except (InputError, UnicodeDecodeError) as error:
                raise InputError(
                    "not a JSON object",
                    file=path,
                    field=f"line {number}",
                    found=line[:60].decode("utf-8", "replace").strip(),
                    allowed="one JSON object per line",
                ) from error


class _StrictLoader(yaml.SafeLoader):
    """Safe loader without aliases and without duplicate keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            problem = f"nested deeper than {MAX_DEPTH} levels"
            raise yaml.constructor.ConstructorError(None, None, problem, mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            try:
                repeated = key in seen
            except TypeError:
                repeated = False
            if repeated:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """YAML by the safe loader, without aliases, duplicate keys or deep nesting; at most 1 MiB."""
    text = read_text(path, MAX_YAML_BYTES)
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise InputError(
            f"not usable YAML: {problem}",
            file=path,
            field=None if mark is None else f"line {mark.line + 1}",
            fix="check the file at that line",
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError("not usable YAML", file=path, found=str(error)) from error


def map_npy(path: str | Path) -> np.ndarray:
    """Map a ``.npy`` file read-only, after checking its header against the file's length.

    Returns:
        A read-only memory map; an ordinary array where the file holds no elements.

    Raises:
        InputError: If it is not a C-ordered array of a plain number type, or is cut short.
    """
    path = _existing(Path(path))
    with path.open("rb") as stream:
        shape, dtype, offset = _npy_header(stream, path, path.stat().st_size)
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def parse_npy(
    data: bytes, *, file: str | Path | None = None, field: str | None = None
) -> np.ndarray:
    """As :func:`map_npy`, from the bytes of a ``.npy`` file that arrived inside another file."""
    shape, dtype, offset = _npy_header(io.BytesIO(data), file, len(data), field)
    return np.frombuffer(data, dtype, offset=offset).reshape(shape)


def _npy_header(
    stream: IO[bytes], file: str | Path | None, size: int, field: str | None = None
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and offset of the elements, once the size is what they need."""

    def refuse(problem: str, found: object = None) -> InputError:
        return InputError(
            problem,
            file=file,
            field=field or "npy header",
            found=found,
            allowed="a C-ordered array of integers or floats",
            fix="save it with numpy.save(file, numpy.ascontiguousarray(array))",
        )

    start = stream.read(12)
    if start[:6] != b"\x93NUMPY" or len(start) < 12:
        raise refuse("not a .npy file", start[:8])
    if start[6] == 1:
        length, prefix = struct.unpack("<H", start[8:10])[0], 10
    elif start[6] in (2, 3):
        length, prefix = struct.unpack("<I", start[8:12])[0], 12
    else:
        raise refuse("unknown .npy version", start[6])
    if length > MAX_NPY_HEADER_BYTES:
        raise refuse("the header is too long", f"{length} bytes")
    stream.seek(prefix)
    raw = stream.read(length)
    try:
        header = ast.literal_eval(raw.decode("latin-1").strip())
        shape = tuple(header["shape"])
        descr, fortran = header["descr"], header["fortran_order"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise refuse("the header cannot be read", raw[:60]) from error
    dtype = _npy_dtype(descr)
    if dtype is None:
        raise refuse("the elements are not plain numbers", descr)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise refuse("the shape is not a tuple of sizes", shape)
    # An empty array may still state sizes that numpy cannot hold.
    if len(shape) > 32 or math.prod(max(n, 1) for n in shape) * dtype.itemsize > 2**62:
        raise refuse("the shape is too large", shape)
    if fortran and len(shape) > 1:
        raise refuse("the array is in Fortran order", shape)
    expected = prefix + length + math.prod(shape) * dtype.itemsize
    if size != expected:
        kind = "cut short" if size < expected else "longer than its header says"
        raise InputError(
            f"the file is {kind}",
            file=file,
            field=field or "shape",
            found=f"{size} bytes for shape {shape} of {dtype}",
            allowed=f"{expected} bytes",
            fix="copy or export the file again",
        )
    return shape, dtype, prefix + length


def _npy_dtype(descr: object) -> np.dtype[Any] | None:
    """The type that a header names; None unless it is a plain integer, float or boolean."""
    try:
        dtype = np.dtype(descr) if isinstance(descr, str) else None
    except (TypeError, ValueError, SyntaxError):
        return None
    return dtype if dtype is not None and dtype.kind in "biuf" and dtype.itemsize else None


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file, by name.

    Raises:
        InputError: If the file is not a whole safetensors file of number types that numpy knows.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = _existing(Path(path))
    try:
        return dict(load_file(path))
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            "not a usable safetensors file",
            file=path,
            found=str(error),
            fix="copy or export the file again",
        ) from error


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomic(path: str | Path, data: str | bytes) -> Path:
    """Write a file whole: readers see the old one or the new one, never half.

    Raises:
        InputError: If the place cannot be written to.
    """
    raw = data.encode() if isinstance(data, str) else data
    return _write(Path(path), lambda stream: stream.write(raw))


def write_json(path: str | Path, value: object, *, compact: bool = False) -> Path:
    """JSON, keys in the order given, with a final newline; written whole.

    Args:
        path: Of the file.
        value: Plain data.
        compact: Without indents, for long tables of numbers.
    """
    indent, separators = (None, (",", ":")) if compact else (1, None)
    text = json.dumps(
        value, indent=indent, separators=separators, allow_nan=False, ensure_ascii=False
    )
    return write_atomic(path, text + "\n")


def write_npy(path: str | Path, array: np.ndarray) -> Path:
    """An array as ``.npy``, C-ordered; written whole."""
    return _write(
        Path(path), lambda stream: np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    )


class NpyWriter:
    """Takes the elements of one ``.npy`` file block by block; made by :func:`npy_writer`."""

    def __init__(
        self, path: Path, stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._path = path
        self._stream = stream
        self._dtype = dtype
        self._hash = hashlib.sha256()
        self.missing = math.prod(shape)
        header = io.BytesIO()
        layout = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, layout)  # type: ignore[no-untyped-call]
        self._put(header.getvalue())

    def _put(self, data: bytes | memoryview) -> None:
        with _refusing(self._path):
            self._stream.write(data)
        self._hash.update(data)

    def append(self, block: np.ndarray) -> None:
        """The next elements in C order; their type must be the file's."""
        if block.dtype != self._dtype or block.size > self.missing:
            raise ValueError(f"{block.size} {block.dtype} do not fit: {self.missing} are missing")
        self.missing -= block.size
        self._put(np.ascontiguousarray(block).data.cast("B"))

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what the file holds so far."""
        return self._hash.hexdigest()


@contextmanager
def npy_writer(
    path: str | Path, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NpyWriter]:
    """Write a ``.npy`` file that need not fit into memory; like all others it appears whole.

    Args:
        path: The file.
        shape: Shape of the whole array.
        dtype: Type of its elements.

    Raises:
        InputError: If the place cannot be written to.
    """
    path = Path(path)
    with _refusing(path), _replacing(path) as stream:
        writer = NpyWriter(path, stream, shape, dtype)
        yield writer
        if writer.missing:
            raise ValueError(f"{path}: {writer.missing} elements were never written")


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> Path:
    with _refusing(path), _replacing(path) as stream:
        fill(stream)
    return path


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", file=path, fix="choose another --out"
        ) from error
