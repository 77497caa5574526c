"""Damaged recordings give a MoesimError or a sound trace, never anything else."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import MoesimError
from moesim.traces.counts import read_counts
from moesim.traces.importers import import_trace
from moesim.traces.importers.contents import ImportOptions
from moesim.traces.importers.sglang_recorder import routing_of_dumps
from moesim.traces.validate import validate_trace
from tests.traces import import_samples as samples

ROUTING = samples.known_routing()
GATES = samples.known_gates(ROUTING)
IDS = ROUTING.transpose(1, 0, 2)
COUNT = int(os.environ.get("MOESIM_FUZZ_EXAMPLES", "40"))
"""Examples per test; a larger number also draws new ones in every run."""
EXAMPLES = settings(deadline=None, derandomize=COUNT <= 40, max_examples=COUNT, database=None)


def build(root):
    """One sample of every format: name → (format, path to import, file to damage)."""

    def put(name, data):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    found = {}
    for dialect in ("vllm-logger", "speculative-moe", "moe-balance", "moe-cache-lab", "canonical"):
        rows = samples.jsonl_rows(dialect, ROUTING[:, :6], GATES[:, :6])
        file = put(f"{dialect}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        found[dialect] = ("jsonl", file, file)
    wide = "token,layer,e0,e1,g0,g1\n0,1,3,4,0.5,0.25\n1,1,2,5,0.5,0.25\n"
    long = "request,token,layer,expert\na,0,1,3\na,0,1,4\nb,0,1,2\nb,0,1,5\n"
    for name, text in (("wide", wide), ("long", long)):
        file = put(f"{name}.csv", text)
        found[name] = ("csv", file, file)
    array = put("array.npy", samples.npy_bytes(IDS.astype(np.uint8)))
    found["array"] = ("vllm", array, array)
    for form in ("list", "npy", "raw"):
        file = put(f"{form}.json", json.dumps(samples.vllm_response(ROUTING, form=form)))
        found[f"vllm {form}"] = ("vllm", file, file)
    file = put("sglang.json", json.dumps(samples.sglang_response(ROUTING)))
    found["sglang response"] = ("sglang", file, file)
    file = put("count.json", json.dumps({"logical_count": samples.counts_of(ROUTING).tolist()}))
    found["sglang counts"] = ("sglang", file, file)
    for raw in (True, False):
        folder = samples.write_trtllm(root / f"trtllm-{raw}", ROUTING, raw=raw)
        name = "rank0_raw.safetensors" if raw else "rank0.safetensors"
        found[f"trtllm {raw}"] = ("trtllm", folder, folder / name)
    found["trtllm meta"] = ("trtllm", folder, folder / "meta_info.json")
    put("router/ffn_moe_logits-3.npy", samples.npy_bytes(np.ones((4, 8), np.float32)))
    router = root / "router"
    found["llamacpp"] = ("llamacpp", router, router / "ffn_moe_logits-3.npy")
    return found


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return build(tmp_path_factory.mktemp("recordings"))


with tempfile.TemporaryDirectory() as _folder:
    NAMES = list(build(Path(_folder)))

damage = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "digit"]),
        st.integers(0, 2**16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data, steps):
    data = bytearray(data)
    for kind, place, value in steps:
        if not data:
            break
        place %= len(data)
        if kind == "flip":
            data[place] ^= 1 << (value % 8)
        elif kind == "cut":
            del data[place : place + 1 + value]
        elif kind == "insert":
            data[place:place] = bytes([value])
        elif kind == "repeat":
            data[place:place] = data[place : place + 1 + value]
        else:  # another number where a digit stands
            digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
            if digits:
                data[digits[place % len(digits)]] = 48 + value % 10
    return bytes(data)


def import_and_check(path, format):
    """An import either raises a MoesimError or leaves something that can be read back."""
    with tempfile.TemporaryDirectory() as out:
        options = ImportOptions(experts=samples.EXPERTS, top_k=samples.TOP_K)
        with contextlib.suppress(MoesimError):
            result = import_trace(path, format, options, Path(out) / "t")
            if result.kind == "counts":
                with contextlib.suppress(MoesimError):
                    read_counts(result.path)
            else:
                problems = validate_trace(result.path).problems
                assert all("stands twice" in problem.problem for problem in problems), problems


@pytest.mark.parametrize("name", NAMES)
def test_damaged_recordings(name, recordings, tmp_path):
    format, path, file = recordings[name]
    if path == file:
        target = changed = tmp_path / file.name
        shutil.copy(file, target)
    else:
        target = tmp_path / path.name
        shutil.copytree(path, target)
        changed = target / file.name
    original = file.read_bytes()
    import_and_check(target, format)  # the sample itself, so that the damage is what is tested

    @EXAMPLES
    @given(damage)
    def check(steps):
        changed.write_bytes(damaged(original, steps))
        import_and_check(target, format)

    check()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["layer", "token", "experts", "choices", "routed_experts", "data", "shape",
                         "meta_info", "usage", "prompt_tokens", "logical_count", "request"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@EXAMPLES
@given(
    json_values,
    st.sampled_from(["a.json", "a.jsonl"]),
    st.sampled_from(["sglang", "vllm", "jsonl"]),
)
def test_any_json(value, name, format):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(json.dumps(value))
        import_and_check(file, format)
        if name == "a.json":
            with contextlib.suppress(MoesimError):
                read_counts(file)


@EXAMPLES
@given(
    st.sampled_from(["experts", "gates", "token", "layer", "request", "phase", "domain"]),
    json_values,
)
def test_any_value_in_a_row(key, value):
    row = {"request": 0, "token": 0, "layer": 1, "experts": [0, 1], "gates": [0.5, 0.25]}
    with tempfile.TemporaryDirectory() as folder:
        file = samples.write_lines(Path(folder) / "a.jsonl", [row, row | {"token": 1, key: value}])
        import_and_check(file, "jsonl")


@EXAMPLES
@given(st.text(alphabet="0123456789,-.e\n\r\"' tokenlayxpr", max_size=200))
def test_any_csv(text):
    with tempfile.TemporaryDirectory() as folder:
        for header, format in (("token,layer,e0\n", "csv"), ("layer,expert,count\n", None)):
            file = Path(folder) / "a.csv"
            file.write_text(header + text, newline="")
            if format:
                import_and_check(file, format)
            else:
                with contextlib.suppress(MoesimError):
                    read_counts(file)


@EXAMPLES
@given(damage, st.sampled_from(["counts.npy", "counts.json"]))
def test_damaged_counts_folders(steps, name):
    with tempfile.TemporaryDirectory() as out:
        folder = Path(out) / "stat"
        samples.write_trtllm(folder, ROUTING, raw=False)
        options = ImportOptions(experts=samples.EXPERTS)
        result = import_trace(folder, "trtllm", options, Path(out) / "t")
        file = Path(result.path) / name
        file.write_bytes(damaged(file.read_bytes(), steps))
        with contextlib.suppress(MoesimError):
            counts = read_counts(result.path)
            assert np.isfinite(counts.loads).all()
            assert counts.loads.min() >= 0


@EXAMPLES
@given(damage, st.sampled_from(["routing.npy", "gates.npy", "manifest.json", "requests.parquet"]))
def test_damaged_bundles_are_reported(steps, name):
    with tempfile.TemporaryDirectory() as out:
        rows = samples.jsonl_rows("canonical", ROUTING, GATES)
        file = samples.write_lines(Path(out) / "a.jsonl", rows)
        options = ImportOptions(experts=samples.EXPERTS)
        result = import_trace(file, "jsonl", options, Path(out) / "t")
        target = Path(result.path) / name
        before = target.read_bytes()
        target.write_bytes(damaged(before, steps))
        report = validate_trace(result.path)
        if target.read_bytes() != before and name != "manifest.json":
            assert not report.ok


tensor_values = st.one_of(
    json_values,
    st.builds(
        lambda shape, dtype, value: np.full(shape, value, dtype),
        st.lists(st.integers(0, 4), max_size=4),
        st.sampled_from(["int8", "int32", "int64", "uint64", "float32", "bool"]),
        st.integers(0, 9),
    ),
)


@EXAMPLES
@given(
    st.sampled_from(["forward_pass_id", "rank", "positions", "extend_seq_lens", "forward_mode",
                     "topk_ids_of_layer", "global_physical_count", "records", "logical_count",
                     "last_physical_to_logical_map"]),
    tensor_values,
)  # fmt: skip
def test_any_value_in_a_recorder_dump(key, value):
    for dumps in (samples.sglang_per_token(ROUTING), samples.sglang_per_pass(ROUTING)[0]):
        holder = dumps[0] if key in dumps[0] or key == "logical_count" else dumps[0]["records"][0]
        holder[key] = value
        files = [(Path(f"{i}.pt"), dump) for i, dump in enumerate(dumps)]
        with contextlib.suppress(MoesimError):
            routing_of_dumps(files, ImportOptions(experts=samples.EXPERTS))
