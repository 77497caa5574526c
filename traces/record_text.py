"""Run a local Hugging Face model over text files and record its routing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.extras import require
from moesim.safe_io import read_text
from moesim.traces.bundle import Trace, new_bundle_folder
from moesim.traces.recorder import RoutingRecorder

__all__ = ["RecordOptions", "load_model_and_tokenizer", "record_texts"]


@dataclass(frozen=True)
class RecordOptions:
    """How text becomes requests.

    Attributes:
        max_tokens: Prompt tokens taken from each file.
        request_tokens: A file is cut into requests of so many prompt tokens.
        batch_size: Requests that run together.
        generate_tokens: Tokens that each request then decodes, greedily.
    """

    max_tokens: int = 65_536
    request_tokens: int = 512
    batch_size: int = 8
    generate_tokens: int = 0


def load_model_and_tokenizer(
    name: str, *, device: str = "auto", allow_download: bool = False
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer from a folder.

    Only safetensors weights are read and no code from the folder is run.

    Args:
        name: Folder; with ``allow_download`` also a name on the Hugging Face hub.
        device: ``cpu``, ``cuda``, ``cuda:1`` …; ``auto`` takes a GPU if there is one.
        allow_download: Fetch what is not in the folder.

    Raises:
        MissingExtraError: If torch or transformers is not installed.
        InputError: If the folder does not hold a model and tokenizer that transformers knows.
        UsageError: If the device does not exist.
    """
    torch = require("torch", "record", "recording routing")
    transformers = require("transformers", "record", "recording routing")
    if not allow_download and not Path(name).is_dir():
        raise InputError(
            "no such folder",
            field="model",
            found=name,
            allowed="a folder with config.json, weights and tokenizer",
            fix="download the model first, or pass --allow-download",
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"local_files_only": not allow_download, "trust_remote_code": False}
    log = transformers.utils.logging
    bars = log.is_progress_bar_enabled()
    log.disable_progress_bar()  # the command shows its own
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype="auto", use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            "transformers cannot load the model",
            file=name,
            found=str(error).strip().splitlines()[0] if str(error).strip() else repr(error),
            fix="check that the folder holds config.json, *.safetensors and a tokenizer",
        ) from error
    finally:
        if bars:
            log.enable_progress_bar()
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"the model cannot be placed on device {device!r}: {error}") from error
    return model.eval(), tokenizer


def record_texts(
    model: Any,
    tokenizer: Any,
    files: Sequence[Path],
    folder: str | Path,
    *,
    model_name: str,
    options: RecordOptions = RecordOptions(),
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Trace:
    """Run text files through a model and write the bundle; a file's name is its domain.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        files: UTF-8 text files.
        folder: Receives the bundle.
        model_name: For the manifest.
        options: How text becomes requests.
        on_batch: Called with the number of batches done and their total.

    Raises:
        InputError: If a file holds no text, or the model cannot be recorded.
    """
    import torch

    new_bundle_folder(folder)  # refuse before the model runs, not after
    requests = [
        (file.stem, chunk) for file in files for chunk in _requests(tokenizer, file, options)
    ]
    pad = next(
        (t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None),
        0,
    )
    size = options.batch_size
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        for first in range(0, len(requests), size):
            on_batch(first // size, -(-len(requests) // size))
            batch = requests[first : first + size]
            recorder.domain = [domain for domain, _ in batch]
            _run(model, [ids for _, ids in batch], pad, options.generate_tokens)
    names = ", ".join(file.name for file in files)
    decoded = f", {options.generate_tokens} tokens decoded" if options.generate_tokens else ""
    return recorder.write(
        folder,
        model_name=model_name,
        source=f"recorded with moesim trace record from {names}{decoded}",
    )


def _requests(tokenizer: Any, file: Path, options: RecordOptions) -> list[list[int]]:
    # The tokenizer's warning about its maximal length is about one request, and these are cut.
    ids = tokenizer(read_text(file), verbose=False)["input_ids"][: options.max_tokens]
    if not ids:
        raise InputError("the file holds no text", file=file)
    step = options.request_tokens
    return [ids[first : first + step] for first in range(0, len(ids), step)]


def _run(model: Any, batch: list[list[int]], pad: int, generate_tokens: int) -> None:
    """One batch, padded on the left, as generation needs it."""
    import torch

    width = max(len(ids) for ids in batch)
    tokens = np.full((len(batch), width), pad, dtype=np.int64)
    mask = np.zeros((len(batch), width), dtype=np.int64)
    for row, ids in enumerate(batch):
        tokens[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = 1
    inputs = {
        "input_ids": torch.from_numpy(tokens).to(model.device),
        "attention_mask": torch.from_numpy(mask).to(model.device),
    }
    # The last new token is sampled but never fed to the model, so one more is asked for. The first
    # comes from the prefill: without decoding, generation stops after it.
    settings = {"max_new_tokens": generate_tokens + 1, "do_sample": False, "num_beams": 1}
    model.generate(**inputs, **settings, pad_token_id=pad)
