"""Expert ids inside JSON responses: nested lists, a base64 ``.npy`` file, or base64 raw bytes.

Both SGLang and vLLM return one array [tokens, layers, top_k] per request
(``--enable-return-routed-experts``). SGLang sends the raw int32 bytes, without the shape
(sglang/srt/managers/detokenizer_manager.py); vLLM sent nested lists first (pull request 28284) and
sends the bytes of a ``.npy`` file since (pull request 51906). The last generated token is never fed
back, so an array often has one row less than the request has tokens.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.safe_io import map_npy, parse_npy, read_json, read_json_lines
from moesim.traces.importers.contents import PHASES, Requests
from moesim.traces.importers.padded import Padded

__all__ = ["Chain", "data_files", "decode", "join", "read_values", "token_count"]

SUFFIXES = frozenset({".npy", ".json", ".jsonl", ".ndjson"})

_PREFILL, _DECODE = np.uint8(PHASES.index("prefill")), np.uint8(PHASES.index("decode"))


@dataclass(frozen=True)
class Chain:
    """The routed tokens of one request, in order.

    Attributes:
        ids: [T, L, K] integers.
        prompt_tokens: How many of the T are prompt, or None if unknown.
        first_position: Position of the first of them in the request.
    """

    ids: np.ndarray
    prompt_tokens: int | None = None
    first_position: int = 0


def data_files(path: Path, suffixes: frozenset[str] = SUFFIXES) -> list[Path]:
    """The file itself, or the files with these endings in a folder, by name.

    Raises:
        InputError: If the folder has none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
    if not files:
        raise InputError(
            "no files to read in the folder",
            file=path,
            allowed=", ".join(f"*{suffix}" for suffix in sorted(suffixes)),
            fix="name the folder that holds the recording",
        )
    return files


def token_count(usage: object, key: str) -> int | None:
    """A token count of a response's ``usage`` or ``meta_info``; None if it is not there."""
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 2**31 else None


def read_values(file: Path) -> Iterator[tuple[str, Any]]:
    """Field name and value of everything in a file: arrays of ``.npy``, objects of JSON.

    Raises:
        InputError: If the file is none of ``.npy``, ``.json`` and ``.jsonl``.
    """
    suffix = file.suffix.lower()
    if suffix == ".npy":
        yield "array", map_npy(file)
    elif suffix == ".json":
        value = read_json(file)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from ((f"[{index}]", part) for index, part in enumerate(value))
        else:
            yield "response", value
    elif suffix in (".jsonl", ".ndjson"):
        yield from ((f"line {number}", value) for number, value in read_json_lines(file))
    else:
        raise InputError(
            "not a file of routed experts",
            file=file,
            field="file name",
            found=suffix or "no ending",
            allowed=".npy, .json or .jsonl",
            fix="name the file by what it holds",
        )


def decode(
    value: object,
    file: Path,
    field: str,
    *,
    tokens: Sequence[int] = (),
    top_k: int | None = None,
) -> np.ndarray:
    """The array [tokens, layers, top_k] that a value of a response stands for.

    Args:
        value: A nested list, base64 text, or a mapping with ``data``, ``shape`` and ``dtype``.
        file: For messages.
        field: For messages.
        tokens: How many tokens raw bytes may stand for, most likely number first.
        top_k: K, needed to give raw bytes a shape.

    Raises:
        InputError: If the value is none of these or its shape cannot be told.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif isinstance(value, list):
        array = _nested(value, file, field)
    elif isinstance(value, dict):
        array = _described(value, file, field)
    else:
        raw = _base64(value, file, field)
        if raw[:6] == b"\x93NUMPY":
            array = parse_npy(raw, file=file, field=field)
        else:
            array = _shaped(raw, file, field, tokens, top_k)
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise InputError(
            "not an array of expert ids",
            file=file,
            field=field,
            found=f"shape {array.shape} of {array.dtype.name}",
            allowed="(tokens, layers, top-k) integers",
            fix="save the array as the engine returns it",
        )
    return array


def _nested(value: list[Any], file: Path, field: str) -> np.ndarray:
    try:
        return np.asarray(value) if value else np.zeros((0, 0, 0), np.int32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            "lists of different lengths",
            file=file,
            field=field,
            found=str(error),
            allowed="(tokens, layers, top-k) integers",
            fix="save the array as the engine returns it",
        ) from error


def _base64(value: object, file: Path, field: str) -> bytes:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise InputError(
        "not base64 text or nested lists",
        file=file,
        field=field,
        found=value,
        allowed="the value as the engine returns it",
        fix="send the request with return_routed_experts=true, and save the response unchanged",
    )


def _described(value: dict[str, Any], file: Path, field: str) -> np.ndarray:
    """Raw bytes that come with their shape and type."""
    raw, shape = _base64(value.get("data"), file, f"{field}.data"), value.get("shape")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise InputError(
            "not a shape", file=file, field=f"{field}.shape", found=shape, allowed="three sizes"
        )
    try:
        dtype = np.dtype(str(value.get("dtype", "int32")))
        return np.frombuffer(raw, dtype).reshape(shape)
    except (TypeError, ValueError, SyntaxError, OverflowError) as error:
        raise InputError(
            "data, shape and dtype do not fit together",
            file=file,
            field=field,
            found=f"{len(raw)} bytes, shape {shape}, dtype {value.get('dtype')}",
        ) from error


def _shaped(
    raw: bytes, file: Path, field: str, tokens: Sequence[int], top_k: int | None
) -> np.ndarray:
    """Raw int32 bytes, with the shape that the number of tokens and K give."""
    flat = np.frombuffer(raw, np.int32) if len(raw) % 4 == 0 else np.zeros(0, np.int32)
    for count in tokens if top_k else ():
        if count > 0 and len(flat) and len(flat) % (count * (top_k or 1)) == 0:
            return flat.reshape(count, -1, top_k or 1)
    raise InputError(
        "the shape of the raw bytes cannot be told",
        file=file,
        field=field,
        found=f"{len(raw)} bytes, tokens {', '.join(map(str, tokens)) or 'not stated'}, "
        f"top-k {top_k or 'not given'}",
        allowed="tokens × layers × top-k int32",
        fix="pass --top-k K, and keep the token counts (meta_info, usage) in the response",
    )


def join(chains: Sequence[Chain], file: Path, *, named: bool) -> Padded:
    """All tokens of all requests as one [L, T, K] array.

    Args:
        chains: One per request.
        file: For messages.
        named: Whether the rows are all layers of the model, from 0.

    Raises:
        InputError: If there are none, or their layers or top-k differ.
    """
    chains = [chain for chain in chains if len(chain.ids)]
    if not chains:
        raise InputError(
            "no routed experts in the file",
            file=file,
            field="routed_experts",
            fix="start the server with --enable-return-routed-experts and save its responses",
        )
    shapes = {chain.ids.shape[1:] for chain in chains}
    if len(shapes) > 1:
        raise InputError(
            "the requests differ in layers or top-k",
            file=file,
            field="routed_experts",
            found=", ".join(f"{layers} × {top_k}" for layers, top_k in sorted(shapes)),
            allowed="one model per file",
        )
    ids = chains[0].ids if len(chains) == 1 else np.concatenate([chain.ids for chain in chains])
    lengths = [len(chain.ids) for chain in chains]
    return Padded(
        ids=ids.transpose(1, 0, 2),
        layers=tuple(range(ids.shape[1])) if named else None,
        file=file,
        field="routed_experts",
        requests=Requests(
            request=np.repeat(np.arange(len(chains), dtype=np.int32), lengths),
            position=np.concatenate([_positions(chain) for chain in chains]),
            phase=np.concatenate([_phases(chain) for chain in chains]),
            domain=np.zeros(len(ids), np.int32),
        ),
        dense_layers=True,
    )


def _positions(chain: Chain) -> np.ndarray:
    return np.arange(len(chain.ids), dtype=np.int32) + np.int32(chain.first_position)


def _phases(chain: Chain) -> np.ndarray:
    count = len(chain.ids)
    if chain.prompt_tokens is None:
        return np.zeros(count, np.uint8)
    return np.where(np.arange(count) < chain.prompt_tokens, _PREFILL, _DECODE)
