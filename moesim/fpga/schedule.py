"""What an image costs: regions in the order of the accelerator's program, priced on a board."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from moesim.fpga.ports import Board, dram_cycles, port_cycles
from moesim.fpga.work import Region, Workload

__all__ = ["Ledger", "Part", "expert_cycles", "price_images", "region_cycles"]


@dataclass
class Part:
    """Regions of one kind.

    Attributes:
        cycles: That the program spends.
        flops: Multiply-adds count two.
        moved_bytes: Read and written.
        bounds: Cycles by what limited them: compute, port, dram, latency.
    """

    cycles: float = 0.0
    flops: float = 0.0
    moved_bytes: float = 0.0
    bounds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def bound(self) -> str:
        """What limited most of its cycles."""
        return max(self.bounds, key=lambda name: self.bounds[name]) if self.bounds else "compute"


@dataclass
class Ledger:
    """Costs of an image.

    Attributes:
        parts: By kind of region.
        port_bytes: By port and direction (True: written).
        port_busy_cycles: By port and direction.
        array_bytes: By array and direction.
        expert_bytes: Weights and biases of routed experts.
    """

    parts: dict[str, Part] = field(default_factory=lambda: defaultdict(Part))
    port_bytes: dict[tuple[str, bool], float] = field(default_factory=lambda: defaultdict(float))
    port_busy_cycles: dict[tuple[str, bool], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    array_bytes: dict[tuple[str, bool], float] = field(default_factory=lambda: defaultdict(float))
    expert_bytes: float = 0.0

    @property
    def cycles(self) -> float:
        """Of the image."""
        return sum(part.cycles for part in self.parts.values())

    @property
    def moved_bytes(self) -> float:
        """Between memory and fabric, both directions."""
        return sum(self.port_bytes.values())


def region_cycles(region: Region, board: Board, workload: Workload) -> tuple[float, str]:
    """Cycles of a region alone, and what limits it.

    Computing and all streams overlap; memory latencies that nothing hides come on top.
    """
    design = workload.design
    ports = port_cycles(region.streams, board, design)
    limits = {
        "compute": region.compute_cycles,
        "port": max(ports.values(), default=0.0),
        "dram": dram_cycles(region.streams, board),
    }
    name = max(limits, key=lambda limit: limits[limit])
    waiting = region.waits * board.latency_cycles
    return limits[name] + waiting, name if limits[name] >= waiting else "latency"


def expert_cycles(
    matmuls: Sequence[tuple[float, float]],
    loads: Sequence[tuple[float, float]],
    *,
    overlapped: bool,
) -> float:
    """Cycles of the experts of a layer, one job after another.

    With two buffers the second matrix is loaded while the first computes, and the next job's first
    while the second does; the first load of all and the last computation stand alone.

    Args:
        matmuls: Of each job's first and second matrix.
        loads: Likewise; zero for matrices that are on chip.
        overlapped: Whether there are two buffers.
    """
    if not matmuls:
        return 0.0
    if not overlapped:
        return sum(map(sum, matmuls)) + sum(map(sum, loads))
    stages = sum(max(first, load) for (first, _), (_, load) in zip(matmuls, loads, strict=True))
    stages += sum(
        max(second, load) for (_, second), (load, _) in zip(matmuls[:-1], loads[1:], strict=True)
    )
    return loads[0][0] + stages + matmuls[-1][1]


def price_images(
    workload: Workload,
    board: Board,
    counts: Sequence[Sequence[Sequence[int]]],
    pinned: Collection[tuple[int, int]] = (),
) -> Ledger:
    """Run images through the accelerator's program, one after another; the mean image.

    Args:
        workload: Network, design and techniques.
        board: Its memory.
        counts: [I, L, E] tokens of every expert in every layer with experts of every image.
        pinned: Experts (layer with experts, expert) whose weights stay on chip.
    """
    ledger = Ledger()
    hide = workload.design.overlapped_loads == "all"
    before = 0.0
    for region in _outside_experts(workload):
        cycles, bound = region_cycles(region, board, workload)
        _book(ledger, region, board, workload)
        hidden = min(before, cycles) if hide and region.name == "weight loads" else 0.0
        _spend(ledger.parts[region.name], cycles - hidden, bound)
        before = cycles
    _price_experts(workload, board, counts, pinned, ledger)
    return ledger


def _outside_experts(workload: Workload) -> Iterator[Region]:
    net = workload.network
    hidden = net.hidden
    yield workload.patch_embedding()
    for layer in range(net.layers):
        yield workload.normalisation()
        yield from workload.linear("projections", hidden, hidden, "normed", "query")
        yield from workload.linear("projections", hidden, hidden, "normed", "key")
        yield from workload.scores()
        yield from workload.linear("projections", hidden, hidden, "normed", "value")
        yield workload.values()
        yield from workload.linear("projections", hidden, hidden, "mixed", "projected")
        yield workload.addition()
        yield workload.normalisation()
        if (layer + 1) % net.moe.every == 0:
            yield from workload.gate()
        else:
            wide = net.dense_hidden
            yield from workload.linear("dense ffn", wide, hidden, "normed", "hidden")
            yield from workload.linear("dense ffn", hidden, wide, "hidden", "projected")
        yield workload.addition()


def _price_experts(
    workload: Workload,
    board: Board,
    counts: Sequence[Sequence[Sequence[int]]],
    pinned: Collection[tuple[int, int]],
    ledger: Ledger,
) -> None:
    load_regions = workload.expert_loads()
    loads = tuple(region_cycles(region, board, workload) for region in load_regions)
    load_cycles = (loads[0][0], loads[1][0])
    per_expert = sum(stream.moved_bytes for region in load_regions for stream in region.streams)

    @cache
    def matmuls(tokens: int) -> tuple[tuple[Region, float, str], ...]:
        return tuple(
            (region, *region_cycles(region, board, workload))
            for region in workload.expert_matmuls(tokens)
        )

    overlapped = workload.design.overlapped_loads != "none"
    part, share = ledger.parts["experts"], 1 / len(counts)
    for index, layer in ((index, layer) for image in counts for index, layer in enumerate(image)):
        jobs = _jobs(workload, layer)
        if not jobs:
            continue
        on_chip = [(index, expert) in pinned for expert, _ in jobs]
        priced = [matmuls(tokens) for _, tokens in jobs]
        cycles = expert_cycles(
            [(first[1], second[1]) for first, second in priced],
            [(0.0, 0.0) if there else load_cycles for there in on_chip],
            overlapped=overlapped,
        )
        for tokens, times in Counter(tokens for _, tokens in jobs).items():
            for region, _, _ in matmuls(tokens):
                _book(ledger, region, board, workload, times * share)
        reads = on_chip.count(False)
        for region in load_regions:
            _book(ledger, region, board, workload, reads * share, "experts")
        ledger.expert_bytes += reads * share * per_expert
        computing = sum(cost for pair in priced for _, cost, _ in pair)
        bound = loads[0][1] if reads * sum(load_cycles) > computing else priced[0][0][2]
        _spend(part, cycles * share, bound)


def _jobs(workload: Workload, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Expert and tokens of each job: a queue per expert that has any, or a job per token of one."""
    if workload.techniques.expert_reordering:
        return [(expert, int(tokens)) for expert, tokens in enumerate(counts) if tokens]
    return [(expert, 1) for expert, tokens in enumerate(counts) for _ in range(int(tokens))]


def _spend(part: Part, cycles: float, bound: str) -> None:
    part.cycles += cycles
    part.bounds[bound] += cycles


def _book(
    ledger: Ledger,
    region: Region,
    board: Board,
    workload: Workload,
    times: float = 1.0,
    name: str | None = None,
) -> None:
    part = ledger.parts[name or region.name]
    part.flops += times * region.flops
    for stream in region.streams:
        moved = times * stream.moved_bytes
        part.moved_bytes += moved
        ledger.port_bytes[stream.port, stream.write] += moved
        ledger.array_bytes[stream.array, stream.write] += moved
    busy: Mapping[tuple[str, bool], float] = port_cycles(region.streams, board, workload.design)
    for key, cycles in busy.items():
        ledger.port_busy_cycles[key] += times * cycles
