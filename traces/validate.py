"""Checking a trace bundle from end to end, and listing everything that is wrong with it.

:func:`moesim.traces.bundle.open_trace` checks only what opening needs; this reads every byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, MissingExtraError
from moesim.safe_io import map_npy, read_json, sha256_file
from moesim.traces.bundle import Trace, TraceManifest, routing_dtype

__all__ = ["Problem", "ValidationReport", "validate_trace"]

CHUNK_TOKENS = 2**18
"""Tokens per pass over an array: a few MiB per step whatever the trace's length."""
FLOAT16_ROUNDING = 2.0**-10
"""Relative spacing of float16: weights that sum to 1 may exceed it by this much."""
PHASES = {"prefill", "decode", "unknown"}
REQUEST_COLUMNS = ("request", "phase", "domain", "position")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: Name of the file in the bundle.
        field: Where in it.
        problem: What is wrong, with what was found and what is allowed.
        count: How often, where it can be counted.
    """

    file: str
    field: str
    problem: str
    count: int = 1


@dataclass(frozen=True)
class ValidationReport:
    """Outcome of a validation.

    Attributes:
        path: The folder.
        manifest: What the bundle says of itself, or None if that cannot be read.
        problems: Everything that is wrong; empty for a sound bundle.
        skipped: Checks that could not be made, and why.
    """

    path: str
    manifest: TraceManifest | None
    problems: tuple[Problem, ...]
    skipped: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        shape: dict[str, Any] = {}
        if self.manifest is not None:
            keys = ("model", "layers", "moe_layers", "experts", "top_k", "tokens")
            shape = {key: getattr(self.manifest, key) for key in keys}
        return shape | {
            "path": self.path,
            "problems": [asdict(problem) for problem in self.problems],
            "skipped": list(self.skipped),
        }


def validate_trace(folder: str | Path) -> ValidationReport:
    """Check manifest, hashes, shapes, ids, gates, valid_k and request rows.

    Returns:
        Every problem that was found. Checks that need a broken part are left out.

    Raises:
        InputError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            "a trace is a folder with manifest.json and routing.npy",
            file=folder,
            found="a file" if folder.exists() else "no such folder",
            fix="name the folder that was given as --out",
        )
    try:
        file = folder / "manifest.json"
        manifest = TraceManifest.parse(read_json(file), file=file)
    except InputError as error:
        return ValidationReport(str(folder), None, (_problem(error, "manifest.json"),))
    problems = list(_manifest_problems(manifest))
    problems += _hash_problems(folder, manifest)
    shape = (manifest.layers, manifest.tokens, manifest.top_k)
    dtype = routing_dtype(manifest.experts).name
    routing = _array(folder, "routing.npy", shape, dtype, problems, required=True)
    gates = _array(folder, "gates.npy", shape, "float16", problems)
    valid_k = _array(folder, "valid_k.npy", shape[:2], "uint8", problems)
    if valid_k is not None:
        problems += _by_layer(manifest, lambda layer: _valid_k_problems(valid_k[layer], manifest))
    if routing is not None:
        problems += _by_layer(
            manifest,
            lambda layer: _id_problems(routing[layer], _row(valid_k, layer), manifest.experts),
        )
    if gates is not None:
        largest = _largest_gate(manifest)
        problems += _by_layer(
            manifest,
            lambda layer: _gate_problems(gates[layer], _row(valid_k, layer), largest),
        )
    skipped: list[str] = []
    problems += _request_problems(folder, manifest, skipped)
    return ValidationReport(str(folder), manifest, tuple(problems), tuple(skipped))


def _problem(error: InputError, file: str) -> Problem:
    text = error.problem
    if error.found is not None:
        text += f"; found {error.found}"
    if error.allowed:
        text += f"; allowed: {error.allowed}"
    return Problem(file, error.field or "", text)


def _manifest_problems(manifest: TraceManifest) -> Iterator[Problem]:
    layers = manifest.moe_layers
    if list(layers) != sorted(set(layers)) or layers[0] < 0:
        yield Problem(
            "manifest.json", "moe_layers", "model layer indices must ascend from 0 or more"
        )


def _hash_problems(folder: Path, manifest: TraceManifest) -> Iterator[Problem]:
    for name, stated in manifest.sha256.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            yield Problem("manifest.json", f"sha256.{name}", "the file is not in the bundle")
        elif (found := sha256_file(file)) != stated:
            yield Problem(name, "sha256", f"the file was changed; found {found}, stated {stated}")
    for name in ("routing.npy", "gates.npy", "valid_k.npy", "requests.parquet"):
        if (folder / name).is_file() and name not in manifest.sha256:
            yield Problem("manifest.json", f"sha256.{name}", "no hash is stated for this file")


def _array(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    problems: list[Problem],
    *,
    required: bool = False,
) -> np.ndarray | None:
    """The array, or None with the reason among the problems."""
    file = folder / name
    if not file.exists():
        if required:
            problems.append(Problem(name, "", "the file is missing"))
        return None
    try:
        array = map_npy(file)
    except InputError as error:
        problems.append(_problem(error, name))
        return None
    if array.shape != shape or array.dtype.name != dtype:
        found = f"{array.shape} {array.dtype.name}"
        problems.append(Problem(name, "shape", f"found {found}; the manifest says {shape} {dtype}"))
        return None
    return array


def _row(array: np.ndarray | None, layer: int) -> np.ndarray | None:
    return None if array is None else array[layer]


def _by_layer(
    manifest: TraceManifest, check: Callable[[int], Iterator[Problem]]
) -> Iterator[Problem]:
    """The problems of every layer, each kind of a layer once, with the model's layer index."""
    for row, name in enumerate(manifest.moe_layers):
        found: dict[tuple[str, str], Problem] = {}
        for problem in check(row):
            key = (problem.file, problem.problem.partition(";")[0])
            first = found.setdefault(key, problem)
            if first is not problem:
                found[key] = Problem(
                    first.file, first.field, first.problem, first.count + problem.count
                )
        for problem in found.values():
            field = f"layer {name}, {problem.field}"
            yield Problem(problem.file, field, problem.problem, problem.count)


def _chunks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, CHUNK_TOKENS):
        yield slice(start, min(start + CHUNK_TOKENS, tokens))


def _used(valid_k: np.ndarray | None, part: slice, top_k: int) -> np.ndarray:
    """[n, K] bool, entries that count."""
    if valid_k is None:
        return np.ones((part.stop - part.start, top_k), bool)
    return np.arange(top_k) < np.asarray(valid_k[part])[:, None]


def _valid_k_problems(valid_k: np.ndarray, manifest: TraceManifest) -> Iterator[Problem]:
    over = valid_k > manifest.top_k
    if over.any():
        token = int(np.argmax(over))
        yield Problem(
            "valid_k.npy",
            f"token {token}",
            f"more entries than there are; found {valid_k[token]}; allowed: 0 … {manifest.top_k}",
            int(over.sum()),
        )


def _id_problems(ids: np.ndarray, valid_k: np.ndarray | None, experts: int) -> Iterator[Problem]:
    """Ids that are no expert, and experts that a token names twice."""
    tokens, top_k = ids.shape
    for part in _chunks(tokens):
        used = _used(valid_k, part, top_k)
        values = np.asarray(ids[part])
        wrong = used & (values >= experts)
        if wrong.any():
            token, entry = (int(i) for i in np.argwhere(wrong)[0])
            yield Problem(
                "routing.npy",
                f"token {part.start + token}",
                f"expert id out of range; found {values[token, entry]}; allowed: 0 … {experts - 1}",
                int(wrong.sum()),
            )
        # Unused entries get distinct negative values, so that they equal nothing.
        ordered = np.sort(np.where(used, values, -1 - np.arange(top_k)), axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if twice.any():
            token = int(np.argmax(twice))
            yield Problem(
                "routing.npy",
                f"token {part.start + token}",
                f"an expert stands twice in one token; found {values[token].tolist()}; "
                "allowed: distinct experts",
                int(twice.sum()),
            )


def _largest_gate(manifest: TraceManifest) -> float:
    """The bound that the manifest states for routers that scale their weights, else 1."""
    stated = (manifest.model_extra or {}).get("gates_max")
    return max(1.0, float(stated)) if isinstance(stated, int | float) else 1.0


def _gate_problems(
    gates: np.ndarray, valid_k: np.ndarray | None, largest: float
) -> Iterator[Problem]:
    for part in _chunks(len(gates)):
        values = np.asarray(gates[part]).astype(np.float32)
        with np.errstate(invalid="ignore"):
            inside = (values >= 0) & (values <= largest * (1 + FLOAT16_ROUNDING))
        wrong = _used(valid_k, part, gates.shape[1]) & ~inside
        if wrong.any():
            token, entry = (int(i) for i in np.argwhere(wrong)[0])
            yield Problem(
                "gates.npy",
                f"token {part.start + token}",
                f"router weight out of range; found {values[token, entry]:g}; "
                f"allowed: 0 … {largest:g}",
                int(wrong.sum()),
            )


def _request_problems(
    folder: Path, manifest: TraceManifest, skipped: list[str]
) -> Iterator[Problem]:
    name = "requests.parquet"
    try:
        frame = Trace(manifest, np.zeros(0), path=folder).requests()
    except MissingExtraError as error:
        skipped.append(f"{name}: {error}")
        return
    except InputError as error:
        yield _problem(error, name)
        return
    if frame is None:
        return
    absent = [column for column in REQUEST_COLUMNS if column not in frame]
    if absent:
        yield Problem(name, "columns", f"missing: {', '.join(absent)}")
        return
    for column in REQUEST_COLUMNS:
        if frame[column].isna().any():
            yield Problem(name, column, "empty cells", int(frame[column].isna().sum()))
    position = frame["position"]
    if position.dtype.kind not in "iu" or (position < 0).any():
        yield Problem(name, "position", "positions must be integers ≥ 0")
    phases = set(frame["phase"].dropna().astype(str).unique()) - PHASES
    if phases:
        yield Problem(
            name, "phase", f"found {', '.join(sorted(phases))}; allowed: {', '.join(PHASES)}"
        )
    domains = set(frame["domain"].dropna().astype(str).unique()) - set(manifest.domains)
    if domains:
        yield Problem(name, "domain", f"not listed in the manifest: {', '.join(sorted(domains))}")
