"""Routing recorded by SGLang: responses with routed experts, or dumps of its recorder.

- responses of ``/generate``, ``/v1/completions`` or ``/v1/chat/completions`` with
  ``return_routed_experts`` (``.json``, ``.jsonl``), or the array [tokens, layers, top_k] in
  ``.npy``: all layers of the model, dense ones included;
- ``.json`` with ``logical_count``, as ``--init-expert-location`` takes it: counts;
- ``.pt`` dumps of the expert distribution recorder: see
  :mod:`moesim.traces.importers.sglang_recorder`.

Several files may be given as a folder or as a pattern such as ``dumps/*.pt``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesim.errors import InputError
from moesim.safe_io import read_json
from moesim.traces.counts import logical_count
from moesim.traces.importers.contents import ImportOptions, Routing, StepCounts
from moesim.traces.importers.padded import strip_padding
from moesim.traces.importers.routed_experts import (
    Chain,
    data_files,
    decode,
    join,
    read_values,
    token_count,
)
from moesim.traces.importers.sglang_recorder import import_recorder
from moesim.traces.importers.step_counts import strip_idle

__all__ = ["import_sglang"]


def import_sglang(path: Path, options: ImportOptions) -> Routing | StepCounts:
    """Read whatever SGLang recorded.

    Raises:
        InputError: Naming file and field of the first value that cannot be used.
    """
    files = _files(path)
    if all(file.suffix.lower() in (".pt", ".pth") for file in files):
        return import_recorder(files, options)
    if len(files) == 1 and files[0].suffix.lower() == ".json":
        content = read_json(files[0])
        if isinstance(content, dict) and "logical_count" in content:
            return _logical_count(content, files[0], options)
    chains: list[Chain] = []
    for file in files:
        for field, value in read_values(file):
            if isinstance(value, dict):
                chains.extend(_chains(value, file, field, options))
            else:
                chains.append(Chain(decode(value, file, field)))
    return strip_padding(join(chains, path, named=True), options, "routed-experts")


def _files(path: Path) -> list[Path]:
    if not path.exists() and any(mark in path.name for mark in "*?["):
        files = sorted(path.parent.glob(path.name))
        if not files:
            raise InputError("no file matches the pattern", file=path, fix="check the path")
        return files
    dumps = path.is_dir() and any(path.glob("*.pt"))
    return data_files(path, frozenset({".pt"})) if dumps else data_files(path)


def _logical_count(content: object, file: Path, options: ImportOptions) -> StepCounts:
    counts = logical_count(content, file)
    stepwise = counts.ndim == 3
    if counts.ndim == 2:
        counts = counts[None]
    layers = tuple(range(counts.shape[1])) if counts.ndim == 3 else ()
    return strip_idle(counts, layers, options, file, dialect="logical_count", stepwise=stepwise)


def _chains(
    response: dict[str, Any], file: Path, field: str, options: ImportOptions
) -> Iterator[Chain]:
    """The arrays of one response: at its top, or in each of its choices.

    ``/generate`` answers with ``meta_info``, the OpenAI-compatible paths with ``choices`` and an
    extension ``sglext``.
    """
    choices = response.get("choices")
    parts = choices if isinstance(choices, list) and choices else [response]
    for index, part in enumerate(parts):
        place = f"{field}.choices[{index}]" if parts is choices else field
        if not isinstance(part, dict):
            raise InputError("not an object", file=file, field=place, found=part)
        meta = part.get("meta_info")
        for holder in (meta, part, part.get("sglext"), response.get("sglext")):
            value = holder.get("routed_experts") if isinstance(holder, dict) else None
            if value is not None:
                usage = meta if isinstance(meta, dict) else response.get("usage")
                yield _chain(value, usage, file, f"{place}.routed_experts", options)
                break
        else:
            raise InputError(
                "the response holds no routed experts",
                file=file,
                field=f"{place}.meta_info.routed_experts",
                fix="start the server with --enable-return-routed-experts and send the request "
                "with return_routed_experts=true",
            )


def _chain(value: object, usage: object, file: Path, field: str, options: ImportOptions) -> Chain:
    prompt = token_count(usage, "prompt_tokens")
    generated = token_count(usage, "completion_tokens")
    total = None if prompt is None or generated is None else prompt + generated
    # The last generated token is not fed back, so it is not routed.
    lengths = () if total is None else (total - 1, total)
    ids = decode(value, file, field, tokens=lengths, top_k=options.top_k)
    return Chain(ids, prompt if len(ids) in lengths else None)
