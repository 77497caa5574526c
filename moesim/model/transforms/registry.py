"""Transforms by name, and from their text on a command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from moesim.errors import InputError, UsageError
from moesim.model.spec import ModelSpec
from moesim.model.transforms.parameters import Transform, change_variant, number
from moesim.model.transforms.routing import ROUTING
from moesim.model.transforms.storage import STORAGE
from moesim.model.transforms.structure import STRUCTURE

__all__ = ["TRANSFORMS", "parse_transform", "transform_model"]

TRANSFORMS = {transform.name: transform for transform in (*ROUTING, *STORAGE, *STRUCTURE)}

MAX_TRANSFORMS = 32


def transform_model(model: ModelSpec, texts: Sequence[str]) -> ModelSpec:
    """A model after transforms, applied in order; none leave it as it is.

    Args:
        model: Before.
        texts: Such as ``prune:128`` or ``null-experts:experts=4,mean=1.7``.

    Raises:
        UsageError: If a text names no transform, or its parameters are not its own.
        InputError: If a transform does not fit the model.
    """
    if len(texts) > MAX_TRANSFORMS:
        raise UsageError(
            f"--transform was given {len(texts)} times; allowed: {MAX_TRANSFORMS}\n"
            "fix: write the model that results to a moesim.model/1 document"
        )
    for text in texts:
        transform, values = parse_transform(text)
        try:
            changed = transform.apply(model, values)
        except InputError as error:
            where = f"--transform {text}"
            raise InputError(
                f"does not fit {model.name}: {error.problem}",
                field=f"{where}: {error.field}" if error.field else where,
                found=error.found,
                allowed=error.allowed,
                fix=error.fix or f"see {transform.usage} in `moesim model transforms`",
            ) from error
        applied = [*changed.variant.applied, text]
        named = changed.model_copy(update={"name": f"{changed.name} + {text}"})
        model = change_variant(named, keep=True, applied=applied)
    return model


def parse_transform(text: str) -> tuple[Transform, dict[str, Any]]:
    """The transform and its parameters: in order, or by name, separated by commas.

    Raises:
        UsageError: If there is no such transform, or a parameter is unknown, given twice, missing,
            or out of range.
    """
    name, _, rest = text.partition(":")
    if name not in TRANSFORMS:
        near = difflib.get_close_matches(name, TRANSFORMS, n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UsageError(
            f"--transform names no transform we know: {name[:80]!r}{hint}\n"
            "fix: see `moesim model transforms`"
        )
    transform = TRANSFORMS[name]
    try:
        return transform, _values(transform, rest)
    except InputError as error:
        allowed = f"; allowed: {error.allowed}" if error.allowed else ""
        raise UsageError(
            f"--transform {text[:80]}: {error.field}: {error.problem}; found {error.found!r}"
            f"{allowed}\nfix: write it as {transform.usage}"
        ) from error


def _values(transform: Transform, rest: str) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in transform.parameters}
    found: dict[str, Any] = {}
    for place, word in enumerate(rest.split(",") if rest else ()):
        name, equals, value = word.partition("=")
        if not equals:
            if place >= len(transform.parameters):
                raise InputError(
                    "too many parameters",
                    field=transform.name,
                    found=word,
                    allowed=str(len(transform.parameters)),
                )
            name, value = transform.parameters[place].name, word
        name = name.strip()
        if name not in known:
            raise InputError(
                "unknown parameter",
                field=transform.name,
                found=name,
                allowed=", ".join(known) or "none",
            )
        if name in found:
            raise InputError("given twice", field=name, found=word)
        found[name] = number(known[name], value.strip())
    for parameter in transform.parameters:
        if parameter.name not in found:
            if parameter.default is None and not parameter.optional:
                raise InputError("missing", field=parameter.name, found=rest)
            found[parameter.name] = parameter.default
    return found
