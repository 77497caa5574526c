"""What every verb shares: the common options, where output goes, and how errors end.

stdout is the result, stderr the talk. With ``--json`` exactly one object goes to stdout, an error
included.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import InputError, MoesimError

__all__ = [
    "Console",
    "JsonOption",
    "NoSeedOption",
    "OutOption",
    "QuietOption",
    "ResultOutOption",
    "SeedOption",
    "capture",
    "listed",
    "run",
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
NoSeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Taken by every verb; nothing is random in this one.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder (or file) that receives what is written.")
]
ResultOutOption = Annotated[
    Path | None, typer.Option("--out", help="File that receives the result as JSON.")
]


_captured: ContextVar[list[dict[str, Any]] | None] = ContextVar("captured", default=None)


@contextmanager
def capture() -> Iterator[list[dict[str, Any]]]:
    """Collect results as data, instead of printing them, of verbs called inside this process."""
    results: list[dict[str, Any]] = []
    token = _captured.set(results)
    try:
        yield results
    finally:
        _captured.reset(token)


class Console:
    """Output of one run of a verb.

    Args:
        as_json: Print the result as one JSON object.
        quiet: Say nothing on stderr.
        out: File that receives the result as JSON, for verbs that write no files of their own.
    """

    def __init__(self, *, as_json: bool, quiet: bool, out: Path | None = None) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = out

    def say(self, text: str) -> None:
        """Talk, on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr)  # noqa: T201

    def result(self, data: dict[str, Any], show: Callable[[], object] | str) -> None:
        """The result, on stdout: ``data`` as JSON with ``--json``, else what ``show`` prints."""
        captured = _captured.get()
        if captured is not None:
            captured.append(data)
            return
        if self.out is not None:
            from moesim.safe_io import write_json

            self.say(f"written: {write_json(self.out, data)}")
        if self.as_json:
            print(json.dumps(data, allow_nan=False))  # noqa: T201
        elif isinstance(show, str):
            print(show)  # noqa: T201
        else:
            show()

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[str], None]]:
        """A spinner on a terminal's stderr; the yielded function renames the step."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console as RichConsole

        with RichConsole(stderr=True).status(text) as status:
            yield lambda step: status.update(step)


def run(app: Callable[..., Any], arguments: list[str] | None = None) -> int:
    """Run a Typer application and turn every way it can end into an exit code.

    Returns:
        0 ok, 1 our bug, 2 usage, 3 no feasible answer, 4 bad input, 5 partial result,
        6 validation outside tolerance, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json, debug = "--json" in arguments, "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    interrupted = {"type": "Interrupted", "message": "interrupted"}
    try:
        code = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except MoesimError as error:
        return _end(error, error.exit_code, error.to_dict(), as_json, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _end(None, 130, interrupted, as_json, debug)
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as error:
        # Typer and rich end the process when a pipe breaks.
        if isinstance(error.__context__, BrokenPipeError):
            return _reader_gone()
        raise
    except OSError as error:
        refused = InputError(f"the system refuses: {error.strerror or error}", file=error.filename)
        return _end(error, 4, refused.to_dict(), as_json, debug)
    except MemoryError as error:
        too_large = InputError(
            "the input does not fit into memory", fix="use a smaller one or a larger machine"
        )
        return _end(error, 4, too_large.to_dict(), as_json, debug)
    except Exception as error:
        # Typer carries its own copy of click, whose usage errors all format themselves.
        if hasattr(error, "format_message"):
            message = error.format_message()
            if not message:  # no arguments: the help has been printed
                return 2
            message += "\nfix: see --help"
            return _end(error, 2, {"type": "UsageError", "message": message}, as_json, debug)
        message = (
            f"this is a bug in moesim: {type(error).__name__}: {error}\n"
            "fix: run again with --debug and report what it prints"
        )
        return _end(error, 1, {"type": "Bug", "message": message}, as_json, debug)
    if code == 130:  # Typer turns Ctrl-C into this
        return _end(None, 130, interrupted, as_json, debug)
    return code if isinstance(code, int) else 0


def _reader_gone() -> int:
    """``moesim … | head``: there is nobody left to tell, not even when Python flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return 0


def _end(
    error: BaseException | None, code: int, data: dict[str, Any], as_json: bool, debug: bool
) -> int:
    if debug and error is not None:
        traceback.print_exception(error)
    if as_json:
        whole = {"schema": "moesim.error/1", "ok": False, "error": data | {"exit_code": code}}
        try:
            print(json.dumps(whole), flush=True)  # noqa: T201
        except OSError:  # stdout itself is the trouble: a full disk, or nobody who reads
            _reader_gone()
        else:
            return code
    print(f"moesim: {data['message']}", file=sys.stderr)  # noqa: T201
    return code


def listed(words: str | None) -> list[str] | None:
    """The words between commas; ``None`` for none given."""
    return None if words is None else [word.strip() for word in words.split(",") if word.strip()]
