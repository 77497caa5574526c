import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.communication import count_copies, link_time
from moesim.placement import Placement
from tests.step import plain
from tests.step.problems import random_batches, random_placement

CLUSTERS = {(1, 4): "4xh100_sxm", (2, 2): "2x2xh100_sxm", (4, 1): "4x1xh100_sxm"}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from(sorted(CLUSTERS)),
    redundant=st.sampled_from([0, 4]),
    phase=st.sampled_from(["prefill", "decode"]),
    ragged=st.booleans(),
)
def test_home_rank_follows_every_token(seed, shape, redundant, phase, ragged):
    rng = np.random.default_rng(seed)
    cluster = load_cluster(CLUSTERS[shape])
    batches = random_batches(rng, ragged=ragged)
    placement = random_placement(rng, redundant=redundant)
    copies, slot_tokens, remote, internode, total = plain.home_rank(
        batches, placement, cluster.node_of_device, phase == "prefill"
    )
    found = count_copies(batches, placement, cluster, "home-rank", phase)
    assert {i: int(n) for i, n in np.ndenumerate(found.dispatch) if n} == dict(copies)
    assert {i: int(n) for i, n in np.ndenumerate(found.slot_tokens) if n} == dict(slot_tokens)
    assert (found.remote, found.internode, found.assignments) == (remote, internode, total)
    # What was dispatched comes back the same way.
    np.testing.assert_array_equal(found.combine, found.dispatch.transpose(0, 1, 3, 2))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 2**32), redundant=st.sampled_from([0, 4]))
def test_chain_follows_every_token(seed, redundant):
    rng = np.random.default_rng(seed)
    cluster = load_cluster("2x2xh100_sxm")
    batches = random_batches(rng, layers=3)
    placement = random_placement(rng, layers=3, redundant=redundant)
    dispatch, combine = plain.chain(batches, placement)
    found = count_copies(batches, placement, cluster, "chain", "prefill")
    for mine, theirs in ((found.dispatch, dispatch), (found.combine, combine)):
        expected = np.zeros_like(mine)
        for index, value in theirs.items():
            expected[index] = value
        np.testing.assert_allclose(mine, expected, atol=1e-12)


def test_chain_stays_on_one_device_when_all_experts_do():
    rng = np.random.default_rng(0)
    cluster = load_cluster("1xh100_sxm")
    batches = random_batches(rng, devices=1)
    placement = random_placement(rng, devices=1)
    found = count_copies(batches, placement, cluster, "chain", "decode")
    assert found.remote == 0
    assert not found.dispatch.any()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 2**32), form=st.sampled_from(["home-rank", "chain"]))
def test_tokens_and_bytes_are_conserved(seed, form):
    rng = np.random.default_rng(seed)
    cluster = load_cluster("2x2xh100_sxm")
    batches = random_batches(rng)
    found = count_copies(batches, random_placement(rng, redundant=4), cluster, form, "prefill")
    assert found.slot_tokens.sum() == batches.routing.size == found.assignments
    time = link_time(found.dispatch, cluster)
    # Every hop of a route carries the pair's bytes: bytes out of the devices are bytes into them.
    names = set(cluster.device_names)
    leaving = [i for i, link in enumerate(cluster.links) if link.source in names]
    entering = [i for i, link in enumerate(cluster.links) if link.target in names]
    off_diagonal = found.dispatch.sum()
    assert time.link_bytes[..., leaving].sum() == pytest.approx(off_diagonal)
    assert time.link_bytes[..., entering].sum() == pytest.approx(off_diagonal)
    assert (time.seconds >= time.tail_pair_s).all()


def test_renaming_devices_of_a_symmetric_cluster_changes_no_time():
    rng = np.random.default_rng(3)
    cluster = load_cluster("2x2xh100_sxm")
    batches = random_batches(rng)
    placement = random_placement(rng)
    renamed = [2, 3, 0, 1]  # the nodes change places
    table = placement.physical_to_logical.reshape(2, 4, 2)[:, renamed].reshape(2, 8)
    homes = batches.routing.reshape(2, 2, 4, 3, 2)[:, :, renamed].reshape(2, 2, 12, 2)
    swapped = type(batches)(homes, None, 8, 4, 3)
    before = count_copies(batches, placement, cluster, "home-rank", "decode")
    after = count_copies(swapped, Placement(table, 4, 8, (0, 1)), cluster, "home-rank", "decode")
    np.testing.assert_allclose(
        link_time(before.dispatch, cluster).seconds, link_time(after.dispatch, cluster).seconds
    )


def test_link_time_of_a_known_pattern():
    cluster = load_cluster("2x2xh100_sxm")
    sent = np.zeros((4, 4))
    sent[0, 1] = 9e9  # inside node 0: 450 GB/s
    sent[0, 2] = 1e9  # between nodes: 50 GB/s
    time = link_time(sent, cluster)
    latency_s = max(cluster.pair_latency_s[0, 1], cluster.pair_latency_s[0, 2])
    assert time.seconds == pytest.approx(0.02 + latency_s, rel=1e-12)
    assert time.tail_pair_s == pytest.approx(0.02)
    sent[1, 3] = 3e9  # another NIC, three times as much
    assert link_time(sent, cluster).seconds == pytest.approx(0.06 + latency_s, rel=1e-12)
