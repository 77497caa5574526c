"""``moesim sweep``: a verb over a grid of its options, kept in one store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, NoSeedOption, QuietOption
from moesim.cli.executor_options import AddressOption, JobsOption
from moesim.executors.protocol import ExecutorName

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesim.cli.sweep_point import SweptVerb
    from moesim.executors.protocol import Executor
    from moesim.sweep.grid import Grid
    from moesim.sweep.store import Store

__all__ = ["sweep"]

GIB = 2**30
SHARE_OF_MEMORY = 0.8
"""Of the memory that is free at the start, without --max-memory; the rest is left to others."""


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML: verb, and lists of that verb's options.")],
    out: Annotated[Path, typer.Option(help="Folder of the store and the tables.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the store that is in --out.")
    ] = False,
    executor: Annotated[
        ExecutorName, typer.Option(help="Worker processes, this process alone, or Ray.")
    ] = ExecutorName.PROCESS,
    address: AddressOption = None,
    jobs: JobsOption = None,
    max_memory: Annotated[
        float | None, typer.Option(help="GiB for all workers [80 % of what is free].")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Keep lists of results too, like kernels of a step.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the grid and count; compute nothing.")
    ] = False,
    seed: NoSeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a verb over every combination of its options; stopped at any moment, it resumes."""
    from moesim.cli.sweep_point import SweptVerb, check_options
    from moesim.errors import UsageError
    from moesim.sweep.grid import code_version, read_grid
    from moesim.sweep.store import Store
    from moesim.sweep.table import collect, write_csv

    console = Console(as_json=as_json, quiet=quiet)
    asked = read_grid(grid)
    check_options(asked.verb, list(asked.options))
    version = code_version()
    keys = asked.keys(version + (" full" if full else ""))
    file = out / "results.sqlite"
    if file.exists() and not (resume or dry_run):
        raise UsageError(f"{file} is there already\nfix: pass --resume, or another --out")
    head = {"schema": "moesim.sweep/1", "verb": asked.verb, "code": version, "total": len(keys)}
    if dry_run:
        finished = _finished(file, keys)
        data = head | {"ok": True, "dry_run": True, "finished": finished, "points": []}
        console.result(data, f"{len(keys)} points of {asked.verb}, {finished} finished")
        return
    run = SweptVerb(asked.verb, full=full)
    with closing(Store(file)) as store:
        try:
            _compute(console, run, asked, keys, store, executor, jobs, address, max_memory)
        finally:
            points = collect(asked, keys, store)
            failed = sum(not point["ok"] for point in points)
            whole = len(points) == len(keys)
            data = head | {"ok": whole and not failed, "failed": failed, "points": points}
            files = _write(out, data, write_csv)
    console.result(data, _text(data, files))
    if failed:
        console.say(f"{failed} of {len(keys)} points failed; the tables name their errors")
        raise typer.Exit(5)


def _finished(file: Path, keys: list[str]) -> int:
    from moesim.sweep.store import Store

    if not file.exists():
        return 0
    with closing(Store(file)) as store:
        have = store.keys()
    return sum(key in have for key in keys)


def _compute(
    console: Console, run: SweptVerb, grid: Grid, keys: list[str], store: Store,
    executor: ExecutorName, jobs: int | None, address: str | None, max_memory: float | None,
) -> None:  # fmt: skip
    from moesim.executors.protocol import open_executor
    from moesim.sweep.execute import compute, peak_worker_bytes

    have = store.keys()
    points: dict[str, dict[str, Any]] = {
        key: options for key, options in zip(keys, grid.points(), strict=True) if key not in have
    }
    missing = list(points.items())
    console.say(f"{len(keys)} points of {grid.verb}, {len(keys) - len(missing)} finished")
    if not missing:
        return
    with open_executor(executor, jobs, address) as workers:
        if workers.workers:
            # One point tells what a worker needs before there are many of them.
            each = peak_worker_bytes(run, missing[0], store, workers)
            missing = missing[1:]
            _fit_into_memory(console, workers, each, len(missing), max_memory)
        with _progress(console, len(missing)) as advance:
            for count in compute(run, missing, store, workers):
                advance(count)


def _fit_into_memory(
    console: Console, executor: Executor, each: int, points: int, max_memory: float | None
) -> None:
    """Use no more workers than fit; ``each`` is what one of them needs in bytes."""
    from moesim.errors import InfeasibleError

    free = executor.free_bytes()
    cap = max_memory * GIB if max_memory is not None else SHARE_OF_MEMORY * (free or 2**62)
    if each > cap:
        raise InfeasibleError(
            f"a worker needs {each / GIB:.2f} GiB; allowed: {cap / GIB:.2f} GiB\n"
            "fix: pass a larger --max-memory, or smaller inputs"
        )
    if each:
        executor.limit(int(cap // each))
    used = min(executor.workers, max(points, 1))
    many = "worker" if used == 1 else "workers"
    console.say(f"{used} {many}, about {each * used / GIB:.2f} GiB of {cap / GIB:.2f} GiB")


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with time left on a terminal's stderr."""
    import sys

    if console.quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=RichConsole(stderr=True)) as progress:
        task = progress.add_task("points", total=total)
        yield lambda count: progress.advance(task, count)


def _write(out: Path, data: dict[str, Any], write_csv: Callable[..., Path]) -> list[Path]:
    from moesim.safe_io import write_json

    return [
        write_json(out / "sweep.json", data, compact=True),
        write_csv(out / "sweep.csv", data["points"]),
    ]


def _text(data: dict[str, Any], files: list[Path]) -> str:
    counts = f"{data['total']} points of {data['verb']}, {data['failed']} failed"
    return "\n".join([counts, *(f"written: {file}" for file in files)])
