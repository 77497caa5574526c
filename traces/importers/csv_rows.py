"""CSV with a header, long or wide.

- ``long``: ``request, token, layer, expert[, gate]``, one line per chosen expert, in the order of
  the choice;
- ``wide``: ``[request,] token, layer, e0 … eK-1[, g0 … gK-1]``, one line per token and layer.

``request`` may be left out in both: all rows then belong to one request.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moesim.errors import InputError
from moesim.safe_io import open_text
from moesim.traces.importers.contents import ImportOptions, Routing
from moesim.traces.importers.padded import strip_padding
from moesim.traces.importers.rows import Rows, RowTable, arrange, occurrence

__all__ = ["import_csv"]

_ENTRY = re.compile(r"([eg])(0|[1-9]\d{0,3})")
HELP = "request,token,layer,expert[,gate] or [request,]token,layer,e0,e1,…[,g0,g1,…]"


@dataclass(frozen=True)
class _Columns:
    """Where the values of a line stand.

    Attributes:
        request: Index of the column, or None.
        token: Index.
        layer: Index.
        experts: Indices, in the order of the entries.
        gates: Indices, as many or none.
        width: Cells per line.
        long: Whether a line holds one expert of a token.
    """

    request: int | None
    token: int
    layer: int
    experts: tuple[int, ...]
    gates: tuple[int, ...]
    width: int
    long: bool


def import_csv(file: Path, options: ImportOptions) -> Routing:
    """Read a table of choices.

    Raises:
        InputError: Naming the line of the first row that cannot be used, or the first token and
            layer without a row.
    """
    table = RowTable(file)
    with open_text(file) as stream:
        lines = csv.reader(stream)
        try:
            columns = _columns(file, next(lines, None))
            for cells in lines:
                if cells:
                    _add(table, columns, lines.line_num, cells)
        except csv.Error as error:
            raise InputError(
                "not a CSV file", file=file, field=f"line {lines.line_num}", found=str(error)
            ) from error
    rows = table.rows()
    if columns.long:
        rows = _join_entries(rows, file)
    padded = arrange(rows, file, restarts=False)
    return strip_padding(padded, options, "long" if columns.long else "wide")


def _columns(file: Path, header: list[str] | None) -> _Columns:
    names = [name.strip().lower() for name in header or []]
    entries: dict[str, dict[int, int]] = {"e": {}, "g": {}}
    for index, name in enumerate(names):
        if match := _ENTRY.fullmatch(name):
            entries[match[1]][int(match[2])] = index
    plain = [name for name in names if not _ENTRY.fullmatch(name)]
    long = "expert" in plain
    experts = (names.index("expert"),) if long else _in_order(entries["e"])
    gates = (names.index("gate"),) if long and "gate" in plain else _in_order(entries["g"])
    known = {"request", "token", "layer"} | ({"expert", "gate"} if long else set())
    if (
        not {"token", "layer"} <= set(plain) <= known
        or len(set(names)) != len(names)
        or not experts
        or len(gates) != (len(experts) if "gate" in plain or entries["g"] else 0)
        or (long and (entries["e"] or entries["g"]))
    ):
        raise InputError(
            "the header does not name the columns",
            file=file,
            field="line 1",
            found=",".join(names) or "nothing",
            allowed=HELP,
            fix="add a header line",
        )
    return _Columns(
        request=names.index("request") if "request" in names else None,
        token=names.index("token"),
        layer=names.index("layer"),
        experts=experts,
        gates=gates,
        width=len(names),
        long=long,
    )


def _in_order(entries: dict[int, int]) -> tuple[int, ...]:
    """Column indices of entries 0 … K − 1; nothing if the numbers have gaps."""
    if sorted(entries) != list(range(len(entries))):
        return ()
    return tuple(entries[number] for number in range(len(entries)))


def _add(table: RowTable, columns: _Columns, line: int, cells: list[str]) -> None:
    if len(cells) != columns.width:
        raise InputError(
            "the line has another number of cells than the header",
            file=table.file,
            field=f"line {line}",
            found=f"{len(cells)} cells",
            allowed=f"{columns.width} cells",
            fix="complete or remove the line",
        )
    try:
        token, layer = int(cells[columns.token]), int(cells[columns.layer])
        ids = [int(cells[index]) for index in columns.experts]
        gates = [float(cells[index]) for index in columns.gates]
    except ValueError as error:
        raise InputError(
            "a cell is not a number",
            file=table.file,
            field=f"line {line}",
            found=",".join(cells),
            allowed="integers, and decimal numbers as gates",
            fix="correct or remove the line",
        ) from error
    table.add(
        line=line,
        request=0 if columns.request is None else cells[columns.request].strip(),
        token=token,
        layer=layer,
        ids=ids,
        gates=gates or None,
    )


def _join_entries(rows: Rows, file: Path) -> Rows:
    """One row per token and layer from one row per expert, entries in the order of the file."""
    keys = (rows.layer, rows.token, rows.request)
    entry = occurrence(*keys)
    order = np.lexsort((entry, *keys))
    first = order[entry[order] == 0]
    top_k = int(entry.max()) + 1
    if len(order) != len(first) * top_k:
        raise _ragged(rows, file, first, entry, order, top_k)
    table = order.reshape(-1, top_k)
    return replace(
        rows,
        request=rows.request[first],
        token=rows.token[first],
        layer=rows.layer[first],
        line=rows.line[first],
        phase=rows.phase[first],
        domain=rows.domain[first],
        ids=rows.ids[table, 0],
        gates=None if rows.gates is None else rows.gates[table, 0],
    )


def _ragged(
    rows: Rows, file: Path, first: np.ndarray, entry: np.ndarray, order: np.ndarray, top_k: int
) -> InputError:
    """The error that names the first token and layer with fewer experts than the others."""
    sizes = np.diff(np.flatnonzero(np.append(entry[order] == 0, True)))
    short = int(np.flatnonzero(sizes < top_k)[0])
    row = first[short]
    return InputError(
        "a token has fewer experts than others",
        file=file,
        field=f"line {rows.line[row]}, layer {rows.layer[row]}, token {rows.token[row]}",
        found=f"{sizes[short]} experts",
        allowed=f"{top_k}; write -1 for an expert that is not there",
        fix="complete the token",
    )
