"""Router logits captured from llama.cpp: a folder of ``ffn_moe_logits-{layer}.npy`` [T, E].

llama.cpp names the router's output of layer l ``ffn_moe_logits-l`` (src/llama-graph.cpp,
``build_moe_ffn``); an evaluation callback can save it. The experts are the K largest logits (the
lower id where logits are equal), the gates their softmax probabilities over all experts. A model
that adds a bias for the choice, takes a sigmoid, or chooses groups first selects differently.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.safe_io import map_npy
from moesim.traces.importers.contents import ImportOptions, Routing
from moesim.traces.importers.padded import Padded, choose_layers, strip_padding

__all__ = ["import_llamacpp"]

_NAME = re.compile(r"ffn_moe_logits-(\d{1,6})\.npy")
CHUNK_TOKENS = 4096
ROUTER = "softmax over all experts, then top-k, without renormalisation, bias or groups"


def import_llamacpp(folder: Path, options: ImportOptions) -> Routing:
    """Take the top-k of captured router logits.

    Raises:
        UsageError: If top-k is not given.
        InputError: If there are no such files, they differ in tokens, or a logit is not finite.
    """
    if options.top_k is None:
        raise UsageError("router logits do not tell the top-k\nfix: pass --top-k K")
    if not folder.is_dir():
        raise InputError(
            "a folder with ffn_moe_logits-LAYER.npy is needed",
            file=folder,
            found="a file" if folder.exists() else "no such folder",
            fix="name the folder",
        )
    names = {f: match for f in folder.iterdir() if (match := _NAME.fullmatch(f.name))}
    files = {int(match[1]): file for file, match in names.items()}
    if not files:
        raise InputError(
            "no router logits in the folder",
            file=folder,
            allowed="ffn_moe_logits-LAYER.npy",
            fix="name the folder that holds them",
        )
    layers = tuple(sorted(files))
    rows, moe_layers = choose_layers(list(range(len(layers))), layers, options.moe_layers, folder)
    logits = [_read(files[layers[row]], options.experts) for row in rows]
    tokens = len(logits[0])
    shape = (len(rows), tokens, options.top_k)
    ids, gates = np.empty(shape, np.int32), np.empty(shape, np.float32)
    for target, (row, values) in enumerate(zip(rows, logits, strict=True)):
        if len(values) != tokens:
            raise InputError(
                "the layers hold different numbers of tokens",
                file=files[layers[row]],
                field="shape",
                found=f"{len(values)} tokens",
                allowed=f"{tokens}, as in layer {moe_layers[0]}",
                fix="capture all layers in one run",
            )
        for start in range(0, tokens, CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            ids[target, part], gates[target, part] = top_k_of_logits(
                values[part], options.top_k, files[layers[row]], start
            )
    padded = Padded(ids, moe_layers, folder, "logits", gates)
    routing = strip_padding(padded, options, "router-logits")
    warning = f"experts chosen as {ROUTER}; check that the model's router does the same"
    return replace(routing, warnings=(*routing.warnings, warning), extra={"router": ROUTER})


def _read(file: Path, experts: int) -> np.ndarray:
    values = map_npy(file)
    if (
        values.ndim != 2
        or values.shape[1] != experts
        or values.dtype.kind != "f"
        or not len(values)
    ):
        raise InputError(
            "not router logits of this model",
            file=file,
            field="shape",
            found=f"{values.shape} {values.dtype.name}",
            allowed=f"(tokens, {experts}) floats",
            fix="pass the model's number of experts with --experts",
        )
    return values


def top_k_of_logits(
    logits: np.ndarray, top_k: int, file: Path, start: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The K largest of each row in descending order, and their softmax probabilities.

    Args:
        logits: [T, E] floats.
        top_k: K ≤ E.
        file: For messages.
        start: For messages: the token that the first row stands for.

    Returns:
        [T, K] int64 ids and [T, K] float64 probabilities.

    Raises:
        InputError: If a logit is not finite.
    """
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        token, expert = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise InputError(
            "a router logit is not a finite number",
            file=file,
            field=f"token {start + token}, expert {expert}",
            found=float(values[token, expert]),
            fix="capture the logits again",
        )
    ids = np.argsort(-values, axis=1, kind="stable")[:, :top_k]
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return ids, np.take_along_axis(weights, ids, axis=1)
