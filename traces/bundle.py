"""The routing trace on disk: a folder that numpy alone can map.

    manifest.json      schema, model, dtype, shape, sha256 per file, source
    routing.npy        [L, T, K] uint8 (E ≤ 256) or uint16, the experts chosen for every token
    gates.npy          [L, T, K] float16, optional: router weight of each choice
    valid_k.npy        [L, T] uint8, optional: how many of the K entries count
    requests.parquet   optional: request, phase, domain and position of every token

Axes: L MoE layers, T tokens, K top-k, E logical experts. There is no padding value: an entry beyond
``valid_k`` is to be ignored whatever it holds, and without ``valid_k`` every entry counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from moesim.errors import InputError
from moesim.extras import require
from moesim.safe_io import map_npy, read_json, sha256_file, write_json, write_npy
from moesim.schema import Document

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Trace",
    "TraceManifest",
    "new_bundle_folder",
    "open_trace",
    "routing_dtype",
    "sample_path",
    "write_trace",
]


class TraceManifest(Document):
    """What a bundle says of itself; keys that describe the model further are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    schema_id: ClassVar[str] = "moesim.trace/1"

    model: str
    layers: int = Field(ge=1)
    moe_layers: tuple[int, ...]
    experts: int = Field(ge=1, le=65536)
    top_k: int = Field(ge=1)
    tokens: int = Field(ge=1, le=2**40)
    dtype: str
    source: str = ""
    domains: tuple[str, ...] = ()
    sha256: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> TraceManifest:
        if self.top_k > self.experts:
            raise InputError(
                "top-k is larger than the number of experts",
                field="top_k",
                found=self.top_k,
                allowed=f"1 … {self.experts}",
            )
        if len(self.moe_layers) != self.layers:
            raise InputError(
                "one model layer index per MoE layer is needed",
                field="moe_layers",
                found=f"{len(self.moe_layers)} indices",
                allowed=str(self.layers),
            )
        if self.dtype != routing_dtype(self.experts).name:
            raise InputError(
                "wrong routing type for this many experts",
                field="dtype",
                found=self.dtype,
                allowed=routing_dtype(self.experts).name,
            )
        return self


@dataclass(frozen=True)
class Trace:
    """An opened bundle; arrays are read-only memory maps.

    Attributes:
        manifest: What the bundle says of itself.
        routing: [L, T, K] uint8 or uint16, expert ids.
        gates: [L, T, K] float16 or None, router weights.
        valid_k: [L, T] uint8 or None, entries that count.
        path: The folder, or None for a trace that was never written.
    """

    manifest: TraceManifest
    routing: np.ndarray
    gates: np.ndarray | None = None
    valid_k: np.ndarray | None = None
    path: Path | None = None

    @property
    def sha256(self) -> str | None:
        """Hash of the routing, which names the trace in every plan."""
        return self.manifest.sha256.get("routing.npy")

    def requests(self) -> pd.DataFrame | None:
        """One row per token with the columns request, phase, domain and position.

        Raises:
            MissingExtraError: If the bundle has them and pyarrow is not installed.
            InputError: If there is not one row per token.
        """
        if self.path is None or not (file := self.path / "requests.parquet").is_file():
            return None
        parquet = require("pyarrow.parquet", "parquet", "reading requests.parquet")
        arrow_error = require("pyarrow", "parquet", "reading requests.parquet").ArrowException
        try:
            # The index that pandas notes in the metadata is not needed, and may be damaged.
            frame: pd.DataFrame = parquet.read_table(file).to_pandas(ignore_metadata=True)
        except (OSError, ValueError, MemoryError, arrow_error) as error:
            raise InputError("not a usable parquet file", file=file, found=str(error)) from error
        if len(frame) != self.manifest.tokens:
            raise InputError(
                "one row per token is needed",
                file=file,
                found=f"{len(frame)} rows",
                allowed=f"{self.manifest.tokens} rows",
            )
        return frame


def routing_dtype(experts: int) -> np.dtype[Any]:
    """uint8 up to 256 experts, uint16 beyond."""
    return np.dtype(np.uint8 if experts <= 256 else np.uint16)


def sample_path() -> Path:
    """The bundled sample: real routing of a small MoE model."""
    return Path(__file__).parent / "samples" / "small-moe"


def open_trace(folder: str | Path) -> Trace:
    """Open a bundle and check its files against its manifest, without reading the routing.

    Ids are checked where they are first read (:func:`moesim.traces.statistics.loads` and
    ``moesim trace validate``), which also takes the time to compare hashes.

    Raises:
        InputError: If a file is missing, cut short, or of another shape or type than stated.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            "a trace is a folder with manifest.json and routing.npy",
            file=folder,
            found="no such folder" if not folder.exists() else "a file",
            fix="make one with: moesim trace import FILE --format F --experts E --out DIR",
        )
    file = folder / "manifest.json"
    manifest = TraceManifest.parse(read_json(file), file=file)
    shape = (manifest.layers, manifest.tokens, manifest.top_k)
    return Trace(
        manifest=manifest,
        routing=_array(folder / "routing.npy", shape, manifest.dtype),
        gates=_optional(folder / "gates.npy", shape, "float16"),
        valid_k=_optional(folder / "valid_k.npy", shape[:2], "uint8"),
        path=folder,
    )


def _optional(file: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    return _array(file, shape, dtype) if file.exists() else None


def _array(file: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = map_npy(file)
    if array.shape != shape or array.dtype.name != dtype:
        raise InputError(
            "the array is not what the manifest says",
            file=file,
            field="shape",
            found=f"{array.shape} {array.dtype.name}",
            allowed=f"{shape} {dtype}",
        )
    return array


def new_bundle_folder(folder: str | Path) -> Path:
    """The folder that a new bundle goes to.

    Raises:
        InputError: If it holds a bundle already, or is a file.
    """
    folder = Path(folder)
    if (folder / "manifest.json").exists():
        raise InputError(
            "the folder holds a trace already",
            file=folder,
            fix="choose another --out or remove the folder",
        )
    if folder.exists() and not folder.is_dir():
        raise InputError("a folder is needed", file=folder, found="a file")
    return folder


def write_trace(
    folder: str | Path,
    routing: np.ndarray,
    *,
    model: str,
    experts: int,
    moe_layers: tuple[int, ...] | None = None,
    source: str,
    gates: np.ndarray | None = None,
    valid_k: np.ndarray | None = None,
    requests: pd.DataFrame | None = None,
    extra: dict[str, Any] | None = None,
) -> Trace:
    """Write a bundle; the manifest comes last, so that a folder with one is complete.

    Args:
        folder: Made if needed; a folder that already holds a bundle is refused.
        routing: [L, T, K] integers in 0 … experts − 1 (entries beyond ``valid_k`` are set to 0).
        model: Name of the model the routing was recorded from.
        experts: E.
        moe_layers: [L] model layer index of each row; 0 … L − 1 if not given.
        source: Where the routing came from, in words.
        gates: [L, T, K] router weights.
        valid_k: [L, T] entries that count.
        requests: One row per token: request, phase, domain, position.
        extra: Further keys for the manifest.

    Raises:
        InputError: If ids are out of range, shapes differ, or the folder holds a bundle already.
    """
    folder = new_bundle_folder(folder)
    if routing.ndim != 3 or 0 in routing.shape:
        raise InputError(
            "routing must be a non-empty [layers, tokens, top_k] array",
            field="routing",
            found=f"shape {routing.shape}",
        )
    layers, tokens, top_k = routing.shape
    if valid_k is not None:
        routing = np.where(np.arange(top_k) < valid_k[..., None], routing, 0)
    if int(routing.min()) < 0 or int(routing.max()) >= experts:
        bad = int(routing.max()) if int(routing.max()) >= experts else int(routing.min())
        raise InputError(
            "expert id out of range",
            field="routing",
            found=bad,
            allowed=f"0 … {experts - 1}",
            fix="pass the model's number of experts",
        )
    for name, array, shape in (
        ("gates", gates, routing.shape),
        ("valid_k", valid_k, (layers, tokens)),
    ):
        if array is not None and array.shape != shape:
            raise InputError(
                "shape differs from routing", field=name, found=array.shape, allowed=str(shape)
            )
    files = {
        "routing.npy": write_npy(folder / "routing.npy", routing.astype(routing_dtype(experts)))
    }
    if gates is not None:
        files["gates.npy"] = write_npy(folder / "gates.npy", gates.astype(np.float16))
    if valid_k is not None:
        files["valid_k.npy"] = write_npy(folder / "valid_k.npy", valid_k.astype(np.uint8))
    domains: tuple[str, ...] = ()
    if requests is not None:
        require("pyarrow.parquet", "parquet", "writing requests.parquet")
        files["requests.parquet"] = folder / "requests.parquet"
        requests.to_parquet(files["requests.parquet"], index=False)
        if "domain" in requests:
            domains = tuple(sorted(requests["domain"].astype(str).unique()))
    manifest = TraceManifest(
        model=model,
        layers=layers,
        moe_layers=moe_layers or tuple(range(layers)),
        experts=experts,
        top_k=top_k,
        tokens=tokens,
        dtype=routing_dtype(experts).name,
        source=source,
        domains=domains,
        sha256={name: sha256_file(file) for name, file in files.items()},
        **(extra or {}),
    )
    write_json(folder / "manifest.json", manifest.to_dict())
    return open_trace(folder)
