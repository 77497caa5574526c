"""Loggers write one row per token and layer; a bundle is one array. This puts rows in their place.

Rows are kept as flat typed columns (about 40 bytes per row at top-8), never as Python objects, so
that a log of many million rows fits into memory.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import InputError
from moesim.traces.importers.contents import Requests
from moesim.traces.importers.padded import Padded

__all__ = ["RowTable", "Rows", "arrange"]


@dataclass(frozen=True)
class Rows:
    """Routing rows in file order, R of them.

    Attributes:
        request: [R] int32 number of the request.
        token: [R] int64 index of the token in its request.
        layer: [R] int32 model layer index.
        line: [R] int64 line of the file, for messages.
        phase: [R] uint8 index into ``PHASES``.
        domain: [R] int32 index into ``domains``.
        ids: [R, K] int32 expert ids, −1 for none.
        gates: [R, K] float32 or None.
        domains: Names of the domains.
    """

    request: np.ndarray
    token: np.ndarray
    layer: np.ndarray
    line: np.ndarray
    phase: np.ndarray
    domain: np.ndarray
    ids: np.ndarray
    gates: np.ndarray | None
    domains: tuple[str, ...]


class RowTable:
    """Collects rows while a file is read.

    Args:
        file: For messages.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._requests: dict[object, int] = {}
        self._domains: dict[str, int] = {}
        self._request, self._layer, self._domain = array("i"), array("i"), array("i")
        self._token, self._line = array("q"), array("q")
        self._phase = array("B")
        self._ids, self._gates = array("i"), array("f")
        self._width: int | None = None
        self._has_gates: bool | None = None

    def __len__(self) -> int:
        return len(self._layer)

    def add(
        self,
        *,
        line: int,
        request: object,
        token: object,
        layer: object,
        ids: object,
        gates: object = None,
        phase: int = 0,
        domain: str = "unknown",
    ) -> None:
        """Add one row.

        Raises:
            InputError: Naming the line, if a value is not of its kind, or the row has another
                number of experts than the first one, or router weights where the first has none.
        """
        if not isinstance(request, str | int) or isinstance(request, bool):
            raise self._refuse(line, "request", request, "text or an integer")
        self._token.append(self._integer(line, "token", token, 2**31))
        self._layer.append(self._integer(line, "layer", layer, 2**20))
        if not isinstance(ids, list) or not ids or set(map(type, ids)) != {int}:
            raise self._refuse(line, "experts", ids, "a list of integers")
        if self._width is None:
            self._width, self._has_gates = len(ids), gates is not None
        if len(ids) != self._width:
            raise self._refuse(line, "experts", ids, f"{self._width} ids, as in the first row")
        if min(ids) < -1 or max(ids) >= 2**31:
            raise self._refuse(line, "experts", ids, "0 … experts − 1, or −1 for none")
        self._ids.extend(ids)
        self._add_gates(line, gates)
        self._request.append(self._requests.setdefault(request, len(self._requests)))
        # JSON may hold lone surrogates, which no UTF-8 file can store.
        name = domain.encode("utf-8", "replace").decode("utf-8")
        self._domain.append(self._domains.setdefault(name, len(self._domains)))
        self._line.append(line)
        self._phase.append(phase)

    def _add_gates(self, line: int, gates: object) -> None:
        if (gates is not None) != self._has_gates:
            raise self._refuse(line, "gates", gates, "weights in every row or in none")
        if gates is None:
            return
        if not isinstance(gates, list) or len(gates) != self._width:
            raise self._refuse(line, "gates", gates, f"a list of {self._width} weights")
        if not set(map(type, gates)) <= {int, float}:
            raise self._refuse(line, "gates", gates, "numbers")
        try:
            self._gates.extend(gates)
        except OverflowError as error:
            raise self._refuse(line, "gates", gates, "weights near 0 … 1") from error

    def _integer(self, line: int, field: str, value: object, limit: int) -> int:
        if type(value) is not int or not 0 <= value < limit:
            raise self._refuse(line, field, value, f"an integer 0 … {limit - 1}")
        return value

    def _refuse(self, line: int, field: str, found: object, allowed: str) -> InputError:
        return InputError(
            "the row cannot be used",
            file=self.file,
            field=f"line {line}, {field}",
            found="nothing" if found is None else found,
            allowed=allowed,
            fix="correct or remove the line",
        )

    def rows(self) -> Rows:
        """The columns.

        Raises:
            InputError: If there are no rows.
        """
        if self._width is None:
            raise InputError(
                "no routing rows in the file", file=self.file, fix="record at least one token"
            )
        count = len(self)
        return Rows(
            request=np.frombuffer(self._request, np.int32),
            token=np.frombuffer(self._token, np.int64),
            layer=np.frombuffer(self._layer, np.int32),
            line=np.frombuffer(self._line, np.int64),
            phase=np.frombuffer(self._phase, np.uint8),
            domain=np.frombuffer(self._domain, np.int32),
            ids=np.frombuffer(self._ids, np.int32).reshape(count, -1),
            gates=np.frombuffer(self._gates, np.float32).reshape(count, -1)
            if self._has_gates
            else None,
            domains=tuple(self._domains),
        )


def _groups(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[R] order that sorts by the last key first, and [R] where a new combination starts in it.

    The order is stable: equal rows stay as in the file.
    """
    order = np.lexsort(keys)
    starts = np.ones(len(order), bool)
    starts[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    return order, starts


def occurrence(*keys: np.ndarray) -> np.ndarray:
    """[R] int64, how often the same combination of keys stood in an earlier row."""
    order, starts = _groups(*keys)
    first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
    result = np.empty(len(order), np.int64)
    result[order] = np.arange(len(order)) - first
    return result


def arrange(rows: Rows, file: Path, *, restarts: bool) -> Padded:
    """Rows as a [L, T, K] array.

    Args:
        rows: Routing rows in any order.
        file: For messages.
        restarts: Whether the token index starts again with every forward pass, as in loggers that
            hook into a layer. The n-th row of a token index in one layer then belongs to the n-th
            row of it in every other layer, and tokens stay in the order of the file. Otherwise
            tokens are sorted by request and index, and a repeated row is an error.

    Raises:
        InputError: If a row of some token and layer is missing or stands twice.
    """
    earlier = occurrence(rows.layer, rows.request, rows.token)
    if not restarts and earlier.any():
        index = int(np.flatnonzero(earlier)[0])
        raise InputError(
            "this token and layer stood in an earlier line",
            file=file,
            field=f"line {rows.line[index]}",
            found=f"layer {rows.layer[index]}, token {rows.token[index]}",
            allowed="one row per token and layer",
            fix="keep one of the rows",
        )
    token, first = _number_tokens(rows, earlier, restarts)
    layers, row = np.unique(rows.layer, return_inverse=True)
    count = len(first)
    place = row.astype(np.int64) * count + token
    if len(place) != len(layers) * count:
        raise _missing(rows, file, layers, token, first)
    shape = (len(layers), count, rows.ids.shape[1])
    order = np.empty(len(place), np.int64)
    order[place] = np.arange(len(place))
    request = rows.request[first]
    return Padded(
        ids=rows.ids[order].reshape(shape),
        layers=tuple(int(layer) for layer in layers),
        file=file,
        field="experts",
        gates=None if rows.gates is None else rows.gates[order].reshape(shape),
        requests=Requests(
            request=request,
            position=(occurrence(request) if restarts else rows.token[first]).astype(np.int32),
            phase=rows.phase[first],
            domain=rows.domain[first],
            domains=rows.domains,
        ),
    )


def _number_tokens(
    rows: Rows, earlier: np.ndarray, restarts: bool
) -> tuple[np.ndarray, np.ndarray]:
    """[R] number of each row's token, and [T] the first row of each token."""
    keys = (rows.token, rows.request)
    order, starts = _groups(earlier, *keys) if restarts else _groups(*keys)
    token = np.empty(len(order), np.int64)
    token[order] = np.cumsum(starts) - 1
    first = order[starts]
    if not restarts:
        return token, first
    in_file_order = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[in_file_order] = np.arange(len(first))
    return rank[token], first[in_file_order]


def _missing(
    rows: Rows, file: Path, layers: np.ndarray, token: np.ndarray, first: np.ndarray
) -> InputError:
    """The error that names the first token without a row for each layer."""
    incomplete = int(np.argmax(np.bincount(token, minlength=len(first)) < len(layers)))
    absent = np.setdiff1d(layers, rows.layer[token == incomplete])
    return InputError(
        "a token has no row for a layer",
        file=file,
        field=f"layer {absent[0]}, token {rows.token[first[incomplete]]}",
        found=f"{len(layers) * len(first) - len(rows.layer)} missing rows; the token is first "
        f"named in line {rows.line[first[incomplete]]}",
        allowed="one row for every token and layer",
        fix="record again, or leave unfinished tokens out",
    )
