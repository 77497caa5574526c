import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, MissingExtraError
from moesim.extras import require
from moesim.placement import EMPTY_SLOT, Placement, PlanFile, read_plan, write_plan
from moesim.schema import Evidence, weakest
from moesim.traces.bundle import open_trace, sample_path, write_trace


def test_weakest_evidence_decides():
    assert weakest(Evidence.MEASURED, Evidence.SPEC, Evidence.FITTED) is Evidence.SPEC


def test_a_missing_extra_is_one_line_that_names_it():
    with pytest.raises(MissingExtraError, match=r"pip install 'moesim\[ray\]'") as caught:
        require("no_such_package.part", "ray", "sweeping")
    assert "\n" not in str(caught.value)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(seed=st.integers(0, 2**32), redundant=st.integers(0, 3))
def test_logical_and_physical_maps_are_inverse(seed, redundant):
    rng = np.random.default_rng(seed)
    slots = 6 + 3 * redundant
    rows = [rng.permutation(np.r_[:6, rng.integers(0, 6, slots - 6)]) for _ in range(2)]
    placement = Placement(np.array(rows), 3, 6, (1, 4))
    count, slots_of = placement.replica_count(), placement.logical_to_physical()
    assert count.sum() == 2 * slots
    for layer in range(2):
        for expert in range(6):
            held = slots_of[layer, expert]
            assert list(held[held >= 0]) == list(np.flatnonzero(rows[layer] == expert))
            assert (held >= 0).sum() == count[layer, expert]


BAD_PLACEMENTS = {
    "does not divide": ([[0, 1, 0]], 2, 2, (0,), "slots do not divide"),
    "id too large": ([[0, 1, 2, 7]], 2, 3, (0,), "out of range"),
    "id too small": ([[0, 1, 2, -2]], 2, 3, (0,), "out of range"),
    "expert missing": ([[0, 1, 1, 0]], 2, 3, (0,), "expert 2 is nowhere"),
    "layers": ([[0, 1]], 2, 2, (0, 1), "one model layer index per row"),
    "order": ([[0, 1], [0, 1]], 2, 2, (4, 3), "ascend"),
    "no devices": ([[0, 1]], 0, 2, (0,), "slots do not divide"),
    "empty": ([[]], 1, 2, (0,), "non-empty"),
}


@pytest.mark.parametrize("name", BAD_PLACEMENTS)
def test_bad_placements_are_refused(name):
    rows, devices, experts, layers, match = BAD_PLACEMENTS[name]
    with pytest.raises(InputError, match=match):
        Placement(np.array(rows), devices, experts, layers)


def test_empty_slots_are_no_experts():
    placement = Placement(np.array([[0, 1, 2, EMPTY_SLOT]]), 2, 3, (0,))
    assert placement.has_empty_slots
    assert placement.replica_count().tolist() == [[1, 1, 1]]


def test_plan_files_round_trip(tmp_path):
    placement = Placement(np.array([[0, 1, 1, 2], [2, 1, 0, 0]]), 2, 3, (3, 4))
    file = write_plan(tmp_path / "plan.json", placement, model="m", cluster="c", planner="p",
                      trace_sha256="0" * 64)  # fmt: skip
    document, again = read_plan(file)
    assert document.planner == "p"
    np.testing.assert_array_equal(again.physical_to_logical, placement.physical_to_logical)
    assert again.moe_layers == (3, 4)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("schema", "moesim.plan/9", "schema"),
        ("schema", None, "schema"),
        ("devices", 0, "devices"),
        ("devices", "two", "devices"),
        ("physical_to_logical", [[0, 1, 1, 2], [2, 1]], "lengths"),
        ("physical_to_logical", [[0, 1, 1, 9], [2, 1, 0, 0]], "out of range"),
        ("extra", 1, "unknown key"),
        ("planner", ..., "required key"),
    ],
)
def test_broken_plan_files_name_file_and_field(tmp_path, key, value, match):
    placement = Placement(np.array([[0, 1, 1, 2], [2, 1, 0, 0]]), 2, 3, (3, 4))
    file = write_plan(tmp_path / "plan.json", placement, model="m", cluster="c", planner="p",
                      trace_sha256=None)  # fmt: skip
    body = json.loads(file.read_text()) | {key: value}
    body = {k: v for k, v in body.items() if v is not ...}
    file.write_text(json.dumps(body))
    with pytest.raises(InputError, match=match) as caught:
        read_plan(file)
    assert "plan.json" in str(caught.value)


def test_the_plan_schema_is_stable():
    assert set(PlanFile.model_fields) == {
        "model", "cluster", "planner", "experts", "devices", "slots_per_device", "moe_layers",
        "physical_to_logical", "trace_sha256",
    }  # fmt: skip


def test_the_sample_is_what_it_says():
    trace = open_trace(sample_path())
    assert trace.routing.shape == (8, 43008, 4)
    assert int(trace.routing.max()) == 31
    frame = trace.requests()
    assert set(frame.columns) >= {"request", "phase", "domain", "position"}
    assert sorted(frame["domain"].unique()) == list(trace.manifest.domains)
    # The gates are the router's probabilities of the chosen experts, not renormalised.
    gates = np.asarray(trace.gates, np.float32)
    assert gates.min() > 0
    assert gates.sum(-1).max() <= 1.01


def test_traces_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    routing = rng.integers(0, 300, (2, 50, 3))
    valid_k = rng.integers(0, 4, (2, 50))
    trace = write_trace(tmp_path / "t", routing, model="m", experts=300, source="test",
                        valid_k=valid_k, moe_layers=(1, 3))  # fmt: skip
    assert trace.routing.dtype == np.uint16
    used = np.arange(3) < valid_k[..., None]
    np.testing.assert_array_equal(trace.routing[used], routing[used])
    assert trace.sha256
    with pytest.raises(InputError, match="holds a trace already"):
        write_trace(tmp_path / "t", routing, model="m", experts=300, source="test")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"experts": 3}, "top-k is larger"),
        ({"tokens": 7}, "not what the manifest says"),
        ({"tokens": 0}, "tokens"),
        ({"dtype": "uint16"}, "wrong routing type"),
        ({"moe_layers": [0]}, "one model layer index"),
        ({"schema": "moesim.trace/2"}, "schema"),
        ({"layers": True}, "layers"),
    ],
)
def test_inconsistent_manifests_are_refused(tmp_path, change, match):
    folder = tmp_path / "t"
    shutil.copytree(sample_path(), folder)
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=match):
        open_trace(folder)


def test_no_trace_in_the_folder(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json"):
        open_trace(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_trace(tmp_path / "none")
