"""``moesim plan moge``: equal groups of experts, one per device (Pangu Pro MoE)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import plan_moge_size
from moesim.cli.console import (
    Console,
    JsonOption,
    OutOption,
    QuietOption,
    ResultOutOption,
    SeedOption,
    listed,
)
from moesim.cli.plan_options import TraceArgument
from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.planners.moge import MogeGroups
    from moesim.planners.moge_score import ImbalanceDraws

__all__ = ["app"]

HELP = "Mixture of Grouped Experts: balance by design."
DEFAULT_OUT = Path("moesim-moge")

app = typer.Typer(name="plan moge", help=HELP, no_args_is_help=True)


app.command("size")(plan_moge_size.size)


@app.callback()
def _group() -> None:
    """Mixture of Grouped Experts: balance by design."""


@app.command()
def regroup(
    trace: TraceArgument = None,
    groups: Annotated[int, typer.Option(help="Groups, one per device.")] = 4,
    per_group: Annotated[
        int | None, typer.Option(help="Experts of a token in every group [top-k / groups].")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Registry name or config.json, for --export.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the trace kept back to check the groups on.")
    ] = 0.25,
    time_limit: Annotated[float, typer.Option(help="Seconds for all layers.")] = 60.0,
    export: Annotated[
        str | None, typer.Option(help="Engines to write placement files for, by commas.")
    ] = None,
    out: OutOption = DEFAULT_OUT,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Divide a model's experts into equal groups that keep most of the gate mass of a trace.

    A token then takes equally many experts of every group, so devices are balanced exactly.
    """
    from moesim.planners.moge import groups_document
    from moesim.planners.moge_mass import read_choices
    from moesim.planners.moge_regroup import check_groups, regroup
    from moesim.traces.bundle import open_trace, sample_path

    console = Console(as_json=as_json, quiet=quiet)
    if not 0 < time_limit < float("inf"):
        raise UsageError(
            f"--time-limit must be a positive number of seconds; found {time_limit}\n"
            "fix: pass e.g. --time-limit 60"
        )
    engines = listed(export) or []
    if engines and model is None:
        raise UsageError("--export needs --model\nfix: pass the --model that the trace is of")
    opened = open_trace(trace or sample_path())
    own = check_groups(opened.manifest.experts, opened.manifest.top_k, groups, per_group)
    choices, held_out = read_choices(opened, holdout)
    with console.progress("grouping") as say:
        found = regroup(choices, groups, own, seed=seed, time_limit_s=time_limit, say=say)
    if found.cut_short:
        console.say(f"--time-limit: {found.cut_short} layers were not searched to the end")
    document = groups_document(opened, model or opened.manifest.model, found, held_out)
    files = _write(document, out or DEFAULT_OUT, model, engines)
    data = document.to_dict() | {"ok": True, "solve_s": found.solve_s, "files": files}
    console.result(data, lambda: _show_groups(document, files))


def _write(
    document: MogeGroups, out: Path, model: str | None, engines: list[str]
) -> dict[str, str]:
    from moesim.model import load_model
    from moesim.placement import write_plan
    from moesim.planners.exports import export, find_exporter
    from moesim.safe_io import write_json

    for engine in engines:
        find_exporter(engine)
    placement = document.placement()
    spec = load_model(model) if engines and model else None
    files = {"groups": str(write_json(out / "groups.json", document.to_dict()))}
    plan = write_plan(
        out / "plan.json",
        placement,
        model=document.model,
        cluster=f"{document.groups} devices",
        planner="moge",
        trace_sha256=document.trace_sha256,
    )
    files["plan"] = str(plan)
    for engine in engines if spec is not None else ():
        assert spec is not None  # noqa: S101
        files |= {k: str(v) for k, v in export(engine, placement, spec, out).files.items()}
    return files


def _show_groups(found: MogeGroups, files: dict[str, str]) -> None:
    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table

    from moesim.cli.words import Words

    console = RichConsole()
    words = Words(console)
    lost, what = found.lost, "gate mass" if found.weights == "gates" else "choices"
    random = lost.random or 0.0
    less = 1 - lost.groups / random if random else 0.0
    console.print(
        words.paragraph(f"grouped top-k loses {lost.groups:.2%} of the {what}, "
                        f"{less:.0%} less than with random groups", "bold")
    )  # fmt: skip
    text = (
        f"{found.model}: {found.experts} experts in {found.groups} groups, {found.per_group} of "
        f"each per token; every device gets exactly as many token copies. Random groups lose "
        f"{random:.2%}, consecutive experts {lost.contiguous:.2%}; no groups lose less than "
        f"{lost.lower_bound or 0:.2%}. A token has 2^{found.bits_grouped:.1f} sets of experts to "
        f"choose from, instead of 2^{found.bits_free:.1f}."
    )
    console.print(words.paragraph(text))
    if found.holdout is not None:
        console.print(words.paragraph(
            f"On the part of the trace that was kept back {found.holdout.groups:.2%} are lost, by "
            f"consecutive experts {found.holdout.contiguous:.2%}."
        ))  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("layer", "by", "lost", "bound", "random", "contiguous"):
        table.add_column(words(name), justify="left" if name == "by" else "right")
    for row in found.layers:
        shares = (row.lost, row.lower_bound, row.random, row.contiguous)
        cells = (str(row.layer), row.method, *(f"{share:.2%}" for share in shares))
        table.add_row(*map(words, cells))
    console.print(table)
    for kind, path in files.items():
        console.print(words(f"{kind:<7} {path}"), soft_wrap=True)


@app.command()
def imbalance(
    experts: Annotated[int, typer.Option(help="Routed experts.")] = 64,
    top_k: Annotated[int, typer.Option(help="Experts per token.")] = 8,
    devices: Annotated[int, typer.Option(help="Devices that share the experts.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of a batch.")] = 16,
    groups: Annotated[int | None, typer.Option(help="Groups to compare with [--devices].")] = None,
    draws: Annotated[int, typer.Option(help="Batches to draw.")] = 2000,
    out: ResultOutOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Imbalance score of random batches, top-k against grouped (arXiv 2505.21411, figure 2)."""
    from moesim.planners.moge_score import draw_imbalance

    console = Console(as_json=as_json, quiet=quiet, out=out)

    def draw(number: int) -> ImbalanceDraws:
        return draw_imbalance(
            experts=experts, top_k=top_k, devices=devices, tokens=tokens, groups=number,
            draws=draws, seed=seed,
        )  # fmt: skip

    rows = {"top-k": draw(1), "grouped": draw(devices if groups is None else groups)}
    data: dict[str, Any] = {
        "schema": "moesim.moge-imbalance/1", "ok": True, "experts": experts, "top_k": top_k,
        "devices": devices, "tokens": tokens, "draws": draws, "seed": seed,
        "routing": {name: _score_json(row) for name, row in rows.items()},
    }  # fmt: skip
    lines = [
        f"{name:<8} imbalance score {row.score.mean():.3f} mean, {row.quantile(0.95):.3f} 95 %; "
        f"above 0 in {row.positive:.1%} of {draws} batches of {tokens} tokens; "
        f"busiest device {row.ratio.mean():.3f} of the mean"
        for name, row in rows.items()
    ]
    console.result(data, "\n".join(lines))


def _score_json(row: ImbalanceDraws) -> dict[str, float]:
    return {
        "mean": float(row.score.mean()),
        "p95": row.quantile(0.95),
        "positive": row.positive,
        "max_over_mean": float(row.ratio.mean()),
    }
