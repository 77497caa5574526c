"""One point of a sweep: a verb called inside this process, its result as data."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import typer

from moesim.cli.console import capture
from moesim.errors import InputError, MoesimError, UsageError
from moesim.sweep.grid import code_version
from moesim.sweep.table import without_lists

__all__ = ["SweptVerb", "check_options"]

KEPT_BACK = {"json", "quiet", "out", "help"}
"""Options that the sweep itself decides on."""

NOT_SWEPT = {"sweep", "doctor", "report"}


class SweptVerb:
    """Runs points of one verb; a copy travels to every worker.

    Args:
        verb: Words of the verb.
        full: Keep the lists of results.
        code: Version under which results are kept, that of this process if not given.
    """

    def __init__(self, verb: str, *, full: bool = False, code: str | None = None) -> None:
        self.verb = verb
        self.full = full
        self.code = code or code_version()

    def __call__(self, options: dict[str, Any]) -> dict[str, Any]:
        """The result under ``result``, or the error under ``error``.

        Raises:
            UsageError: If the worker that this came to runs other code.
        """
        if self.code != code_version():
            raise UsageError(
                f"a worker runs moesim {code_version()}, but the sweep {self.code}\n"
                "fix: install the same moesim everywhere, then --resume"
            )
        calls = _calls(self.verb, frozenset(options))
        try:
            with capture() as results, calls.context(options) as context:
                calls.command.invoke(context)
        except MoesimError as error:
            return {"ok": False, "error": error.to_dict()}
        except typer.Exit as error:
            if not results:
                return _bug(error)
        except MemoryError:
            refused = InputError("the point does not fit into memory", fix="make it smaller")
            return {"ok": False, "error": refused.to_dict()}
        except Exception as error:
            if hasattr(error, "format_message"):  # usage errors of Typer's own copy of click
                return {"ok": False, "error": UsageError(error.format_message()).to_dict()}
            return _bug(error)
        result = results[-1]
        return {"ok": True, "result": result if self.full else without_lists(result)}


def _bug(error: Exception) -> dict[str, Any]:
    message = f"this is a bug in moesim: {type(error).__name__}: {error}"
    return {"ok": False, "error": {"type": "Bug", "message": message, "exit_code": 1}}


class _Calls:
    """Turns points that have the same options into calls; every value is parsed once."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.command = _command(verb)
        self._parameters = _parameters(self.command)
        self._defaults: dict[str, Any] = {}
        self._parsed: dict[tuple[str, str], Any] = {}

    def context(self, options: dict[str, Any]) -> Any:
        """What the verb is invoked with.

        The first point that has a value goes through the command line's parser. As no option's
        meaning depends on another's, the value means the same in every other point, and so do
        the defaults of the options that no point has.
        """
        # 1, 1.0, "1" and True are equal or alike, yet different words.
        names = {name: (name, repr(value)) for name, value in options.items()}
        if self._parsed.keys() >= set(names.values()):
            context = self.command.context_class(self.command, info_name=self.verb)
            found = {self._parameters[name].name: self._parsed[key] for name, key in names.items()}
            context.params = self._defaults | {
                name: list(value) if isinstance(value, list) else value
                for name, value in found.items()
            }
            return context
        context = self.command.make_context(self.verb, _words(self._parameters, options))
        self._defaults = dict(context.params)
        for name, key in names.items():
            self._parsed[key] = context.params[self._parameters[name].name]
        return context


@lru_cache(maxsize=64)
def _calls(verb: str, options: frozenset[str]) -> _Calls:
    """Kept apart by the names of the options: what one point gives is no other's default."""
    return _Calls(verb)


@lru_cache(maxsize=8)
def _command(verb: str) -> Any:
    from moesim.cli.app import app

    command: Any = typer.main.get_command(app)
    for word in verb.split():
        command = getattr(command, "commands", {}).get(word)
        if command is None or word in NOT_SWEPT:
            raise UsageError(
                f"no verb {verb!r} to sweep\nfix: name one such as simulate step (see --help)"
            )
    if hasattr(command, "commands"):
        raise UsageError(
            f"{verb!r} is a group of verbs; allowed: {', '.join(command.commands)}\n"
            f"fix: write verb: {verb} {next(iter(command.commands))}"
        )
    return command


def _parameters(command: Any) -> dict[str, Any]:
    """Options by the name that a grid gives them; an argument by its own."""
    found = {}
    for parameter in command.params:
        names = [name for name in parameter.opts if name.startswith("--")] or [parameter.name]
        found[names[0].removeprefix("--").replace("_", "-")] = parameter
    return found


def check_options(verb: str, names: list[str]) -> None:
    """Refuse a verb or options that do not exist.

    Raises:
        UsageError: Naming what is allowed.
    """
    allowed = [name for name in _parameters(_command(verb)) if name not in KEPT_BACK]
    for name in names:
        if name not in allowed:
            raise UsageError(
                f"moesim {verb} has no option {name!r} to sweep; allowed: {', '.join(allowed)}\n"
                "fix: correct its name in the grid"
            )


def _words(parameters: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """The command line of a point; null leaves an option out."""
    words = ["--quiet"]
    last: list[str] = []
    for name, value in options.items():
        parameter = parameters[name]
        for item in value if isinstance(value, tuple | list) else (value,):
            if item is None or (item is False and getattr(parameter, "is_flag", False)):
                continue
            if parameter.param_type_name == "argument":
                last.append(str(item))
            elif item is True and parameter.is_flag:
                words.append(f"--{name}")
            else:
                words.append(f"--{name}={item}")
    return [*words, "--", *last]
