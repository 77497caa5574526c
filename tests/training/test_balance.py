"""Placements, dispatch and sparse collectives of balancing systems."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, UsageError
from moesim.training.balance.dispatch import dispatch
from moesim.training.balance.loads import drifting_loads, loads_of_trace
from moesim.training.balance.materialise import (
    held_by_owner,
    materialise,
    overlap_degree,
    replicate,
)
from moesim.training.balance.memory import expert_memory
from moesim.training.balance.sharding import contiguous, heterogeneous, peak_load, swapped
from moesim.training.balance.sparse import gather_chains, received_bytes


@st.composite
def cases(draw):
    """Loads of some layers, devices of some nodes."""
    nodes, per_node = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    devices = nodes * per_node
    layers, experts = draw(st.integers(1, 3)), devices * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    exponent = draw(st.floats(0, 2))
    loads = np.stack(
        [rng.permutation(np.arange(1, experts + 1) ** -exponent) for _ in range(layers)]
    )
    hot, room = draw(st.integers(0, experts)), draw(st.integers(0, experts))
    return np.round(1000 * loads), np.arange(devices) // per_node, hot, room


@settings(deadline=None)
@given(cases())
def test_sharding_is_never_worse_than_expert_parallelism(case):
    loads, node_of, hot, _ = case
    devices, (layers, experts) = len(node_of), loads.shape
    owner = heterogeneous(loads, node_of, hot)
    plain = contiguous(layers, experts, devices)
    assert peak_load(loads, owner, devices, hot) <= peak_load(loads, plain, devices, hot)
    slots = np.bincount(owner.ravel(), minlength=devices)
    assert slots.max() - slots.min() <= 1
    assert slots.sum() == layers * experts


@settings(deadline=None)
@given(cases())
def test_swapping_keeps_slots_per_layer(case):
    loads, node_of, _, _ = case
    devices = len(node_of)
    for row in swapped(loads, devices):
        assert np.all(np.bincount(row, minlength=devices) == loads.shape[1] // devices)


def test_heterogeneous_sharding_parts_what_collides():
    """Two heavy experts of a layer on one device of the plain order."""
    loads = np.array([[10.0, 10, 1, 1, 1, 1, 1, 1], [5, 1, 1, 1, 1, 1, 1, 1]])
    node_of = np.array([0, 0, 1, 1])
    owner = heterogeneous(loads, node_of, 0)
    assert node_of[owner[0, 0]] != node_of[owner[0, 1]]
    assert peak_load(loads, owner, 4) < peak_load(loads, contiguous(2, 8, 4), 4)


@settings(deadline=None)
@given(cases())
def test_copies_stay_within_room_and_degree(case):
    loads, node_of, hot, room = case
    devices = len(node_of)
    owner = contiguous(*loads.shape, devices)
    held = materialise(loads, owner, node_of, hot, room)
    assert np.all(held[held_by_owner(owner, devices)])
    extra = held & ~held_by_owner(owner, devices)
    assert extra.sum(axis=1).max() <= min(hot, room)
    for layer in range(len(loads)):
        copied = np.flatnonzero(extra[layer].any(axis=1))
        assert len(copied) <= hot
        others = np.setdiff1d(np.arange(loads.shape[1]), copied)
        if hot <= room and devices > 1 and len(others) and len(copied):
            assert loads[layer, copied].min() >= loads[layer, others].max()
            assert held[layer, copied].all()


def test_little_room_goes_to_the_hottest_over_nodes_first():
    loads = np.array([[8.0, 4, 2, 1, 0, 0, 0, 0]])
    node_of = np.array([0, 0, 1, 1])
    owner = np.array([[0, 0, 1, 1, 2, 2, 3, 3]])
    held = materialise(loads, owner, node_of, 4, 1)[0]
    assert held[0].sum() >= held[1].sum() >= held[3].sum()
    assert {0, 1} <= set(node_of[held[0]].tolist())


@settings(deadline=None)
@given(cases())
def test_every_copy_of_a_token_arrives_once_and_near(case):
    loads, node_of, hot, room = case
    devices = len(node_of)
    owner = contiguous(*loads.shape, devices)
    held = materialise(loads, owner, node_of, hot, room)
    went = dispatch(loads, held, node_of)
    assert went.copies.sum(axis=(1, 2)) == pytest.approx(loads.sum(axis=1))
    assert went.slot_tokens.sum(axis=1) == pytest.approx(loads)
    assert went.copies.sum(axis=2) == pytest.approx(
        np.tile(loads.sum(axis=1, keepdims=True) / devices, devices)
    )
    assert not went.slot_tokens.transpose(0, 2, 1)[~held].any()
    assert went.copies.sum(axis=1) == pytest.approx(went.slot_tokens.sum(axis=2))
    # Against a plain loop over devices and experts.
    slow = np.zeros_like(went.copies)
    for layer, expert, source in np.ndindex(*loads.shape, devices):
        own = np.flatnonzero(held[layer, expert])
        near = own[node_of[own] == node_of[source]]
        targets = [source] if source in own else near if len(near) else own
        for target in targets:
            slow[layer, source, target] += loads[layer, expert] / devices / len(targets)
    assert went.copies == pytest.approx(slow)


@settings(deadline=None)
@given(cases())
def test_copies_leave_less_on_the_way(case):
    loads, node_of, hot, _ = case
    owner = contiguous(*loads.shape, len(node_of))
    away = ~np.eye(len(node_of), dtype=bool)
    alone = dispatch(loads, held_by_owner(owner, len(node_of)), node_of).copies[:, away].sum()
    copied = dispatch(loads, materialise(loads, owner, node_of, hot, hot), node_of)
    assert copied.copies[:, away].sum() <= alone * (1 + 1e-9)


@settings(deadline=None)
@given(cases())
def test_a_gather_brings_every_copy_once(case):
    loads, node_of, hot, room = case
    owner = contiguous(*loads.shape, len(node_of))
    held = materialise(loads, owner, node_of, hot, room)
    sent = gather_chains(held, owner, node_of, 3.0)
    assert sent.sum(axis=1) == pytest.approx(received_bytes(held, owner, 3.0))
    assert not np.einsum("lgg->lg", sent).any()
    # Gathering weights and reducing gradients is what all-reduces over the copies would send.
    copies = held.sum(axis=-1)
    all_reduce = (2 * (copies - 1) * 3.0).sum()
    assert 2 * sent.sum() == pytest.approx(all_reduce)
    # A node takes every expert in once.
    nodes = np.eye(node_of.max() + 1)[node_of]
    reached = (held.astype(float) @ nodes > 0).sum(axis=-1) - 1
    across = (sent * (node_of[:, None] != node_of[None])).sum()
    assert across == pytest.approx(3.0 * reached.sum())


@settings(deadline=None)
@given(cases(), st.integers(1, 4))
def test_replicas_fill_their_slots(case, factor):
    loads, node_of, _, _ = case
    devices, experts = len(node_of), loads.shape[1]
    slots = min(factor * experts // devices, experts)
    held, owner = replicate(loads, devices, slots)
    assert held.any(axis=-1).all()
    assert held.sum(axis=1).max() <= slots
    assert np.take_along_axis(held, owner[..., None], -1).all()


@settings(deadline=None)
@given(cases())
def test_expert_memory(case):
    loads, node_of, hot, room = case
    devices = len(node_of)
    owner = contiguous(*loads.shape, devices)
    held = materialise(loads, owner, node_of, hot, room)
    plain = expert_memory(held_by_owner(owner, devices), owner, 1.0, "kept")
    experts = loads.size / devices
    assert (plain.weights, plain.gradients, plain.optimizer) == (
        2 * experts, 2 * experts, 12 * experts
    )  # fmt: skip
    again, kept, full = (
        expert_memory(held, owner, 1.0, how) for how in ("re-materialised", "kept", "full")
    )
    assert plain.total <= again.total <= kept.total <= full.total
    assert again.optimizer == plain.optimizer == kept.optimizer


def test_the_published_units_of_memory():
    """4.73 extra weights and 4.73/12 gradients of 8 units: +64 %; one layer's of both: +10 %."""
    layers, devices = 12, 32
    owner = contiguous(layers, 64, devices)
    held = held_by_owner(owner, devices)
    for layer in range(layers):
        for device in range(devices):
            others = np.flatnonzero(owner[layer] != device)[: 9 + device % 2]
            held[layer, others, device] = True
    plain = expert_memory(held_by_owner(owner, devices), owner, 1.0, "kept").total
    assert expert_memory(held, owner, 1.0, "kept").total / plain == pytest.approx(1.64, abs=0.04)
    again = expert_memory(held, owner, 1.0, "re-materialised").total / plain
    assert again == pytest.approx(1.116, abs=0.02)


def test_overlap_degree():
    assert overlap_degree(1e-3, 12.5e9, 4.72e6) == 2
    assert overlap_degree(0.0, 12.5e9, 4.72e6) == 0


def test_loads_drift_and_keep_their_sum():
    loads = drifting_loads(20, 2, 16, 1000, 1.0, 0.9, 0)
    assert np.all(loads.sum(axis=-1) == 1000)
    still = drifting_loads(20, 2, 16, 100_000, 1.0, 1.0, 0)
    assert np.all(still.argmax(axis=-1) == still.argmax(axis=-1)[0])
    assert np.any(loads.argmax(axis=-1) != loads.argmax(axis=-1)[0])
    even = drifting_loads(1, 1, 16, 160_000, 0.0, 1.0, 0)
    assert even == pytest.approx(10_000, rel=0.05)
    with pytest.raises(UsageError, match="correlation"):
        drifting_loads(1, 1, 16, 100, 1.0, 1.1, 0)


def test_loads_of_a_trace(tmp_path):
    from ..cli.commands import EXPERTS, TOP_K, tiny_trace

    folder = tiny_trace(tmp_path)
    loads = loads_of_trace(folder, 5, EXPERTS, 1000 * TOP_K, 10)
    assert loads.shape == (10, 5, EXPERTS)
    assert loads.sum(axis=-1) == pytest.approx(1000 * TOP_K)
    assert loads[:, 3] == pytest.approx(loads[:, 0])
    with pytest.raises(InputError, match="experts"):
        loads_of_trace(folder, 5, EXPERTS * 2, 1000, 10)
    with pytest.raises(InputError, match="too few"):
        loads_of_trace(folder, 5, EXPERTS, 1000, 10**6)
