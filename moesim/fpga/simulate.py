"""Latency, traffic and energy of an image on an FPGA, and what each technique is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.forward.expert_load import parse_distribution
from moesim.fpga.documents import Design, VitMoe, load_design, load_network
from moesim.fpga.ports import Board, fpga_fabric
from moesim.fpga.resources import Resources, resources_of
from moesim.fpga.routing import assignments_of_trace, draw_assignments, expert_counts
from moesim.fpga.schedule import Part, price_images
from moesim.fpga.techniques import TECHNIQUES, Techniques
from moesim.fpga.work import Workload
from moesim.hardware import Device, load_device
from moesim.schema import Evidence, weakest

__all__ = ["FpgaRequest", "FpgaRun", "PartTime", "Variant", "hottest", "run_fpga"]

MOST_IMAGES = 4096


@dataclass(frozen=True)
class FpgaRequest:
    """What to simulate.

    Attributes:
        model: Bundled network or file.
        device: FPGA by name or file.
        design: Bundled design or file.
        top_k: Experts per token; the network's, if None.
        routing: ``balanced``, ``uniform`` or ``zipf:S``.
        trace: Routing trace whose windows are images, instead.
        images: Averaged over.
        without: Techniques left out.
        pinned: Experts whose weights stay on chip, over all layers.
        seed: Of the routing.
    """

    model: str = "m3vit_tiny"
    device: str = "fpga_zcu102"
    design: str = "edge_moe"
    top_k: int | None = None
    routing: str = "uniform"
    trace: Path | None = None
    images: int = 8
    without: tuple[str, ...] = ()
    pinned: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class PartTime:
    """Regions of one kind, in the mean image.

    Attributes:
        name: What they do.
        part: Work, traffic and what limits them.
        time_s: Spent.
        lo_s: Without memory latency.
        hi_s: With twice the memory latency.
    """

    name: str
    part: Part
    time_s: float
    lo_s: float
    hi_s: float


@dataclass(frozen=True, eq=False)
class Variant:
    """Means over images.

    Attributes:
        step_s: Latency of an image.
        lo_s: Without memory latency: all ports stream.
        hi_s: With twice the memory latency.
        parts: By kind of region, in the order of the program.
        port_bytes: By port and direction (True: written).
        port_busy: Busy share of the time, likewise.
        array_bytes: By array and direction.
        expert_bytes: Weights and biases of routed experts.
        moved_bytes: All.
    """

    step_s: float
    lo_s: float
    hi_s: float
    parts: tuple[PartTime, ...]
    port_bytes: dict[tuple[str, bool], float]
    port_busy: dict[tuple[str, bool], float]
    array_bytes: dict[tuple[str, bool], float]
    expert_bytes: float
    moved_bytes: float


@dataclass(frozen=True, eq=False)
class FpgaRun:
    """The answer.

    Attributes:
        network: As run, with the top-k asked for.
        design: The accelerator.
        device: The board.
        chosen: With the techniques asked for.
        complete: With all of them.
        ablations: By name; each technique left out alone, and ``all``.
        experts_hit: Distinct experts of a layer that any token chose, mean.
        resources: Of the FPGA.
        power_w: Drawn.
        power_evidence: What it rests on.
        evidence: The weakest that went into the latency.
    """

    network: VitMoe
    design: Design
    device: Device
    chosen: Variant
    complete: Variant
    ablations: dict[str, Variant]
    experts_hit: float
    resources: Resources
    power_w: float
    power_evidence: Evidence
    evidence: Evidence

    @property
    def energy_j(self) -> float:
        """Of an image, at the power that the board draws while a design runs."""
        return self.power_w * self.chosen.step_s


def run_fpga(request: FpgaRequest) -> FpgaRun:
    """Look everything up and simulate.

    Raises:
        UsageError: If options contradict each other, or the device is no FPGA.
        InputError: If a file cannot be used.
        InfeasibleError: If the FPGA has not enough multipliers, buffers or memory.
    """
    if not 1 <= request.images <= MOST_IMAGES:
        raise UsageError(
            f"--images {request.images} is out of range\nfix: pass 1 … {MOST_IMAGES:,}"
        )
    if request.pinned < 0:
        raise UsageError(f"--pin-experts {request.pinned} is negative\nfix: pass 0 or more")
    network = _with_top_k(load_network(request.model), request.top_k)
    design, device = load_design(request.design), load_device(request.device)
    board = Board.of(device, design)
    fabric = fpga_fabric(device)
    resources = resources_of(network, design, device, request.pinned)
    techniques = Techniques().without(request.without)
    counts = expert_counts(_assignments(request, network), network.moe.experts)
    run = _Pricer(network, design, board, counts, hottest(counts, request.pinned))
    drawn = fabric.power or device.tdp
    if drawn is None:
        raise InputError(
            f"the profile {device.name} has neither a power nor a design power",
            field="fabric.power",
            fix="add fabric.power or tdp",
        )
    sets = {name: Techniques().without([name]) for name in TECHNIQUES}
    sets["all"] = Techniques().without(TECHNIQUES)
    return FpgaRun(
        network=network,
        design=design,
        device=device,
        chosen=run.price(techniques),
        complete=run.price(Techniques()),
        ablations={name: run.price(left) for name, left in sets.items()},
        experts_hit=float((counts > 0).sum(axis=-1).mean()) if counts.size else 0.0,
        resources=resources,
        power_w=drawn.si,
        power_evidence=drawn.evidence if fabric.power else Evidence.ASSUMED,
        evidence=weakest(board.evidence, Evidence.SPEC),
    )


def hottest(counts: np.ndarray, pinned: int) -> frozenset[tuple[int, int]]:
    """Experts (layer, expert) that most images have tokens for: each is a load less per image.

    Args:
        counts: [I, L, E] tokens of every expert.
        pinned: How many; those with more tokens first where as many images have some.
    """
    images = (counts > 0).sum(axis=0)
    tokens = counts.sum(axis=0)
    order = np.lexsort((-tokens.ravel(), -images.ravel()))[:pinned]
    layers, experts = np.unravel_index(order, images.shape)
    return frozenset(zip(layers.tolist(), experts.tolist(), strict=True))


def _with_top_k(network: VitMoe, top_k: int | None) -> VitMoe:
    if top_k is None:
        return network
    if not 1 <= top_k <= network.moe.experts:
        raise UsageError(
            f"--top-k {top_k}: {network.name} has {network.moe.experts} experts\n"
            f"fix: pass 1 … {network.moe.experts}"
        )
    return network.model_copy(update={"moe": network.moe.model_copy(update={"top_k": top_k})})


def _assignments(request: FpgaRequest, network: VitMoe) -> np.ndarray:
    shape = (request.images, network.moe_layers, network.tokens)
    experts, top_k = network.moe.experts, network.moe.top_k
    if request.trace is not None:
        return assignments_of_trace(request.trace, *shape, experts, top_k)
    distribution = parse_distribution(request.routing)
    return draw_assignments(distribution, *shape, experts, top_k, request.seed)


@dataclass(frozen=True)
class _Pricer:
    """Prices all images with some techniques."""

    network: VitMoe
    design: Design
    board: Board
    counts: np.ndarray
    pinned: frozenset[tuple[int, int]]

    def price(self, techniques: Techniques) -> Variant:
        workload = Workload(self.network, self.design, techniques)
        latency = self.board.latency_cycles
        images = self.counts.tolist()
        sides = [
            price_images(
                workload, replace(self.board, latency_cycles=latency * factor), images, self.pinned
            )
            for factor in (1.0, 0.0, 2.0)
        ]
        middle, low, high = sides
        seconds = middle.cycles / self.board.clock_hz
        return Variant(
            step_s=seconds,
            lo_s=low.cycles / self.board.clock_hz,
            hi_s=high.cycles / self.board.clock_hz,
            parts=tuple(
                PartTime(
                    name,
                    part,
                    *(side.parts[name].cycles / self.board.clock_hz for side in sides),
                )
                for name, part in middle.parts.items()
            ),
            port_bytes=dict(middle.port_bytes),
            port_busy={key: busy / middle.cycles for key, busy in middle.port_busy_cycles.items()},
            array_bytes=dict(middle.array_bytes),
            expert_bytes=middle.expert_bytes,
            moved_bytes=middle.moved_bytes,
        )
