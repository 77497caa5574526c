"""Cycles of a stream against a port that moves transfer by transfer."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.fpga.documents import load_design
from moesim.fpga.ports import Board, burst, port_cycles, scattered
from moesim.hardware import load_device

DESIGN = load_design("edge_moe")
BOARD = replace(Board.of(load_device("fpga_zcu102"), DESIGN), refresh_share=0.0)


def run_port(sizes, latency, outstanding, beat):
    """Cycles until the last transfer of requests of these sizes has come.

    A request is sent a cycle after the one before, once fewer than ``outstanding`` are in flight;
    its data start a latency later, and the port moves one transfer at a time, in order.
    """
    done = []
    port_free = sent = 0.0
    for index, transfers in enumerate(sizes):
        room = done[index - outstanding] if index >= outstanding else 0.0
        sent = max(sent + 1, room)
        for _ in range(transfers):
            port_free = max(port_free, sent + latency) + beat
        done.append(port_free)
    return port_free


@given(
    beats=st.integers(1, 3000),
    latency=st.integers(1, 200),
    outstanding=st.integers(1, 32),
    most=st.integers(1, 64),
    ratio=st.sampled_from([1, 2, 3.5]),
    gathered=st.booleans(),
)
def test_a_stream_takes_what_a_port_takes(beats, latency, outstanding, most, ratio, gathered):
    axi = DESIGN.axi.model_copy(update={"burst_beats": most, "outstanding": outstanding})
    design = DESIGN.model_copy(update={"axi": axi})
    board = replace(BOARD, latency_cycles=latency, port_bytes_per_s=32 * BOARD.clock_hz / ratio)
    make = scattered if gathered else burst
    stream = make(design, "key", 32 * beats)
    whole, rest = divmod(beats, 1 if gathered else most)
    sizes = [1 if gathered else most] * whole + ([rest] if rest else [])
    assert stream.requests == len(sizes)
    found = port_cycles([stream], board, design)["inout3", False]
    exact = run_port(sizes, latency, outstanding, ratio)
    # The first answer takes a latency; windows that do not fill up end ragged.
    slack = latency + max(sizes) * ratio + 2
    assert found <= exact * (1 + 1e-9)
    assert exact <= found * 1.02 + 2 * slack


def test_which_limit_counts():
    """Edge-MoE's ports: bursts run at the port's rate, gathers at 16 requests per latency."""
    stream, gather = burst(DESIGN, "key", 32 * 1600), scattered(DESIGN, "key", 32 * 1600)
    assert port_cycles([stream], BOARD, DESIGN)["inout3", False] == 3200
    found = port_cycles([gather], BOARD, DESIGN)["inout3", False]
    assert found == 1600 * (64 + 2) / 16
    assert found == pytest.approx(run_port([1] * 1600, 64, 16, 2), rel=0.02)
