"""The compiler's facts as a table of a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moesim.errors import InputError
from moesim.kernels.check import Outcome

__all__ = ["facts_table", "with_facts"]

BEGIN, END = "<!-- facts: moesim kernels check --readme -->", "<!-- end of facts -->"


def facts_table(outcomes: Sequence[Outcome]) -> str:
    """One table per target, a row per case."""
    lines: list[str] = []
    for target in dict.fromkeys(outcome.case.target for outcome in outcomes):
        lines += [
            f"**{target}**",
            "",
            "| kernel | registers | spills | stack | shared memory | instructions | holds |",
            "| --- | ---: | ---: | ---: | ---: | --- | --- |",
        ]
        lines += [_row(outcome) for outcome in outcomes if outcome.case.target == target]
        lines.append("")
    return "\n".join(lines)


def with_facts(page: str, table: str, file: Path) -> str:
    """The page with the table between its markers.

    Raises:
        InputError: If the page has no such markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(
            "has no place for the facts",
            file=file,
            allowed=f"a line {BEGIN} and below it a line {END}",
            fix="add both lines",
        )
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def _row(outcome: Outcome) -> str:
    facts, holds = outcome.facts, "; ".join(outcome.violations) or "yes"
    if facts is None:
        return f"| `{outcome.case.name}` | | | | | | {holds} |"
    counts = ", ".join(f"{count} {name}" for name, count in facts.instructions.items())
    return (
        f"| `{outcome.case.name}` | {facts.registers} | {facts.spills} | {facts.stack_bytes} | "
        f"{facts.shared_bytes:,} B | {counts} | {holds} |"
    )
