"""Which tokens of a trace follow one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.errors import InputError
from moesim.extras import require
from moesim.traces.bundle import Trace

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Sequences", "trace_sequences"]


@dataclass(frozen=True)
class Sequences:
    """The sequences of a trace.

    Attributes:
        bounds: [R + 1] int64; sequence r is tokens ``bounds[r]:bounds[r + 1]`` of ``order``.
        order: [T] int64 tokens of the trace, sequence after sequence; None if they lie so already.
        domains: Names of the domains, sorted; empty if the trace has none.
        domain: [R] int64 index of each sequence's domain, or None.
    """

    bounds: np.ndarray
    order: np.ndarray | None = None
    domains: tuple[str, ...] = ()
    domain: np.ndarray | None = None

    @property
    def count(self) -> int:
        """R."""
        return len(self.bounds) - 1

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.bounds[-1])

    def select(self, chosen: np.ndarray) -> Sequences:
        """Some of the sequences.

        Args:
            chosen: [R] bool or [n] int64 indices, ascending.
        """
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        starts, lengths = self.bounds[rows], np.diff(self.bounds)[rows]
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.repeat(starts - bounds[:-1], lengths) + np.arange(bounds[-1])
        return Sequences(
            bounds,
            at if self.order is None else self.order[at],
            self.domains,
            None if self.domain is None else self.domain[rows],
        )


def trace_sequences(trace: Trace, sample_tokens: int | None = None) -> Sequences:
    """The requests of a trace, or the whole trace if it names none.

    Args:
        trace: The trace.
        sample_tokens: Cut into samples of so many tokens; the last of a request may be short.

    Raises:
        InputError: If the requests are not one row per token.
        MissingExtraError: If the trace has requests and pyarrow is not installed.
    """
    bounds = np.array([0, trace.manifest.tokens], np.int64)
    order: np.ndarray | None = None
    names: tuple[str, ...] = ()
    domain: np.ndarray | None = None
    table = _requests(trace)
    if table is not None and "request" in table.column_names:
        request = table.column("request").to_numpy()
        changes = np.flatnonzero(request[1:] != request[:-1]) + 1
        firsts = request[np.concatenate([[0], changes])]
        if len(np.unique(firsts)) < len(firsts):
            order = np.argsort(request, kind="stable").astype(np.int64)
            changes = np.flatnonzero(np.diff(request[order])) + 1
        bounds = np.concatenate([[0], changes, [len(request)]]).astype(np.int64)
        if "domain" in table.column_names:
            # A name per request, not per token: text of ten million tokens would take gigabytes.
            heads = bounds[:-1] if order is None else order[bounds[:-1]]
            of_request = table.column("domain").take(heads).to_numpy().astype(str)
            found, domain = np.unique(of_request, return_inverse=True)
            names = tuple(found.tolist())
    if sample_tokens is not None:
        lengths = np.diff(bounds)
        samples = -(-lengths // sample_tokens)
        nth = np.arange(samples.sum()) - np.repeat(np.cumsum(samples) - samples, samples)
        starts = np.repeat(bounds[:-1], samples) + nth * sample_tokens
        domain = None if domain is None else np.repeat(domain, samples)
        bounds = np.append(starts, bounds[-1]).astype(np.int64)
    return Sequences(bounds, order, names, domain)


def _requests(trace: Trace) -> pa.Table | None:
    """Request and domain of every token, as far as the trace has them; no more is read."""
    if trace.path is None or not (file := trace.path / "requests.parquet").is_file():
        return None
    parquet = require("pyarrow.parquet", "parquet", "reading requests.parquet")
    arrow_error = require("pyarrow", "parquet", "reading requests.parquet").ArrowException
    try:
        names = set(parquet.read_schema(file).names) & {"request", "domain"}
        table = parquet.read_table(file, columns=sorted(names), read_dictionary=["domain"])
    except (OSError, ValueError, TypeError, MemoryError, arrow_error) as error:
        raise InputError("not a usable parquet file", file=file, found=str(error)) from error
    if table.num_rows != trace.manifest.tokens:
        raise InputError(
            "one row per token is needed",
            file=file,
            found=f"{table.num_rows} rows",
            allowed=f"{trace.manifest.tokens} rows",
        )
    return table
