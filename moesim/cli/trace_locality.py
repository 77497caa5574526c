"""``moesim trace locality``: whether the experts in use stay in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import Console, JsonOption, QuietOption, ResultOutOption, SeedOption
from moesim.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from moesim.cache.locality import Interval, TraceLocality
    from moesim.traces.bundle import TraceManifest
    from moesim.traces.locality import SegmentRouting

__all__ = ["locality"]


def locality(
    trace: Annotated[
        Path | None, typer.Argument(help="Trace folder; the bundled sample if not given.")
    ] = None,
    window: Annotated[
        str, typer.Option(help="Lengths of the windows in tokens, such as 4,16.")
    ] = "4,16,64,256",
    ratio: Annotated[
        str, typer.Option(help="Cache slots per expert that a token uses, such as 1,2.")
    ] = "1,1.5,2,3",
    policy: Annotated[
        str, typer.Option(help="Policies beside the oracle, such as lru,mrs; none for none.")
    ] = "lru,lfu,belady",
    sample_tokens: Annotated[
        int, typer.Option(min=1, help="Requests are cut into samples of so many tokens.")
    ] = 512,
    contract: Annotated[str, typer.Option(help="event-atomic or sequential.")] = "event-atomic",
    cold: Annotated[
        str, typer.Option(help="What a first access counts as: hit (as published) or miss.")
    ] = "hit",
    layer_stride: Annotated[
        int,
        typer.Option(
            min=0,
            help="SCH and policies of layers take every n-th sample (the paper's code: 16); 0: "
            "all of up to 16 M accesses.",
        ),
    ] = 0,
    model_stride: Annotated[
        int,
        typer.Option(min=0, help="The same for SCH of the model; 0: all of up to 4 M accesses."),
    ] = 0,
    bootstraps: Annotated[
        int, typer.Option(min=0, help="Resamples for 95 % intervals (the paper's code: 1000).")
    ] = 0,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """How local the routing is: SRP and SCH (arXiv 2505.16056), for the model, layers and domains.

    SRP is the best F1 score of a router that decides once per window; SCH is the hit rate of a
    cache whose oracle knows how often the next window uses each expert.
    """
    from moesim.cache.locality import LocalityOptions
    from moesim.cache.locality import locality as measure
    from moesim.cache.setting import CacheSetting
    from moesim.traces.bundle import open_trace, sample_path

    console = Console(as_json=as_json, quiet=quiet, out=out)
    options = LocalityOptions(
        windows=tuple(int(m) for m in _numbers("--window", window, whole=True)),
        ratios=tuple(_numbers("--ratio", ratio)),
        policies=() if policy == "none" else tuple(policy.split(",")),
        setting=CacheSetting(
            contract=contract,  # type: ignore[arg-type]
            cold=cold,  # type: ignore[arg-type]
            reset="sequence",
            sample_tokens=sample_tokens,
        ),
        layer_stride=layer_stride,
        model_stride=model_stride,
        bootstraps=bootstraps,
        seed=seed,
    )
    opened = open_trace(sample_path() if trace is None else trace)
    with console.progress("reading the trace") as step:
        found = measure(opened, options, step)
    console.result(_summary(opened.manifest, found), _text(opened.manifest, found))


def _numbers(option: str, text: str, *, whole: bool = False) -> list[float]:
    """The positive numbers of a list such as ``1,1.5``, ascending and distinct."""
    try:
        numbers = [int(part) if whole else float(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(0 < number < 1e6 for number in numbers):
        kind = "whole numbers" if whole else "numbers"
        raise UsageError(
            f"{option} {text}: positive {kind} with commas between are needed\n"
            f"fix: e.g. {option} {'4,16' if whole else '1,1.5'}"
        )
    return sorted(set(numbers))


def _summary(manifest: TraceManifest, found: TraceLocality) -> dict[str, Any]:
    options = found.options

    def router(part: SegmentRouting, at: Any) -> dict[str, Any]:
        return {"srp": _plain(part.srp[at]), "size_ratio": _plain(part.size_ratio[at])}

    srp, sch = {}, {}
    for w, m in enumerate(options.windows):
        srp[str(m)] = {
            "model": router(found.srp, w) | _ends(found.srp_interval, w),
            "layers": router(found.srp_layers, w),
            "domains": {name: router(found.srp_domains, (w, d)) for d, name in _named(found)},
        }
        sch[str(m)] = {
            "model": {"hit_rate": _plain(found.sch[w])} | _ends(found.sch_interval, w),
            "layers": {"hit_rate": _plain(found.sch_layers[w])},
            "domains": {
                name: {"hit_rate": _plain(found.sch_domains[w, d])} for d, name in _named(found)
            },
        }
    setting = options.setting
    return {
        "schema": "moesim.trace/1",
        "ok": True,
        "model": manifest.model,
        "layers": manifest.layers,
        "moe_layers": list(manifest.moe_layers),
        "tokens": manifest.tokens,
        "top_k": manifest.top_k,
        "experts": manifest.experts,
        "samples": found.samples,
        "domains": list(found.domains),
        "conventions": {
            "contract": setting.contract,
            "cold": setting.cold,
            "reset": "sequence",
            "batch": 1,
            "sample_tokens": setting.sample_tokens,
            "layer_level": {"scope": "per-layer", "sample_stride": options.layer_stride},
            "model_level": {"scope": "pooled-token", "sample_stride": options.model_stride},
            "bootstraps": options.bootstraps,
        },
        "windows": list(options.windows),
        "ratios": list(options.ratios),
        "slots": {"layer": found.layer_slots.tolist(), "model": found.model_slots.tolist()},
        "srp": srp,
        "sch": sch,
        "policies": {label: {"hit_rate": _plain(rate)} for label, rate in found.policies.items()},
    }


def _named(found: TraceLocality) -> list[tuple[int, str]]:
    return list(enumerate(found.domains))


def _ends(interval: Interval | None, w: int) -> dict[str, Any]:
    return {} if interval is None else {"lo": _plain(interval.lo[w]), "hi": _plain(interval.hi[w])}


def _plain(values: np.ndarray) -> Any:
    """Numbers and lists, with None for NaN."""
    if values.ndim:
        return [_plain(value) for value in values]
    return None if values != values else float(values)  # NaN differs from itself


def _text(manifest: TraceManifest, found: TraceLocality) -> str:
    options, setting = found.options, found.options.setting
    ratios = [f"{ratio:g}" for ratio in options.ratios]
    heads = "".join(f"{'ρ=' + ratio:>7}" for ratio in ratios)
    lines = [
        f"{manifest.model}: {manifest.layers} MoE layers, {manifest.experts} experts, "
        f"top-{manifest.top_k}; {found.samples} samples of at most {setting.sample_tokens} tokens",
        f"replay {setting.contract}, first access to an expert counts as a {setting.cold}, cache "
        "emptied before every sample",
        *_strides(found),
        "",
        f"{'whole model':<16} {'SRP':>6} {'ratio':>6}  SCH{heads[3:]}",
    ]
    for w, m in enumerate(options.windows):
        name = f"m = {m} tokens"
        lines.append(_row(name, found.srp.srp[w], found.srp.size_ratio[w], found.sch[w]))
    middle = options.windows.index(16) if 16 in options.windows else 0
    at = options.ratios.index(2.0) if 2.0 in options.ratios else 0
    policies = [(label.split(":")[0], rate) for label, rate in found.policies.items()]
    name = f"layer, m = {options.windows[middle]}"
    shown = ", ".join(["SCH", *(policy for policy, _ in policies)])
    lines += [
        "",
        f"{name:<16} {'SRP':>6} {'ratio':>6}  hit rate with {found.layer_slots[at]} slots "
        f"(ρ = {ratios[at]}): {shown}",
    ]
    for row, layer in enumerate(manifest.moe_layers):
        rates = [found.sch_layers[middle, row, at], *(rate[row, at] for _, rate in policies)]
        part = found.srp_layers
        lines.append(_row(f"{layer}", part.srp[middle, row], part.size_ratio[middle, row], rates))
    if found.domains:
        name = f"domain, m = {options.windows[middle]}"
        lines += ["", f"{name:<16} {'SRP':>6} {'ratio':>6}  SCH{heads[3:]}"]
        for d, name in _named(found):
            part = found.srp_domains
            lines.append(
                _row(name, part.srp[middle, d], part.size_ratio[middle, d],
                     found.sch_domains[middle, d])
            )  # fmt: skip
    lines += [
        "",
        "SRP: F1 of the best router that decides once per expert and window of m tokens; ratio: "
        "experts that it",
        "keeps on per expert used. SCH: hit rate of ρ · top-k slots per layer under an oracle of "
        "the next m tokens;",
        "for the whole model and domains, all layers share their slots.",
    ]
    return "\n".join(lines)


def _strides(found: TraceLocality) -> list[str]:
    """What is left out, if anything is."""
    layer, model = found.options.layer_stride, found.options.model_stride
    if layer == model == 1:
        return []
    return [f"replayed: 1 of {layer} samples at layer level, 1 of {model} at model level"]


def _row(name: str, srp: float, ratio: float, rates: Any) -> str:
    cells = "".join(f"{100 * rate:>7.2f}" for rate in rates)
    return f"{name:<16} {100 * srp:>6.2f} {ratio:>6.2f} {cells}"
