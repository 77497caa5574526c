"""What all documents share: frozen, versioned, strict, with errors that say where.

Models, devices, clusters, traces' manifests and plans are documents: data that a person can write
and read as YAML or JSON. Each names its schema and version in the key ``schema``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from moesim.errors import InputError
from moesim.safe_io import read_json, read_yaml

__all__ = ["Document", "Evidence", "weakest"]


class Evidence(StrEnum):
    """What a number rests on, from strongest to weakest."""

    MEASURED = "measured"
    FITTED = "fitted"
    SPEC = "spec"
    ASSUMED = "assumed"


def weakest(*evidence: Evidence) -> Evidence:
    """The weakest of several: a prediction is no better than the worst number that went in."""
    order = list(Evidence)
    return max(evidence, key=order.index)


class Document(BaseModel):
    """A frozen document that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )

    schema_id: ClassVar[str] = ""
    """Schema and version, ``moesim.<noun>/<version>``; empty for a part of a document."""

    @classmethod
    def parse(
        cls, data: object, *, file: str | Path | None = None, field: str | None = None
    ) -> Self:
        """Validate plain data.

        Raises:
            InputError: Naming file and field of the first thing that is wrong.
        """
        if not isinstance(data, dict):
            raise InputError("a mapping is needed", file=file, field=field, found=data)
        values = dict(data)
        if cls.schema_id:
            stated = values.pop("schema", None)
            if stated != cls.schema_id:
                raise InputError(
                    "not a document of this kind and version",
                    file=file,
                    field="schema",
                    found=stated if stated is not None else "none",
                    allowed=cls.schema_id,
                )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _input_error(error, file, field) from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML or JSON file (by its ending)."""
        path = Path(path)
        read = read_json if path.suffix == ".json" else read_yaml
        return cls.parse(read(path), file=path)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of the file, the key ``schema`` included; editors complete with it."""
        body = cls.model_json_schema()
        if not cls.schema_id:
            return body
        stated = {"schema": {"const": cls.schema_id}}
        return body | {
            "properties": stated | body.get("properties", {}),
            "required": ["schema", *body.get("required", [])],
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data with ``schema`` first, as :meth:`parse` reads it."""
        body = self.model_dump(mode="json")
        return {"schema": self.schema_id, **body} if self.schema_id else body


def _input_error(error: ValidationError, file: str | Path | None, field: str | None) -> InputError:
    details = error.errors(include_url=False)
    first = details[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        problem, found, allowed, fix = cause.problem, cause.found, cause.allowed, cause.fix
    else:
        message = str(first["msg"]).removeprefix("Value error, ")
        problem = message[:1].lower() + message[1:]
        found, allowed, fix = first["input"], None, None
        if first["type"] == "extra_forbidden":
            problem, fix = "unknown key", "remove it or correct its spelling"
        elif first["type"] == "missing":
            problem, found, fix = "a required key is missing", None, "add it"
    path = field or ""
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if isinstance(cause, InputError) and cause.field:
        path = f"{path}.{cause.field}" if path else cause.field
    if len(details) > 1:
        problem += f" (and {len(details) - 1} more)"
    return InputError(problem, file=file, field=path or None, found=found, allowed=allowed, fix=fix)
