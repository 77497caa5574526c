"""Where NVIDIA's measured kernel tables lie, and which of them there are.

The package aiconfigurator-core (Apache-2.0) carries them as
``systems/data/<system>/<family>/<engine>/<version>/<operator>_perf.parquet``. They are read in
place: nothing is copied, and no code of the package is imported. A ``reuse.yaml`` beside a table
declares that what it lacks is to be taken from another version of the same engine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, MissingExtraError
from moesim.extras import require
from moesim.operators.fitted import version_key
from moesim.safe_io import read_yaml

__all__ = [
    "PACKAGE",
    "Catalogue",
    "TableFile",
    "data_folder",
    "open_catalogue",
    "read_parquet",
    "version_key",
]

PACKAGE = "aiconfigurator"
"""The source that means: the installed package aiconfigurator-core."""

SUFFIX = "_perf.parquet"
FULL_SHARE = 0.5
"""A version with fewer rows than this share of the fullest one is an addition to it, not a
successor: 1.3.0rc23 of TensorRT-LLM holds 10 692 rows of one new shape, 1.3.0rc20 126 522."""


@dataclass(frozen=True)
class TableFile:
    """One table: an operator measured with one engine version on one system.

    Attributes:
        system: GPU system, as the data name it (``h200_sxm``).
        family: Folder of related operators (``moe``, ``comm``).
        engine: Serving engine or library (``sglang``, ``trtllm``, ``vllm``, ``nccl``).
        version: Its version.
        operator: Name of the file without ``_perf.parquet``.
        path: The Parquet file; ``None`` where the version only borrows another's.
        reuses: Version whose rows complete this table, if ``reuse.yaml`` declares one.
        reuse_reason: Its stated reason.
    """

    system: str
    family: str
    engine: str
    version: str
    operator: str
    path: Path | None
    reuses: str | None = None
    reuse_reason: str = ""

    @cached_property
    def rows(self) -> int:
        """Rows of its own file, from the file's footer."""
        return 0 if self.path is None else int(_parquet(self.path).metadata.num_rows)

    @property
    def name(self) -> str:
        """``system/engine/version/operator``."""
        return f"{self.system}/{self.engine}/{self.version}/{self.operator}"


@dataclass(frozen=True)
class Catalogue:
    """Every table below one data folder, in a fixed order."""

    folder: Path
    tables: tuple[TableFile, ...]

    @property
    def systems(self) -> tuple[str, ...]:
        """Systems that have tables."""
        return tuple(dict.fromkeys(table.system for table in self.tables))

    @property
    def operators(self) -> tuple[str, ...]:
        """Operators that have tables."""
        return tuple(sorted({table.operator for table in self.tables}))

    def select(
        self,
        files: Iterable[str] | None = None,
        systems: Iterable[str] | None = None,
        engines: Iterable[str] | None = None,
        versions: str | Iterable[str] = "newest",
    ) -> tuple[TableFile, ...]:
        """The tables of some operators, systems, engines and versions.

        Args:
            files: Operator files (``moe``); all if ``None``.
            systems: Systems; all if ``None``.
            engines: Engines; all if ``None``.
            versions: ``"all"``, version numbers, or ``"newest"``: of each system, engine and
                operator the newest version that is not merely an addition (``FULL_SHARE``).

        Raises:
            InputError: If a system or engine has no table at all.
        """
        systems = _known(systems, set(self.systems), "systems")
        engines = _known(engines, {table.engine for table in self.tables}, "engines")
        wanted = None if files is None else set(files)
        chosen = [
            table
            for table in self.tables
            if (wanted is None or table.operator in wanted)
            and (systems is None or table.system in systems)
            and (engines is None or table.engine in engines)
        ]
        if versions == "newest":
            return _newest(chosen)
        if versions != "all":
            named = {versions} if isinstance(versions, str) else set(versions)
            chosen = [table for table in chosen if table.version in named]
        return tuple(chosen)

    def donor(self, table: TableFile) -> TableFile | None:
        """The table that completes one whose ``reuse.yaml`` says so.

        Raises:
            InputError: If that table does not exist.
        """
        if table.reuses is None:
            return None
        for other in self.tables:
            same = (other.system, other.family, other.engine, other.operator) == (
                table.system,
                table.family,
                table.engine,
                table.operator,
            )
            if same and other.version == table.reuses and other.path is not None:
                return other
        raise InputError(
            "reuse.yaml names a version that has no such table",
            file=self.folder / table.system / table.family / table.engine / table.version,
            field=table.operator,
            found=table.reuses,
        )


def data_folder(source: str | Path = PACKAGE) -> Path:
    """The folder that holds ``<system>/<family>/<engine>/<version>/``.

    Args:
        source: ``"aiconfigurator"`` for the installed package, or a folder: the data folder
            itself, or one that has it as ``data`` or ``systems/data``.

    Raises:
        MissingExtraError: If the package is asked for and not installed.
        InputError: If no such folder exists.
    """
    if str(source) == PACKAGE:
        found = importlib.util.find_spec("aiconfigurator_core")  # a top-level name: not imported
        if found is None or not found.submodule_search_locations:
            raise MissingExtraError("aiconfigurator-core", "measured", "reading measured kernels")
        roots = [Path(place) for place in found.submodule_search_locations]
    else:
        roots = [Path(source)]
    candidates = [root / below for root in roots for below in ("systems/data", "data", ".")]
    for folder in candidates:
        if folder.is_dir() and next(folder.glob(f"*/*/*/*/*{SUFFIX}"), None) is not None:
            return folder.resolve()
    raise InputError(
        "no measured tables there",
        file=roots[0],
        allowed=f"a folder of <system>/<family>/<engine>/<version>/<operator>{SUFFIX}, "
        f"or {PACKAGE} for the installed package",
        fix="name the folder that holds the systems",
    )


def open_catalogue(source: str | Path = PACKAGE) -> Catalogue:
    """List the tables of a source; see ``data_folder`` for what a source is."""
    folder = data_folder(source)
    tables: dict[tuple[str, str, str, str, str], TableFile] = {}
    for path in folder.glob(f"*/*/*/*/*{SUFFIX}"):
        system, family, engine, version = path.relative_to(folder).parts[:4]
        operator = path.name.removesuffix(SUFFIX)
        place = (system, family, engine, version, operator)
        tables[place] = TableFile(*place, path)
    for path in folder.glob("*/*/*/*/reuse.yaml"):
        system, family, engine, version = path.relative_to(folder).parts[:4]
        for operator, donor, reason in _reuses(path):
            place = (system, family, engine, version, operator)
            own = tables.get(place)
            tables[place] = TableFile(*place, own.path if own else None, donor, reason)
    ordered = sorted(
        tables.values(),
        key=lambda t: (t.system, t.operator, t.family, t.engine, version_key(t.version)),
    )
    return Catalogue(folder, tuple(ordered))


def _newest(tables: Sequence[TableFile]) -> tuple[TableFile, ...]:
    by_series: dict[tuple[str, ...], list[TableFile]] = {}
    for table in tables:
        if table.path is not None:
            series = (table.system, table.family, table.engine, table.operator)
            by_series.setdefault(series, []).append(table)
    chosen = []
    for series_tables in by_series.values():
        fullest = max(table.rows for table in series_tables)
        full = [table for table in series_tables if table.rows >= FULL_SHARE * fullest]
        chosen.append(max(full, key=lambda table: version_key(table.version)))
    return tuple(chosen)


def _reuses(path: Path) -> list[tuple[str, str, str]]:
    """(operator, version, reason) of each entry of a ``reuse.yaml``."""
    document = read_yaml(path)
    entries = document.get("reuse") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise InputError("a list is needed", file=path, field="reuse", found=entries)
    result = []
    for index, entry in enumerate(entries):
        names = {"table", "from_version"}
        if not isinstance(entry, dict) or not names <= set(entry):
            raise InputError(
                "an entry needs table and from_version",
                file=path,
                field=f"reuse[{index}]",
                found=entry,
            )
        operator = str(entry["table"]).removesuffix("_perf")
        result.append((operator, str(entry["from_version"]), str(entry.get("reason", "")).strip()))
    return result


def _known(names: Iterable[str] | None, known: set[str], field: str) -> set[str] | None:
    if names is None:
        return None
    wanted = set(names)
    if wanted - known:
        raise InputError(
            "no tables of that name",
            field=field,
            found=", ".join(sorted(wanted - known)),
            allowed=", ".join(sorted(known)),
        )
    return wanted


def read_parquet(
    path: Path, columns: Iterable[str]
) -> dict[str, tuple[np.ndarray, tuple[str, ...] | None]]:
    """Read those of some columns that a Parquet file has.

    Returns:
        By column the values and, of a text column, the labels that its int32 codes stand for
        (``None`` for numbers). A missing text is ``""``, a missing number in a column of
        fractions NaN.

    Raises:
        InputError: If the file is unreadable, or a column of counts has holes.
    """
    arrow = require("pyarrow", "measured", "reading measured kernels")
    file = _parquet(path)
    wanted = set(columns)
    fields = [field for field in file.schema_arrow if field.name in wanted]
    texts = [field.name for field in fields if _is_text(arrow, field.type)]
    try:
        # Codes come straight from the file's own dictionaries: no string is ever built per row.
        coded = _parquet(path, read_dictionary=texts)
        table = coded.read([field.name for field in fields], use_threads=False)
    except (arrow.ArrowException, OSError) as error:
        raise InputError("not a readable Parquet file", file=path, found=str(error)) from error
    result: dict[str, tuple[np.ndarray, tuple[str, ...] | None]] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if isinstance(column, arrow.ChunkedArray):
            column = arrow.concat_arrays(column.chunks)
        if name in texts:
            result[name] = _codes(column)
        elif column.null_count and arrow.types.is_integer(column.type):
            raise InputError("empty cells in a column of counts", file=path, field=name)
        else:
            result[name] = (_numbers(column), None)
    return result


def _is_text(arrow: Any, kind: Any) -> bool:
    is_kind = arrow.types
    return bool(is_kind.is_string(kind) or is_kind.is_large_string(kind))


def _codes(column: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and labels of a dictionary column; an empty cell is the label ``""``."""
    labels = ["" if label is None else str(label) for label in column.dictionary.to_pylist()]
    codes = column.indices
    if column.null_count:
        labels.append("")
        codes = codes.fill_null(len(labels) - 1)
    return _numbers(codes).astype(np.int32), tuple(labels)


def _numbers(column: Any) -> np.ndarray:
    """A column of numbers without a copy; pyarrow's own ``to_numpy`` would import pandas."""
    return np.from_dlpack(column.fill_null(float("nan")) if column.null_count else column)


def _parquet(path: Path, **options: Any) -> Any:
    """The opened Parquet file."""
    parquet = require("pyarrow.parquet", "measured", "reading measured kernels")
    arrow = require("pyarrow", "measured", "reading measured kernels")
    try:
        return parquet.ParquetFile(path, **options)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(
            "not a readable Parquet file", file=path, found=str(error), fix="install it again"
        ) from error
