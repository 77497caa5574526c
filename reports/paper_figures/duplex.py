"""Duplex: continuous batching on devices with a processor in their memory's logic die."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product

import numpy as np

from moesim.cluster import load_cluster
from moesim.hardware import load_device
from moesim.model import load_model
from moesim.pim.closed_loop import LoopResult, run_loop
from moesim.pim.processors import MEMORY_EFFICIENCY, processors_of
from moesim.pim.systems import system_pricer
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.reports.scenario import scenario_path
from moesim.schema import Evidence

__all__ = ["predict"]

MIXTRAL, DEVICES = "mixtral-8x7b", 4
MIXTRAL_POINTS = tuple(product((256, 4096), (256, 4096), (32, 64, 128)))
GLAM_DEVICES = 8
GLAM_POINTS = tuple(product((512, 2048), (512, 2048), (64,)))
SERVED = (4096, 512, 128)
BISECTIONS = 7


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    near = _fitted(paper.fitted("choose-best"))

    @cache
    def mixtral(way: str, point: tuple[int, int, int], device: str = "duplex") -> LoopResult:
        return _run(MIXTRAL, f"{DEVICES}x{device}", way, point, near)

    name = str(scenario_path("duplex").parent / "duplex-glam-143b.json")

    @cache
    def glam(way: str, point: tuple[int, int, int], devices: int = GLAM_DEVICES) -> LoopResult:
        return _run(name, f"{devices // 8}x8xduplex", way, point, near)

    def gains(way: str, over: str = "main") -> np.ndarray:
        return np.array(
            [
                mixtral(way, point).tokens_per_s / mixtral(over, point).tokens_per_s
                for point in MIXTRAL_POINTS
            ]
        )

    pairs = [(mixtral("split-et", p), mixtral("main", p)) for p in MIXTRAL_POINTS]
    glam_pairs = [(glam("split-et", p), glam("main", p)) for p in GLAM_POINTS]
    energy = [one.joules_per_token / base.joules_per_token for one, base in pairs]
    glam_energy = [one.joules_per_token / base.joules_per_token for one, base in glam_pairs]
    glam_gains = [one.tokens_per_s / base.tokens_per_s for one, base in glam_pairs]
    bank = [
        mixtral("choose", p).tokens_per_s / mixtral("choose", p, "duplex_bank_pim").tokens_per_s
        for p in MIXTRAL_POINTS
    ]

    def over_gpu(point: tuple[int, int, int], device: str) -> float:
        return mixtral("choose", point, device).tokens_per_s / mixtral("main", point).tokens_per_s

    values = {
        "choose-best": gains("choose").max(),
        "et-best": gains("split-et").max(),
        "et-mean": np.mean([*gains("split-et"), *glam_gains]),
        "split-mean": gains("split", "choose").mean(),
        "et-over-choose": gains("split-et", "choose").max(),
        "latency-best": max(base.latency_s / one.latency_s for one, base in pairs),
        "glam-latency": np.mean([one.latency_s / base.latency_s for one, base in glam_pairs]),
        "glam-latency-two": np.mean(
            [
                glam("split-et", p).latency_s / glam("main", p, 2 * GLAM_DEVICES).latency_s
                for p in GLAM_POINTS
            ]
        ),
        "glam-tbt": np.mean([one.tbt_p50_s / base.tbt_p50_s for one, base in glam_pairs]),
        "energy-mixtral": min(energy),
        "energy-glam": min(glam_energy),
        "energy-mean": np.mean([*energy, *glam_energy]),
        "over-bank-best": max(bank),
        "over-bank-mean": np.mean(bank),
        "bank-32-4096": over_gpu((4096, 4096, 32), "duplex_bank_pim"),
        "bank-64-256": over_gpu((256, 256, 64), "duplex_bank_pim"),
        "duplex-64-256": over_gpu((256, 256, 64), "duplex"),
        "queries": mixtral("split-et", SERVED).tokens_per_s / SERVED[1],
        "queries-gpu": mixtral("main", SERVED).tokens_per_s / SERVED[1],
    }
    return {
        key: Prediction(float(value), evidence=Evidence.SPEC) for key, value in values.items()
    } | _counts()


def _run(
    model: str, cluster: str, way: str, point: tuple[int, int, int], near: float
) -> LoopResult:
    pricer = system_pricer(
        load_model(model, dense=True),
        load_cluster(cluster.removeprefix("1x") if cluster.startswith("1x8x") else cluster),
        way,
        efficiency=(MEMORY_EFFICIENCY, near),
    )
    return run_loop(pricer, *point)


def _fitted(best: float) -> float:
    """Share of the near processor's bandwidth at which the best gain is the published one."""

    def gain(near: float) -> float:
        return max(
            _run(MIXTRAL, f"{DEVICES}xduplex", "choose", point, near).tokens_per_s
            / _run(MIXTRAL, f"{DEVICES}xduplex", "main", point, near).tokens_per_s
            for point in ((256, 4096, 32), (4096, 4096, 32))
        )

    low, high = 0.2, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < best else (low, middle)
    return (low + high) / 2


def _counts() -> dict[str, Prediction]:
    ideal = (1.0, 1.0)
    logic = processors_of(load_device("duplex"), ideal)[1]
    bank = processors_of(load_device("duplex_bank_pim"), ideal)[1]
    values = {
        "near-flops": logic.flop_per_s,
        "near-op-per-byte": logic.flop_per_s / logic.bytes_per_s,
        # Bank-PIM is bound by its arithmetic where Logic-PIM still waits for its bytes.
        "crossover": bank.flop_per_s / logic.bytes_per_s,
    }
    return {key: Prediction(float(value), evidence=Evidence.SPEC) for key, value in values.items()}
