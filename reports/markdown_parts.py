"""The parts of a Markdown report: what GitHub shows, and readable as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from moesim.reports.tables import Fact, Table

__all__ = ["code_block", "code_span", "escaped", "fact_list", "remark_list", "sparkline", "table"]

_BLOCKS = "▁▂▃▄▅▆▇█"


def escaped(text: str) -> str:
    """Text that Markdown and the HTML inside it leave as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word is no markup; escaping it would only spoil the plain text.
    return re.sub(r"[\\`*\[\]|~]|^[#+=-]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def code_span(text: str) -> str:
    """A code span; a bar would end the cell even there."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text.replace('|', chr(92) + '|')}{space}{ticks}"


def code_block(text: str) -> str:
    """A fenced block."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}\n{text}\n{ticks}"


def fact_list(facts: Sequence[Fact]) -> str:
    """Labelled values as a list."""
    lines = []
    for fact in facts:
        detail = f" ({escaped(fact.detail).rstrip('.')})" if fact.detail else ""
        label = fact.label[:1].upper() + fact.label[1:]
        lines.append(f"- {escaped(label)}: **{escaped(fact.value)}**{detail}")
    return "\n".join(lines)


def remark_list(remarks: Sequence[Fact]) -> str:
    """Remarks on the inputs, set off from the text."""
    lines = (
        f"> **{escaped(one.label)}: {escaped(one.value)}.** {escaped(one.detail)}\n>"
        for one in remarks
    )
    return "\n".join(lines).removesuffix("\n>")


def table(shown: Table, *, code: bool = False) -> str:
    """A table padded so that it lines up as plain text too."""
    show = code_span if code else escaped
    lines = [[escaped(name) for name in shown.columns]]
    for index, (first, *rest) in enumerate(shown.rows):
        marked = index == shown.marked
        cells = [escaped(first), *map(show, rest)]
        lines.append([f"**{cell}**" if marked else cell for cell in cells])
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(shown.columns))]

    def right(column: int) -> bool:
        return shown.numeric and column > 0

    rule = ["-" * (w - 1) + ":" if right(i) else "-" * w for i, w in enumerate(widths)]
    lines.insert(1, rule)
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if right(i) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def sparkline(values: np.ndarray, top: float) -> str:
    """[N] values as bars of text, the highest for ``top``."""
    steps = np.ceil(values / (top or 1.0) * len(_BLOCKS)).astype(int).clip(1, len(_BLOCKS))
    return "".join(_BLOCKS[step - 1] for step in steps)
