"""``moesim hw``: the hardware profiles and clusters, and where their numbers come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import (
    Console,
    JsonOption,
    NoSeedOption,
    OutOption,
    QuietOption,
    ResultOutOption,
)

if TYPE_CHECKING:
    from rich.table import Table

    from moesim.cluster import Cluster
    from moesim.hardware import Count, Device, Quantity

__all__ = ["app"]

app = typer.Typer(help="Hardware profiles and clusters.", no_args_is_help=True)

SCHEMA = "moesim.hw/1"
LINKS_SHOWN = 4096
"""Links that ``hw show`` prints as JSON; larger clusters are described by their counts."""


@app.command("list")
def list_(
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """List the bundled devices and clusters."""
    from moesim.cluster import cluster_names, load_cluster
    from moesim.hardware import device_names, load_device

    devices = [_device_summary(load_device(name)) for name in device_names()]
    clusters = [_cluster_summary(load_cluster(name)) for name in cluster_names()]
    data = {"schema": SCHEMA, "ok": True, "devices": devices, "clusters": clusters}

    def show() -> None:
        from moesim.units import format_bytes, format_si

        table = _table("Devices", "name", "kind", "memory", "bandwidth", "bf16/fp16", "title")
        for row in devices:
            peak = row["peak_flop_per_s"]
            rate = peak.get("bf16") or peak.get("fp16")
            table.add_row(
                row["name"],
                row["kind"],
                format_bytes(row["memory_bytes"]),
                format_si(row["memory_bytes_per_s"], "B/s"),
                format_si(rate, "FLOP/s") if rate else "-",
                row["title"],
            )
        _print(table)
        table = _table("Clusters", "name", "device", "nodes", "devices", "title")
        for row in clusters:
            cells = (row["name"], row["device"], row["nodes"], row["devices"], row["title"] or "")
            table.add_row(*map(str, cells))
        _print(table)

    console = Console(as_json=as_json, quiet=quiet, out=out)
    console.result(data, show)
    console.say("Short names such as 2x8xh100_sxm (nodes × devices) work wherever a cluster does.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Device, cluster, 2x8xh100_sxm, or a YAML file.")],
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: OutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Show a device with the source of every number, or a cluster with its links.

    With --out, also write the device's profile to a file, to start one of your own.
    """
    from moesim.errors import UsageError
    from moesim.hardware import load_device

    console = Console(as_json=as_json, quiet=quiet)
    if _names_device(name):
        device = load_device(name)
        if out is not None:
            from moesim.safe_io import write_json

            console.say(f"written: {write_json(out, device.to_dict())}")
        console.result(_device_data(device), lambda: _print_device(device))
        return
    if out is not None:
        raise UsageError(
            f"--out writes the profile of a device, and {name} is a cluster\nfix: leave it out"
        )
    from moesim.cluster import load_cluster

    cluster = load_cluster(name)
    console.result(_cluster_data(cluster), lambda: _print_cluster(cluster))


@app.command()
def schema(
    document: Annotated[
        str | None, typer.Argument(help="device or cluster; both if not given.")
    ] = None,
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: OutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Print the JSON Schema of device and cluster files, for editors."""
    from moesim.errors import UsageError
    from moesim.hardware import Device

    if document not in (None, "device", "cluster"):
        raise UsageError(f"unknown document {document!r}; allowed: device, cluster\nfix: use one")
    from moesim.cluster_files import cluster_json_schema

    known = {"device": Device.json_schema(), "cluster": cluster_json_schema()}
    body: dict[str, Any] = known[document] if document else known
    console = Console(as_json=as_json, quiet=quiet)
    if out is not None:
        from moesim.safe_io import write_json

        console.say(f"written: {write_json(out, body)}")
    data = {"schema": SCHEMA, "ok": True, "schemas": {document: body} if document else known}
    console.result(data, json.dumps(body, indent=1, ensure_ascii=False))


def _names_device(name: str) -> bool:
    """Whether to load a device (rather than a cluster).

    Raises:
        UsageError: If the name is neither's.
    """
    from moesim.cluster import cluster_names
    from moesim.errors import UsageError
    from moesim.hardware import device_names, looks_like_file, near_names
    from moesim.safe_io import read_json, read_yaml

    if looks_like_file(name):
        data = (read_json if Path(name).suffix == ".json" else read_yaml)(name)
        stated = data.get("schema") if isinstance(data, dict) else None
        return not str(stated).startswith("moesim.cluster/")
    if name in cluster_names() or name[:1].isdigit():
        return False
    known = device_names() + cluster_names()
    if name not in known:
        shown = name if len(name) <= 60 else name[:59] + "…"
        raise UsageError(
            f"unknown device or cluster {shown!r}{near_names(name, known)}\n"
            "fix: name a file, one of those that moesim hw list shows, or e.g. 2x8xh100_sxm"
        )
    return True


def _device_summary(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "title": device.title,
        "vendor": device.vendor,
        "kind": device.kind,
        "peak_flop_per_s": {dtype: peak.si for dtype, peak in device.peak.items()},
        "memory_bytes": device.memory_bytes,
        "memory_bytes_per_s": device.memory_bytes_per_s,
        "scale_up_bytes_per_s": device.scale_up and device.scale_up.bandwidth.si,
        "host_link_bytes_per_s": device.host_link and device.host_link.bandwidth.si,
        "nic_bytes_per_s": device.nic and device.nic.bandwidth.si,
        "tdp_w": device.tdp_w,
        "launch_overhead_s": device.launch_overhead_s,
    }


def _cluster_summary(cluster: Cluster) -> dict[str, Any]:
    return {
        "name": cluster.name,
        "title": cluster.title,
        "device": cluster.device.name,
        "nodes": cluster.nodes,
        "devices": cluster.devices,
        "scale_up_domains": len(set(cluster.domain_of_device.tolist())),
    }


def _number(field: str, number: Quantity | Count, device: Device) -> dict[str, Any]:
    source = device.sources[number.source]
    counted = isinstance(number.value, int)
    return {
        "field": field,
        "value": number.value,
        "si": number.value if counted else number.si,  # type: ignore[union-attr]
        "unit": "" if counted else number.unit,  # type: ignore[union-attr]
        "evidence": str(number.evidence),
        "source": number.source,
        "title": source.title,
        "url": source.url,
        "note": number.note,
    }


def _device_data(device: Device) -> dict[str, Any]:
    numbers = [_number(field, number, device) for field, number in device.quantities()]
    head = {"schema": SCHEMA, "ok": True, "type": "device"}
    return head | _device_summary(device) | {"numbers": numbers, "document": device.to_dict()}


def _cluster_data(cluster: Cluster) -> dict[str, Any]:
    data = {"schema": SCHEMA, "ok": True, "type": "cluster"} | _cluster_summary(cluster)
    data |= {
        "device_names": list(cluster.device_names),
        "node_of_device": cluster.node_of_device.tolist(),
        "domain_of_device": cluster.domain_of_device.tolist(),
        "speed_factors": cluster.speed_factors.tolist(),
        "memory_bytes": cluster.memory_bytes.tolist(),
        "link_kinds": _link_kinds(cluster),
        "pair_kinds": _pair_kinds(cluster),
    }
    if len(cluster.links) <= LINKS_SHOWN:
        data["links"] = [vars(link) for link in cluster.links]
    return data


def _link_kinds(cluster: Cluster) -> list[dict[str, Any]]:
    """Equal links counted together, full-duplex pairs as one."""
    kinds: dict[tuple[object, ...], int] = {}
    for link in cluster.links:
        ends = " – ".join(sorted(end.rstrip("0123456789") for end in (link.source, link.target)))
        key = (ends, link.tier, link.bandwidth_bytes_per_s, link.latency_s)
        kinds[key] = kinds.get(key, 0) + 1
    names = ("between", "tier", "bandwidth_bytes_per_s", "latency_s")
    return [dict(zip(names, key, strict=True)) | {"links": n // 2} for key, n in kinds.items()]


def _pair_kinds(cluster: Cluster) -> list[dict[str, Any]]:
    """Ordered pairs of devices counted by route bandwidth and latency, fastest first."""
    import numpy as np

    other = ~np.eye(cluster.devices, dtype=bool)
    if not other.any():
        return []
    table = np.stack(
        [cluster.pair_bandwidth_bytes_per_s[other], cluster.pair_latency_s[other]], axis=1
    )
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    return [
        {"bandwidth_bytes_per_s": bandwidth, "latency_s": latency, "pairs": pairs}
        for (bandwidth, latency), pairs in zip(
            kinds[::-1].tolist(), counts[::-1].tolist(), strict=True
        )
    ]


def _print_device(device: Device) -> None:
    from moesim.units import format_si

    table = _table(f"{device.name}: {device.title}", "number", "value", "SI", "evidence", "source")
    for field, number in device.quantities():
        row = _number(field, number, device)
        si = format_si(row["si"], row["unit"], 4) if row["unit"] else ""
        source = row["source"] + (f" ({row['note']})" if row["note"] else "")
        table.add_row(field, str(row["value"]), si, row["evidence"], source)
    _print(table)
    table = _table("Sources", "source", "title", "URL")
    for key, source in device.sources.items():
        table.add_row(key, source.title, source.url or "-")
    _print(table)
    if device.note:
        _print(device.note)


def _print_cluster(cluster: Cluster) -> None:
    from moesim.units import format_seconds, format_si

    plural = "node" if cluster.nodes == 1 else "nodes"
    title = (
        f"{cluster.name}: {cluster.devices} × {cluster.device.title} in {cluster.nodes} {plural}"
    )
    table = _table(title, "links", "between", "tier", "per direction", "latency")
    for row in _link_kinds(cluster):
        rate = format_si(row["bandwidth_bytes_per_s"], "B/s")
        latency = format_seconds(row["latency_s"])
        table.add_row(str(row["links"]), row["between"], row["tier"], rate, latency)
    _print(table)
    table = _table("Device to device", "ordered pairs", "slowest link", "latency")
    for row in _pair_kinds(cluster):
        rate = format_si(row["bandwidth_bytes_per_s"], "B/s")
        table.add_row(str(row["pairs"]), rate, format_seconds(row["latency_s"]))
    _print(table)
    slow = [f"{i}: {f:g}" for i, f in enumerate(cluster.speed_factors.tolist()) if f != 1]
    if slow:
        _print("speed factors other than 1: " + ", ".join(slow))
    if cluster.memory_factors is not None:
        other = [f"{i}: {f:g}" for i, f in enumerate(cluster.memory_factors.tolist()) if f != 1]
        _print("memory factors other than 1: " + ", ".join(other))


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _print(what: Table | str) -> None:
    import sys

    from rich.console import Console as RichConsole

    # A pipe has no width of its own: wide enough that no cell is cut.
    width = None if sys.stdout.isatty() else 200
    RichConsole(width=width, markup=False).print(what)
