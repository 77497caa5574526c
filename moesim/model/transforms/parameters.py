"""The shape of a transform, its parameters, and the change of a document with checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moesim.errors import InputError
from moesim.model.spec import ModelSpec

__all__ = ["Parameter", "Transform", "Values", "change", "change_variant", "need", "number"]

Values = Mapping[str, Any]
"""Parameters by name; those left out have their default."""


@dataclass(frozen=True)
class Parameter:
    """A number or word that a transform takes.

    Attributes:
        name: As in ``name=value``.
        kind: What it is read as.
        least: Smallest value.
        most: Largest value.
        default: ``None``: must be given, unless ``optional``.
        optional: Whether it may be left out without a default.
        choices: Allowed words.
    """

    name: str
    kind: type[int] | type[float] | type[str] = int
    least: float = 1
    most: float = 65535
    default: Any = None
    optional: bool = False
    choices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `moesim model transforms --json` lists it."""
        limits = (
            {"choices": list(self.choices)}
            if self.kind is str
            else {"least": self.least, "most": self.most}
        )
        required = self.default is None and not self.optional
        return {
            "name": self.name,
            "kind": self.kind.__name__,
            "required": required,
            "default": self.default,
            **limits,
        }

    @property
    def usage(self) -> str:
        """``NAME``, in brackets if it may be left out."""
        if self.default is not None:
            return f"[{self.name}={self.default}]"
        return f"[{self.name}]" if self.optional else self.name


@dataclass(frozen=True)
class Transform:
    """A published design as a pure function on model documents.

    Attributes:
        name: As given to ``--transform``.
        summary: What it does, in one line.
        source: Paper.
        parameters: In order.
        apply: The function.
    """

    name: str
    summary: str
    source: str
    parameters: tuple[Parameter, ...]
    apply: Callable[[ModelSpec, Values], ModelSpec]

    @property
    def usage(self) -> str:
        """``name:a,[b=1]``."""
        words = ",".join(parameter.usage for parameter in self.parameters)
        return f"{self.name}:{words}" if words else self.name


def change(model: ModelSpec, **fields: Any) -> ModelSpec:
    """The document with other fields, validated anew.

    Raises:
        InputError: If they contradict one another.
    """
    return ModelSpec.parse({**model.to_dict(), **fields})


def change_variant(model: ModelSpec, *, keep: bool = False, **fields: Any) -> ModelSpec:
    """The document with other fields of its variant, none of which another transform set.

    Args:
        model: Before.
        keep: Whether fields that are set already may change.
        **fields: Of :class:`~moesim.model.variant.Variant`.

    Raises:
        InputError: If a field was set before.
    """
    for name in fields:
        default = type(model.variant).model_fields[name].get_default()
        if not keep and getattr(model.variant, name) != default:
            raise InputError(
                "an earlier transform has decided this",
                field=f"variant.{name}",
                found=", ".join(model.variant.applied) or "the model itself",
                fix="leave out one of the two transforms",
            )
    variant = model.variant.model_dump(mode="json") | fields
    return change(model, variant=variant)


def need(
    holds: bool, problem: str, *, found: object, allowed: str | None = None, fix: str | None = None
) -> None:
    """Refuse a model that a transform does not fit.

    Raises:
        InputError: If ``holds`` is false.
    """
    if not holds:
        raise InputError(problem, found=found, allowed=allowed, fix=fix)


def number(parameter: Parameter, text: str) -> Any:
    """A parameter's value out of its text.

    Raises:
        InputError: If it is none, or out of range.
    """
    if parameter.kind is str:
        if text not in parameter.choices:
            raise InputError(
                "no such choice",
                field=parameter.name,
                found=text,
                allowed=", ".join(parameter.choices),
            )
        return text
    try:
        value: float = int(text) if parameter.kind is int else float(text)
    except ValueError:
        value = math.nan
    if not parameter.least <= value <= parameter.most:
        what = "a whole number" if parameter.kind is int else "a number"
        raise InputError(
            "out of range",
            field=parameter.name,
            found=text,
            allowed=f"{what} of {parameter.least:g} … {parameter.most:g}",
        )
    return value
