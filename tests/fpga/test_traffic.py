"""Traffic against replays that walk every token, expert, query and key."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.forward.expert_load import parse_distribution
from moesim.fpga.documents import load_design, load_network
from moesim.fpga.ports import Board
from moesim.fpga.routing import draw_assignments, expert_counts
from moesim.fpga.schedule import price_images
from moesim.fpga.techniques import TECHNIQUES, Techniques
from moesim.fpga.work import Workload
from moesim.hardware import load_device

NET, DESIGN = load_network("m3vit_tiny"), load_design("edge_moe")
BOARD = Board.of(load_device("fpga_zcu102"), DESIGN)
EXPERT_BYTES = 2 * (192 * 384 + 384 * 192) + 2 * (384 + 192)
"""Two matrices and two biases at 16 bits."""


def network(tokens_wide=256, **moe):
    """The network with another image width or other experts."""
    image = NET.image.model_copy(update={"width": tokens_wide})
    return NET.model_copy(update={"image": image, "moe": NET.moe.model_copy(update=moe)})


def ledger(net, counts, without=()):
    workload = Workload(net, DESIGN, Techniques().without(without))
    return price_images(workload, BOARD, counts.tolist())


def replay_expert_loads(assignments, *, by_expert):
    """Experts read for [L, N, K] assignments, one (token, expert) pair after another."""
    loads = 0
    for layer in assignments:
        pairs = [(token, expert) for token, row in enumerate(layer) for expert in row]
        if by_expert:
            queues = {}
            for token, expert in pairs:
                queues.setdefault(int(expert), []).append(token)
            loads += sum(1 for queue in queues.values() if queue)
        else:
            loads += len(pairs)
    return loads


@given(
    width=st.sampled_from([32, 64, 128, 256]),
    experts=st.integers(2, 24),
    top_k=st.integers(1, 4),
    exponent=st.sampled_from(["uniform", "zipf:0.5", "zipf:2", "balanced"]),
    seed=st.integers(0, 99),
)
def test_expert_bytes_are_those_of_a_replay(width, experts, top_k, exponent, seed):
    top_k = min(top_k, experts)
    net = network(width, experts=experts, top_k=top_k)
    chosen = draw_assignments(
        parse_distribution(exponent), 1, net.moe_layers, net.tokens, experts, top_k, seed
    )
    if exponent != "balanced" or net.tokens * top_k < experts:
        for row in chosen.reshape(-1, top_k):
            assert len(set(row.tolist())) == top_k
    counts = expert_counts(chosen, experts)
    assert counts.sum() == chosen.size
    reordered = ledger(net, counts)
    token_order = ledger(net, counts, ["expert-reordering"])
    loads = replay_expert_loads(chosen[0], by_expert=True)
    pairs = replay_expert_loads(chosen[0], by_expert=False)
    assert reordered.expert_bytes == loads * EXPERT_BYTES
    assert token_order.expert_bytes == pairs * EXPERT_BYTES
    assert token_order.expert_bytes / reordered.expert_bytes == pairs / loads


def test_the_ratio_is_copies_over_distinct_experts():
    counts = np.full((1, 6, 16), 16)
    counts[..., :2] = 17  # 258 copies of 129 tokens
    ratio = ledger(NET, counts, ["expert-reordering"]).expert_bytes
    assert ratio / ledger(NET, counts).expert_bytes == 129 * 2 / 16


@given(patches=st.sampled_from([2, 4, 8, 16]), queries=st.integers(1, 8))
def test_rows_of_keys_are_those_of_a_replay(patches, queries):
    net = network(16 * patches)
    attention = DESIGN.attention.model_copy(update={"queries": queries})
    design = DESIGN.model_copy(update={"attention": attention})
    rows, starts = Workload(net, design, Techniques()).key_passes
    # Slot i takes its next query when row i passes; before that it finishes the one before.
    whole, rest = divmod(net.tokens + queries - 1, queries)
    replayed, passes = 0, 0
    met = []
    for base in range(whole + (rest > 0)):
        passes += 1
        for key in range(net.tokens if base < whole else rest):
            replayed += 1
            for slot in range(queries):
                query = base * queries + slot - (queries if key < slot else 0)
                if 0 <= query < net.tokens:
                    met.append((query, key))
    assert (rows, starts) == (replayed, passes)
    everything = {(query, key) for query in range(net.tokens) for key in range(net.tokens)}
    assert everything <= set(met)
    assert len(met) == len(set(met))


def test_queries_in_flight_need_no_more_bandwidth():
    """Edge-MoE's claim: constant bandwidth whatever the parallelism; without, it grows with it."""
    counts = np.full((1, 6, 16), 16)
    rates = {}
    for without in ((), ("attention-reordering",)):
        for queries in (1, 4):
            attention = DESIGN.attention.model_copy(update={"queries": queries})
            design = DESIGN.model_copy(update={"attention": attention})
            workload = Workload(NET, design, Techniques().without(without))
            (region, *_) = workload.scores()
            keys = sum(s.moved_bytes for s in region.streams if s.array == "key")
            rates[without, queries] = keys / region.compute_cycles
    assert rates[(), 4] == rates[(), 1] == 32
    assert rates[("attention-reordering",), 4] == pytest.approx(4 * 32, rel=0.03)
    in_order = ledger(NET, counts, ["attention-reordering"]).array_bytes["key", False]
    # Each of 129 queries reads all keys; four at a time, 33 passes do.
    assert in_order / ledger(NET, counts).array_bytes["key", False] == 129 / 33


@pytest.mark.parametrize("without", [(), *[(name,) for name in TECHNIQUES]])
def test_bytes_of_ports_arrays_and_parts_agree(without):
    counts = np.full((2, 6, 16), 16)
    found = ledger(NET, counts, without)
    total = found.moved_bytes
    assert sum(found.array_bytes.values()) == pytest.approx(total)
    assert sum(part.moved_bytes for part in found.parts.values()) == pytest.approx(total)


def test_weights_of_a_dense_pass_are_read_once():
    found = ledger(NET, np.zeros((1, 6, 16), dtype=int))
    matrices = 12 * 4 * 192 * 192 + 6 * 2 * 192 * 768
    vectors = 12 * (4 * 192 + 4 * 192) + 6 * (768 + 192)  # biases, norms
    gates, positions = 6 * 16 * 192, 129 * 192 * 2
    assert found.array_bytes["weights", False] == 2 * (matrices + vectors + gates + positions)
    assert found.expert_bytes == 0
