"""What every verb shares: the common options, where output goes, and how errors end.

stdout is the result, stderr the talk. With ``--json`` exactly one object goes to stdout, an error
included.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import InputError, MoesimError

__all__ = ["Console", "JsonOption", "OutOption", "QuietOption", "SeedOption", "run"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder (or file) that receives what is written.")
]


class Console:
    """Output of one run of a verb."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Talk, on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr)  # noqa: T201

    def result(self, data: dict[str, Any], show: Callable[[], object] | str) -> None:
        """The result, on stdout: ``data`` as JSON with ``--json``, else what ``show`` prints."""
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
    try:
        code = app(args=arguments, standalone_mode=False)
    except MoesimError as error:
        return _end(error, error.exit_code, error.to_dict(), as_json, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _end(None, 130, {"type": "Interrupted", "message": "interrupted"}, as_json, debug)
    except BrokenPipeError:
        # The reader has gone (``moesim … | head``): there is nobody left to tell.
        sys.stdout = None
        return 0
    except MemoryError as error:
        return _end(
            error, 4, InputError("the input does not fit into memory").to_dict(), as_json, debug
        )
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
    return code if isinstance(code, int) else 0


def _end(
    error: BaseException | None, code: int, data: dict[str, Any], as_json: bool, debug: bool
) -> int:
    if debug and error is not None:
        traceback.print_exception(error)
    if as_json:
        data = {"schema": "moesim.error/1", "ok": False, "error": data | {"exit_code": code}}
        print(json.dumps(data))  # noqa: T201
    else:
        print(f"moesim: {data['message']}", file=sys.stderr)  # noqa: T201
    return code
