"""``moesim trace record``: run a Hugging Face model and record its routing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.console import Console, JsonOption, NoSeedOption, OutOption, QuietOption
from moesim.errors import UsageError

__all__ = ["record"]


def record(
    model: Annotated[str, typer.Argument(help="Folder of a Hugging Face model.")],
    text: Annotated[
        list[Path], typer.Option("--text", help="UTF-8 text file, repeatable; each is a domain.")
    ],
    out: OutOption = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt tokens taken from each file.")
    ] = 65_536,
    request_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt tokens per request; files are cut.")
    ] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that run together.")] = 8,
    generate: Annotated[
        int, typer.Option(min=0, help="Tokens that each request decodes, greedily.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU.")] = "auto",
    allow_download: Annotated[
        bool, typer.Option("--allow-download", help="Fetch the model from the Hugging Face hub.")
    ] = False,
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Run a model over text files and record which experts it chooses."""
    from moesim.traces.bundle import new_bundle_folder
    from moesim.traces.record_text import RecordOptions, load_model_and_tokenizer, record_texts

    if out is None:
        raise UsageError("where to write is missing\nfix: pass --out DIR")
    new_bundle_folder(out)  # refuse before the model is loaded, not after
    console = Console(as_json=as_json, quiet=quiet)
    with console.progress("loading the model") as step:
        loaded, tokenizer = load_model_and_tokenizer(
            model, device=device, allow_download=allow_download
        )
        trace = record_texts(
            loaded,
            tokenizer,
            text,
            out,
            model_name=Path(model).name,
            options=RecordOptions(max_tokens, request_tokens, batch_size, generate),
            on_batch=lambda done, total: step(f"batch {done + 1} of {total}"),
        )
    manifest = trace.manifest
    data = {
        "schema": "moesim.trace/1",
        "ok": True,
        "path": str(out),
        "files": ["manifest.json", *manifest.sha256],
        "model": manifest.model,
        "layers": manifest.layers,
        "moe_layers": list(manifest.moe_layers),
        "tokens": manifest.tokens,
        "experts": manifest.experts,
        "top_k": manifest.top_k,
        "domains": list(manifest.domains),
    }
    if "requests.parquet" not in manifest.sha256:
        console.say("requests.parquet was left out: it needs pyarrow (moesim[parquet])")
    console.result(
        data,
        f"{out}: {manifest.layers} MoE layers, {manifest.tokens} tokens, "
        f"{manifest.experts} experts, top-{manifest.top_k}",
    )
