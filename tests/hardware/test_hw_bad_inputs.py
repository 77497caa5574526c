"""Bad device and cluster documents: an error that names file, field and fix, never a number."""

import copy
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.cluster_files import parse_cluster
from moesim.errors import InputError, MoesimError, UsageError
from moesim.hardware import Device, load_device


def device_body():
    return copy.deepcopy(load_device("h100_sxm").to_dict())


def edit(body, path, value):
    *parents, last = path.split(".")
    for key in parents:
        body = body[int(key)] if isinstance(body, list) else body[key]
    if value is KeyError:
        del body[last]
    else:
        body[int(last) if isinstance(body, list) else last] = value


DEVICE_FAULTS = {
    "missing unit": ("memory.bandwidth.value", "3.35", r"memory\.bandwidth\.value: not a quantity"),
    "bare number": ("memory.bandwidth.value", 3.35e12, r"not a quantity.*found 33"),
    "bytes for bandwidth": ("memory.bandwidth.value", "3.35 TB", r"unknown unit 'TB'.*TB/s"),
    "bits for memory": ("memory.capacity.value", "80 Gb", r"unknown unit 'Gb'.*GiB"),
    "negative bandwidth": ("memory.bandwidth.value", "-3.35 TB/s", r"not negative.*-3.35 TB/s"),
    "zero bandwidth": ("scale_up.bandwidth.value", "0 GB/s", r"must be positive"),
    "infinite": ("memory.bandwidth.value", "1e999 TB/s", r"must be finite"),
    "not a number": ("memory.bandwidth.value", "nan TB/s", r"not a quantity"),
    "GB against GiB": ("memory.addressable.value", "81559 GB", r"far from the capacity.*GiB"),
    "KB against MB": ("memory.addressable.value", "81559 KiB", r"far from the capacity"),
    "unknown key": (
        "memory.bandwith",
        {"value": "1 TB/s", "source": "x"},
        r"memory\.bandwith: unkn",
    ),
    "unknown top key": ("colour", 3, r"colour: unknown key.*\n?fix: remove it"),
    "unknown source": (
        "tdp.source",
        "nowhere",
        r"tdp\.source: a source that.*found nowhere.*\nfix",
    ),
    "no source": ("tdp.source", KeyError, r"tdp\.source: a required key is missing"),
    "no bandwidth": ("memory.bandwidth", KeyError, r"memory\.bandwidth: a required key is missing"),
    "no peak": ("peak", {}, r"peak: .*at least 1"),
    "unknown dtype": ("peak.bfloat16", {"value": "1 TFLOP/s", "source": "x"}, r"peak\.bfloat16"),
    "unknown kind": ("kind", "tpu", r"kind: input should be 'gpu'"),
    "unknown topology": ("scale_up.topology", "torus", r"scale_up\.topology: input should be"),
    "domain of one": ("scale_up.domain_devices", 1, r"scale_up\.domain_devices: .*greater than or"),
    "half a domain": ("scale_up.domain_devices", 7.5, r"scale_up\.domain_devices: .*integer"),
    "bool as count": ("cores.value", True, r"cores\.value: .*integer"),
    "unknown evidence": ("tdp.evidence", "guess", r"tdp\.evidence: input should be 'measured'"),
    "name with spaces": ("name", "H 100", r"name: string should match"),
    "empty sources": ("sources", {}, r"sources: "),
    "other schema": ("schema", "moesim.device/2", r"schema: not a document.*moesim\.device/1"),
    "null quantity": ("memory.bandwidth", None, r"memory\.bandwidth: "),
    "list for mapping": ("memory", [1, 2], r"memory: "),
}


@pytest.mark.parametrize("fault", DEVICE_FAULTS)
def test_faulty_device(tmp_path, fault):
    path, value, message = DEVICE_FAULTS[fault]
    body = device_body()
    edit(body, path, value)
    file = tmp_path / "device.yaml"
    file.write_text(yaml.safe_dump(body))
    with pytest.raises(InputError, match=r"(?s)device\.yaml: .*" + message) as caught:
        load_device(file)
    assert len(str(caught.value).splitlines()) <= 2


def test_the_unfaulted_body_loads(tmp_path):
    (tmp_path / "device.yaml").write_text(yaml.safe_dump(device_body()))
    assert load_device(tmp_path / "device.yaml") == load_device("h100_sxm")


def test_gb_and_gib_are_different(tmp_path):
    sizes = []
    for unit in ("GB", "GiB"):
        body = device_body()
        del body["memory"]["addressable"]
        edit(body, "memory.capacity.value", f"80 {unit}")
        sizes.append(Device.parse(body).memory_bytes)
    assert sizes == [80e9, 80 * 2**30]


YAML_FAULTS = {
    "duplicate key": ("schema: moesim.device/1\nname: a\nname: b\n", r"line 3: .*duplicate key"),
    "alias": ("a: &x [1]\nb: *x\n", r"aliases are not allowed"),
    "alias bomb": (
        "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in ("ab", "bc", "cd")),
        r"aliases are not allowed",
    ),
    "merge key": ("a: &x {b: 1}\nc: {<<: *x}\n", r"aliases are not allowed"),
    "deep nesting": ("a: " + "[" * 500 + "]" * 500, r"nested deeper"),
    "python object": ("!!python/object/apply:os.system ['true']\n", r"not usable YAML"),
    "not a mapping": ("- 1\n- 2\n", r"a mapping is needed"),
    "empty": ("", r"a mapping is needed"),
    "tab": ("a:\n\t- b\n", r"not usable YAML"),
    "no schema": ("name: a\n", r"schema: .*found none"),
    "huge integer": ("schema: moesim.device/1\nname: 1" + "0" * 5000 + "\n", r"not usable YAML"),
    "binary": (b"\xff\xfe\x00a", r"not UTF-8"),
}


@pytest.mark.parametrize("load", [load_device, load_cluster])
@pytest.mark.parametrize("fault", YAML_FAULTS)
def test_faulty_yaml(tmp_path, fault, load):
    text, message = YAML_FAULTS[fault]
    file = tmp_path / "x.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    with pytest.raises(InputError, match=r"(?s)x\.yaml.*" + message):
        load(file)
    assert time.process_time() - start < 2


def test_missing_file_and_folder(tmp_path):
    for load in (load_device, load_cluster):
        with pytest.raises(InputError, match=r"none\.yaml: no such file"):
            load(tmp_path / "none.yaml")
        with pytest.raises(InputError, match="a file is needed"):
            load(tmp_path)


def test_crlf_bom_and_unicode_paths_are_fine(tmp_path):
    file = tmp_path / "профиль é.yaml"
    text = yaml.safe_dump(device_body()).replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_device(file).name == "h100_sxm"


REGULAR = {
    "schema": "moesim.cluster/1",
    "name": "mine",
    "device": "h100_sxm",
    "nodes": 2,
    "devices_per_node": 2,
}
REGULAR_FAULTS = {
    "no devices": ("devices_per_node", 0, r"devices_per_node: .*greater than or equal to 1"),
    "negative nodes": ("nodes", -1, r"nodes: .*greater than or equal to 1"),
    "half a node": ("nodes", 1.5, r"nodes: .*integer"),
    "nodes as text": ("nodes", "2", r"nodes: .*integer"),
    "too many": ("nodes", 3000, r"too many devices; found 6000; allowed: at most 4096"),
    "no device": ("device", KeyError, r"device: a required key is missing"),
    "unknown device": ("device", "h100", r"device: unknown device 'h100'; near: h100_sxm"),
    "device file missing": ("device", "none.yaml", r"none\.yaml: no such file"),
    "short speeds": (
        "speed_factors",
        [1, 1, 1],
        r"speed_factors: one .*found 3 factors; allowed: 4",
    ),
    "speed of no device": (
        "speed_factors",
        {4: 0.5},
        r"speed_factors: no such device; found 4.*0 … 3",
    ),
    "speed zero": (
        "speed_factors",
        [1, 1, 1, 0],
        r"speed_factors\.list\[3\]: .*greater than 0; found 0",
    ),
    "speed negative": (
        "speed_factors",
        {1: -1.0},
        r"speed_factors\.mapping\[1\]: .*greater than 0",
    ),
    "speed infinite": ("speed_factors", {1: float("inf")}, r"speed_factors"),
    "speed nan": ("speed_factors", [1, 1, 1, float("nan")], r"speed_factors"),
    "speed text": ("speed_factors", "fast", r"speed_factors: a list or a mapping .*found fast"),
    "override without unit": ("nic", {"bandwidth": 50}, r"nic\.bandwidth: not a quantity"),
    "override zero": (
        "nic",
        {"bandwidth": "0 GB/s"},
        r"nic\.bandwidth: a quantity must be positive",
    ),
    "negative latency": ("scale_up", {"latency": "-1 us"}, r"scale_up\.latency: .*not negative"),
    "unknown override": ("nic", {"speed": "1 GB/s"}, r"nic\.speed: unknown key"),
    "undersubscribed": ("oversubscription", 0.5, r"oversubscription: .*greater than or equal to 1"),
    "three cards for two": ("nics_per_node", 3, r"nics_per_node: .*divisor of 2"),
    "too many in a domain": ("devices_per_node", 9, r"devices_per_node: more devices .*1 … 8"),
    "unknown key": ("device_per_node", 4, r"device_per_node: unknown key"),
    "mixed types": ("device", ["h100_sxm", "l40s"], r"device: .*string"),
    "bad name": ("name", "../x", r"name: string should match"),
    "other schema": ("schema", "moesim.device/1", r"schema: .*allowed: moesim\.cluster/1"),
}


@pytest.mark.parametrize("fault", REGULAR_FAULTS)
def test_faulty_regular_cluster(tmp_path, fault):
    field, value, message = REGULAR_FAULTS[fault]
    body = copy.deepcopy(REGULAR)
    edit(body, field, value)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(body))
    with pytest.raises(InputError, match=r"(?s)" + message):
        load_cluster(file)


def test_scale_up_numbers_of_a_device_without_scale_up_are_refused(tmp_path):
    file = tmp_path / "cluster.yaml"
    body = REGULAR | {"device": "l40s", "scale_up": {"bandwidth": "100 GB/s"}}
    file.write_text(yaml.safe_dump(body))
    with pytest.raises(InputError, match=r"scale_up: l40s has no scale-up network"):
        load_cluster(file)


def test_a_device_without_a_card_cannot_span_nodes(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(REGULAR | {"device": "rtx4090"}))
    with pytest.raises(InputError, match=r"(?s)cluster\.yaml: nic: rtx4090.*no network card.*fix"):
        load_cluster(file)
    with pytest.raises(UsageError, match="names no network card"):
        load_cluster("2x8xrtx4090")
    with pytest.raises(UsageError, match="names no host link"):
        load_cluster("2x1xfpga_zcu102")
    with pytest.raises(UsageError, match="no link to other devices of its node"):
        load_cluster("2xfpga_zcu102")


def link(a, b, **other):
    return {
        "between": [a, b],
        "bandwidth": "50 GB/s",
        "latency": "1 us",
        "tier": "scale-up",
    } | other


DRAWN = {
    "schema": "moesim.cluster/1",
    "name": "mine",
    "device": "h100_sxm",
    "devices": [{"name": "a", "node": 0}, {"name": "b", "node": 0}, {"name": "c", "node": 1}],
    "switches": ["s"],
    "links": [link("a", "s"), link("b", "s"), link("c", "s", tier="scale-out")],
}
DRAWN_FAULTS = {
    "disconnected": (
        "links",
        [link("a", "s")],
        r"links: the network is not connected.*from a to b",
    ),
    "no links": ("links", [], r"not connected"),
    "unknown vertex": (
        "links.1.between",
        ["b", "t"],
        r"links\[1\]\.between: .*found t; allowed: a",
    ),
    "self link": ("links.1.between", ["b", "b"], r"links\[1\]\.between: a link to itself"),
    "double link": ("links.1.between", ["s", "a"], r"links: two links between the same pair"),
    "three ends": ("links.1.between", ["a", "b", "s"], r"links\[1\]\.between"),
    "same name": ("devices.1.name", "a", r"a name is used twice; found a"),
    "switch named as device": ("switches", ["a"], r"a name is used twice; found a"),
    "no devices": ("devices", [], r"devices: .*at least 1"),
    "gap in nodes": ("devices.2.node", 2, r"numbered 0, 1, 2 … without a gap; found 0, 2"),
    "negative node": ("devices.2.node", -1, r"devices\[2\]\.node: .*greater"),
    "zero speed": ("devices.1.speed_factor", 0, r"devices\[1\]\.speed_factor: .*greater than 0"),
    "no unit": ("links.0.bandwidth", "50", r"links\[0\]\.bandwidth: not a quantity"),
    "negative": ("links.0.bandwidth", "-50 GB/s", r"links\[0\]\.bandwidth: .*not negative"),
    "no latency": ("links.0.latency", KeyError, r"links\[0\]\.latency: a required key is missing"),
    "unknown tier": ("links.0.tier", "nvlink", r"links\[0\]\.tier: input should be 'scale-up'"),
    "both forms": ("nodes", 2, r"nodes: unknown key"),
}


@pytest.mark.parametrize("fault", DRAWN_FAULTS)
def test_faulty_drawn_cluster(tmp_path, fault):
    field, value, message = DRAWN_FAULTS[fault]
    body = copy.deepcopy(DRAWN)
    edit(body, field, value)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(body))
    with pytest.raises(InputError, match=r"(?s)cluster\.yaml: .*" + message):
        load_cluster(file)


def test_the_unfaulted_clusters_load(tmp_path):
    for body in (REGULAR, DRAWN):
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(body))
        assert load_cluster(tmp_path / "cluster.yaml").name == "mine"


NAME_FAULTS = {
    "2x0xh100": r"has 0 devices; allowed: 1 … 4096",
    "0x8xh100_sxm": r"has 0 devices",
    "0xh100_sxm": r"has 0 devices",
    "513x8xh100_sxm": r"has 4104 devices",
    "999999999x999999999xh100_sxm": r"devices; allowed: 1 … 4096",
    "9999999999x8xh100_sxm": r"unknown cluster",
    "axbxh100": r"unknown cluster 'axbxh100'.*2x8xh100_sxm",
    "2x8xh100": r"unknown device 'h100'; near: h100_sxm",
    "2x8x": r"unknown cluster",
    "-2x8xh100_sxm": r"unknown cluster",
    "2.5x8xh100_sxm": r"unknown cluster",
    "٢x٨xh100_sxm": r"unknown cluster",
    "h100_sxm": r"is a device, not a cluster\nfix: write 8xh100_sxm",
    "16xh100_sxm": r"more devices per node.*\nfix: use more nodes, such as 2x8xh100_sxm",
    "gb200_nvl": r"near: gb200_nvl72",
    "": r"unknown cluster ''",
    "2x8xh100_sxm\n": r"unknown",
}


@pytest.mark.parametrize("name", NAME_FAULTS)
def test_faulty_short_name(name):
    with pytest.raises(UsageError, match=r"(?s)" + NAME_FAULTS[name]):
        load_cluster(name)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.data())
def test_any_junk_in_any_place_is_an_error_or_a_sound_cluster(data):
    body = copy.deepcopy(data.draw(st.sampled_from([REGULAR, DRAWN])))
    field = data.draw(st.sampled_from(sorted(body)))
    body[field] = data.draw(junk)
    try:
        document = parse_cluster(body)
        document.network(load_device("h100_sxm"))
    except MoesimError:
        return
    assert (document.speeds() > 0).all()


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.data())
def test_any_junk_in_a_device_is_an_error_or_positive_numbers(data):
    body = device_body()
    place = body
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(junk)
    try:
        device = Device.parse(body)
    except MoesimError:
        return
    assert device.memory_bytes > 0
    assert device.memory_bytes_per_s > 0
