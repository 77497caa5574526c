"""Commands whose name is two words, and words in brackets that a help text means as they are."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperGroup

__all__ = ["TwoWordGroup"]


class TwoWordGroup(TyperGroup):
    """Tries the first two words as a command's name before the first alone.

    So ``moesim plan moge`` is a command of its own beside ``moesim plan TRACE``; a trace in a
    folder of that name is planned with ``moesim plan ./moge``.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for command in self.commands.values():
            _keep_brackets(command)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command, and the words that are left for it."""
        name = " ".join(args[:2])
        if len(args) > 1 and name in self.commands:
            args = [name, *args[2:]]
        return super().resolve_command(ctx, args)


def _keep_brackets(command: Any) -> None:
    """Escape what Rich would take for a style: help texts name defaults as ``[one per CPU]``."""
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = re.sub(r"\[(?=[a-z#/@])", r"\\[", parameter.help)
    for inner in getattr(command, "commands", {}).values():
        _keep_brackets(inner)
