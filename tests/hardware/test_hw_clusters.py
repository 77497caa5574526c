"""Clusters: what the short names, the bundled files and the YAML documents mean."""

import itertools
import pickle
import time

import networkx as nx
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import cluster_names, load_cluster
from moesim.topology import chained_routes, link_graph, shortest_routes

GB = 1e9


def routes_of(cluster):
    """The route of each ordered pair, as vertex names."""
    routes = {}
    for g in range(cluster.devices):
        for h in range(cluster.devices):
            pair = g * cluster.devices + h
            span = slice(cluster.route_offsets[pair], cluster.route_offsets[pair + 1])
            links = [cluster.links[i] for i in cluster.route_links[span]]
            names = [links[0].source] + [link.target for link in links] if links else []
            for before, after in itertools.pairwise(links):
                assert before.target == after.source
            routes[g, h] = names
    return routes


def write(tmp_path, body, name="cluster.yaml"):
    path = tmp_path / name
    path.write_text(yaml.safe_dump({"schema": "moesim.cluster/1", "name": "mine"} | body))
    return path


def test_two_nodes_of_eight_h100():
    cluster = load_cluster("2x8xh100_sxm")
    assert (cluster.devices, cluster.nodes) == (16, 2)
    assert cluster.node_of_device.tolist() == [0] * 8 + [1] * 8
    assert cluster.node_of_device.dtype == np.int32
    assert cluster.speed_factors.tolist() == [1.0] * 16
    routes = routes_of(cluster)
    assert routes[0, 0] == []
    assert routes[0, 7] == ["gpu0", "nvswitch0", "gpu7"]
    assert routes[3, 9] == ["gpu3", "nic3", "spine0", "nic9", "gpu9"]
    bandwidth, latency = cluster.pair_bandwidth_bytes_per_s, cluster.pair_latency_s
    assert bandwidth[0, 7] == 450 * GB
    assert bandwidth[0, 8] == 50 * GB
    assert np.isinf(bandwidth.diagonal()).all()
    assert latency[0, 7] == pytest.approx(3.33e-6)
    assert latency[0, 8] == pytest.approx(2.8e-6)
    assert not latency.diagonal().any()
    edge = cluster.graph.edges["gpu0", "nic0"]
    assert edge["bandwidth_bytes_per_s"] == 64 * GB, "PCIe and network are separate links"
    assert edge["tier"] == "scale-out"
    assert cluster.links[edge["index"]].target == "nic0"


def test_one_node_needs_no_network_card():
    cluster = load_cluster("8xh100_sxm")
    assert (cluster.devices, cluster.nodes) == (8, 1)
    assert set(cluster.graph) == {f"gpu{g}" for g in range(8)} | {"nvswitch0"}


def test_full_mesh_gives_each_peer_its_own_link():
    cluster = load_cluster("2x8xascend_910b4")
    routes = routes_of(cluster)
    assert routes[0, 5] == ["npu0", "npu5"]
    assert cluster.pair_bandwidth_bytes_per_s[0, 5] == 28 * GB
    assert cluster.pair_bandwidth_bytes_per_s[0, 8] == 25 * GB
    # Two devices do not get the links of the six that are missing.
    assert load_cluster("2xascend_910b4").pair_bandwidth_bytes_per_s[0, 1] == 28 * GB
    assert load_cluster("8xmi300x").pair_bandwidth_bytes_per_s[0, 1] == 64 * GB


def test_without_scale_up_traffic_goes_over_the_host():
    cluster = load_cluster("2x8xl40s")
    routes = routes_of(cluster)
    assert routes[0, 1] == ["gpu0", "pcie0", "host0", "pcie1", "gpu1"]
    assert routes[0, 8] == ["gpu0", "pcie0", "nic0", "spine0", "nic8", "pcie8", "gpu8"]
    assert set(cluster.pair_bandwidth_bytes_per_s[0, 1:].tolist()) == {32 * GB}
    assert cluster.pair_latency_s[0, 1] == pytest.approx(10e-6)
    assert cluster.pair_latency_s[0, 8] == pytest.approx(2.8e-6)


def test_nvl72_nodes_share_one_nvlink_domain():
    cluster = load_cluster("gb200_nvl72")
    assert (cluster.devices, cluster.nodes) == (72, 18)
    assert set(cluster.domain_of_device.tolist()) == {0}
    other = ~np.eye(72, dtype=bool)
    assert set(cluster.pair_bandwidth_bytes_per_s[other].tolist()) == {900 * GB}
    assert {link.tier for link in cluster.links} == {"scale-up"}


def test_two_nvl72_racks_are_joined_by_cards():
    cluster = load_cluster("36x4xgb200")
    assert cluster.domain_of_device.tolist() == [0] * 72 + [1] * 72
    assert cluster.pair_bandwidth_bytes_per_s[0, 71] == 900 * GB
    assert cluster.pair_bandwidth_bytes_per_s[0, 72] == 64 * GB, "the PCIe 5 port before the card"


def test_h100_nodes_do_not_share_nvlink():
    # Two half-filled nodes could fit into one domain of eight, but NVLink ends at the board.
    cluster = load_cluster("2x4xh100_sxm")
    assert cluster.domain_of_device.tolist() == [0] * 4 + [1] * 4
    assert cluster.pair_bandwidth_bytes_per_s[0, 4] == 50 * GB


def test_one_device():
    cluster = load_cluster("1xh100_sxm")
    assert cluster.pair_bandwidth_bytes_per_s.tolist() == [[np.inf]]
    assert cluster.pair_latency_s.tolist() == [[0.0]]
    assert cluster.route_offsets.tolist() == [0, 0]
    assert cluster.route_links.tolist() == []
    assert (cluster.devices, cluster.nodes, cluster.links) == (1, 1, ())


def test_devices_of_one_per_node_go_straight_to_their_card():
    cluster = load_cluster("3x1xl40s")
    assert routes_of(cluster)[0, 2] == ["gpu0", "nic0", "spine0", "nic2", "gpu2"]


@pytest.mark.parametrize("name", cluster_names())
def test_bundled_clusters(name):
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.title
    assert np.isfinite(cluster.pair_latency_s).all()
    bandwidth = cluster.pair_bandwidth_bytes_per_s
    assert (bandwidth == bandwidth.T).all()
    assert (bandwidth > 0).all()


def test_overrides(tmp_path):
    path = write(
        tmp_path,
        {
            "device": "h800_sxm",
            "nodes": 2,
            "devices_per_node": 8,
            "speed_factors": {3: 0.5, 12: 2},
            "scale_up": {"bandwidth": "160 GB/s"},
            "nic": {"bandwidth": "320 Gbit/s", "latency": "4 us"},
            "oversubscription": 2,
            "nics_per_node": 4,
        },
    )
    cluster = load_cluster(path)
    expected = np.ones(16)
    expected[[3, 12]] = 0.5, 2
    assert cluster.speed_factors.tolist() == expected.tolist()
    routes = routes_of(cluster)
    assert routes[3, 8] == ["gpu3", "nic1", "leaf0", "spine0", "leaf1", "nic4", "gpu8"]
    uplink = cluster.graph.edges["leaf0", "spine0"]
    assert uplink["bandwidth_bytes_per_s"] == 4 * 40 * GB / 2, "four cards, half of them uplinked"
    assert cluster.pair_bandwidth_bytes_per_s[0, 1] == 160 * GB
    assert cluster.pair_bandwidth_bytes_per_s[0, 8] == 40 * GB
    assert cluster.pair_latency_s[0, 8] == pytest.approx(4e-6)
    assert cluster.pair_latency_s[0, 1] == pytest.approx(3.33e-6), "latency was not replaced"


def test_heavy_oversubscription_is_the_bottleneck_of_a_pair(tmp_path):
    body = {"device": "h100_sxm", "nodes": 2, "devices_per_node": 2, "oversubscription": 8}
    cluster = load_cluster(write(tmp_path, body))
    assert cluster.pair_bandwidth_bytes_per_s[0, 2] == 2 * 50 * GB / 8


def test_a_card_can_be_given_to_a_device_whose_profile_has_none(tmp_path):
    body = {
        "device": "rtx4090",
        "nodes": 2,
        "devices_per_node": 4,
        "nics_per_node": 1,
        "nic": {"bandwidth": "25 GB/s", "latency": "3 us"},
    }
    cluster = load_cluster(write(tmp_path, body))
    assert cluster.pair_bandwidth_bytes_per_s[0, 4] == 25 * GB
    assert {name for name in cluster.graph if name.startswith("nic")} == {"nic0", "nic1"}


def test_speed_factors_as_a_list_and_a_device_file_beside_it(tmp_path):
    from moesim.hardware import load_device
    from moesim.safe_io import write_json

    write_json(tmp_path / "mine.json", load_device("l40s").to_dict() | {"name": "mine"})
    body = {"device": "mine.json", "nodes": 1, "devices_per_node": 2, "speed_factors": [1, 0.75]}
    cluster = load_cluster(write(tmp_path, body))
    assert cluster.device.name == "mine"
    assert cluster.speed_factors.tolist() == [1, 0.75]


def test_arrays_are_read_only_and_computed_once():
    cluster = load_cluster("2x2xh100_sxm")
    for array in (
        cluster.node_of_device,
        cluster.domain_of_device,
        cluster.speed_factors,
        cluster.route_offsets,
        cluster.route_links,
        cluster.pair_bandwidth_bytes_per_s,
        cluster.pair_latency_s,
    ):
        assert not array.flags.writeable
    assert cluster.pair_latency_s is cluster.pair_latency_s
    assert cluster.route_offsets.dtype == np.int64
    assert cluster.route_links.dtype == np.int32


def test_clusters_travel_to_other_processes():
    cluster = load_cluster("2x2xh100_sxm")
    copy = pickle.loads(pickle.dumps(cluster))
    assert copy.links == cluster.links
    assert (copy.pair_latency_s == cluster.pair_latency_s).all()


def test_512_devices_build_in_two_seconds():
    start = time.process_time()
    cluster = load_cluster("64x8xh100_sxm")
    assert cluster.pair_bandwidth_bytes_per_s.shape == (512, 512)
    assert cluster.pair_latency_s.shape == (512, 512)
    assert time.process_time() - start < 2


# Differential: routes made from the structure against searches in the drawn graph.

SHORT = ["8xh100_sxm", "2x8xh100_sxm", "3x4xl40s", "2x3xascend_910b2", "4x2xgb200", "20x4xgb300"]


@pytest.mark.parametrize("name", SHORT)
def test_structured_routes_equal_searched_routes(name):
    cluster = load_cluster(name)
    searched = shortest_routes(cluster.device_names, tuple(cluster.graph), cluster.links)
    assert (searched.offsets == cluster.route_offsets).all()
    assert (searched.links == cluster.route_links).all()


@pytest.mark.parametrize("name", [*SHORT, "h100_mixed_speed", "rtx_a6000_bridged"])
def test_pair_arrays_equal_a_plain_search_by_networkx(name):
    cluster = load_cluster(name)
    graph = cluster.graph

    def cost(_source, _target, edge):
        return edge["latency_s"] + 2**20 / edge["bandwidth_bytes_per_s"]

    for g, source in enumerate(cluster.device_names):
        for h, target in enumerate(cluster.device_names):
            if g == h:
                continue
            path = nx.shortest_path(graph, source, target, weight=cost)
            edges = [graph.edges[pair] for pair in itertools.pairwise(path)]
            slowest = min(edge["bandwidth_bytes_per_s"] for edge in edges)
            latency = sum(edge["latency_s"] for edge in edges)
            assert cluster.pair_bandwidth_bytes_per_s[g, h] == slowest
            assert cluster.pair_latency_s[g, h] == pytest.approx(latency)


# Properties of drawn networks.


@st.composite
def drawn_networks(draw):
    """A connected network: a random tree over devices and switches, with extra links."""
    devices, switches = draw(st.integers(2, 7)), draw(st.integers(0, 4))
    names = [f"d{i}" for i in range(devices)] + [f"s{i}" for i in range(switches)]
    pairs = {
        tuple(sorted((names[draw(st.integers(0, i - 1))], names[i]))) for i in range(1, len(names))
    }
    for _ in range(draw(st.integers(0, 6))):
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        if a != b:
            pairs.add(tuple(sorted((a, b))))
    speeds = st.sampled_from(["25 GB/s", "50 GB/s", "100 GB/s", "450 GB/s"])
    links = [
        {"between": list(pair), "bandwidth": draw(speeds), "latency": "1 us", "tier": "scale-up"}
        for pair in sorted(pairs)
    ]
    return {
        "device": "h100_sxm",
        "devices": [{"name": name, "node": 0} for name in names[:devices]],
        "switches": names[devices:],
        "links": links,
    }


def built(body):
    from moesim.cluster import _built
    from moesim.cluster_files import parse_cluster
    from moesim.hardware import load_device

    document = parse_cluster({"schema": "moesim.cluster/1", "name": "mine"} | body)
    return _built(document, load_device(document.device))


@settings(deadline=None, derandomize=True, max_examples=120)
@given(drawn_networks())
def test_drawn_routes_are_walks_symmetric_and_shortest(body):
    cluster = built(body)
    routes = routes_of(cluster)
    graph = link_graph(tuple(cluster.graph), cluster.links)

    def cost_ps(_source, _target, edge):
        return max(1, round((1e-6 + 2**20 / edge["bandwidth_bytes_per_s"]) * 1e12))

    for (g, h), route in routes.items():
        if g == h:
            continue
        assert route[0] == cluster.device_names[g]
        assert route[-1] == cluster.device_names[h]
        assert routes[h, g] == route[::-1]
        assert len(set(route)) == len(route), "no vertex twice"
        spent = sum(cost_ps(0, 0, graph.edges[p]) for p in itertools.pairwise(route))
        assert spent == nx.dijkstra_path_length(graph, route[0], route[-1], weight=cost_ps)
    bandwidth = cluster.pair_bandwidth_bytes_per_s
    assert (bandwidth == bandwidth.T).all()


@settings(deadline=None, derandomize=True, max_examples=80)
@given(drawn_networks(), st.randoms(use_true_random=False))
def test_order_of_devices_and_links_does_not_matter(body, random):
    one = built(body)
    shuffled = {key: list(value) for key, value in body.items() if key != "device"}
    for part in shuffled.values():
        random.shuffle(part)
    two = built({"device": body["device"]} | shuffled)
    order = [two.device_names.index(name) for name in one.device_names]
    there = np.ix_(order, order)
    assert (two.pair_bandwidth_bytes_per_s[there] == one.pair_bandwidth_bytes_per_s).all()
    assert np.allclose(two.pair_latency_s[there], one.pair_latency_s, rtol=1e-12)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(drawn_networks())
def test_the_same_document_gives_the_same_routes(body):
    one, two = built(body), built(body)
    assert (one.route_links == two.route_links).all()
    assert (one.route_offsets == two.route_offsets).all()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["h100_sxm", "l40s", "ascend_910b2", "gb200", "mi300x"]),
)
def test_regular_clusters_are_the_same_for_every_device(nodes, per_node, device):
    cluster = load_cluster(f"{nodes}x{per_node}x{device}")
    bandwidth = np.sort(cluster.pair_bandwidth_bytes_per_s, axis=1)
    assert (bandwidth == bandwidth[0]).all()
    latency = np.sort(cluster.pair_latency_s, axis=1)
    assert np.allclose(latency, latency[0])
    used = np.bincount(cluster.route_links, minlength=len(cluster.links))
    assert (used[::2] == used[1::2]).all(), "as much there as back"
    if cluster.devices > 1 and device != "ascend_910b2":
        assert (used > 0).all(), "no link that nobody uses"


def test_widest_of_equally_short_routes_is_taken():
    # Over `a`: 2 × 100 GB/s. Over `b`: 1/400 + 7/400 = 2/100, as short, but narrower.
    rates = {"a": ("100 GB/s", "100 GB/s"), "b": ("400 GB/s", f"{400 / 7:.17g} GB/s")}
    for order in (["a", "b"], ["b", "a"]):
        links = [
            {"between": ["x", s], "bandwidth": rates[s][0], "latency": "0 s", "tier": "scale-up"}
            for s in order
        ] + [
            {"between": [s, "y"], "bandwidth": rates[s][1], "latency": "0 s", "tier": "scale-up"}
            for s in order
        ]
        body = {
            "device": "h100_sxm",
            "devices": [{"name": "x", "node": 0}, {"name": "y", "node": 0}],
            "switches": order,
            "links": links,
        }
        assert built(body).pair_bandwidth_bytes_per_s[0, 1] == 100 * GB


def test_a_ring_passes_messages_on():
    names = [f"d{i}" for i in range(6)]
    links = [
        {
            "between": [names[i], names[(i + 1) % 6]],
            "bandwidth": "10 GB/s",
            "latency": "1 us",
            "tier": "scale-out",
        }
        for i in range(6)
    ]
    body = {
        "device": "h100_sxm",
        "devices": [{"name": name, "node": i} for i, name in enumerate(names)],
        "links": links,
    }
    cluster = built(body)
    assert np.round(cluster.pair_latency_s[0] * 1e6).tolist() == [0, 1, 2, 3, 2, 1]
    assert cluster.domain_of_device.tolist() == [0, 1, 2, 3, 4, 5], "no scale-up links"
    assert cluster.nodes == 6


def test_chained_routes_leave_unjoined_pairs_empty():
    routes = chained_routes(2, [])
    assert routes.offsets.tolist() == [0, 0, 0, 0, 0]
