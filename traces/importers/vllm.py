"""Routed experts of vLLM: saved arrays or saved HTTP responses.

- a ``.npy`` file [tokens, MoE layers, top_k] of any integer type: one request each;
- a response of ``/v1/completions`` or ``/v1/chat/completions`` (``.json``: one or a list;
  ``.jsonl``: one per line) with ``choices[i].routed_experts`` and, in some versions,
  ``prompt_routed_experts`` (https://docs.vllm.ai/en/v0.21.0/training/routed_experts_replay/);
- a folder of such files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.traces.importers.contents import ImportOptions, Routing
from moesim.traces.importers.padded import strip_padding
from moesim.traces.importers.routed_experts import (
    Chain,
    data_files,
    decode,
    join,
    read_values,
    token_count,
)

__all__ = ["import_vllm"]


def import_vllm(path: Path, options: ImportOptions) -> Routing:
    """Read arrays or responses of one or more requests.

    Raises:
        InputError: Naming file and field of the first value that cannot be used.
    """
    chains: list[Chain] = []
    dialects = set()
    for file in data_files(path):
        for field, value in read_values(file):
            if isinstance(value, dict):
                dialects.add("responses")
                chains.extend(_chains(value, file, field, options))
            else:
                dialects.add("array")
                chains.append(Chain(decode(value, file, field)))
    return strip_padding(join(chains, path, named=False), options, "+".join(sorted(dialects)))


def _chains(
    response: dict[str, Any], file: Path, field: str, options: ImportOptions
) -> Iterator[Chain]:
    """The prompt (shared by all choices, so counted once) and every choice."""
    choices = response.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise InputError(
            "not a response of a completion",
            file=file,
            field=f"{field}.choices",
            found=choices,
            allowed="a list of objects with routed_experts",
            fix="save the whole response",
        )
    usage = response.get("usage")
    prompt = token_count(usage, "prompt_tokens")
    generated = token_count(usage, "completion_tokens")
    prompt_ids: np.ndarray | None = None
    if response.get("prompt_routed_experts") is not None:
        where = f"{field}.prompt_routed_experts"
        expected = () if prompt is None else (prompt,)
        value = response["prompt_routed_experts"]
        prompt_ids = decode(value, file, where, tokens=expected, top_k=options.top_k)
    for index, choice in enumerate(choices):
        where = f"{field}.choices[{index}].routed_experts"
        if choice.get("routed_experts") is None:
            if prompt_ids is not None and index == 0:
                yield Chain(prompt_ids, len(prompt_ids))
            continue
        lengths = _possible_lengths(prompt, generated, split=prompt_ids is not None)
        value = choice["routed_experts"]
        ids = decode(value, file, where, tokens=lengths, top_k=options.top_k)
        if prompt_ids is None:
            yield Chain(ids, _prompt_part(len(ids), prompt, generated))
        elif index == 0 and len(prompt_ids) and len(ids):
            yield Chain(_stack(prompt_ids, ids, file, where), len(prompt_ids))
        elif index == 0 and len(prompt_ids):
            yield Chain(prompt_ids, len(prompt_ids))
        else:
            yield Chain(ids, 0, first_position=len(prompt_ids))


def _stack(prompt: np.ndarray, generated: np.ndarray, file: Path, field: str) -> np.ndarray:
    if prompt.shape[1:] != generated.shape[1:]:
        raise InputError(
            "prompt and completion differ in layers or top-k",
            file=file,
            field=field,
            found=generated.shape[1:],
            allowed=str(prompt.shape[1:]),
        )
    return np.concatenate([prompt, generated])


def _possible_lengths(prompt: int | None, generated: int | None, *, split: bool) -> list[int]:
    """Rows that raw bytes may have: the last generated token is mostly not among them."""
    if generated is None or (prompt is None and not split):
        return []
    total = generated if split else (prompt or 0) + generated
    return [total - 1, total]


def _prompt_part(length: int, prompt: int | None, generated: int | None) -> int | None:
    """Prompt rows of an array that may hold prompt and completion, or the completion alone."""
    if prompt is None or generated is None:
        return None
    if length in (prompt + generated, prompt + generated - 1):
        return prompt
    return 0 if length in (generated, generated - 1) else None
