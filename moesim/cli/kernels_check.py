"""``moesim kernels check``: compile every kernel for every target and hold the result to facts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, NoSeedOption, QuietOption, ResultOutOption

if TYPE_CHECKING:
    from moesim.kernels.check import Outcome

__all__ = ["check"]

SCHEMA = "moesim.kernels/1"
FAILED = 6


def check(
    targets: Annotated[
        str, typer.Option(help="Only these targets, such as sm_90a,gfx942; all without it.")
    ] = "",
    only: Annotated[
        str, typer.Option(help="Only cases that begin so, such as tile-128x256x64.")
    ] = "",
    table: Annotated[
        Path | None, typer.Option(help="Table of configurations; the shipped one without it.")
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(help="Put the facts into this file, between its markers."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that compile.", min=1)] = 2,
    seed: NoSeedOption = 0,
    out: ResultOutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compile all kernels for GPUs that need not be here, and check what the compiler made.

    No spills, no stack, registers and shared memory within the target's limits, matrix units and
    asynchronous copies where the kernel claims them. Exit code 6: a fact does not hold.
    """
    from moesim.extras import require
    from moesim.safe_io import read_text, write_atomic

    console = Console(as_json=as_json, quiet=quiet, out=out)
    require("torch", "kernels", "kernels check")
    require("triton", "kernels", "kernels check")
    from moesim.kernels.check import cases, run_cases
    from moesim.kernels.config_table import default_table, load_table
    from moesim.kernels.facts_table import facts_table, with_facts

    chosen = _chosen(
        cases(_words(targets), default_table() if table is None else load_table(table)), only
    )
    if readme is not None:  # before minutes are spent on compiling
        with_facts(read_text(readme), "", readme)
    outcomes: list[Outcome] = []
    with console.progress("compiling") as step:
        for outcome in run_cases(chosen, workers):
            outcomes.append(outcome)
            step(f"{len(outcomes)} of {len(chosen)}: {outcome.case.target} {outcome.case.name}")
    if readme is not None:
        write_atomic(readme, with_facts(read_text(readme), facts_table(outcomes), readme))
        console.say(f"written: {readme}")
    failed = [outcome for outcome in outcomes if outcome.violations]
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "ok": not failed,
        "kind": "check",
        "targets": list(dict.fromkeys(outcome.case.target for outcome in outcomes)),
        "versions": _versions(),
        "cases": [outcome.to_dict() for outcome in outcomes],
    }
    console.result(data, _text(outcomes, failed))
    if failed:
        raise typer.Exit(FAILED)


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _chosen(found: Sequence[Any], only: str) -> list[Any]:
    from moesim.errors import UsageError

    chosen = [case for case in found if case.name.startswith(only)]
    if not chosen:
        raise UsageError(
            f"no case begins with {only}\nfix: use a name that --json lists without --only"
        )
    return chosen


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("torch", "triton")}


def _text(outcomes: Sequence[Outcome], failed: Sequence[Outcome]) -> str:
    lines = [
        f"{'target':<9}{'kernel':<38}{'registers':>10}{'shared':>11}  instructions",
    ]
    for outcome in outcomes:
        facts = outcome.facts
        head = f"{outcome.case.target:<9}{outcome.case.name:<38}"
        if facts is None:
            lines.append(f"{head}{'-':>10}{'-':>11}")
            continue
        counts = ", ".join(f"{count} {name}" for name, count in facts.instructions.items())
        lines.append(f"{head}{facts.registers:>10}{facts.shared_bytes:>9,} B  {counts}")
    lines.append("")
    lines += [
        f"{outcome.case.target} {outcome.case.name}: {'; '.join(outcome.violations)}"
        for outcome in failed
    ]
    lines.append(
        f"{len(outcomes) - len(failed)} of {len(outcomes)} hold: no spills, no stack, within the "
        "limits, on the units they are made for"
    )
    return "\n".join(lines)
