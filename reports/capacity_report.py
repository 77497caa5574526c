"""``moesim capacity`` told as Markdown and as one HTML page; both show the same content."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.reports import capacity_figures as figures
from moesim.reports import capacity_text as text
from moesim.reports import markdown_parts as parts
from moesim.reports import page
from moesim.reports.explorer import domain, explorer
from moesim.reports.svg import standalone
from moesim.reports.tables import Fact, Table
from moesim.safe_io import write_atomic
from moesim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from moesim.capacity.detail import Detail

__all__ = ["write_capacity_report"]

Data = dict[str, Any]

_METHOD = (
    "Every layout that engine and model allow is estimated in a steady closed loop; those that "
    "could be best are played request by request. Intervals are those of measured serving runs "
    "that a fit had not seen, where the device's family was measured, else of kernels. Device "
    "power is that of a decode step, all the time."
)


def write_capacity_report(
    folder: Path, data: Data, more: Detail, available_bytes: float, command: str
) -> dict[str, Path]:
    """Write the report and its figures.

    Args:
        folder: Made if it is not there.
        data: The answer as JSON.
        more: Steps of the best deployment.
        available_bytes: Memory of one of its devices.
        command: That repeats it.

    Returns:
        Path of each file under what it is.
    """
    pictures = {
        "frontier": figures.frontier(data) if data["frontier"] else None,
        "cost": figures.cost(data) if data["frontier"] else None,
        "memory": figures.memory(data, available_bytes),
        "decode": figures.operators("decode", more.decode),
        "prefill": figures.operators("prefill", more.prefill),
    }
    shown = {name: picture for name, picture in pictures.items() if picture is not None}
    contents = {
        "report": ("report.html", _html(data, shown, command)),
        "markdown": ("report.md", _markdown(data, shown, command)),
        **{name: (f"{name}.svg", standalone(picture.svg)) for name, picture in shown.items()},
    }
    return {
        name: write_atomic(folder / file, content) for name, (file, content) in contents.items()
    }


def _title(data: Data) -> str:
    return f"Capacity: {data['model']} under {data['engine']}"


def _facts(data: Data) -> tuple[Fact, ...]:
    best = data["best"]
    ends = f"{best['lo']:,.0f} … {best['hi']:,.0f}"
    facts = [
        Fact("devices", str(best["devices"]), best["device"]),
        Fact("tokens/s per device", f"{best['tokens_per_s_per_device']:,.0f}", ends),
        Fact(
            "TTFT",
            format_seconds(best["ttft_s"]),
            f"{format_seconds(best['ttft_lo_s'])} … {format_seconds(best['ttft_hi_s'])}",
        ),
        Fact(
            "TPOT",
            format_seconds(best["tpot_s"]),
            f"{format_seconds(best['tpot_lo_s'])} … {format_seconds(best['tpot_hi_s'])}",
        ),
    ]
    if best["usd_per_mtok"] is not None:
        facts.append(Fact("USD per million tokens", f"{best['usd_per_mtok']:.3g}", "list price"))
    if best["energy_j_per_token"] is not None:
        facts.append(Fact("J per token", f"{best['energy_j_per_token']:.3g}", "devices alone"))
    return tuple(facts)


def _frontier(data: Data) -> Table:
    return Table(text.FRONTIER_COLUMNS, tuple(map(text.frontier_cells, data["frontier"])))


def _losers(data: Data) -> Table:
    rows = tuple((one["name"], one["reason"]) for one in data["runners_up"])
    return Table(("deployment", "why it lost"), rows, numeric=False)


def _bottlenecks(data: Data) -> tuple[Fact, ...]:
    return tuple(Fact(phase, bound) for phase, bound in data["best"]["bottleneck"].items())


def _caches(data: Data) -> str:
    best = data["best"]
    return (
        f"At that load a decoding device holds {format_bytes(best['memory_bytes_per_device'])}; "
        f"the caches of a replica hold {best['kv_tokens']:,} tokens."
    )


def _crossovers(data: Data) -> list[str]:
    return [text.crossover(one) for one in data["crossovers"]]


def _searched(data: Data) -> str:
    searched = data["searched"]
    return (
        f"{searched['layouts']} layouts fit, {searched['refused']} do not; "
        f"{searched['deployments']:,} deployments were estimated and {searched['played']} played."
    )


def _markdown(data: Data, pictures: dict[str, Any], command: str) -> str:
    return "\n\n".join(part for part in _markdown_parts(data, pictures, command) if part) + "\n"


def _markdown_parts(data: Data, pictures: dict[str, Any], command: str) -> Iterable[str]:
    yield f"# {parts.escaped(text.headline(data))}"
    yield f"{parts.escaped(_title(data))}."
    yield parts.escaped(text.promise(data))
    yield parts.fact_list(_facts(data))
    yield "## Launch"
    for worker, lines in data["best"]["launch"].items():
        yield f"{parts.escaped(worker)}:"
        yield parts.code_block("\n".join(lines))
    yield "## Frontier"
    yield "\n".join(
        f"![{parts.escaped(picture.title)}]({name}.svg)" for name, picture in pictures.items()
    )
    yield parts.table(_frontier(data))
    yield "\n".join(f"- {parts.escaped(line)}" for line in _crossovers(data))
    yield "## What bounds it"
    yield parts.fact_list(_bottlenecks(data))
    yield parts.escaped(_caches(data))
    if data["runners_up"]:
        yield "## Why others lost"
        yield parts.table(_losers(data))
    yield "## How these numbers were made"
    yield parts.escaped(f"{_METHOD} {_searched(data)}")
    yield parts.code_block(command)


def _html(data: Data, pictures: dict[str, Any], command: str) -> str:
    return page.render_page(
        title=_title(data),
        version=data["version"],
        headline=text.headline(data),
        lead=(text.promise(data), text.spent(data)),
        top_facts=_facts(data),
        remarks=(),
        sections=_sections(data, pictures, command),
    )


def _explored(data: Data) -> str:
    """The frontier with intervals, by kind of deployment."""
    points = [
        {
            "x": 1 / one["tpot_s"],
            "y": one["tokens_per_s_per_device"],
            "lo": one["lo"],
            "hi": one["hi"],
            "group": _kind(one),
            "label": f"{one['name']}: {1 / one['tpot_s']:.0f} tokens/s per user, "
            f"{one['tokens_per_s_per_device']:,.0f} per device ({one['lo']:,.0f} … "
            f"{one['hi']:,.0f}), TTFT {format_seconds(one['ttft_s'])}",
        }
        for one in data["frontier"]
    ]
    ends = [point[name] for point in points for name in ("lo", "hi")]
    return explorer(
        "points",
        {
            "title": "Frontier by kind of deployment",
            "x": {
                "name": "tokens/s per user",
                "domain": domain([point["x"] for point in points]),
            },
            "y": {"name": "tokens/s per device", "log": True, "domain": domain(ends, log=True)},
            "points": points,
        },
    )


def _kind(one: Data) -> str:
    if one.get("prefill_workers"):
        return "prefill and decode workers"
    return "one pool, attention DP" if one["layout"]["dp"] > 1 else "one pool, TP"


def _sections(data: Data, pictures: dict[str, Any], command: str) -> Iterable[str]:
    flags = "".join(
        f"<div><h3>{escape(worker)}</h3><pre><code>{escape(chr(10).join(lines))}</code></pre></div>"
        for worker, lines in data["best"]["launch"].items()
    )
    yield page.section("Launch", "", f'<div class="card stack">{flags}</div>')
    if data["frontier"]:
        both = [pictures[name] for name in ("frontier", "cost") if name in pictures]
        yield page.section(
            "Frontier",
            " ".join(_crossovers(data)),
            page.figures(both),
            _explored(data),
            page.table(_frontier(data)),
        )
    yield page.section(
        "What bounds it",
        _caches(data),
        page.card(page.facts(_bottlenecks(data), "method")),
        page.figures([pictures["decode"], pictures["prefill"]]),
        page.figures([pictures["memory"]]),
    )
    if data["runners_up"]:
        yield page.section("Why others lost", "", page.table(_losers(data), "text"))
    yield page.section("How these numbers were made", f"{_METHOD} {_searched(data)}")
    yield page.command_section(command)
