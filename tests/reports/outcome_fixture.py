"""Made-up plan outcomes with the fields that reports read.

The numbers are synthetic but hang together: device loads follow from the placements and loads,
traffic from device loads, times from both. Plain namespaces stand in for model and cluster.
"""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import numpy as np

from moesim.placement import Placement
from moesim.planners.outcome import Bound, PlannerScore, PlanOutcome
from moesim.schema import Evidence
from moesim.step import StepCost

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>|`*[a](javascript:x)\x1b[31m[red]"
)
"""Means something to HTML, Markdown, a terminal and rich all at once."""


def _cluster(devices: int, nodes: int) -> SimpleNamespace:
    per_node = devices // nodes
    links = [
        SimpleNamespace(
            source=f"gpu{g}", target=f"nvswitch{g // per_node}", bandwidth_bytes_per_s=450e9,
            latency_s=1e-6, tier="scale-up",
        )
        for g in range(devices)
    ] + [
        SimpleNamespace(
            source=f"gpu{g}", target="rail-switch", bandwidth_bytes_per_s=50e9,
            latency_s=5e-6, tier="scale-out",
        )
        for g in range(devices)
    ]  # fmt: skip
    return SimpleNamespace(
        name=f"{nodes}x{per_node}xh100_sxm",
        device=SimpleNamespace(name="h100_sxm"),
        devices=devices,
        nodes=nodes,
        node_of_device=np.repeat(np.arange(nodes, dtype=np.int32), per_node),
        links=tuple(links),
        speed_factors=np.ones(devices),
    )


def _loads(rng: np.random.Generator, layers: int, experts: int, skew: float) -> np.ndarray:
    rank = np.stack([rng.permutation(experts) for _ in range(layers)])
    # Hot experts cluster a little, which is what makes contiguous placement bad.
    hump = 1 + 0.8 * np.cos(np.linspace(0, 4 * np.pi, experts) + np.arange(layers)[:, None])
    weight = hump / (rank + 3.0) ** skew
    return np.round(40000 * weight / weight.mean(axis=1, keepdims=True)).astype(np.int64)


def _greedy(loads: np.ndarray, devices: int) -> np.ndarray:
    """Longest first, onto the emptiest device that has a slot left."""
    layers, experts = loads.shape
    table = np.zeros((layers, experts), np.int32)
    for layer in range(layers):
        held: list[list[int]] = [[] for _ in range(devices)]
        total = np.zeros(devices)
        for expert in np.argsort(-loads[layer], kind="stable"):
            free = [g for g in range(devices) if len(held[g]) < experts // devices]
            device = min(free, key=lambda g: total[g])
            held[device].append(int(expert))
            total[device] += loads[layer, expert]
        table[layer] = np.concatenate([np.array(row) for row in held])
    return table


def _cost(loads: np.ndarray, placement: Placement, cluster: SimpleNamespace, tokens: int):
    devices, node = cluster.devices, cluster.node_of_device
    share = loads / loads.sum(axis=1, keepdims=True)
    per_expert = np.take_along_axis(share, placement.physical_to_logical.astype(int), axis=1)
    device_tokens = tokens * per_expert.reshape(len(loads), devices, -1).sum(axis=2)
    one_way = np.repeat(device_tokens.sum(axis=0)[None, :], devices, axis=0) / devices * 1536
    np.fill_diagonal(one_way, 0)
    other_node = node[:, None] != node[None, :]
    one_way[other_node] *= 0.45  # a token crosses once per node, not once per expert
    traffic = one_way + 2 * one_way.T
    worst = device_tokens.max(axis=1)
    compute = 22e-6 + worst * 38e-9
    dispatch = 9e-6 + worst * 14e-9
    combine = 11e-6 + worst * 27e-9
    up, out = np.where(other_node, 0, traffic).sum(axis=1), (traffic * other_node).sum(axis=1)
    step_s = float((compute + dispatch + combine).sum())
    values = dict(
        step_s=step_s,
        lo_s=0.8 * step_s,
        hi_s=1.3 * step_s,
        layer_compute_s=compute,
        layer_dispatch_s=dispatch,
        layer_combine_s=combine,
        layer_bound=tuple("weights" if c > 2.2 * d else "all-to-all" for c, d in
                          zip(compute, dispatch, strict=True)),
        device_tokens=device_tokens,
        traffic_bytes=traffic,
        link_bytes=np.concatenate([up, out]),
        tail_pair_s=float(dispatch.sum() + combine.sum()),
        balance=float((device_tokens.mean(axis=1) / worst).mean()),
        remote_fraction=1 - 1 / devices,
        internode_fraction=float(other_node.mean()),
        internode_bytes=float(out.sum()),
        comm="home-rank",
        evidence=Evidence.SPEC,
    )  # fmt: skip
    return StepCost(**{field.name: values[field.name] for field in fields(StepCost)})


def make_outcome(
    *, layers: int = 8, experts: int = 32, devices: int = 16, nodes: int = 2, holdout: bool = True,
    **changes: object,
) -> PlanOutcome:  # fmt: skip
    """An outcome of that size; ``changes`` replace fields."""
    rng = np.random.default_rng(7)
    loads = _loads(rng, layers, experts, 0.35)
    unseen = np.round(loads * rng.uniform(0.8, 1.25, loads.shape)).astype(np.int64)
    cluster = _cluster(devices, nodes)
    first_dense = 3 if layers > 50 else 0
    moe_layers = tuple(range(first_dense, first_dense + layers))
    identity = np.tile(np.arange(experts, dtype=np.int32), (layers, 1))
    lpt = _greedy(loads, devices)
    tables = {
        "contiguous": (identity, 2.1e-5, "heuristic", "experts in order, as engines do unasked"),
        "round-robin": (
            identity.reshape(layers, -1, devices).swapaxes(1, 2).reshape(layers, experts),
            3.4e-5, "heuristic", "expert e on device e mod G",
        ),
        "random": (
            np.stack([rng.permutation(experts) for _ in range(layers)]).astype(np.int32),
            6e-5, "heuristic", "a seeded shuffle per layer",
        ),
        "eplb-hierarchical": (
            _greedy(np.round(loads, -3), devices), 0.0113, "heuristic",
            "DeepSeek's EPLB, groups packed onto nodes first",
        ),
        "moetuner": (
            np.roll(lpt, 1, axis=0), 20.0, "feasible",
            "two integer programs: balanced clusters, then their devices",
        ),
        "lpt-swap": (lpt, 0.0382, "heuristic", "longest first, then swaps while the worst falls"),
    }  # fmt: skip
    tokens = 128 * devices * 8
    scores = {}
    for name, (table, solve_s, state, summary) in tables.items():
        placement = Placement(table, devices, experts, moe_layers)
        scores[name] = PlannerScore(
            name, placement, _cost(loads, placement, cluster, tokens),
            _cost(unseen, placement, cluster, tokens) if holdout else None,
            solve_s, state, summary,
        )  # fmt: skip
    best = scores["lpt-swap"].cost.step_s
    values: dict[str, object] = {
        "model": SimpleNamespace(
            name="small-moe" if layers < 50 else "deepseek-v3",
            note="Routing of a small model, priced with the layer dimensions of Qwen3-30B-A3B."
            if layers < 50
            else None,
        ),
        "cluster": cluster,
        "trace_name": "small-moe",
        "trace_sha256": "8f371b48026f39d9d9a58d5a882f2de68e898e756ac355990f9bf80b1726a6ed",
        "trace_note": "Real routing of held-out text in seven domains, recorded from a model of "
        "17 M parameters trained for this project; 43,008 tokens.",
        "tokens": 43008,
        "moe_layers": moe_layers,
        "experts": experts,
        "top_k": 4 if layers < 50 else 8,
        "loads": loads,
        "holdout_fraction": 0.25 if holdout else 0.0,
        "comm": "home-rank",
        "phase": "decode",
        "tokens_per_device": 128,
        "redundant": 0,
        "seed": 0,
        "cost": "fitted",
        "engine": "sglang",
        "kernels": {
            "experts": "sglang 0.5.14, sglang_fused_moe_triton, bfloat16 (fitted)",
            "communication": "DeepEP normal of sglang 0.5.12 (fitted)",
        },
        "scores": scores,
        "chosen": "lpt-swap",
        "baseline": "contiguous",
        "bound": Bound(best / 1.031, 0.031, False),
        "command": "moesim plan --cluster 2x8xh100_sxm --holdout 0.25 --export sglang,vllm",
        "version": "0.1.0",
        "inputs": {
            "small-moe/routing.npy": "8f371b48026f39d9d9a58d5a882f2de68e898e756ac355990f9bf8"
            "0b1726a6ed",
            "h100_sxm.yaml": "1d" * 32,
        },
        "files": {
            "plan": "moesim-plan/plan.json",
            "sglang": "moesim-plan/sglang.json",
            "vllm": "moesim-plan/vllm.json",
            "report": "moesim-plan/report.html",
        },
        "launch": {
            "sglang": ["--init-expert-location", "moesim-plan/sglang.json", "--enable-eplb"],
            "vllm": ["--enable-expert-parallel", "--expert-placement", "moesim-plan/vllm.json"],
        },
        "left_out": {},
        "skipped": {},
    }
    return PlanOutcome(**(values | changes))


def make_large() -> PlanOutcome:
    """DeepSeek-like: 58 layers of 256 experts on 32 devices in 4 nodes."""
    return make_outcome(layers=58, experts=256, devices=32, nodes=4)
