"""Every error that moesim raises on purpose, and the exit code of each.

    MoesimError                1   our bug, unless a subclass says otherwise
    ├── UsageError             2   options that contradict each other or name nothing
    │   └── MissingExtraError  2   an optional package is not installed
    ├── InfeasibleError        3   no answer exists under the constraints
    ├── InputError             4   a file or value that cannot be used
    ├── PartialResultError     5   some of the work failed, the rest was saved
    └── ToleranceError         6   a validation left its tolerance

A message is one or two lines: what is wrong, where, what was found, what is allowed, the fix.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "InfeasibleError",
    "InputError",
    "MissingExtraError",
    "MoesimError",
    "PartialResultError",
    "ToleranceError",
    "UsageError",
]


class MoesimError(Exception):
    """Root of the tree."""

    exit_code = 1

    def to_dict(self) -> dict[str, object]:
        """The error as the object that ``--json`` prints under ``error``."""
        return {"type": type(self).__name__, "message": str(self), "exit_code": self.exit_code}


class UsageError(MoesimError):
    """Options that contradict each other, or that name nothing we know."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; "
            f"install it with: pip install 'moesim[{extra}]'"
        )
        self.package = package
        self.extra = extra


class InfeasibleError(MoesimError):
    """No answer exists under the stated constraints; the message names the constraint."""

    exit_code = 3


class InputError(MoesimError, ValueError):
    """A file or value that cannot be used.

    It is a ``ValueError`` so that pydantic reports it with the path of the field that raised it.

    Args:
        problem: What is wrong, as a short clause without a full stop.
        file: The file it was found in.
        field: The field, as a path (``links[2].bandwidth``).
        found: The offending value.
        allowed: What is allowed there.
        fix: What to do about it; to correct the field, if nothing else is said.
    """

    exit_code = 4

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        field: str | None = None,
        found: object = None,
        allowed: str | None = None,
        fix: str | None = None,
    ) -> None:
        problem, _, fix_inside = problem.partition("\nfix: ")  # of another error's message
        fix = fix or fix_inside or None
        self.problem = problem
        self.file = None if file is None else str(file)
        self.field = field
        self.found = found
        self.allowed = allowed
        self.fix = fix
        where = ": ".join(part for part in (self.file, field) if part)
        text = f"{where}: {problem}" if where else problem
        if found is not None:
            text += f"; found {_short(found)}"
        if allowed:
            text += f"; allowed: {allowed}"
        super().__init__(f"{text}\nfix: {self._fix_or_usual()}")

    def _fix_or_usual(self) -> str:
        if self.fix:
            return self.fix
        name = Path(self.file).name if self.file else ""
        if self.field:
            return f"correct {self.field} in {name}" if name else f"correct {self.field}"
        return f"check {name}" if name else "correct the value"

    def within(self, file: str | Path | None) -> InputError:
        """The same error, named after the file that the value came from."""
        return InputError(
            self.problem,
            file=file,
            field=self.field,
            found=self.found,
            allowed=self.allowed,
            fix=self.fix,
        )

    def to_dict(self) -> dict[str, object]:
        """As the root's, with file, field, found, allowed and fix as keys of their own."""
        return super().to_dict() | {
            "file": self.file,
            "field": self.field,
            "found": None if self.found is None else _short(self.found),
            "allowed": self.allowed,
            "fix": self._fix_or_usual(),
        }


class PartialResultError(MoesimError):
    """Some of the work failed; what succeeded was saved and is named in the message."""

    exit_code = 5


class ToleranceError(MoesimError):
    """A validation left its tolerance."""

    exit_code = 6


def _short(value: object, limit: int = 80) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("\n", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"
