"""A grid of options, its points in order, and the key under which each result is kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import moesim
from moesim.errors import InputError
from moesim.safe_io import read_json, read_yaml, sha256_file

__all__ = ["Grid", "code_version", "read_grid"]

MOST_POINTS = 1_000_000

Scalar = str | int | float | bool | None
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class Grid:
    """A verb and the values of its options.

    Attributes:
        verb: Words of the verb, like ``simulate step``.
        options: Values of every option in the file's order; a tuple among them is an option that
            is given several times at one point.
    """

    verb: str
    options: dict[str, tuple[Value, ...]]

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.options.values())

    def points(self) -> Iterator[dict[str, Value]]:
        """Options of every point; the last option of the file changes fastest."""
        for values in product(*self.options.values()):
            yield dict(zip(self.options, values, strict=True))

    def keys(self, version: str) -> list[str]:
        """SHA-256 of verb, options, contents of the files among them, and code, for every point.

        A file or folder counts by what it holds, not by its name, and so do the files that a YAML
        or JSON file names.
        """
        words = {
            name: {value: _canonical(value) for value in values}
            for name, values in self.options.items()
        }
        order = sorted(words)
        head = json.dumps([version, self.verb])
        found = []
        for point in self.points():
            parts = [f"{name}={words[name][point[name]]}" for name in order]
            found.append(hashlib.sha256("\n".join([head, *parts]).encode()).hexdigest())
        return found


def read_grid(path: str | Path) -> Grid:
    """Read ``verb:`` and lists of that verb's options from YAML or JSON.

    Raises:
        InputError: Naming file and field.
    """
    path = Path(path)
    data = read_json(path) if path.suffix == ".json" else read_yaml(path)
    if not isinstance(data, dict) or not isinstance(data.get("verb"), str):
        raise InputError(
            "a mapping with a verb is needed",
            file=path,
            field="verb",
            found=data.get("verb") if isinstance(data, dict) else data,
            allowed="words of a verb, like simulate step",
        )
    options = {
        str(name).replace("_", "-"): _values(value, path, str(name))
        for name, value in data.items()
        if name != "verb"
    }
    grid = Grid(" ".join(data["verb"].split()), options)
    if len(grid) > MOST_POINTS:
        raise InputError(
            "the grid is too large", file=path, found=len(grid), allowed=f"at most {MOST_POINTS}"
        )
    return grid


def _values(value: object, path: Path, name: str) -> tuple[Value, ...]:
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise InputError("an empty list", file=path, field=name, allowed="at least one value")
    found: list[Value] = []
    for index, item in enumerate(listed):
        parts = item if isinstance(item, list) else [item]
        for part in parts:
            if not (part is None or isinstance(part, str | int | float)):
                raise InputError(
                    "not a value of an option",
                    file=path,
                    field=f"{name}[{index}]",
                    found=part,
                    allowed="text, a number, true, false or null",
                )
        found.append(tuple(parts) if isinstance(item, list) else item)
    # True equals 1, and 1.0 too, yet they are different words.
    if len({_word(item) for item in found}) != len(found):
        raise InputError("a value appears twice", file=path, field=name, fix="keep one of them")
    return tuple(found)


def _word(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _canonical(value: Value) -> str:
    if isinstance(value, tuple):
        return json.dumps([_canonical(part) for part in value])
    digest = _content_of_text(value) if isinstance(value, str) else None
    return digest or _word(value)


def _content_of_text(text: str) -> str | None:
    """Hash of the file or folder that a value names, as it is or with ``:PART`` behind it."""
    digest = _content(Path(text), frozenset())
    head, colon, part = text.rpartition(":")
    if digest is None and colon and head:
        digest = _content(Path(head), frozenset())
        return digest and f"{digest}:{part}"
    return digest


def _content(path: Path, seen: frozenset[Path]) -> str | None:
    """Hash of a file or folder, or None where there is neither."""
    try:
        path = path.resolve()
        if path in seen:
            return None
        if path.is_dir():
            files = sorted(child for child in path.rglob("*") if child.is_file())
            parts = [f"{child.relative_to(path)} {sha256_file(child)}" for child in files]
        elif path.is_file():
            parts = [sha256_file(path)]
            if path.suffix in {".yaml", ".yml", ".json"}:
                named = _texts(read_json(path) if path.suffix == ".json" else read_yaml(path))
                inner = (_content(path.parent / name, seen | {path}) for name in sorted(named))
                parts += [digest for digest in inner if digest]
        else:
            return None
    except InputError:
        pass  # the verb will say what is wrong with it
    except (OSError, ValueError):
        return None
    return "content:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _texts(data: Any) -> set[str]:
    """Texts inside a document that may be names of files beside it."""
    if isinstance(data, str):
        return {data} if 0 < len(data) < 256 and Path(data).suffix else set()
    if isinstance(data, dict):
        return set().union(*(_texts(item) for item in data.values()))
    if isinstance(data, list):
        return set().union(*(_texts(item) for item in data))
    return set()


@lru_cache(maxsize=1)
def code_version() -> str:
    """Moesim's version and a hash of every file it ships: other code may give other results."""
    root = Path(moesim.__file__).parent
    digest = hashlib.sha256()
    folders = [root, *(child for child in sorted(root.iterdir()) if child.is_symlink())]
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.suffix in {".py", ".yaml", ".json", ".csv"} and file.is_file():
                digest.update(f"{file.relative_to(root)}\0".encode())
                digest.update(file.read_bytes())
    return f"{moesim.__version__}+{digest.hexdigest()[:16]}"
