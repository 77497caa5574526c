"""``moesim model``: what is known about a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.choices import TransformOption
from moesim.cli.console import (
    Console,
    JsonOption,
    NoSeedOption,
    QuietOption,
    ResultOutOption,
)

if TYPE_CHECKING:
    from moesim.model import ModelSpec

__all__ = ["app"]

app = typer.Typer(help="Show the models that ship with moesim, or any config.json.")

SHOWN_LAYERS = 6


@app.command("list")
def list_models(
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """List the models that ship with moesim."""
    from moesim.model import dense_model_names, load_model, model_names

    names = (*model_names(), *dense_model_names())
    models = [load_model(name, dense=True) for name in names]
    keys = ("name", "architecture", "experts", "top_k", "expert_bits", "source", "note")
    rows = [
        {key: getattr(model, key) for key in keys}
        | {
            "layers": model.layers,
            "moe_layer_count": len(model.moe_layers),
            "total_parameters": model.total_parameters,
            "active_parameters": model.active_parameters,
        }
        for model in models
    ]
    data = {"schema": "moesim.model-list/1", "ok": True, "models": rows}
    Console(as_json=as_json, quiet=quiet, out=out).result(data, _table(models))


@app.command()
def show(
    name_or_file: Annotated[
        str,
        typer.Argument(
            help="A name or Hugging Face id out of `moesim model list`, a config.json, the folder "
            "of a checkpoint, or a moesim.model/1 document."
        ),
    ],
    transform: TransformOption = None,
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Show one model: dimensions, experts, parameters, quantisation."""
    from moesim.model import load_model

    model = load_model(name_or_file, dense=True, transforms=tuple(transform or ()))
    data = {**model.summary(), "ok": True}
    Console(as_json=as_json, quiet=quiet, out=out).result(data, _text(model))


@app.command()
def transforms(
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """List what --transform can do to a model: usage, what it is, source."""
    from moesim.model.transforms import TRANSFORMS

    rows = [
        {
            "name": transform.name,
            "usage": transform.usage,
            "summary": transform.summary,
            "source": transform.source,
            "parameters": [parameter.to_dict() for parameter in transform.parameters],
        }
        for transform in TRANSFORMS.values()
    ]
    data = {"schema": "moesim.model-transforms/1", "ok": True, "transforms": rows}
    text = "\n".join(
        f"{transform.usage}\n    {transform.summary}\n    {transform.source}"
        for transform in TRANSFORMS.values()
    )
    Console(as_json=as_json, quiet=quiet, out=out).result(data, text)


def _table(models: list[ModelSpec]) -> str:
    width = max(len(model.name) for model in models)
    head = ("parameters", "active", "MoE layers", "experts", "top-k", "expert bits")
    lines = [f"{'model':<{width}}  {'  '.join(f'{word:>11}' for word in head)}"]
    for model in models:
        words = (
            _billions(model.total_parameters),
            _billions(model.active_parameters),
            f"{len(model.moe_layers)} of {model.layers}",
            str(model.experts),
            str(model.top_k),
            f"{model.expert_bits:.4g}",
        )
        lines.append(f"{model.name:<{width}}  {'  '.join(f'{word:>11}' for word in words)}")
    return "\n".join(lines)


def _text(model: ModelSpec) -> str:
    counts = model.parameters
    matrices = {2: "2 matrices", 3: "3 matrices (gated)"}[model.expert_matrices]
    lines = [
        f"{model.name} ({model.architecture})",
        f"parameters       {_billions(counts.total)} total, {_billions(counts.active)} active per "
        f"token (embedding and output head included: {_billions(counts.embedding)}, "
        f"{_billions(counts.output_head)})",
        f"layers           {model.layers}, of which MoE: {_ranges(model.moe_layers)}",
        f"hidden size      {model.hidden_size}"
        + (f", experts work in {model.expert_hidden_size}" if model.expert_hidden_size else ""),
        f"routed experts   {model.experts} per MoE layer, top-{model.top_k}, width "
        f"{model.expert_width}, {matrices}",
        f"one expert       {model.expert_parameters / 1e6:.2f} M parameters, "
        f"{model.expert_weight_bytes / 2**20:.2f} MiB at {model.expert_bits:.4g} bits per weight "
        f"({model.quantisation.method})",
    ]
    if model.shared_experts:
        lines.append(
            f"shared experts   {model.shared_experts}, total width {model.shared_expert_width}"
        )
    if model.routing_groups > 1:
        lines.append(
            f"routing groups   {model.routing_groups}, "
            f"a token chooses from {model.groups_per_token}"
        )
    if model.dense_layers:
        lines.append(f"dense layers     {_ranges(model.dense_layers)}, width {model.dense_width}")
    for mixer in model.mixers:
        window = f", window {mixer.window_tokens} tokens" if mixer.window_tokens else ""
        lines.append(f"{mixer.kind:<16} layers {_ranges(mixer.layers)}{window}")
    if model.mtp_layers:
        lines.append(
            f"MTP modules      {model.mtp_layers}, {_billions(model.mtp_parameters)} beyond the "
            "total"
        )
    lines += [f"transform        {text}" for text in model.variant.applied]
    if model.variant.copies or model.variant.rounds > 1:
        lines.append(
            f"routed copies    {model.copies_per_token:.3g} per token and round on average, "
            f"{model.variant.rounds} rounds"
        )
    lines.append(f"source           {model.source}")
    if model.note:
        lines.append(f"note             {model.note}")
    return "\n".join(lines)


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B"


def _ranges(indices: tuple[int, ...]) -> str:
    """``0-2, 5, 7-9``; long lists are cut."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    if len(words) > SHOWN_LAYERS:
        return f"{', '.join(words[:SHOWN_LAYERS])}, … ({len(indices)} layers)"
    return f"{', '.join(words)} ({len(indices)} layers)"
