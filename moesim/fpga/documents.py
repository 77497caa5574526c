"""Vision transformers with experts, and the FPGA designs that run them, as documents.

A network is a YAML file of schema ``moesim.vit-moe/1``, a design one of ``moesim.fpga-design/1``.
The design says what was synthesised; the board, a device profile, says what the memory gives.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from moesim.errors import InputError, UsageError
from moesim.hardware import looks_like_file, near_names
from moesim.schema import Document

__all__ = ["Axi", "Design", "Image", "Moe", "Ports", "VitMoe", "load_design", "load_network"]

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(strict=True, ge=1, le=2**20)]
Bits = Annotated[int, Field(strict=True, ge=1, le=64)]


class Image(Document):
    """What is cut into patches."""

    channels: Count
    height: Count
    width: Count
    patch: Count
    """Side of a square patch."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for field, side in (("height", self.height), ("width", self.width)):
            if side % self.patch:
                raise InputError(
                    "not a whole number of patches",
                    field=field,
                    found=side,
                    allowed=f"multiples of {self.patch}",
                )
        return self

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.height // self.patch) * (self.width // self.patch)


class Moe(Document):
    """The experts of a network."""

    every: Count
    """Every so many layers, the last of them has experts; others have a dense FFN."""
    experts: Count
    top_k: Count
    expert_hidden: Count

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.top_k > self.experts:
            raise InputError(
                "more than there are experts",
                field="top_k",
                found=self.top_k,
                allowed=f"1 … {self.experts}",
            )
        return self


class VitMoe(Document):
    """A vision transformer with experts (M³ViT, arXiv 2210.14793): pre-norm, GELU, no gating."""

    schema_id: ClassVar[str] = "moesim.vit-moe/1"

    name: Name
    title: Text
    source: Text
    image: Image
    layers: Count
    hidden: Count
    heads: Count
    dense_hidden: Count
    moe: Moe

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise InputError(
                "heads must divide the hidden size",
                field="heads",
                found=self.heads,
                allowed=f"divisors of {self.hidden}",
            )
        return self

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.image.patches + 1

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers // self.moe.every

    @property
    def dense_layers(self) -> int:
        """Layers with a dense FFN."""
        return self.layers - self.moe_layers


class Axi(Document):
    """A memory port of the design, as high-level synthesis builds it."""

    width_bits: Annotated[int, Field(strict=True, ge=8, le=1024, multiple_of=8)]
    latency_cycles: Annotated[int, Field(strict=True, ge=0, le=4096)]
    """From a request to its first data, as the design was scheduled for."""
    burst_beats: Annotated[int, Field(strict=True, ge=1, le=256)]
    """Most transfers of one request."""
    outstanding: Annotated[int, Field(strict=True, ge=1, le=256)]
    """Requests in flight."""


class Widths(Document):
    """Bits of numbers."""

    activation: Bits
    weight: Bits
    pixel: Bits


class LinearUnit(Document):
    """The unit of linear layers."""

    inputs: Count
    outputs: Count
    """Inputs × outputs multiply-adds per cycle and token."""
    tokens: Count = 1
    """Tokens side by side, with the same weights."""

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-adds per cycle."""
        return self.inputs * self.outputs * self.tokens


class AttentionUnit(Document):
    """The units of scores and of values."""

    queries: Count
    """Rows in flight; each takes a port's width of features per cycle."""


class Gate(Document):
    """The router."""

    softmax_interval: Count
    """Cycles per expert of the running softmax."""


class Dividers(Document):
    """Fixed-point division, which high-level synthesis builds one quotient bit per cycle."""

    cycles: Annotated[int, Field(strict=True, ge=0, le=256)]
    """From operands to quotient. The reciprocal of a token's standard deviation and the scores of
    its experts wait for one."""


class Ports(Document):
    """Port of each array; arrays on one port share its time."""

    image: Name
    residual: Name
    normed: Name
    query: Name
    key: Name
    value: Name
    scores: Name
    softmax: Name
    mixed: Name
    projected: Name
    hidden: Name
    weights: Name

    @property
    def names(self) -> tuple[str, ...]:
        """Distinct ports, in the order of first use."""
        return tuple(dict.fromkeys(self.model_dump().values()))


class Design(Document):
    """A synthesised accelerator."""

    schema_id: ClassVar[str] = "moesim.fpga-design/1"

    name: Name
    title: Text
    source: Text
    axi: Axi
    bits: Widths
    linear: LinearUnit
    attention: AttentionUnit
    gate: Gate
    dividers: Dividers
    overlapped_loads: Literal["none", "experts", "all"]
    """Whose weights are loaded while the matrix before is computed with."""
    weight_buffers: Annotated[int, Field(strict=True, ge=1, le=8)]
    """Each for the largest matrix of the network."""
    ports: Ports

    @model_validator(mode="after")
    def _buffers_for_overlap(self) -> Self:
        if self.overlapped_loads != "none" and self.weight_buffers < 2:
            raise InputError(
                "overlapped loads need a second buffer",
                field="weight_buffers",
                found=self.weight_buffers,
                allowed="2 … 8",
            )
        return self

    @property
    def beat_bytes(self) -> int:
        """One transfer of a port."""
        return self.axi.width_bits // 8

    def feature_blocks(self, features: int) -> int:
        """Transfers that a token's features take."""
        return ceil(features * self.bits.activation / self.axi.width_bits)

    @property
    def block_features(self) -> int:
        """Features of one transfer: what attention, gate and normalisation take per cycle."""
        return max(1, self.axi.width_bits // self.bits.activation)


def load_network(name_or_file: str | Path) -> VitMoe:
    """A bundled network by name (``m3vit_tiny``), or a file.

    Raises:
        UsageError: If none of that name is bundled.
        InputError: If the file is not a network.
    """
    return VitMoe.load(_find(name_or_file, "models", "network"))


def load_design(name_or_file: str | Path) -> Design:
    """A bundled design by name (``edge_moe``), or a file.

    Raises:
        UsageError: If none of that name is bundled.
        InputError: If the file is not a design.
    """
    return Design.load(_find(name_or_file, "designs", "FPGA design"))


def _find(name_or_file: str | Path, folder: str, what: str) -> Path:
    if looks_like_file(name_or_file):
        return Path(name_or_file)
    files = {path.stem: path for path in (Path(__file__).parent / folder).glob("*.yaml")}
    name = str(name_or_file).replace("-", "_").lower()
    if name not in files:
        raise UsageError(
            f"unknown {what} {str(name_or_file)[:60]!r}{near_names(name, sorted(files))}\n"
            f"fix: name a file, or one of {', '.join(sorted(files))}"
        )
    return files[name]
