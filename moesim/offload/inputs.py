"""What both verbs of expert offloading are asked with: trace, model, machine, formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import InputError, UsageError
from moesim.model import ModelSpec, load_model
from moesim.model.transforms import check_routing_of_trace
from moesim.offload.tiers import Formats, Machine, load_machine
from moesim.traces.bundle import Trace, open_trace, sample_path
from moesim.units import parse_quantity

__all__ = ["Inputs", "numbers", "open_inputs", "transformed"]

SAMPLE_MODEL = "small-moe-30b-dims"


@dataclass(frozen=True)
class Inputs:
    """Opened and checked against one another.

    Attributes:
        trace: Routing.
        trace_name: For people.
        trace_note: What it is, in words.
        model: Sizes.
        machine: What it runs on.
        formats: How experts are stored.
        memory_bytes: GPU memory to use; None for all of it.
    """

    trace: Trace
    trace_name: str
    trace_note: str
    model: ModelSpec
    machine: Machine
    formats: Formats
    memory_bytes: float | None


def open_inputs(
    *,
    trace: Path | None,
    model: str | ModelSpec | None,
    hardware: str,
    memory: str | None,
    bits: float | None,
    host_bits: float | None = None,
    disk_bits: float | None = None,
    narrow_bits: float | None = None,
    nvme: str | None = None,
    sample_memory: str | None = None,
) -> Inputs:
    """Open what the options name; ``sample_memory`` is that of the sample if none is stated.

    Raises:
        UsageError: If options contradict one another.
        InputError: If the trace is not of the model, or a file cannot be used.
    """
    if trace is not None and model is None:
        raise UsageError(
            "--trace needs the --model that it is of\nfix: see `moesim model list`, or give the "
            "path of a config.json"
        )
    folder = trace or sample_path()
    opened = open_trace(folder)
    spec = model if isinstance(model, ModelSpec) else load_model(model or SAMPLE_MODEL)
    check_routing_of_trace(spec)
    manifest = opened.manifest
    for what, found, needed in (
        ("experts", manifest.experts, spec.experts),
        ("top_k", manifest.top_k, spec.top_k),
        ("layers", manifest.layers, len(spec.moe_layers)),
    ):
        if found != needed:
            raise InputError(
                f"the trace is not of the model {spec.name}",
                file=folder / "manifest.json",
                field=what,
                found=found,
                allowed=str(needed),
                fix="pass the --model that the trace is of",
            )
    whole = _bits("--bits", bits, spec.expert_bits)
    if memory is None and trace is None and model is None:
        memory = sample_memory
    nvme_bytes_per_s = _quantity("--nvme", nvme, "bytes_per_s")
    machine = load_machine(hardware)
    if nvme_bytes_per_s is not None:
        machine = load_machine(hardware, nvme_bytes_per_s)
    return Inputs(
        trace=opened,
        trace_name=manifest.model if trace is None else str(trace),
        trace_note=manifest.source or "a routing trace",
        model=spec,
        machine=machine,
        formats=Formats(
            slots=whole,
            host=_bits("--host-bits", host_bits, whole),
            disk=_bits("--disk-bits", disk_bits, whole),
            narrow=None if narrow_bits is None else _bits("--narrow-bits", narrow_bits, whole),
        ),
        memory_bytes=_quantity("--memory", memory, "bytes"),
    )


def transformed(model: str | None, transforms: Sequence[str]) -> str | ModelSpec | None:
    """The model after transforms; the name as it is without any.

    Raises:
        UsageError: If there are transforms of no model, or one is not known.
        InputError: If one does not fit the model.
    """
    if not transforms:
        return model
    if model is None:
        raise UsageError(
            f"--transform {transforms[0]} needs the --model that it changes\n"
            f"fix: add --model, such as --model {SAMPLE_MODEL} of the bundled sample"
        )
    return load_model(model, transforms=transforms)


def numbers(option: str, text: str, least: int, most: int) -> list[int]:
    """``"8,16,32"`` as ascending numbers without repetition.

    Raises:
        UsageError: If one is not a number, or out of range.
    """
    found = set()
    for word in text.split(","):
        try:
            value = int(word)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise UsageError(
                f"{option} takes whole numbers of {least} … {most} separated by commas; found "
                f"{word.strip()!r}\nfix: e.g. {option} {least},{min(most, 2 * least)}"
            )
        found.add(value)
    return sorted(found)


def _bits(option: str, bits: float | None, otherwise: float) -> float:
    if bits is None:
        return otherwise
    if not 1 <= bits <= 32:
        raise UsageError(
            f"{option} takes bits per weight, scales included, of 1 … 32; found {bits}\n"
            f"fix: e.g. {option} 4.5"
        )
    return bits


def _quantity(option: str, text: str | None, dimension: str) -> float | None:
    if text is None:
        return None
    try:
        value = parse_quantity(text, dimension)  # type: ignore[arg-type]
    except InputError as error:
        example = "24 GB" if dimension == "bytes" else "7 GB/s"
        raise UsageError(
            f"{option}: {error.problem}; found {text!r}\nfix: e.g. {option} '{example}'"
        ) from error
    if value <= 0:
        raise UsageError(f"{option} must be positive; found {text!r}\nfix: pass more than 0")
    return value
