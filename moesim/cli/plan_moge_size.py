"""``moesim plan moge size``: shapes of a grouped model for a device."""

from __future__ import annotations

from dataclasses import asdict
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, QuietOption, ResultOutOption, SeedOption, listed
from moesim.errors import InfeasibleError, UsageError

if TYPE_CHECKING:
    from moesim.planners.moge_size import Budgets, SizeChoice

__all__ = ["size"]


def size(
    cluster: Annotated[str, typer.Option(help="Cards that serve one replica.")] = "4xascend_910b4",
    context: Annotated[int, typer.Option(help="Tokens cached per sequence.", min=1)] = 2048,
    tpot: Annotated[float, typer.Option(help="Most seconds per output token.", min=0)] = 0.05,
    parameters: Annotated[str, typer.Option(help="Least and most billions.")] = "60:80",
    active: Annotated[str, typer.Option(help="Least and most billions of a token.")] = "16:",
    hidden: Annotated[str, typer.Option(help="Hidden sizes.")] = "4096,5120,6144,7168,8192",
    layers: Annotated[str, typer.Option(help="Numbers of layers.")] = "40,48,56,64",
    heads: Annotated[str, typer.Option(help="Query heads.")] = "32,40,48,64",
    kv_heads: Annotated[str, typer.Option(help="Heads of keys and values.")] = "8,16",
    experts: Annotated[str, typer.Option(help="Routed experts.")] = "32,48,64",
    groups: Annotated[
        str, typer.Option(help="Groups of experts; auto: the fewest that balance the cards.")
    ] = "auto",
    top_k: Annotated[str, typer.Option(help="Routed experts of a token.")] = "8",
    width: Annotated[
        str, typer.Option(help="Widths of an expert.")
    ] = "896,1152,1344,1536,1792,2304,2816",
    shared: Annotated[str, typer.Option(help="Shared experts.")] = "4",
    batch: Annotated[str, typer.Option(help="Sequences of a step.")] = "64,128,256,456",
    memory_share: Annotated[
        float, typer.Option(help="Of a card's memory that may be filled.", min=0.1, max=1.0)
    ] = 0.95,
    dtype: Annotated[str, typer.Option(help="Format of weights; sq is INT8.")] = "sq",
    keep: Annotated[int, typer.Option(help="Shapes to list, best first.", min=1, max=10)] = 3,
    time_limit: Annotated[float, typer.Option(help="Seconds for each of them.")] = 60.0,
    out: ResultOutOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Shapes with most tokens per second and card within budgets (arXiv 2505.21411, section 4.3).

    An integer program over columns that the step model prices; the defaults are the space that
    Pangu Pro MoE was searched in. Single values price one shape.
    """
    import moesim
    from moesim.cluster import load_cluster
    from moesim.forward.formats import Formats, check_formats
    from moesim.forward.machine import Machine
    from moesim.planners.moge_columns import SizeSpace, size_contexts
    from moesim.planners.moge_size import Budgets, choose_size

    console = Console(as_json=as_json, quiet=quiet, out=out)
    space = SizeSpace(
        _numbers(hidden, "--hidden"),
        _numbers(layers, "--layers"),
        _numbers(heads, "--heads"),
        _numbers(kv_heads, "--kv-heads"),
        _numbers(experts, "--experts"),
        None if groups == "auto" else _numbers(groups, "--groups"),
        _numbers(top_k, "--top-k"),
        _numbers(width, "--width"),
        _numbers(shared, "--shared"),
        _numbers(batch, "--batch"),
    )
    place = load_cluster(cluster)
    formats = Formats(dtype, dtype, "bfloat16")
    check_formats(formats, place.device, ("--dtype", "--dtype", "--kv-dtype"))
    budgets = Budgets(
        _range(parameters, "--parameters"),
        _range(active, "--active"),
        tpot or inf,
        place.device.memory_bytes * memory_share,
    )
    found: list[SizeChoice] = []
    with console.progress("pricing layers") as say:
        machine = Machine(place, "sglang", "fitted")
        contexts = size_contexts(space, machine, formats, context)
        if not contexts:
            raise InfeasibleError(
                f"no size divides over {cluster}\nfix: choose --experts, --top-k and --heads that "
                f"its {place.devices} cards divide, and --groups (multiples of the cards that "
                "divide experts and top-k) or auto"
            )
        while len(found) < keep:
            say(f"shape {len(found) + 1}")
            choice = choose_size(
                contexts, budgets, place.devices, without=[one.shape for one in found],
                time_limit_s=time_limit,
            )  # fmt: skip
            if choice is None:
                break
            found.append(choice)
    if not found:
        raise InfeasibleError(
            f"no shape of the space keeps the budgets on {cluster}\n"
            "fix: try a smaller --batch (memory, time), raise --tpot or --memory-share, or widen "
            "--parameters or --active"
        )
    data: dict[str, Any] = {
        "schema": "moesim.moge-size/1",
        "ok": True,
        "cluster": cluster,
        "contexts": len(contexts),
        "budgets": _budgets(budgets),
        "shapes": [_shape(one) for one in found],
        "seed": seed,
        "version": moesim.__version__,
    }
    console.result(data, _text(data))


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        values = tuple(int(word) for word in listed(text) or [])
    except ValueError:
        values = ()
    if not values or min(values) < (0 if option == "--shared" else 1):
        raise UsageError(
            f"{option}: whole numbers are needed; found {text!r}\nfix: write them like 32,64"
        )
    return tuple(dict.fromkeys(values))


def _range(text: str, option: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    try:
        found = float(low or 0) * 1e9, float(high) * 1e9 if high else inf
    except ValueError:
        found = (1.0, 0.0)
    if not colon or found[0] > found[1]:
        raise UsageError(
            f"{option}: billions from least to most are needed; found {text!r}\n"
            "fix: write them like 60:80, or 16: for no most"
        )
    return found


def _budgets(budgets: Budgets) -> dict[str, Any]:
    def end(value: float) -> float | None:
        return None if value == inf else value

    return {
        "parameters": [end(value) for value in budgets.parameters],
        "active": [end(value) for value in budgets.active],
        "tpot_s": end(budgets.tpot_s),
        "device_bytes": end(budgets.device_bytes),
    }


def _shape(one: SizeChoice) -> dict[str, Any]:
    from moesim.planners.moge_mass import lost_sets_bits

    free, grouped = lost_sets_bits(one.experts.experts, one.experts.groups, one.experts.per_group)
    context = one.context
    return {
        "hidden": context.hidden,
        "layers": context.layers,
        "attention": {"heads": one.attention.heads, "kv_heads": one.attention.kv_heads},
        "experts": {
            key: value
            for key, value in asdict(one.experts).items()
            if key in ("experts", "groups", "per_group", "width", "shared")
        },
        "layout": {"tp": context.tp, "dp": context.dp},
        "batch": context.batch,
        "step_s": one.step_s,
        "lo_s": one.step_s * context.interval[0],
        "hi_s": one.step_s * context.interval[1],
        "evidence": context.evidence.value,
        "attention_share": context.layers * one.attention.seconds / one.step_s,
        "tokens_per_s_per_card": one.tokens_per_s,
        "parameters": one.parameters,
        "active": one.active,
        "device_bytes": one.device_bytes,
        "choice_bits": {"free": free, "grouped": grouped},
        "proven": one.proven,
    }


def _text(data: dict[str, Any]) -> str:
    best = data["shapes"][0]
    lines = [
        f"{best['tokens_per_s_per_card']:,.0f} tokens/s per card on {data['cluster']}: hidden "
        f"{best['hidden']}, {best['layers']} layers, {best['experts']['experts']} experts in "
        f"{best['experts']['groups']} groups; evidence {best['evidence']}"
        + (" (optimal within the space)" if best["proven"] else ""),
        f"{'hidden':>7}{'layers':>7}{'heads':>7}{'KV':>4}{'experts':>9}{'width':>7}{'batch':>7}"
        f"{'TPOT':>10}{'tokens/s':>10}{'total':>8}{'active':>8}{'GB':>6}{'attention':>11}",
    ]
    for one in data["shapes"]:
        of = one["experts"]
        lines.append(
            f"{one['hidden']:>7}{one['layers']:>7}{one['attention']['heads']:>7}"
            f"{one['attention']['kv_heads']:>4}{of['experts']:>6}/{of['groups'] * of['per_group']}"
            f"{of['width']:>8}{one['batch']:>7}{1e3 * one['step_s']:>7.1f} ms"
            f"{one['tokens_per_s_per_card']:>10,.0f}{one['parameters'] / 1e9:>7.1f}B"
            f"{one['active'] / 1e9:>7.1f}B{one['device_bytes'] / 1e9:>6.0f}"
            f"{100 * one['attention_share']:>9.0f} %"
        )
    bits = best["choice_bits"]
    lines.append(
        f"Groups leave a token 2^{bits['grouped']:.1f} sets of experts instead of "
        f"2^{bits['free']:.1f}; every device gets the same number of tokens. What a shape is "
        "worth enters by its parameters alone."
    )
    return "\n".join(lines)
