"""Any valid network and design gets finite answers that keep the invariants."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InfeasibleError
from moesim.forward.expert_load import parse_distribution
from moesim.fpga.documents import Design, VitMoe, load_design, load_network
from moesim.fpga.ports import Board
from moesim.fpga.resources import multiplier_slices, resources_of
from moesim.fpga.routing import draw_assignments, expert_counts
from moesim.fpga.schedule import price_images
from moesim.fpga.techniques import Techniques
from moesim.fpga.work import Workload
from moesim.hardware import load_device

U280 = load_device("fpga_u280")


@st.composite
def networks(draw):
    heads, experts = draw(st.integers(1, 7)), draw(st.integers(1, 40))
    patch = draw(st.sampled_from([4, 14, 16, 32]))
    return VitMoe.parse({
        "schema": "moesim.vit-moe/1", "name": "any", "title": "any", "source": "made for a test",
        "image": {
            "channels": draw(st.integers(1, 4)), "patch": patch,
            "height": patch * draw(st.integers(1, 12)), "width": patch * draw(st.integers(1, 12)),
        },
        "layers": draw(st.integers(1, 6)), "hidden": heads * draw(st.integers(1, 70)),
        "heads": heads, "dense_hidden": draw(st.integers(1, 999)),
        "moe": {
            "every": draw(st.integers(1, 4)), "experts": experts,
            "top_k": draw(st.integers(1, experts)), "expert_hidden": draw(st.integers(1, 500)),
        },
    })  # fmt: skip


@st.composite
def designs(draw):
    plain = load_design("edge_moe").to_dict()
    buffers = draw(st.integers(1, 3))
    overlap = ["none"] if buffers == 1 else ["none", "experts", "all"]
    return Design.parse(plain | {
        "axi": {
            "width_bits": draw(st.sampled_from([32, 64, 128, 256, 512])),
            "latency_cycles": draw(st.integers(0, 200)), "burst_beats": draw(st.integers(1, 64)),
            "outstanding": draw(st.integers(1, 32)),
        },
        "bits": {
            "activation": draw(st.sampled_from([8, 16, 32])),
            "weight": draw(st.sampled_from([4, 8, 16])), "pixel": 8,
        },
        "linear": {
            "inputs": draw(st.integers(1, 16)), "outputs": draw(st.integers(1, 16)),
            "tokens": draw(st.integers(1, 3)),
        },
        "attention": {"queries": draw(st.integers(1, 8))},
        "weight_buffers": buffers, "overlapped_loads": draw(st.sampled_from(overlap)),
    })  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(net=networks(), design=designs(), seed=st.integers(0, 9))
def test_answers_keep_the_invariants(net, design, seed):
    board = Board.of(U280, design)
    chosen = draw_assignments(
        parse_distribution("zipf:1"), 2, net.moe_layers, net.tokens, net.moe.experts,
        net.moe.top_k, seed,
    )  # fmt: skip
    counts = expert_counts(chosen, net.moe.experts)
    whole = price_images(Workload(net, design, Techniques()), board, counts.tolist())
    assert math.isfinite(whole.cycles)
    assert whole.cycles > 0
    assert whole.cycles >= max(whole.port_busy_cycles.values()) * (1 - 1e-9)
    seconds = whole.cycles / board.clock_hz
    assert whole.moved_bytes / seconds <= board.dram_bytes_per_s
    assert sum(whole.array_bytes.values()) == pytest.approx(whole.moved_bytes)
    for name in ("expert-reordering", "unified-unit", "single-pass-softmax"):
        left = price_images(
            Workload(net, design, Techniques().without([name])), board, counts.tolist()
        )
        assert left.cycles >= whole.cycles * (1 - 1e-9), name
        assert left.moved_bytes >= whole.moved_bytes * (1 - 1e-9), name


def test_multipliers_of_a_product():
    """DSP48E2: 27 × 18 signed."""
    assert multiplier_slices(27, 18) == multiplier_slices(18, 27) == multiplier_slices(8, 8) == 1
    assert multiplier_slices(28, 18) == multiplier_slices(27, 19) == 2
    assert multiplier_slices(32, 16) == 2
    assert multiplier_slices(32, 32) == 4


def test_weights_larger_than_the_memory_are_refused():
    net = load_network("m3vit_tiny")
    moe = net.moe.model_copy(update={"experts": 2**20})
    with pytest.raises(InfeasibleError, match="DSP slices"):
        resources_of(net.model_copy(update={"moe": moe}), load_design("edge_moe"), U280)
    small = U280.model_copy(
        update={"memory": U280.memory.model_copy(
            update={"capacity": U280.memory.capacity.model_copy(update={"value": "30 MB"})}
        )}
    )  # fmt: skip
    with pytest.raises(InfeasibleError, match=r"weights take 35\.4 MB"):
        resources_of(net, load_design("edge_moe"), small)
