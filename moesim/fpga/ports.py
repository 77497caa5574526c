"""Memory ports of an FPGA: width, bursts, requests in flight, latency.

A design reads and writes through AXI ports. A transfer of the design's port takes as many cycles
as the board's port needs for it: a 256-bit transfer over a 128-bit port takes two. Contiguous data
moves in bursts, one request each; data that synthesis cannot see to be contiguous (gathers by an
index) moves with a request per transfer, and then requests in flight over latency can be the
limit. Reads and writes of a port have channels of their own. All ports share the DRAM, and wait
while it refreshes: a port that streams at its own peak cannot catch up afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from moesim.errors import InputError, UsageError
from moesim.fpga.documents import Design
from moesim.hardware import Device, Fabric
from moesim.schema import Evidence, weakest

__all__ = ["Board", "Stream", "burst", "dram_cycles", "fpga_fabric", "port_cycles", "scattered"]


@dataclass(frozen=True)
class Stream:
    """Data over a port in one direction.

    Attributes:
        array: What moves, a field of the design's ``ports``.
        port: The port it moves over.
        write: Direction.
        moved_bytes: Useful bytes.
        beats: Transfers of the design's width.
        requests: Addresses sent.
    """

    array: str
    port: str
    write: bool
    moved_bytes: float
    beats: int
    requests: int


def burst(
    design: Design, array: str, run_bytes: float, runs: int = 1, *, write: bool = False
) -> Stream:
    """``runs`` contiguous pieces of ``run_bytes`` each."""
    beats = ceil(run_bytes / design.beat_bytes)
    requests = runs * ceil(beats / design.axi.burst_beats)
    return Stream(array, _port(design, array), write, runs * run_bytes, runs * beats, requests)


def scattered(
    design: Design, array: str, run_bytes: float, runs: int = 1, *, write: bool = False
) -> Stream:
    """As :func:`burst`, at addresses that depend on an index: each transfer is a request."""
    beats = runs * ceil(run_bytes / design.beat_bytes)
    return Stream(array, _port(design, array), write, runs * run_bytes, beats, beats)


def _port(design: Design, array: str) -> str:
    port: str = getattr(design.ports, array)
    return port


def fpga_fabric(device: Device) -> Fabric:
    """What the FPGA is made of.

    Raises:
        UsageError: If the device is none.
    """
    if device.kind != "fpga" or device.fabric is None:
        raise UsageError(
            f"{device.name} is no FPGA\nfix: pass --device fpga_zcu102, fpga_u280 or a profile "
            "of kind fpga with a fabric"
        )
    return device.fabric


@dataclass(frozen=True)
class Board:
    """What a device profile gives a design.

    Attributes:
        clock_hz: Of the fabric.
        port_bytes_per_s: Of one port and direction.
        dram_bytes_per_s: Of all ports together, both directions.
        ports: Ports that there are.
        latency_cycles: From a request to its first data.
        refresh_share: Of the time, in which the DRAM does not answer.
        evidence: The weakest of these.
    """

    clock_hz: float
    port_bytes_per_s: float
    dram_bytes_per_s: float
    ports: int
    latency_cycles: float
    refresh_share: float
    evidence: Evidence

    @classmethod
    def of(cls, device: Device, design: Design) -> Board:
        """The board as the design sees it.

        Raises:
            UsageError: If the device is no FPGA, or has fewer ports than the design uses.
            InputError: If its profile lacks memory ports.
        """
        fabric = fpga_fabric(device)
        if fabric.memory_ports is None or fabric.port_bandwidth is None:
            raise InputError(
                f"the profile {device.name} lacks memory ports",
                field="fabric.memory_ports",
                fix="add memory_ports and port_bandwidth to its fabric",
            )
        ports = fabric.memory_ports.value
        if ports < (needed := len(design.ports.names)):
            raise UsageError(
                f"{design.name} uses {needed} memory ports, {device.name} has {ports}\n"
                "fix: let arrays share ports in the design's file"
            )
        used = [fabric.clock, fabric.memory_ports, fabric.port_bandwidth, device.memory.bandwidth]
        latency = float(design.axi.latency_cycles)
        if fabric.port_latency is not None:
            used.append(fabric.port_latency)
            latency = max(latency, fabric.port_latency.si * fabric.clock.si)
        refresh = 0.0
        if fabric.refresh_time is not None and fabric.refresh_interval is not None:
            used += [fabric.refresh_time, fabric.refresh_interval]
            refresh = fabric.refresh_time.si / fabric.refresh_interval.si
        return cls(
            clock_hz=fabric.clock.si,
            port_bytes_per_s=fabric.port_bandwidth.si,
            dram_bytes_per_s=device.memory_bytes_per_s,
            ports=ports,
            latency_cycles=latency,
            refresh_share=refresh,
            evidence=weakest(*(quantity.evidence for quantity in used)),
        )

    def beat_cycles(self, design: Design) -> float:
        """Cycles of one of the design's transfers on a port of the board; at least 1.

        Where the port is faster than the design, requests in flight fill its buffers, which last
        through a refresh; else a refresh is lost time.
        """
        shared = design.beat_bytes * self.clock_hz / self.port_bytes_per_s
        return max(1.0, shared / (1 - self.refresh_share))


def port_cycles(
    streams: Sequence[Stream], board: Board, design: Design
) -> dict[tuple[str, bool], float]:
    """Busy cycles by port and direction, of streams that run at the same time.

    A request is in flight for the latency and its own transfers; so many are at a time.
    """
    beat = board.beat_cycles(design)
    busy: dict[tuple[str, bool], float] = defaultdict(float)
    for stream in streams:
        moving = stream.beats * beat
        in_flight = stream.requests * board.latency_cycles + moving
        busy[stream.port, stream.write] += max(moving, in_flight / design.axi.outstanding)
    return dict(busy)


def dram_cycles(streams: Sequence[Stream], board: Board) -> float:
    """Cycles that the DRAM needs at its peak for all streams."""
    moved = sum(stream.moved_bytes for stream in streams)
    return moved * board.clock_hz / board.dram_bytes_per_s / (1 - board.refresh_share)
