"""The formats that can be imported, and the one function that imports them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.traces.bundle import write_trace
from moesim.traces.counts import write_counts
from moesim.traces.importers.contents import Importer, ImportOptions, Routing, StepCounts
from moesim.traces.importers.csv_rows import import_csv
from moesim.traces.importers.jsonl import import_jsonl
from moesim.traces.importers.llamacpp import import_llamacpp
from moesim.traces.importers.sglang import import_sglang
from moesim.traces.importers.trtllm import import_trtllm
from moesim.traces.importers.vllm import import_vllm

__all__ = ["IMPORTERS", "ImportResult", "ImporterEntry", "import_trace"]


@dataclass(frozen=True)
class ImporterEntry:
    """One format.

    Attributes:
        read: The importer.
        summary: What it reads, in a line.
    """

    read: Importer
    summary: str


IMPORTERS: dict[str, ImporterEntry] = {
    "sglang": ImporterEntry(import_sglang, "recorder dumps (.pt) or responses of SGLang"),
    "vllm": ImporterEntry(import_vllm, "routed experts of vLLM (.npy, .json, .jsonl)"),
    "trtllm": ImporterEntry(import_trtllm, "expert statistics of TensorRT-LLM (a folder)"),
    "jsonl": ImporterEntry(import_jsonl, "rows of routing loggers, five dialects"),
    "csv": ImporterEntry(import_csv, "a table, one line per choice or per token and layer"),
    "llamacpp": ImporterEntry(import_llamacpp, "router logits of llama.cpp (a folder)"),
}


@dataclass(frozen=True)
class ImportResult:
    """What an import wrote.

    Attributes:
        format: Name of the format.
        kind: ``routing`` (a trace bundle) or ``counts`` (a counts folder).
        dialect: The form that was found within the format.
        model: Name in the manifest.
        layers: L.
        moe_layers: [L] model layer indices.
        experts: E.
        tokens: T, or None for counts.
        top_k: K, or None for counts.
        steps: Recorded steps, or None for routing.
        assignments: Token assignments in total.
        path: The folder that was written.
        dropped: What was left out, by kind; only kinds that occurred.
        warnings: What the reader should know.
    """

    format: str
    kind: str
    dialect: str
    model: str
    layers: int
    moe_layers: tuple[int, ...]
    experts: int
    tokens: int | None
    top_k: int | None
    steps: int | None
    assignments: int
    path: str
    dropped: dict[str, int]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def import_trace(
    path: str | Path,
    format: str,
    options: ImportOptions,
    out: str | Path,
    *,
    model: str | None = None,
) -> ImportResult:
    """Import a recording into a trace bundle, or into a counts folder if it holds only counts.

    Args:
        path: File or folder to read.
        format: A key of ``IMPORTERS``.
        options: What is known of the model and wanted of the file.
        out: Folder to write; must not hold a trace or counts yet.
        model: Name for the manifest; else the one the file names, else ``unknown``.

    Raises:
        UsageError: If the format is unknown or the options contradict each other.
        InputError: If the file cannot be used; nothing is written then.
    """
    path, out = Path(path), Path(out)
    entry = IMPORTERS.get(format)
    if entry is None:
        raise UsageError(
            f"unknown format {format!r}; known: {', '.join(IMPORTERS)}\nfix: correct --format"
        )
    _check_options(format, options)
    for name in ("manifest.json", "counts.json"):
        if (out / name).exists():
            raise InputError(
                "the folder holds an import already",
                file=out / name,
                fix="choose another --out or remove the folder",
            )
    content = entry.read(path, options)
    model = _plain(model or content.model or "unknown")
    source = _plain(f"{format} ({content.dialect}): {path.name}")
    if isinstance(content, Routing):
        return _write_routing(content, format, options, out, model, source)
    return _write_counts(content, format, options, out, model, source)


def _check_options(format: str, options: ImportOptions) -> None:
    if options.iterations is not None and format != "trtllm":
        raise UsageError(f"--iterations has no meaning for {format}\nfix: leave it out")
    if options.keep_warm_up and format != "jsonl":
        raise UsageError(f"--keep-warm-up has no meaning for {format}\nfix: leave it out")
    if not 1 <= options.experts <= 65536:
        raise UsageError(
            f"--experts is {options.experts}; allowed: 1 … 65536\n"
            "fix: pass the routed experts per layer of the model"
        )
    if options.top_k is not None and not 1 <= options.top_k <= min(options.experts, 255):
        raise UsageError(
            f"--top-k is {options.top_k} with {options.experts} experts; "
            f"allowed: 1 … {min(options.experts, 255)}\nfix: pass the model's experts per token"
        )


def _write_routing(
    content: Routing, format: str, options: ImportOptions, out: Path, model: str, source: str
) -> ImportResult:
    warnings = list(content.warnings)
    requests = None
    if content.requests is not None:
        if find_spec("pyarrow") is None:
            warnings.append(
                "requests.parquet was not written: pyarrow is not installed "
                "(pip install 'moesim[parquet]')"
            )
        else:
            requests = content.requests.frame()
    extra = {"dropped": _occurred(content.dropped)} | content.extra
    if content.gates is not None:
        # Routers that scale their weights exceed 1; the bound lets a validation notice damage.
        extra["gates_max"] = float(content.gates.max())
    write_trace(
        out,
        content.routing,
        model=model,
        experts=options.experts,
        moe_layers=content.moe_layers,
        source=source,
        gates=content.gates,
        valid_k=content.valid_k,
        requests=requests,
        extra=extra,
    )
    layers, tokens, top_k = content.routing.shape
    full = layers * tokens * top_k
    return ImportResult(
        format=format,
        kind="routing",
        dialect=content.dialect,
        model=model,
        layers=layers,
        moe_layers=content.moe_layers,
        experts=options.experts,
        tokens=tokens,
        top_k=top_k,
        steps=None,
        assignments=full if content.valid_k is None else int(content.valid_k.sum(dtype=np.int64)),
        path=str(out),
        dropped=_occurred(content.dropped),
        warnings=tuple(warnings),
    )


def _write_counts(
    content: StepCounts, format: str, options: ImportOptions, out: Path, model: str, source: str
) -> ImportResult:
    write_counts(
        out,
        content.counts,
        model=model,
        moe_layers=content.moe_layers,
        source=source,
        stepwise=content.stepwise,
    )
    return ImportResult(
        format=format,
        kind="counts",
        dialect=content.dialect,
        model=model,
        layers=content.counts.shape[1],
        moe_layers=content.moe_layers,
        experts=options.experts,
        tokens=None,
        top_k=None,
        steps=len(content.counts),
        assignments=int(content.counts.sum()),
        path=str(out),
        dropped=_occurred(content.dropped),
        warnings=content.warnings,
    )


def _plain(text: str) -> str:
    """The text without lone surrogates, which JSON and file names may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _occurred(dropped: dict[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in dropped.items() if count}
