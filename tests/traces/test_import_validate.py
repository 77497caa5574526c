"""``validate_trace`` finds every damage, and nothing in a sound bundle."""

import json
import shutil

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.safe_io import sha256_file
from moesim.traces.bundle import sample_path, write_trace
from moesim.traces.importers.contents import Requests
from moesim.traces.validate import validate_trace
from tests.traces import import_samples as samples


@pytest.fixture
def bundle(tmp_path):
    routing = samples.known_routing()
    valid_k = np.full(routing.shape[:2], 2)
    valid_k[0, 3] = 1
    tokens = routing.shape[1]
    zeros = np.zeros(tokens, np.int32)
    write_trace(
        tmp_path / "t",
        routing,
        model="m",
        experts=samples.EXPERTS,
        moe_layers=samples.MOE_LAYERS,
        source="test",
        gates=samples.known_gates(routing),
        valid_k=valid_k,
        requests=Requests(zeros, np.arange(tokens), zeros.astype(np.uint8), zeros).frame(),
    )
    return tmp_path / "t"


def change(folder, name, edit):
    """Edit an array and state its new hash, so that only the edit is wrong."""
    array = np.load(folder / name)
    array = edit(array) if edit(array) is not None else array
    np.save(folder / name, array)
    state_hash(folder, name)


def state_hash(folder, name):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = sha256_file(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put(index, value):
    def edit(array):
        array[index] = value
        return array

    return edit


def only(folder):
    """The single problem of a bundle."""
    report = validate_trace(folder)
    assert len(report.problems) == 1, report.problems
    assert not report.ok
    return report.problems[0]


def test_sound_bundles(bundle):
    for folder in (bundle, sample_path()):
        report = validate_trace(folder)
        assert report.ok
        assert report.problems == ()
        assert report.skipped == ()


def test_id_out_of_range(bundle):
    change(bundle, "routing.npy", put((1, 4, 0), 200))
    problem = only(bundle)
    assert (problem.file, problem.field) == ("routing.npy", "layer 2, token 4")
    assert "found 200; allowed: 0 … 7" in problem.problem


def test_repeated_expert_is_counted_per_layer(bundle):
    change(bundle, "routing.npy", put((2, slice(0, 5), slice(None)), 6))
    problem = only(bundle)
    assert problem.field == "layer 4, token 0"
    assert problem.count == 5
    assert "stands twice" in problem.problem


def test_entries_beyond_valid_k_do_not_count(bundle):
    change(bundle, "routing.npy", put((0, 3, 1), 250))
    change(bundle, "gates.npy", put((0, 3, 1), np.nan))
    assert validate_trace(bundle).ok


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1.5])
def test_gates(bundle, value):
    change(bundle, "gates.npy", put((0, 2, 1), value))
    problem = only(bundle)
    assert (problem.file, problem.field) == ("gates.npy", "layer 1, token 2")


def test_scaled_gates_are_sound_up_to_the_stated_bound(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"gates_max": 2.5}))
    change(bundle, "gates.npy", put((0, 2, 1), 2.5))
    assert validate_trace(bundle).ok
    change(bundle, "gates.npy", put((0, 2, 1), 2.6))
    assert "allowed: 0 … 2.5" in only(bundle).problem


def test_valid_k_over_k(bundle):
    change(bundle, "valid_k.npy", put((0, 0), 3))
    assert only(bundle).field == "layer 1, token 0"


def test_every_problem_is_listed(bundle):
    change(bundle, "routing.npy", put((1, 4, 0), 200))
    change(bundle, "gates.npy", put((0, 2, 1), np.nan))
    change(bundle, "valid_k.npy", put((2, 1), 9))
    (bundle / "requests.parquet").unlink()
    files = [problem.file for problem in validate_trace(bundle).problems]
    assert sorted(files) == ["gates.npy", "manifest.json", "routing.npy", "valid_k.npy"]


def test_hash(bundle):
    data = bytearray((bundle / "gates.npy").read_bytes())
    data[-2] ^= 1
    (bundle / "gates.npy").write_bytes(data)
    assert only(bundle).field == "sha256"


def test_shapes(bundle):
    change(bundle, "gates.npy", lambda array: array[:, :-1])
    assert "the manifest says (3, 12, 2) float16" in only(bundle).problem
    change(bundle, "gates.npy", lambda array: np.zeros((3, 12, 2), np.float32))
    assert "float32" in only(bundle).problem


def test_missing_and_broken_files(bundle):
    raw = (bundle / "routing.npy").read_bytes()
    (bundle / "routing.npy").write_bytes(raw[:-1])
    fields = {problem.field for problem in validate_trace(bundle).problems}
    assert fields == {"sha256", "shape"}
    (bundle / "routing.npy").unlink()
    assert len(validate_trace(bundle).problems) == 2
    (bundle / "manifest.json").write_text("{}")
    problem = only(bundle)
    assert (problem.file, problem.field) == ("manifest.json", "schema")


def test_manifest_layers_must_ascend(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"moe_layers": [4, 2, 1]}))
    assert only(bundle).field == "moe_layers"


def test_hash_of_a_file_outside_is_not_read(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["sha256"]["../secret"] = "0"
    (bundle.parent / "secret").write_text("x")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert "not in the bundle" in only(bundle).problem


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda f: f.drop(columns="phase"), "columns"),
        (lambda f: f.iloc[:-1], ""),
        (lambda f: f.assign(phase="later"), "phase"),
        (lambda f: f.assign(domain="other"), "domain"),
        (lambda f: f.assign(position=-1), "position"),
        (lambda f: f.assign(position="x"), "position"),
        (lambda f: f.assign(request=[None] + [1] * 11), "request"),
    ],
)
def test_requests(bundle, edit, field):
    import pandas as pd

    file = bundle / "requests.parquet"
    edit(pd.read_parquet(file)).to_parquet(file, index=False)
    state_hash(bundle, file.name)
    problem = only(bundle)
    assert (problem.file, problem.field) == ("requests.parquet", field)


def test_requests_that_are_no_parquet(bundle):
    (bundle / "requests.parquet").write_bytes(b"PAR1" + b"x" * 30)
    state_hash(bundle, "requests.parquet")
    assert "parquet" in only(bundle).problem


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        validate_trace(tmp_path / "none")


def test_long_traces_are_checked_in_parts(bundle, monkeypatch):
    """The same problems, wherever the parts end."""
    from moesim.traces import validate

    change(bundle, "routing.npy", put((1, slice(3, 9), slice(None)), 7))
    whole = validate_trace(bundle)
    for size in (1, 4, 5):
        monkeypatch.setattr(validate, "CHUNK_TOKENS", size)
        assert validate_trace(bundle) == whole


def test_copy_is_as_sound_as_the_original(tmp_path):
    shutil.copytree(sample_path(), tmp_path / "copy")
    assert validate_trace(tmp_path / "copy").ok
