"""The table of configurations: what each target may run, and the coefficients of its cost.

``kernels/configs.json`` holds it. ``moesim kernels select --tune`` writes it: the facts of every
configuration from the compiler, and its coefficients from measurements where there are some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from moesim.errors import InputError, UsageError
from moesim.kernels.config import GemmConfig
from moesim.kernels.wave_model import Coefficients, Speeds

__all__ = ["SCHEMA", "ConfigTable", "Entry", "default_table", "load_table", "type_name"]

SCHEMA = "moesim.kernel-configs/1"
FILE = Path(__file__).with_name("configs.json")

TYPE_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "bf16",  # the same instructions at the same rate
    torch.float8_e4m3fn: "fp8",
    torch.float8_e4m3fnuz: "fp8",
}


@dataclass(frozen=True)
class Entry:
    """One configuration of a target.

    Attributes:
        config: How it is compiled.
        dtype: ``bf16`` (fp16 too) or ``fp8``.
        coefficients: Of the wave model.
        evidence: ``measured`` if they are fitted to measurements, else ``assumed``.
        registers: Per thread.
        shared_bytes: Of a program.
    """

    config: GemmConfig
    dtype: str
    coefficients: Coefficients
    evidence: str
    registers: int
    shared_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class ConfigTable:
    """Entries and speeds by target.

    Attributes:
        entries: By the target's name.
        speeds: By the target's name and the type; the number of cores is that of the device the
            figures are for, and the device at hand replaces it.
        sources: Where the speeds come from, by the target's name.
    """

    entries: Mapping[str, tuple[Entry, ...]]
    speeds: Mapping[str, Mapping[str, Speeds]]
    sources: Mapping[str, str]

    def of(self, target: str, dtype: str) -> tuple[Entry, ...]:
        """Entries of a target for a type.

        Raises:
            UsageError: If there are none.
        """
        found = tuple(entry for entry in self.entries.get(target, ()) if entry.dtype == dtype)
        if not found:
            raise UsageError(
                f"no configurations for {dtype} on {target}; there are some for "
                f"{', '.join(sorted(self.entries))}\nfix: choose another target or type"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data as the file holds it."""
        return {
            "schema": SCHEMA,
            "targets": {
                name: {
                    "source": self.sources[name],
                    "speeds": {key: asdict(value) for key, value in self.speeds[name].items()},
                    "entries": [entry.to_dict() for entry in entries],
                }
                for name, entries in self.entries.items()
            },
        }


@cache
def default_table() -> ConfigTable:
    """The table that comes with the package."""
    return load_table(FILE)


def load_table(path: str | Path) -> ConfigTable:
    """Read a table.

    Raises:
        InputError: Naming file and field of what is wrong.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(
            "is no table of kernel configurations",
            file=path,
            field="schema",
            found=str(found),
            allowed=SCHEMA,
            fix="write one with: moesim kernels select --tune",
        )
    field = "targets"
    try:
        entries, speeds, sources = {}, {}, {}
        for name, part in data["targets"].items():
            field = f"targets.{name}"
            sources[name] = str(part["source"])
            speeds[name] = {key: Speeds(**value) for key, value in part["speeds"].items()}
            own = []
            for place, entry in enumerate(part["entries"]):
                field = f"targets.{name}.entries[{place}]"
                own.append(_entry(entry))
            entries[name] = tuple(own)
    except InputError as error:
        raise InputError(
            error.problem, file=path, field=f"{field}.{error.field}", found=error.found,
            allowed=error.allowed,
        ) from error  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"is incomplete: {error}", file=path, field=field) from error
    return ConfigTable(entries, speeds, sources)


def type_name(dtype: torch.dtype) -> str:
    """Name of a type in the table.

    Raises:
        UsageError: If kernels do not take it.
    """
    if dtype not in TYPE_NAMES:
        raise UsageError(
            f"the kernels multiply {', '.join(str(t) for t in TYPE_NAMES)}, not {dtype}\n"
            "fix: convert the operands"
        )
    return TYPE_NAMES[dtype]


def _entry(data: Mapping[str, Any]) -> Entry:
    return Entry(
        **{
            **data,
            "config": GemmConfig(**data["config"]),
            "coefficients": Coefficients(**data["coefficients"]),
        }
    )
