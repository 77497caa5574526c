"""Commands whose name is two words, one of which is a command by itself."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

__all__ = ["TwoWordGroup"]


class TwoWordGroup(TyperGroup):
    """Tries the first two words as a command's name before the first alone.

    So ``moesim plan moge`` is a command of its own beside ``moesim plan TRACE``; a trace in a
    folder of that name is planned with ``moesim plan ./moge``.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command, and the words that are left for it."""
        name = " ".join(args[:2])
        if len(args) > 1 and name in self.commands:
            args = [name, *args[2:]]
        return super().resolve_command(ctx, args)
