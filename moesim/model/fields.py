"""Strict access to the fields of somebody else's configuration file.

A field that is absent, of the wrong type, out of range, or stated twice with different values under
two names ends in an :class:`~moesim.errors.InputError` that names file and field. Nothing is
converted: ``true`` is not 1 and ``"8"`` is not 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.errors import InputError

__all__ = ["Fields"]

MAX_SIZE = 2**24


class Fields:
    """One mapping of a configuration file.

    Args:
        values: The mapping.
        file: The file it came from, for messages.
        prefix: Path of the mapping within the file, for messages.
    """

    def __init__(
        self, values: Mapping[str, Any], file: str | Path | None = None, prefix: str = ""
    ) -> None:
        self.values = values
        self.file = file
        self.prefix = prefix

    def path(self, name: str) -> str:
        """Full path of a field, for messages."""
        return f"{self.prefix}.{name}" if self.prefix else name

    def error(self, problem: str, name: str, **more: Any) -> InputError:
        """An error about one field."""
        return InputError(problem, file=self.file, field=self.path(name), **more)

    def missing(self, *names: str, what: str = "") -> InputError:
        """An error about a field that is not there under any of its names."""
        also = f" (also read as: {', '.join(names[1:])})" if len(names) > 1 else ""
        return InputError(
            f"a required field is missing{': ' + what if what else ''}{also}",
            file=self.file,
            field=self.path(names[0]),
            fix="use the model's complete config.json, or describe the model in a moesim.model/1 "
            "document",
        )

    def has(self, *names: str) -> bool:
        """Whether the field is there, and not null, under any of its names."""
        return any(self.values.get(name) is not None for name in names)

    def section(self, name: str) -> Fields | None:
        """A nested mapping, or ``None`` if absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error("a mapping is needed", name, found=value)
        return Fields(value, self.file, self.path(name))

    def _one(self, names: tuple[str, ...]) -> tuple[str, Any] | None:
        """The field under the one of its names that is used; names must not disagree."""
        present = [(name, self.values[name]) for name in names if self.has(name)]
        for name, value in present[1:]:
            first, other = present[0]
            if value != other or isinstance(value, bool) != isinstance(other, bool):
                raise self.error(
                    f"contradicts {self.path(first)}, which is {other!r}", name, found=value
                )
        return present[0] if present else None

    def size(self, *names: str, minimum: int = 1, maximum: int = MAX_SIZE, what: str = "") -> int:
        """A required whole number."""
        value = self.optional_size(*names, minimum=minimum, maximum=maximum)
        if value is None:
            raise self.missing(*names, what=what)
        return value

    def optional_size(self, *names: str, minimum: int = 1, maximum: int = MAX_SIZE) -> int | None:
        """A whole number, or ``None`` if absent or null.

        A list with one entry per layer (Hunyuan) is read as that number if all entries are equal.
        """
        found = self._one(names)
        if found is None:
            return None
        name, value = found
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        elif isinstance(value, list):
            raise self.error("layers that differ in this are not supported", name, found=value)
        return self._checked(name, value, minimum, maximum)

    def _checked(self, name: str, value: object, minimum: int, maximum: int) -> int:
        allowed = f"a whole number, {minimum} … {maximum}"
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            raise self.error("a whole number is needed", name, found=value, allowed=allowed)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error("a whole number is needed", name, found=value, allowed=allowed)
        if not minimum <= value <= maximum:
            # A number of a million digits cannot be printed.
            shown = value if abs(value) < 2**63 else f"a number of {value.bit_length()} bits"
            raise self.error("out of range", name, found=shown, allowed=allowed)
        return value

    def flag(self, *names: str, default: bool) -> bool:
        """True or false."""
        found = self._one(names)
        if found is None:
            return default
        if not isinstance(found[1], bool):
            raise self.error(
                "true or false is needed", found[0], found=found[1], allowed="true, false"
            )
        return found[1]

    def text(self, *names: str) -> str | None:
        """A string, or ``None`` if absent or null."""
        found = self._one(names)
        if found is None:
            return None
        if not isinstance(found[1], str):
            raise self.error("a string is needed", found[0], found=found[1])
        return found[1]

    def sizes(
        self,
        name: str,
        *,
        minimum: int = 0,
        maximum: int = MAX_SIZE,
        length: int | None = None,
    ) -> list[int] | None:
        """A list of whole numbers (of ``length``, if given), or ``None`` if absent or null."""
        values = self._list(name, length)
        if values is None:
            return None
        return [
            self._checked(f"{name}[{index}]", value, minimum, maximum)
            for index, value in enumerate(values)
        ]

    def texts(
        self, name: str, *, allowed: tuple[str, ...], length: int | None = None
    ) -> list[str] | None:
        """A list of words out of ``allowed``, or ``None`` if absent or null."""
        values = self._list(name, length)
        if values is None:
            return None
        for index, value in enumerate(values):
            if not isinstance(value, str) or value not in allowed:
                raise self.error(
                    "unknown kind", f"{name}[{index}]", found=value, allowed=", ".join(allowed)
                )
        return values

    def _list(self, name: str, length: int | None) -> list[Any] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error("a list is needed", name, found=value)
        if length is not None and len(value) != length:
            raise self.error(
                "wrong length", name, found=f"{len(value)} entries", allowed=f"{length} entries"
            )
        return value
