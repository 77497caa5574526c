"""Sentences of ``moesim capacity``, for every face."""

from __future__ import annotations

from typing import Any

from moesim.units import format_seconds

__all__ = ["crossover", "frontier_cells", "headline", "load", "promise", "spent"]

FRONTIER_COLUMNS = (
    "deployment", "tokens/s per user", "per device", "80 %", "TTFT", "USD/Mtok", "J/token"
)  # fmt: skip

Data = dict[str, Any]
"""As :func:`moesim.capacity.document.capacity_json` gives it."""


def headline(data: Data) -> str:
    """The answer in a line."""
    best = data["best"]
    return f"{best['devices']} × {best['device']}: {best['name']}"


def load(data: Data) -> str:
    """What comes."""
    asked = data["load"]
    comes = (
        f"{asked['concurrency']:,} requests in flight"
        if asked["concurrency"] is not None
        else f"{asked['rps']:g} requests/s"
    )
    varied = "" if asked["lengths"] == "constant" else f" ({asked['lengths']})"
    return f"{comes}, {asked['isl']:,} tokens in, {asked['osl']:,} out{varied}"


def promise(data: Data) -> str:
    """Latencies with their intervals and targets."""
    best, targets = data["best"], data["targets"]
    which = f"p{targets['percentile']}" if targets["percentile"] else "mean"

    def latency(name: str) -> str:
        ends = f"{format_seconds(best[f'{name}_lo_s'])} … {format_seconds(best[f'{name}_hi_s'])}"
        target = targets[f"{name}_s"]
        wanted = f", target {format_seconds(target)}" if target is not None else ""
        return f"{name.upper()} {format_seconds(best[f'{name}_s'])} ({ends}{wanted})"

    sure = (
        " Targets are kept at the upper ends of the 80 % intervals too."
        if best["sure"]
        else " At the upper end of an 80 % interval a target is missed."
    )
    if targets["ttft_s"] is None and targets["tpot_s"] is None:
        sure = ""
    return f"{load(data)}: {which} {latency('ttft')}, {latency('tpot')}.{sure}"


def spent(data: Data) -> str:
    """Throughput, dollars, joules."""
    best = data["best"]
    text = (
        f"{best['tokens_per_s']:,.0f} tokens/s, {best['tokens_per_s_per_device']:,.0f} per device "
        f"({best['lo']:,.0f} … {best['hi']:,.0f})"
    )
    if best["usd_per_mtok"] is not None:
        text += f"; {best['usd_per_mtok']:.3g} USD per million tokens"
    if best["energy_j_per_token"] is not None:
        text += f"; {best['energy_j_per_token']:.3g} J per token"
    return f"{text}. Evidence {best['evidence']}, engine {data['engine']}."


def frontier_cells(entry: Data) -> tuple[str, ...]:
    """One point of the frontier, by :data:`FRONTIER_COLUMNS`."""
    usd, joules = entry["usd_per_mtok"], entry["energy_j_per_token"]
    return (
        entry["name"],
        f"{entry['tokens_per_s_per_user']:.0f}",
        f"{entry['tokens_per_s_per_device']:,.0f}",
        f"{entry['lo']:,.0f}…{entry['hi']:,.0f}",
        format_seconds(entry["ttft_s"]),
        "–" if usd is None else f"{usd:.3g}",
        "–" if joules is None else f"{joules:.2g}",
    )


def crossover(found: Data) -> str:
    """Where expert parallelism overtakes tensor parallelism."""
    where = f"On {found['devices']} × {found['device']}, {found['expert']}"
    at = found["concurrency"]
    if at is None:
        return f"{where} never overtakes {found['tensor']}."
    if at <= 1:
        return f"{where} is ahead of {found['tensor']} at any concurrency."
    return f"{where} overtakes {found['tensor']} from {at:,.0f} requests in flight on."
