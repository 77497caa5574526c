"""``moesim trace synth``: write a synthetic routing trace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, OutOption, QuietOption, SeedOption
from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.traces.synthetic_spec import GeneratorSpec

__all__ = ["synth"]


def synth(
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            "--preset",
            help="Shape and published routing statistics of a model, such as qwen3-30b-a3b; "
            "'list' shows all.",
        ),
    ] = None,
    out: OutOption = None,
    layers: Annotated[int | None, typer.Option(help="MoE layers.")] = None,
    experts: Annotated[int | None, typer.Option(help="Experts per layer.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token and layer.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens; 65,536 by default.")] = None,
    skew: Annotated[
        float | None, typer.Option(help="Zipf exponent of expert popularity; 0 is even.")
    ] = None,
    affinity: Annotated[
        float | None,
        typer.Option(help="0 to 1: how strongly experts of neighbouring layers go together."),
    ] = None,
    topics: Annotated[
        int | None, typer.Option(help="Latent topics behind the affinity; 0 for experts / top-k.")
    ] = None,
    request_topics: Annotated[
        float | None,
        typer.Option(help="Effective number of topics of one request; 0 for all alike."),
    ] = None,
    domains: Annotated[int | None, typer.Option(help="Kinds of text.")] = None,
    domain_shift: Annotated[
        float | None, typer.Option(help="0 to 1: how much expert popularity differs by domain.")
    ] = None,
    locality: Annotated[
        float | None,
        typer.Option(help="0 to 1: probability that the next token keeps the topic."),
    ] = None,
    reuse: Annotated[
        float | None,
        typer.Option(help="0 to 1: share of the experts kept where the topic is kept."),
    ] = None,
    groups: Annotated[int | None, typer.Option(help="Groups of consecutive experts.")] = None,
    groups_per_token: Annotated[
        int | None, typer.Option(help="Groups that may serve one token (node-limited routing).")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(help="Requests; sets the tokens to as many of the mean length.")
    ] = None,
    request_tokens: Annotated[int | None, typer.Option(help="Mean length of a request.")] = None,
    gates: Annotated[bool, typer.Option("--gates", help="Write router weights too.")] = False,
    counts_only: Annotated[
        bool, typer.Option("--counts-only", help="Write counts.npy (layers × experts) alone.")
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a synthetic trace: like that of a real model, or with given statistics."""
    given = {
        "layers": layers,
        "experts": experts,
        "top_k": top_k,
        "tokens": tokens,
        "skew": skew,
        "affinity": affinity,
        "topics": topics,
        "request_topics": request_topics,
        "domains": domains,
        "domain_shift": domain_shift,
        "locality": locality,
        "reuse": reuse,
        "groups": groups,
        "groups_per_token": groups_per_token,
        "request_tokens": request_tokens,
    }
    console = Console(as_json=as_json, quiet=quiet)
    if like == "list":
        _list(console)
        return
    given = {key: value for key, value in given.items() if value is not None}
    spec, sources = _spec(like, given, sequences)
    if out is None:
        raise UsageError("where to write is missing\nfix: pass --out DIR")
    if counts_only and gates:
        raise UsageError("--counts-only writes counts alone\nfix: leave out --gates")
    likeness = _likeness(like, given) if like else None
    data = _generate(spec, out, seed, gates, counts_only, likeness, console)
    data["sources"] = sources
    measured = ", ".join(f"{key} {value:.3g}" for key, value in data["measured"].items())
    console.say(
        f"{data['assignments_per_s'] / 1e6:.1f} M assignments/s in {data['generate_s']:.2f} s"
    )
    text = (
        f"{data['path']}: {spec.layers} layers, {spec.tokens} tokens, {spec.experts} experts, "
        f"top-{spec.top_k}, synthetic\nmeasured: {measured}"
    )
    if likeness:
        data["like"] = likeness
        text += "\n" + _likeness_text(likeness)
    console.result(data, text)


def _list(console: Console) -> None:
    """Print the models whose routing statistics are known."""
    from moesim.traces.likeness import likenesses

    models = {
        name: {"layers": m.layers, "experts": m.experts, "top_k": m.top_k}
        for name, m in likenesses().models.items()
    }
    width = max(map(len, models))
    console.result(
        {"schema": "moesim.trace/1", "ok": True, "models": models},
        "\n".join(
            f"{name:{width}}  {m['layers']:2} MoE layers, {m['experts']:3} experts, "
            f"top-{m['top_k']}"
            for name, m in models.items()
        ),
    )


def _likeness(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the manifest and the output say of the likeness."""
    from moesim.traces.likeness import likeness_report

    changed = sorted(given.keys() - {"tokens"})
    return {
        "note": f"synthetic routing with statistics like those published of {name}; "
        "not recorded from it",
        **likeness_report(name),
        "changed": changed,
    }


def _likeness_text(likeness: dict[str, Any]) -> str:
    """The residuals as a table."""
    lines = [f"like {likeness['model']}, not recorded from it; of traces with these parameters:"]
    lines.append(f"  {'statistic':15} {'published':>9} {'generated':>9} {'residual':>9}")
    lines += [
        f"  {f['statistic']:15} {f['published']:9.2f} {f['generated']:9.2f} {f['residual']:+9.2f}"
        f"  {f['role']}"
        for f in likeness["figures"]
    ]
    if likeness["changed"]:
        names = ", ".join(likeness["changed"])
        lines.append(f"the figures hold for the parameters as fitted; changed here: {names}")
    return "\n".join(lines)


def _spec(
    like: str | None, given: dict[str, Any], sequences: int | None
) -> tuple[GeneratorSpec, dict[str, str]]:
    """The spec asked for, and the source of each parameter."""
    from moesim.traces.likeness import find_likeness, likenesses
    from moesim.traces.synthetic_spec import GeneratorSpec

    base: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if like is None:
        missing = [key for key in ("layers", "experts", "top_k") if key not in given]
        if missing:
            options = ", ".join("--" + key.replace("_", "-") for key in missing)
            raise UsageError(f"the shape of the trace is missing\nfix: pass --like or {options}")
    else:
        chosen = find_likeness(like)
        base = chosen.spec(like).to_dict()
        sources = chosen.sources(likenesses().assumptions)
        if base["layers"] != given.get("layers", base["layers"]):
            base["moe_layers"] = ()
        if given.keys() & {"experts", "top_k", "layers"}:
            base["model"] = f"like {like} with another shape (synthetic)"
    sources |= dict.fromkeys(given, "given")
    spec = GeneratorSpec.parse(base | given)
    if sequences is not None:
        if "tokens" in given:
            raise UsageError("--sequences and --tokens both set the length\nfix: leave one out")
        spec = GeneratorSpec.parse(spec.to_dict() | {"tokens": sequences * spec.request_tokens})
    return spec, sources


def _generate(
    spec: GeneratorSpec,
    out: Path,
    seed: int,
    gates: bool,
    counts_only: bool,
    likeness: dict[str, Any] | None,
    console: Console,
) -> dict[str, Any]:
    from moesim.traces.generate import generate, generate_counts

    start_s = time.perf_counter()
    with console.progress("sampling") as step:

        def on_layer(layer: int) -> None:
            step(f"sampling layer {layer + 1} of {spec.layers}")

        if counts_only:
            counts = generate_counts(spec, out, seed=seed, on_layer=on_layer)
            path, files, measured = counts.path, ["counts.npy"], counts.measured
        else:
            made = generate(
                spec,
                out,
                seed=seed,
                gates=gates,
                extra={"like": likeness} if likeness else None,
                on_layer=on_layer,
            )
            path, measured = out, made.measured
            files = ["manifest.json", *made.trace.manifest.sha256]
    elapsed_s = time.perf_counter() - start_s
    return {
        "schema": "moesim.trace/1",
        "ok": True,
        "path": str(path),
        "files": files,
        "model": spec.model,
        "layers": spec.layers,
        "tokens": spec.tokens,
        "experts": spec.experts,
        "top_k": spec.top_k,
        "seed": seed,
        "parameters": spec.to_dict(),
        "measured": measured,
        "generate_s": elapsed_s,
        "assignments_per_s": spec.layers * spec.tokens * spec.top_k / elapsed_s,
    }
