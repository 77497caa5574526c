"""``moesim whatif``: what would change if something else did."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import whatif_replicas
from moesim.cli.choices import TransformOption
from moesim.cli.console import Console, JsonOption, NoSeedOption, OutOption, QuietOption
from moesim.cli.offload_options import (
    DEFAULT_HARDWARE,
    BitsOption,
    HardwareOption,
    HostBitsOption,
)
from moesim.cli.plan_options import ModelOption, TraceOption

if TYPE_CHECKING:
    from moesim.offload.slot_curves import Curve, CurvesOfBatch
    from moesim.offload.whatif import WhatIf

__all__ = ["app"]

SAMPLE_MEMORY = "2.5 GB"
"""GPU memory that the bundled sample is given where neither memory nor slots are stated: all of its
experts would fit into any GPU, and there would be nothing to decide."""

DEFAULT_POLICIES = ("lru", "lfu", "lfru", "mrs", "belady")

app = typer.Typer(name="whatif", help="What other sizes would bring.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """What other sizes would bring."""


app.command()(whatif_replicas.replicas)


class ContractOption(StrEnum):
    """When the experts of an event are looked up."""

    EVENT_ATOMIC = "event-atomic"
    SEQUENTIAL = "sequential"


class ColdOption(StrEnum):
    """What the first use of an expert counts as."""

    MISS = "miss"
    HIT = "hit"


@app.command()
def cache(
    trace: TraceOption = None,
    model: ModelOption = None,
    hardware: HardwareOption = DEFAULT_HARDWARE,
    slots: Annotated[
        str | None, typer.Option(help="Slots per layer, separated by commas [up to all experts].")
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(help=f"Cache policies, separated by commas [{','.join(DEFAULT_POLICIES)}]."),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Requests in flight; several sizes separated by commas.")
    ] = "1",
    contract: Annotated[
        ContractOption, typer.Option(help="When the experts of an event are looked up.")
    ] = ContractOption.EVENT_ATOMIC,
    cold: Annotated[
        ColdOption, typer.Option(help="What the first use of an expert counts as.")
    ] = ColdOption.MISS,
    context: Annotated[int, typer.Option(min=1, help="Tokens that a request keeps.")] = 4096,
    memory: Annotated[
        str | None, typer.Option(help="GPU memory to use, like '24 GB' [all of it].")
    ] = None,
    bits: BitsOption = None,
    host_bits: HostBitsOption = None,
    transform: TransformOption = None,
    out: OutOption = None,
    seed: NoSeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hit rate and speed against the number of expert slots, and which number to take.

    With --out, report.html, report.md and whatif-cache.json are written there.
    """
    from moesim.cache.setting import CacheSetting
    from moesim.offload.inputs import numbers, open_inputs, transformed
    from moesim.offload.whatif import what_if
    from moesim.safe_io import write_json

    console = Console(as_json=as_json, quiet=quiet)
    given = open_inputs(
        trace=trace,
        model=transformed(model, transform or ()),
        hardware=hardware,
        memory=memory,
        bits=bits,
        host_bits=host_bits,
        sample_memory=SAMPLE_MEMORY if slots is None else None,
    )
    sizes = None if slots is None else numbers("--slots", slots, 1, given.model.experts)
    batches = numbers("--batch", batch, 1, 65_536)
    names = _policies(policies, has_weights=given.trace.gates is not None)
    with console.progress("replaying") as say:
        found = what_if(
            given,
            names,
            slots=sizes,
            settings=[
                CacheSetting(contract=contract.value, cold=cold.value, batch=n) for n in batches
            ],
            context=context,
            command=shlex.join(["moesim", *sys.argv[1:]]),
            say=say,
        )
    files: dict[str, str] = {}
    if out is not None:
        from moesim.reports.whatif_report import write_whatif_report

        files = write_whatif_report(found, out) | {"result": str(out / "whatif-cache.json")}
    data = _to_json(found, files)
    if out is not None:
        write_json(out / "whatif-cache.json", data)
    console.result(data, lambda: _show(found, files))


def _policies(text: str | None, *, has_weights: bool) -> list[str]:
    from moesim.cache.registry import POLICIES, find_policy
    from moesim.errors import UsageError

    if text is None:
        return [
            name
            for name in DEFAULT_POLICIES
            if name in POLICIES and (has_weights or not POLICIES[name].needs_weights)
        ]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--policies names none\nfix: choose from {', '.join(POLICIES)}")
    for name in names:
        find_policy(name)
    return list(dict.fromkeys(names))


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "slots": curve.slots.tolist(),
        "hit_rate": curve.hit_rate.tolist(),
        "tokens_per_s": curve.tokens_per_s.tolist(),
        "bound": list(curve.bound),
        "online": curve.online,
    }


def _batch(curves: CurvesOfBatch) -> dict[str, Any]:
    return {
        "batch": curves.batch,
        "distinct_experts": curves.union,
        "policies": {name: _curve(curve) for name, curve in curves.policies.items()},
        "with_cpu": {name: _curve(curve) for name, curve in curves.with_cpu.items()},
        "note": curves.note,
    }


def _to_json(found: WhatIf, files: dict[str, str]) -> dict[str, Any]:
    of, best, first = found.memory, found.recommendation, found.batches[0]
    return {
        "schema": "moesim.whatif-cache/1",
        "ok": True,
        "model": found.model.name,
        "hardware": found.machine.name,
        "trace": found.trace_name,
        "contract": found.setting.contract,
        "cold": found.setting.cold,
        "scope": found.setting.scope,
        "batch": first.batch,
        "policies": {name: _curve(curve) for name, curve in first.policies.items()},
        "with_cpu": {name: _curve(curve) for name, curve in first.with_cpu.items()},
        "batches": [_batch(curves) for curves in found.batches],
        "recommended": best.slots,
        "recommendation": {
            "policy": best.policy,
            "tokens_per_s": best.tokens_per_s,
            "largest_slots": best.largest_slots,
            "largest_tokens_per_s": best.largest_tokens_per_s,
            "reason": best.reason,
        },
        "twice_the_active_experts": {
            "holds": found.rule.holds,
            "policy": found.rule.policy,
            "slots": list(found.rule.slots),
            "hit_rate": list(found.rule.hit_rate),
        },
        "memory": {
            "budget_bytes": of.budget_bytes,
            "other_bytes": of.other_bytes,
            "slot_bytes": of.slot_bytes,
            "kv_bytes_per_token": of.kv_bytes_per_token,
            "context": of.context,
            "slots": of.slots.tolist(),
            "kv_tokens": of.kv_tokens.tolist(),
            "requests": of.requests.tolist(),
        },
        "formats": {"slot_bits": found.formats.slots, "host_bits": found.formats.host},
        "evidence": found.machine.evidence.value,
        "files": files,
        "version": found.version,
    }


def _show(found: WhatIf, files: dict[str, str]) -> None:
    from rich.console import Console as RichConsole

    from moesim.cli.whatif_terminal import show_whatif

    show_whatif(found, files, RichConsole())
