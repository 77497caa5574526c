"""Cycles: loads beside computing against an event by event run, invariants, published figures."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.fpga.documents import load_design, load_network
from moesim.fpga.ports import Board, burst, dram_cycles, port_cycles, scattered
from moesim.fpga.schedule import expert_cycles, price_images, region_cycles
from moesim.fpga.simulate import FpgaRequest, hottest, run_fpga
from moesim.fpga.techniques import TECHNIQUES, Techniques
from moesim.fpga.work import Region, Workload
from moesim.hardware import load_device

NET, DESIGN = load_network("m3vit_tiny"), load_design("edge_moe")
BOARD = Board.of(load_device("fpga_zcu102"), DESIGN)
EVEN = np.full((1, 6, 16), 16).tolist()

times = st.integers(0, 1000)


def run_events(matmuls, loads):
    """The program with a loader and a linear unit that wait for each other's buffers.

    Edge-MoE starts a load and a computation together and waits for both.
    """
    now = loads[0][0]
    for index, (first, second) in enumerate(matmuls):
        loader = now + loads[index][1]
        unit = now + first
        now = max(loader, unit)
        unit = now + second
        last = index + 1 == len(matmuls)
        now = unit if last else max(unit, now + loads[index + 1][0])
    return now


pair = st.tuples(times, times)


@given(st.lists(st.tuples(pair, pair), min_size=1, max_size=20))
def test_two_buffers_against_events(jobs):
    matmuls, loads = [job[0] for job in jobs], [job[1] for job in jobs]
    found = expert_cycles(matmuls, loads, overlapped=True)
    assert found == run_events(matmuls, loads)
    alone = expert_cycles(matmuls, loads, overlapped=False)
    busy = max(sum(map(sum, matmuls)), sum(map(sum, loads)))
    assert busy <= found <= alone


def test_no_experts_take_no_time():
    assert expert_cycles([], [], overlapped=True) == 0
    assert expert_cycles([], [], overlapped=False) == 0


@given(run=st.integers(1, 4096), runs=st.integers(1, 50), write=st.booleans())
def test_streams_keep_to_their_port(run, runs, write):
    together = burst(DESIGN, "key", run, runs, write=write)
    apart = scattered(DESIGN, "key", run, runs, write=write)
    assert together.moved_bytes == apart.moved_bytes == run * runs
    assert together.beats == apart.beats >= together.requests
    fast, slow = (port_cycles([s], BOARD, DESIGN)["inout3", write] for s in (together, apart))
    peak = run * runs / (BOARD.port_bytes_per_s / BOARD.clock_hz)
    assert peak <= fast <= slow
    assert slow >= together.beats * BOARD.latency_cycles / DESIGN.axi.outstanding
    assert dram_cycles([together], BOARD) < fast


def test_refresh_is_lost_where_the_port_is_the_limit():
    beat = DESIGN.beat_bytes * 300e6 / 4.8e9
    assert BOARD.beat_cycles(DESIGN) == pytest.approx(beat / (1 - 0.35 / 7.8))
    assert Board.of(load_device("fpga_u280"), DESIGN).beat_cycles(DESIGN) == 1


def test_ports_in_parallel_and_arrays_on_one_port_in_turn():
    key, value = burst(DESIGN, "key", 4096), burst(DESIGN, "value", 4096)
    residual = burst(DESIGN, "residual", 4096)  # on the port of value
    assert set(port_cycles([key, value], BOARD, DESIGN)) == {("inout3", False), ("inout2", False)}
    both = port_cycles([value, residual], BOARD, DESIGN)["inout2", False]
    assert both == 2 * port_cycles([value], BOARD, DESIGN)["inout2", False]


def test_a_region_says_what_bounds_it():
    stream = (burst(DESIGN, "key", 3200),)
    workload = Workload(NET, DESIGN, Techniques())
    free = replace(BOARD, refresh_share=0.0)
    cases = ((1000, 0, 1000, "compute"), (10, 0, 200, "port"), (10, 5, 520, "latency"))
    for compute, waits, cycles, bound in cases:
        region = Region("any", compute, 0.0, stream, waits)
        assert region_cycles(region, free, workload) == (cycles, bound)
    narrow = replace(free, dram_bytes_per_s=free.port_bytes_per_s / 4)
    assert region_cycles(Region("any", 1, 0.0, stream, 0), narrow, workload) == (800, "dram")


@pytest.mark.parametrize("name", [*TECHNIQUES, "all"])
@pytest.mark.parametrize("device", ["fpga_zcu102", "fpga_u280"])
def test_every_technique_helps(name, device):
    found = run_fpga(FpgaRequest(device=device, images=2))
    left = found.ablations[name]
    assert left.step_s > found.complete.step_s
    assert left.moved_bytes >= found.complete.moved_bytes
    if name != "all":
        asked = run_fpga(FpgaRequest(device=device, images=2, without=(name,)))
        assert asked.chosen.step_s == left.step_s
        assert left.step_s <= found.ablations["all"].step_s


def test_pinned_experts_are_not_read():
    some, none = (run_fpga(FpgaRequest(pinned=pinned, images=2)) for pinned in (8, 0))
    read = none.chosen.expert_bytes / 96
    assert none.chosen.expert_bytes - some.chosen.expert_bytes == pytest.approx(8 * read)
    assert some.chosen.step_s < none.chosen.step_s
    assert some.resources.buffer_bytes - none.resources.buffer_bytes == 8 * 2 * 2 * 192 * 384
    everything = run_fpga(FpgaRequest(device="fpga_u280", pinned=96, images=2))
    assert everything.chosen.expert_bytes == 0
    experts = {part.name: part for part in everything.chosen.parts}["experts"]
    queued = 6 * 2 * 129 * 2 * 12 * 24 / everything.device.fabric.clock.si  # tokens, both matrices
    assert queued / 2 < experts.time_s < 1.2 * queued


def test_pinned_are_those_that_most_images_need():
    counts = np.zeros((3, 2, 4), dtype=int)
    counts[:, 0, 1] = 1
    counts[0, 1, 2] = 50
    counts[:2, 1, 3] = 1
    assert hottest(counts, 0) == frozenset()
    assert hottest(counts, 2) == {(0, 1), (1, 3)}
    assert hottest(counts, 3) == {(0, 1), (1, 3), (1, 2)}


def test_nothing_beats_its_roofline():
    found = run_fpga(FpgaRequest())
    device, chosen = found.device, found.chosen
    macs = DESIGN.linear.macs_per_cycle * device.fabric.clock.si * 2
    linear = sum(t.part.flops for t in chosen.parts if t.name in ("projections", "dense ffn"))
    spent = sum(t.time_s for t in chosen.parts if t.name in ("projections", "dense ffn"))
    assert linear / spent <= macs
    assert chosen.moved_bytes / chosen.step_s < device.memory_bytes_per_s
    assert all(0 < busy <= 1 for busy in chosen.port_busy.values())
    assert sum(timed.time_s for timed in chosen.parts) == pytest.approx(chosen.step_s)
    assert chosen.lo_s < chosen.step_s < chosen.hi_s


def test_operations_are_those_of_the_network():
    found = run_fpga(FpgaRequest(images=1))
    tokens, hidden = 129, 192
    macs = 12 * (4 * tokens * hidden**2 + 2 * tokens**2 * hidden)
    macs += 6 * 2 * tokens * hidden * 768  # dense
    macs += 6 * 2 * tokens * 2 * hidden * 384  # two experts per token
    macs += 6 * tokens * hidden * 16 + 3 * 128 * 256 * hidden  # gate, patches
    extra = {"normalisation", "residual"}
    counted = sum(t.part.flops for t in found.chosen.parts if t.name not in extra)
    assert counted == pytest.approx(2 * macs)


class TestPublished:
    """Edge-MoE on a ZCU102 (CoQMoE, arXiv 2506.08496, table 3): 34.64 ms, 14.54 W."""

    def test_latency_and_energy(self):
        found = run_fpga(FpgaRequest())
        assert found.chosen.step_s == pytest.approx(34.64e-3, rel=0.08)
        assert found.chosen.lo_s < 34.64e-3 < found.chosen.hi_s
        assert found.power_w == 14.54
        assert found.energy_j == pytest.approx(0.5037, rel=0.05)

    def test_ports_as_wide_as_the_design_save_a_third(self):
        wide = replace(BOARD, port_bytes_per_s=2 * BOARD.port_bytes_per_s)
        workload = Workload(NET, DESIGN, Techniques())
        narrow = price_images(workload, BOARD, EVEN).cycles
        assert 0.58 < price_images(workload, wide, EVEN).cycles / narrow < 0.67

    def test_more_experts_per_token_cost_nothing_while_all_are_loaded_anyway(self):
        two, four = (run_fpga(FpgaRequest(top_k=k)).chosen.step_s for k in (2, 4))
        assert four == pytest.approx(two, rel=0.01)

    def test_half_the_experts_take_half_the_time(self):
        all_hit = price_images(Workload(NET, DESIGN, Techniques()), BOARD, EVEN)
        few = np.zeros((1, 6, 16), dtype=int)
        few[..., :8] = 32
        half = price_images(Workload(NET, DESIGN, Techniques()), BOARD, few.tolist())
        ratio = half.parts["experts"].cycles / all_hit.parts["experts"].cycles
        assert 0.45 < ratio < 0.6
