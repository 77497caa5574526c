"""Pieces of a report that every face shows: labelled values and tables of text."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fact", "Table", "aligned"]


@dataclass(frozen=True)
class Fact:
    """One labelled value, with a remark where it needs one."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: Headings.
        rows: Cells; the first of each row is its heading.
        marked: Index of the row to point out.
        numeric: Whether all columns but the first hold numbers.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: int | None = None
    numeric: bool = True


def aligned(table: Table) -> list[str]:
    """Lines of a table in columns, the first to the left and the others to the right."""
    rows = (table.columns, *table.rows)
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        f"{head:<{first}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for head, *cells in rows
    ]
