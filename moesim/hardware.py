"""Device profiles: what one accelerator can do, every number with its unit, source and evidence.

A device is a YAML document (schema ``moesim.device/1``) of quantities such as
``{value: "3.35 TB/s", source: datasheet, evidence: spec}``. Peak rates are dense (no structured
sparsity) and bandwidths are per direction. ``moesim hw schema device`` prints the JSON Schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from moesim.errors import InputError, UsageError
from moesim.schema import Document, Evidence
from moesim.units import Dimension, parse_quantity

__all__ = [
    "Device",
    "Fabric",
    "Quantity",
    "Reached",
    "ScaleUp",
    "device_names",
    "load_device",
    "looks_like_file",
    "near_names",
    "profiles_folder",
]

DType = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int16", "int8", "int4"]
ProfileName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Text = Annotated[str, StringConstraints(min_length=1)]
StrictCount = Annotated[int, Field(strict=True, ge=1)]


class Source(Document):
    """Where numbers were read."""

    title: Text
    url: Text | None = None


class Sourced(Document):
    """A number that says where it comes from."""

    source: Text
    """Key of the device's ``sources``."""
    evidence: Evidence = Evidence.SPEC
    note: Text | None = None


class Count(Sourced):
    """A whole number of things."""

    value: StrictCount


class Quantity(Sourced):
    """A positive number with a unit, kept as it was written."""

    dimension: ClassVar[Dimension]
    unit: ClassVar[str]

    value: str

    @field_validator("value", mode="before")
    @classmethod
    def _check(cls, value: object) -> object:
        if parse_quantity(value, cls.dimension) == 0:
            raise InputError("a quantity must be positive", found=value, allowed="> 0")
        return value

    @property
    def si(self) -> float:
        """The value in SI units (bytes, s, FLOP/s, W, J)."""
        return parse_quantity(self.value, self.dimension)


class Bytes(Quantity):
    """An amount of memory; GB is 10⁹ and GiB is 2³⁰."""

    dimension = "bytes"
    unit = "B"


class BytesPerSecond(Quantity):
    """A bandwidth, per direction."""

    dimension = "bytes_per_s"
    unit = "B/s"


class FlopPerSecond(Quantity):
    """A dense peak rate; a multiply-add counts two."""

    dimension = "flop_per_s"
    unit = "FLOP/s"


class Seconds(Quantity):
    """A duration."""

    dimension = "s"
    unit = "s"


class Watts(Quantity):
    """A power."""

    dimension = "w"
    unit = "W"


class Hertz(Quantity):
    """A clock rate."""

    dimension = "hz"
    unit = "Hz"


class UsdPerHour(Quantity):
    """What renting one device costs."""

    dimension = "usd_per_h"
    unit = "USD/h"


class JoulesPerByte(Quantity):
    """Energy to move one byte."""

    dimension = "j_per_byte"
    unit = "J/B"


class JoulesPerFlop(Quantity):
    """Energy of one floating-point operation."""

    dimension = "j_per_flop"
    unit = "J/FLOP"


class Share(Quantity):
    """A part of a whole, at most 100 %."""

    dimension = "share"
    unit = ""

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.si > 1:
            raise InputError(
                "more than the whole", field="value", found=self.value, allowed="100 %"
            )
        return self


class Reached(Document):
    """What kernels reach of a device's peaks: of devices on which none was measured for us.

    Fixed times are those of a call beside the time of its work.
    """

    compute: Share
    memory: Share
    link: Share
    matrix_call: Seconds | None = None
    vector_call: Seconds | None = None
    collective_call: Seconds | None = None


class Memory(Document):
    """The memory that holds weights and KV cache."""

    capacity: Bytes
    """As sold."""
    addressable: Bytes | None = None
    """What the driver reports, where it differs: "80 GB" of an H100 are 81559 MiB."""
    bandwidth: BytesPerSecond


class ScaleUp(Document):
    """The fast network between devices: NVLink, HCCS, Infinity Fabric."""

    name: Text
    topology: Literal["switch", "full-mesh"]
    domain_devices: Annotated[int, Field(strict=True, ge=2)]
    """Most devices that one such network joins."""
    spans_nodes: bool = False
    """Whether the network leaves the node, as in an NVL72 rack."""
    bandwidth: BytesPerSecond
    """Of one device to all others together; a full mesh gives each peer an equal part."""
    latency: Seconds
    """Device to device, for a message of a few bytes."""


class HostLink(Document):
    """The link to the host, which also carries the traffic to the network card."""

    name: Text
    bandwidth: BytesPerSecond
    latency: Seconds | None = None
    """Device to device through the host; needed where there is no scale-up network."""


class Nic(Document):
    """The network card of one device."""

    name: Text
    bandwidth: BytesPerSecond
    latency: Seconds
    """Device to device through one switch, for a message of a few bytes."""


class Energy(Document):
    """Energy of elementary operations, for models that go below the device's power."""

    memory: JoulesPerByte | None = None
    compute: JoulesPerFlop | None = None


class Pim(Document):
    """A second processor over the same memory, near the DRAM (Duplex, arXiv 2409.01141)."""

    name: Text
    peak: dict[DType, FlopPerSecond] = Field(min_length=1)
    bandwidth: BytesPerSecond
    energy: Energy | None = None

    def peak_flop_per_s(self, dtype: str) -> float:
        """Dense peak of the near-memory processor; see :meth:`Device.peak_flop_per_s`."""
        return _peak(self.peak, dtype, f"PIM {self.name}").si


class Fabric(Document):
    """What an FPGA design is made of."""

    dsp_slices: Count
    clock: Hertz
    on_chip_memory: Bytes
    memory_ports: Count | None = None
    port_bandwidth: BytesPerSecond | None = None
    """Of one memory port and direction; ports, not the DRAM, can be the limit."""
    port_width: Count | None = None
    """Bits of a memory port."""
    port_latency: Seconds | None = None
    """From a request to its first data."""
    refresh_interval: Seconds | None = None
    """Between refreshes of the DRAM behind the ports."""
    refresh_time: Seconds | None = None
    """Of one refresh, in which it does not answer."""
    block_rams: Count | None = None
    """Of 36 Kbit."""
    power: Watts | None = None
    """What the board draws while a design runs."""

    @model_validator(mode="after")
    def _refresh_fits(self) -> Self:
        every, takes = self.refresh_interval, self.refresh_time
        if (every is None) != (takes is None):
            raise InputError("refresh_interval and refresh_time belong together", field="refresh")
        if every and takes and takes.si * 2 > every.si:
            raise InputError(
                "a refresh takes too long",
                field="refresh_time.value",
                found=takes.value,
                allowed=f"at most half of {every.value}",
            )
        return self


class Device(Document):
    """One device: the unit that holds experts and takes part in collectives.

    Raises:
        InputError: If a number names a source that ``sources`` lacks, or the memory that the driver
            reports is far from the memory that was sold.
    """

    schema_id: ClassVar[str] = "moesim.device/1"

    name: ProfileName
    title: Text
    vendor: Text
    kind: Literal["gpu", "npu", "pim", "cpu", "fpga"]
    note: Text | None = None
    peak: dict[DType, FlopPerSecond] = Field(min_length=1)
    memory: Memory
    scale_up: ScaleUp | None = None
    host_link: HostLink | None = None
    nic: Nic | None = None
    tdp: Watts | None = None
    price: UsdPerHour | None = None
    """On-demand list price of one device with its share of the host."""
    cores: Count | None = None
    """Streaming multiprocessors, compute units, AI cores or CPU cores."""
    launch_overhead: Seconds | None = None
    """Fixed time of one kernel."""
    reached: Reached | None = None
    energy: Energy | None = None
    pim: Pim | None = None
    fabric: Fabric | None = None
    sources: dict[str, Source] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, quantity in self.quantities():
            if quantity.source not in self.sources:
                raise InputError(
                    "a source that `sources` lacks",
                    field=f"{field}.source",
                    found=quantity.source,
                    allowed=", ".join(self.sources),
                    fix="add it to `sources` with a title and a URL",
                )
        reported = self.memory.addressable
        if reported and not 0.8 <= reported.si / self.memory.capacity.si <= 1.1:
            # GiB sold as GB make 7 % for GiB; reserved memory takes a few per cent away.
            raise InputError(
                "addressable memory is far from the capacity",
                field="memory.addressable.value",
                found=reported.value,
                allowed=f"80 % … 110 % of {self.memory.capacity.value}",
                fix="check GB against GiB, and MB against MiB",
            )
        return self

    def quantities(self) -> Iterator[tuple[str, Quantity | Count]]:
        """Every number of the device with its path, such as ``memory.bandwidth``."""
        yield from _walk(self, "")

    def peak_flop_per_s(self, dtype: str) -> float:
        """Dense peak rate for operands of ``dtype`` (bf16, fp16, fp8, fp4, int8 …).

        Raises:
            InputError: If the profile has no rate for that type.
        """
        return _peak(self.peak, dtype, self.name).si

    def peak_evidence(self, dtype: str) -> Evidence:
        """What that rate rests on."""
        return _peak(self.peak, dtype, self.name).evidence

    @property
    def memory_bytes(self) -> float:
        """Memory that programs can use: what the driver reports, else what was sold."""
        return (self.memory.addressable or self.memory.capacity).si

    @property
    def memory_bytes_per_s(self) -> float:
        """Peak memory bandwidth."""
        return self.memory.bandwidth.si

    @property
    def tdp_w(self) -> float | None:
        """Design power, if known."""
        return None if self.tdp is None else self.tdp.si

    @property
    def launch_overhead_s(self) -> float | None:
        """Fixed time of one kernel, if known."""
        return None if self.launch_overhead is None else self.launch_overhead.si


def _peak(peak: dict[DType, FlopPerSecond], dtype: str, owner: str) -> FlopPerSecond:
    for known, quantity in peak.items():
        if known == dtype:
            return quantity
    raise InputError(
        f"{owner} has no peak rate for this number type",
        field="peak",
        found=dtype,
        allowed=", ".join(peak),
        fix="choose one of these types or add the rate to the profile",
    )


def _walk(node: Any, path: str) -> Iterator[tuple[str, Quantity | Count]]:
    if isinstance(node, Quantity | Count):
        yield path, node
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            yield from _walk(getattr(node, name), f"{path}.{name}" if path else name)
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _walk(value, f"{path}.{name}")


def profiles_folder() -> Path:
    """The bundled profiles: one device per file; clusters in ``clusters/``."""
    return Path(__file__).parent / "hwprofiles"


def device_names() -> list[str]:
    """Names of the bundled devices, sorted."""
    return sorted(path.stem for path in profiles_folder().glob("*.yaml"))


def looks_like_file(name_or_file: str | Path) -> bool:
    """Whether this names a file rather than a profile."""
    text = str(name_or_file)
    return (
        isinstance(name_or_file, Path)
        or "/" in text
        or "\\" in text
        or Path(text).suffix.lower() in {".yaml", ".yml", ".json"}
    )


def near_names(name: str, known: list[str]) -> str:
    """``"; near: a, b"`` for the known names that resemble ``name``; empty if none does."""
    wanted = name.lower().replace("-", "_")
    near = [candidate for candidate in known if wanted and wanted in candidate]
    near += [n for n in difflib.get_close_matches(wanted, known, n=3) if n not in near]
    return f"; near: {', '.join(near[:5])}" if near else ""


def load_device(name_or_file: str | Path) -> Device:
    """A bundled device by name (``h100_sxm``), or a YAML or JSON file.

    Raises:
        UsageError: If no bundled device has that name.
        InputError: If the file is not a device profile.
    """
    if looks_like_file(name_or_file):
        return Device.load(name_or_file)
    name = str(name_or_file)
    if name not in device_names():
        shown = name if len(name) <= 60 else name[:59] + "…"
        raise UsageError(
            f"unknown device {shown!r}{near_names(name, device_names())}\n"
            "fix: name a file, or one of those that moesim hw list shows"
        )
    return _bundled(name)


@lru_cache(maxsize=64)
def _bundled(name: str) -> Device:
    return Device.load(profiles_folder() / f"{name}.yaml")
