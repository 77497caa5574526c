"""Every format gives back the one routing that was written in it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError, UsageError
from moesim.traces.bundle import open_trace
from moesim.traces.counts import read_counts
from moesim.traces.importers import IMPORTERS, import_trace
from moesim.traces.importers.contents import PHASES, ImportOptions
from moesim.traces.importers.sglang_recorder import routing_of_dumps
from moesim.traces.validate import validate_trace
from tests.traces import import_samples as samples

ROUTING = samples.known_routing()
GATES = samples.known_gates(ROUTING)


def run(path, format, tmp_path, **options):
    options = {"experts": samples.EXPERTS} | options
    result = import_trace(path, format, ImportOptions(**options), tmp_path / "out")
    return result, open_trace(result.path) if result.kind == "routing" else None


def check(trace, *, gates=None, moe_layers=samples.MOE_LAYERS):
    np.testing.assert_array_equal(trace.routing, ROUTING)
    assert trace.routing.dtype == np.uint8
    assert trace.manifest.moe_layers == moe_layers
    if gates is None:
        assert trace.gates is None
    else:
        np.testing.assert_array_equal(trace.gates, gates.astype(np.float16))
    report = validate_trace(trace.path)
    assert report.problems == ()


# --- JSON lines -----------------------------------------------------------------------------


DIALECTS = ["vllm-logger", "speculative-moe", "moe-balance", "moe-cache-lab", "canonical"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_jsonl_dialect(dialect, tmp_path):
    file = samples.write_lines(tmp_path / "log.jsonl", samples.jsonl_rows(dialect, ROUTING, GATES))
    result, trace = run(file, "jsonl", tmp_path)
    check(trace, gates=GATES)
    assert result.dialect == dialect
    assert result.tokens == samples.TOKENS
    assert result.assignments == ROUTING.size
    frame = trace.requests()
    if dialect in ("moe-balance", "canonical", "speculative-moe"):
        assert frame["request"].tolist() == [0] * 5 + [1] * 7
        assert frame["position"].tolist() == [*range(5), *range(7)]
    else:
        assert frame["position"].tolist() == list(range(12))
    phases = {
        "speculative-moe": ["decode"] * 12,
        "moe-cache-lab": ["prefill"] * 5 + ["decode"] * 7,
        "canonical": ["prefill"] * 12,
    }
    assert frame["phase"].tolist() == phases.get(dialect, ["unknown"] * 12)
    domain = {"speculative-moe": "gsm8k", "canonical": "code"}.get(dialect, "unknown")
    assert trace.manifest.domains == (domain,)
    assert result.model == {"vllm-logger": "m/vllm", "moe-cache-lab": "m/lab"}.get(
        dialect, "unknown"
    )


@pytest.mark.parametrize("dialect", ["canonical", "moe-balance", "speculative-moe"])
def test_jsonl_order_of_lines_does_not_matter(dialect, tmp_path):
    rows = samples.jsonl_rows(dialect, ROUTING, GATES)
    order = np.random.default_rng(3).permutation(len(rows))
    shuffled = [rows[0], *(rows[i] for i in order if i != 0)]  # request 0 comes first
    file = samples.write_lines(tmp_path / "log.jsonl", shuffled)
    _, trace = run(file, "jsonl", tmp_path)
    if dialect == "canonical":  # the first row of q0 still comes before q1
        check(trace, gates=GATES)
    np.testing.assert_array_equal(
        samples.counts_of(np.asarray(trace.routing)), samples.counts_of(ROUTING)
    )


def test_jsonl_with_byte_order_mark_and_windows_line_ends(tmp_path):
    rows = samples.jsonl_rows("canonical", ROUTING, GATES)
    text = "\r\n".join(json.dumps(row) for row in rows) + "\r\n\r\n"
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    _, trace = run(file, "jsonl", tmp_path)
    check(trace, gates=GATES)


def test_jsonl_chooses_layers_that_are_asked_for(tmp_path):
    file = samples.write_lines(
        tmp_path / "log.jsonl", samples.jsonl_rows("canonical", ROUTING, GATES)
    )
    _, trace = run(file, "jsonl", tmp_path, moe_layers=(2, 4))
    np.testing.assert_array_equal(trace.routing, ROUTING[1:])
    assert trace.manifest.moe_layers == (2, 4)


def test_jsonl_warm_up_passes_are_dropped_and_can_be_kept(tmp_path):
    dummy = {"type": "route", "req_id": "r0", "topk_ids": [3, 1], "topk_weights": [0.5, 0.25]}
    warm = [
        dummy | {"token_idx": index, "layer": layer}
        for size in (64, 36)
        for layer in samples.MOE_LAYERS
        for index in range(size)
    ]
    rows = samples.jsonl_rows("vllm-logger", ROUTING, GATES)
    file = samples.write_lines(tmp_path / "log.jsonl", [rows[0], *warm, *rows[1:]])
    result, trace = run(file, "jsonl", tmp_path)
    check(trace, gates=GATES)
    assert result.dropped == {"warm_up_tokens": 100}
    assert any("--keep-warm-up" in warning for warning in result.warnings)
    options = ImportOptions(experts=samples.EXPERTS, keep_warm_up=True)
    kept = import_trace(file, "jsonl", options, tmp_path / "kept")
    assert kept.tokens == samples.TOKENS + 100
    assert kept.dropped == {}


def test_jsonl_a_few_equal_tokens_are_not_warm_up(tmp_path):
    rows = samples.jsonl_rows(
        "vllm-logger", ROUTING[:, :1].repeat(63, axis=1), GATES[:, :1].repeat(63, axis=1)
    )
    file = samples.write_lines(tmp_path / "log.jsonl", rows)
    result, _ = run(file, "jsonl", tmp_path)
    assert result.tokens == 63


# --- CSV ------------------------------------------------------------------------------------


def csv_text(form, *, gates=True, request=True):
    lines = []
    head = ["request"] if request else []
    if form == "long":
        lines.append([*head, "token", "layer", "expert", *(["gate"] if gates else [])])
    else:
        columns = [f"e{k}" for k in range(samples.TOP_K)]
        columns += [f"g{k}" for k in range(samples.TOP_K)] if gates else []
        lines.append([*head, "token", "layer", *columns])
    for layer, name in enumerate(samples.MOE_LAYERS):
        for token in range(samples.TOKENS):
            start = ["a" if token < 5 else "b"] if request else []
            start += [token, name]
            ids, weights = ROUTING[layer, token].tolist(), GATES[layer, token].tolist()
            if form == "long":
                for expert, weight in zip(ids, weights, strict=True):
                    lines.append([*start, expert, *([weight] if gates else [])])
            else:
                lines.append([*start, *ids, *(weights if gates else [])])
    return "".join(",".join(map(str, line)) + "\n" for line in lines)


@pytest.mark.parametrize("form", ["long", "wide"])
@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("request_column", [True, False])
@pytest.mark.parametrize("windows", [True, False])
def test_csv(form, gates, request_column, windows, tmp_path):
    text = csv_text(form, gates=gates, request=request_column)
    file = tmp_path / "rows.csv"
    data = text.replace("\n", "\r\n").encode() if windows else text.encode()
    file.write_bytes((b"\xef\xbb\xbf" if windows else b"") + data)
    result, trace = run(file, "csv", tmp_path)
    check(trace, gates=GATES if gates else None)
    assert result.dialect == form
    expected = [0] * 5 + [1] * 7 if request_column else [0] * 12
    assert trace.requests()["request"].tolist() == expected


def test_csv_minus_one_is_a_short_row(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("token,layer,e0,e1,g0,g1\n0,3,-1,5,0.0,0.5\n1,3,2,6,0.25,0.125\n")
    _, trace = run(file, "csv", tmp_path)
    assert trace.routing.tolist() == [[[5, 0], [2, 6]]]
    assert trace.valid_k.tolist() == [[1, 2]]
    assert trace.gates.tolist() == [[[0.5, 0.0], [0.25, 0.125]]]


# --- vLLM -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", ">i4", "int64", "uint64"])
def test_vllm_bare_array(dtype, tmp_path):
    file = tmp_path / "routed.npy"
    np.save(file, ROUTING.transpose(1, 0, 2).astype(dtype))
    result, trace = run(file, "vllm", tmp_path, moe_layers=samples.MOE_LAYERS, top_k=2)
    check(trace)
    assert result.warnings == ()
    assert result.dialect == "array"


def test_vllm_layers_without_names_are_numbered_with_a_warning(tmp_path):
    file = tmp_path / "routed.npy"
    np.save(file, ROUTING.transpose(1, 0, 2))
    result, trace = run(file, "vllm", tmp_path)
    check(trace, moe_layers=(0, 1, 2))
    assert "--moe-layers" in result.warnings[0]


def test_vllm_array_with_dense_layers_of_zeros(tmp_path):
    file = tmp_path / "routed.npy"
    np.save(file, samples.in_model(ROUTING, 0).transpose(1, 0, 2))
    result, trace = run(file, "vllm", tmp_path)
    check(trace)
    assert result.dropped == {"dense_layers": 2}


@pytest.mark.parametrize("form", ["list", "npy", "raw"])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("container", ["json", "list.json", "jsonl"])
def test_vllm_responses(form, split, container, tmp_path):
    responses = [
        samples.vllm_response(ROUTING[:, :7], prompt=5, form=form, split=split),
        samples.vllm_response(ROUTING[:, 7:], prompt=2, form=form, split=split),
    ]
    if container == "json":
        responses = [samples.vllm_response(ROUTING, prompt=5, form=form, split=split)]
    file = tmp_path / f"answers.{container}"
    if container == "jsonl":
        samples.write_lines(file, responses)
    else:
        file.write_text(json.dumps(responses[0] if container == "json" else responses))
    _, trace = run(file, "vllm", tmp_path, moe_layers=samples.MOE_LAYERS, top_k=samples.TOP_K)
    check(trace)
    frame = trace.requests()
    if container == "json":
        assert frame["request"].tolist() == [0] * 12
        assert frame["phase"].tolist() == ["prefill"] * 5 + ["decode"] * 7
    else:
        assert frame["request"].tolist() == [0] * 7 + [1] * 5
        assert frame["position"].tolist() == [*range(7), *range(5)]
        phases = ["prefill"] * 5 + ["decode"] * 2 + ["prefill"] * 2 + ["decode"] * 3
        assert frame["phase"].tolist() == phases


def test_vllm_prompt_is_counted_once_for_two_choices(tmp_path):
    ids = ROUTING.transpose(1, 0, 2)
    response = {
        "prompt_routed_experts": ids[:5].tolist(),
        "choices": [
            {"routed_experts": ids[5:9].tolist()},
            {"routed_experts": ids[9:].tolist()},
        ],
    }
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(response))
    _, trace = run(file, "vllm", tmp_path, moe_layers=samples.MOE_LAYERS)
    check(trace)
    frame = trace.requests()
    assert frame["request"].tolist() == [0] * 9 + [1] * 3
    assert frame["position"].tolist() == [*range(9), 5, 6, 7]


def test_vllm_folder_of_arrays(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    np.save(folder / "0.npy", ROUTING[:, :4].transpose(1, 0, 2))
    np.save(folder / "1.npy", ROUTING[:, 4:].transpose(1, 0, 2))
    _, trace = run(folder, "vllm", tmp_path, moe_layers=samples.MOE_LAYERS)
    check(trace)
    assert trace.requests()["request"].tolist() == [0] * 4 + [1] * 8


# --- SGLang ---------------------------------------------------------------------------------


def test_sglang_response(tmp_path):
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(samples.sglang_response(ROUTING)))
    result, trace = run(file, "sglang", tmp_path, top_k=samples.TOP_K)
    check(trace)
    assert result.dropped == {"dense_layers": 2}
    assert trace.requests()["phase"].tolist() == ["prefill"] * 5 + ["decode"] * 7


def test_sglang_openai_response_with_extension(tmp_path):
    inner = samples.sglang_response(ROUTING)["meta_info"]
    response = {
        "choices": [{"index": 0, "sglext": {"routed_experts": inner["routed_experts"]}}],
        "usage": {key: inner[key] for key in ("prompt_tokens", "completion_tokens")},
    }
    file = samples.write_lines(tmp_path / "answers.jsonl", [response])
    _, trace = run(file, "sglang", tmp_path, top_k=samples.TOP_K)
    check(trace)


def test_sglang_array_names_its_layers(tmp_path):
    file = tmp_path / "routed.npy"
    np.save(file, samples.in_model(ROUTING, -1).transpose(1, 0, 2))
    result, trace = run(file, "sglang", tmp_path)
    check(trace)
    assert result.warnings == ()


@pytest.mark.parametrize("steps", [1, 3, None])
def test_sglang_logical_count_becomes_counts(steps, tmp_path):
    counts = np.zeros((samples.MODEL_LAYERS, samples.EXPERTS), np.int64)
    counts[list(samples.MOE_LAYERS)] = samples.counts_of(ROUTING)
    value = counts if steps is None else np.stack([counts] * (steps - 1) + [counts * 0 + counts])
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"logical_count": value.tolist()}))
    result, _ = run(file, "sglang", tmp_path)
    assert result.kind == "counts"
    assert result.moe_layers == samples.MOE_LAYERS
    read = read_counts(result.path)
    np.testing.assert_array_equal(read.loads, samples.counts_of(ROUTING) * (steps or 1))
    assert (Path(result.path) / "windowed_counts.npy").exists() == (steps == 3)


def dumps_of(contents):
    return [(Path(f"rank{i}.pt"), content) for i, content in enumerate(contents)]


def test_sglang_per_token(tmp_path):
    result = routing_of_dumps(
        dumps_of(samples.sglang_per_token(ROUTING)), ImportOptions(experts=samples.EXPERTS)
    )
    np.testing.assert_array_equal(result.routing, ROUTING)
    assert result.moe_layers == samples.MOE_LAYERS
    assert result.valid_k is None
    assert {k: v for k, v in result.dropped.items() if v} == {
        "padding_tokens": 4,
        "dense_layers": 2,
    }
    phases = [PHASES[p] for p in result.requests.phase]
    assert phases == ["prefill"] * 6 + ["decode"] * 6
    # two prompts of one rank each, then every decoded token on its own
    assert result.requests.request.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 4, 6, 7, 8]


def test_sglang_short_rows_get_valid_k():
    dumps = samples.sglang_per_token(ROUTING, padding=0)
    values = dumps[0]["records"][0]["topk_ids_of_layer"]
    values[1, 0, 0] = -1  # the first expert of a token in layer 1
    result = routing_of_dumps(dumps_of(dumps), ImportOptions(experts=samples.EXPERTS))
    assert result.valid_k[0].tolist() == [1] + [2] * 11
    assert result.routing[0, 0].tolist() == [ROUTING[0, 0, 1], 0]
    np.testing.assert_array_equal(result.routing[1:], ROUTING[1:])


def test_sglang_ranks_that_repeat_each_other_count_once():
    first = samples.sglang_per_token(ROUTING, padding=0)[0]
    second = {
        "records": [record | {"rank": 1} for record in first["records"]],
        "last_physical_to_logical_map": first["last_physical_to_logical_map"],
    }
    result = routing_of_dumps(dumps_of([first, second]), ImportOptions(experts=samples.EXPERTS))
    assert result.routing.shape[1] == 6
    assert result.dropped["replica_tokens"] == 6


def test_sglang_per_pass_sums_ranks_and_slots():
    dumps, expected = samples.sglang_per_pass(ROUTING)
    result = routing_of_dumps(dumps_of(dumps), ImportOptions(experts=samples.EXPERTS))
    np.testing.assert_array_equal(result.counts, expected[:, list(samples.MOE_LAYERS)])
    assert result.moe_layers == samples.MOE_LAYERS
    assert result.stepwise


def test_sglang_stat_drops_unused_steps_and_repeated_dumps():
    counts = np.zeros((4, samples.MODEL_LAYERS, samples.EXPERTS), np.int32)
    counts[:2, list(samples.MOE_LAYERS)] = samples.counts_of(ROUTING)
    dump = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
    result = routing_of_dumps(
        dumps_of([dump, dump | {"rank": 1}]), ImportOptions(experts=samples.EXPERTS)
    )
    assert result.counts.shape == (2, 3, samples.EXPERTS)
    np.testing.assert_array_equal(result.counts[1], samples.counts_of(ROUTING))
    assert result.dropped == {"empty_steps": 2, "dense_layers": 2, "repeated_dumps": 1}


# --- TensorRT-LLM ---------------------------------------------------------------------------


def test_trtllm_raw(tmp_path):
    folder = samples.write_trtllm(tmp_path / "stat", ROUTING, raw=True)
    result, trace = run(folder, "trtllm", tmp_path)
    check(trace)
    assert result.dialect == "raw"


def test_trtllm_iterations(tmp_path):
    folder = samples.write_trtllm(tmp_path / "stat", ROUTING, raw=True)
    _, trace = run(folder, "trtllm", tmp_path, iterations=(51, 99))
    np.testing.assert_array_equal(trace.routing, ROUTING[:, 6:])


def test_trtllm_counts(tmp_path):
    folder = samples.write_trtllm(tmp_path / "stat", ROUTING, raw=False)
    result, _ = run(folder, "trtllm", tmp_path)
    assert (result.kind, result.steps, result.tokens) == ("counts", 2, None)
    read = read_counts(result.path, experts=samples.EXPERTS, moe_layers=samples.MOE_LAYERS)
    np.testing.assert_array_equal(read.loads, samples.counts_of(ROUTING))
    windowed = np.load(Path(result.path) / "windowed_counts.npy")
    np.testing.assert_array_equal(windowed[0], samples.counts_of(ROUTING[:, :6]))


# --- llama.cpp ------------------------------------------------------------------------------


def test_llamacpp_matches_sorting_one_token_at_a_time(tmp_path):
    rng = np.random.default_rng(7)
    logits = rng.integers(-3, 4, (2, 50, 6)).astype(np.float32)  # many ties
    folder = tmp_path / "router"
    folder.mkdir()
    for row, layer in enumerate((10, 9)):
        np.save(folder / f"ffn_moe_logits-{layer}.npy", logits[row])
    _, trace = run(folder, "llamacpp", tmp_path, experts=6, top_k=3)
    assert trace.manifest.moe_layers == (9, 10)
    for row, source in ((0, 1), (1, 0)):
        for token in range(50):
            values = logits[source, token].astype(float)
            best = sorted(range(6), key=lambda e: (-values[e], e))[:3]
            assert trace.routing[row, token].tolist() == best
            probabilities = np.exp(values) / np.exp(values).sum()
            np.testing.assert_allclose(trace.gates[row, token], probabilities[best], rtol=1e-3)


# --- what all formats refuse ----------------------------------------------------------------


def write(tmp_path, name, content):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(file, content)
    elif isinstance(content, list) and name.endswith("l"):
        samples.write_lines(file, content)
    elif isinstance(content, str):
        file.write_text(content)
    else:
        file.write_text(json.dumps(content))
    return file


ROW = {"request": 0, "token": 0, "layer": 0, "experts": [0, 1]}
IDS = ROUTING.transpose(1, 0, 2)
OBJECTS = samples.npy_bytes(IDS).replace(b"'<i8'", b"'|O' ")

BAD = {
    # name: (format, file name, content, options, words of the message)
    "jsonl empty": ("jsonl", "a.jsonl", b"", {}, "no routing rows"),
    "jsonl only meta": ("jsonl", "a.jsonl", [{"type": "meta"}], {}, "no routing rows"),
    "jsonl not json": ("jsonl", "a.jsonl", b"{]\n", {}, "line 1"),
    "jsonl list": ("jsonl", "a.jsonl", [[1, 2]], {}, "not an object"),
    "jsonl unknown keys": ("jsonl", "a.jsonl", [{"a": 1}], {}, "not a dialect"),
    "jsonl id too large": ("jsonl", "a.jsonl", [ROW | {"experts": [0, 8]}], {}, "0 … 7"),
    "jsonl id negative": ("jsonl", "a.jsonl", [ROW | {"experts": [0, -2]}], {}, "line 1"),
    "jsonl id float": ("jsonl", "a.jsonl", [ROW | {"experts": [0, 1.0]}], {}, "list of integers"),
    "jsonl id bool": ("jsonl", "a.jsonl", [ROW | {"experts": [0, True]}], {}, "list of integers"),
    "jsonl id huge": ("jsonl", "a.jsonl", [ROW | {"experts": [0, 10**30]}], {}, "line 1"),
    "jsonl ids empty": ("jsonl", "a.jsonl", [ROW | {"experts": []}], {}, "list of integers"),
    "jsonl ragged": (
        "jsonl", "a.jsonl", [ROW, ROW | {"token": 1, "experts": [0]}], {}, "2 ids",
    ),
    "jsonl twice": ("jsonl", "a.jsonl", [ROW, ROW], {}, "line 2.*earlier line|earlier line"),
    "jsonl missing": (
        "jsonl", "a.jsonl", [ROW, ROW | {"token": 1}, ROW | {"layer": 3}], {}, "layer 3, token 1",
    ),
    "jsonl token text": ("jsonl", "a.jsonl", [ROW | {"token": "0"}], {}, "line 1, token"),
    "jsonl token huge": ("jsonl", "a.jsonl", [ROW | {"token": 2**63}], {}, "line 1, token"),
    "jsonl layer negative": ("jsonl", "a.jsonl", [ROW | {"layer": -1}], {}, "line 1, layer"),
    "jsonl nan": ("jsonl", "a.jsonl", b'{"token":0,"layer":0,"experts":[0,NaN]}\n', {}, "line 1"),
    "jsonl duplicate key": ("jsonl", "a.jsonl", b'{"layer":0,"layer":1}\n', {}, "line 1"),
    "jsonl gates short": ("jsonl", "a.jsonl", [ROW | {"gates": [0.5]}], {}, "gates"),
    "jsonl gates sometimes": (
        "jsonl", "a.jsonl", [ROW | {"gates": [0.5, 0.1]}, ROW | {"token": 1}], {}, "line 2, gates",
    ),
    "jsonl gates negative": ("jsonl", "a.jsonl", [ROW | {"gates": [0.5, -0.1]}], {}, "negative"),
    "jsonl gates overflow": ("jsonl", "a.jsonl", [ROW | {"gates": [0.5, 1e39]}], {}, "gates"),
    "jsonl gates beyond half": ("jsonl", "a.jsonl", [ROW | {"gates": [0.5, 1e6]}], {}, "65504"),
    "jsonl phase": ("jsonl", "a.jsonl", [ROW | {"phase": "later"}], {}, "unknown phase"),
    "jsonl K": ("jsonl", "a.jsonl", [ROW], {"top_k": 3}, "top-3"),
    "jsonl K over E": ("jsonl", "a.jsonl", [ROW | {"experts": [0, 0]}], {"experts": 1}, "top-1"),
    "jsonl meta K": (
        "jsonl", "a.jsonl",
        [{"type": "meta", "top_k": 4}, {"layer": 0, "token_idx": 0, "topk_ids": [0, 1]}],
        {"top_k": 2}, "another model",
    ),
    "jsonl layer asked for": ("jsonl", "a.jsonl", [ROW], {"moe_layers": (3,)}, "layer 3 asked"),
    "jsonl padding": ("jsonl", "a.jsonl", [ROW | {"experts": [-1, -1]}], {}, "padding"),
    "jsonl batch": (
        "jsonl", "a.jsonl", [{"layer": 0, "batch_id": 0, "topk_experts": 3}], {}, "topk_experts",
    ),
    "jsonl batch origin": (
        "jsonl", "a.jsonl",
        [{"layer": 0, "batch_id": 0, "topk_experts": [[1, 2]], "origin_rows": []}], {}, "per token",
    ),
    "jsonl folder": ("jsonl", ".", None, {}, "a file is needed"),
    "jsonl absent": ("jsonl", "none.jsonl", None, {}, "no such file"),
    "csv empty": ("csv", "a.csv", b"", {}, "header"),
    "csv no header": ("csv", "a.csv", "0,0,1,2\n", {}, "line 1"),
    "csv only header": ("csv", "a.csv", "token,layer,expert\n", {}, "no routing rows"),
    "csv ragged": ("csv", "a.csv", "token,layer,e0,e1\n0,0,1,2\n1,0,1\n", {}, "line 3"),
    "csv short token": (
        "csv", "a.csv", "token,layer,expert\n0,0,1\n0,0,2\n1,0,1\n", {}, "line 4",
    ),
    "csv text": ("csv", "a.csv", "token,layer,e0\n0,0,x\n", {}, "line 2"),
    "csv gap": ("csv", "a.csv", "token,layer,e0,e2\n0,0,1,2\n", {}, "header"),
    "csv gates gap": ("csv", "a.csv", "token,layer,e0,e1,g1\n0,0,1,2,1\n", {}, "header"),
    "csv column twice": ("csv", "a.csv", "token,token,layer,e0\n0,0,0,1\n", {}, "header"),
    "csv mixed": ("csv", "a.csv", "token,layer,expert,e0\n0,0,1,1\n", {}, "header"),
    "csv nan gate": ("csv", "a.csv", "token,layer,e0,g0\n0,0,1,nan\n", {}, "finite"),
    "csv huge": ("csv", "a.csv", f"token,layer,e0\n0,0,{10**40}\n", {}, "line 2"),
    "csv latin-1": ("csv", "a.csv", b"token,layer,e0\n0,0,\xe9\n", {}, "UTF-8"),
    "csv twice": ("csv", "a.csv", "token,layer,e0\n0,0,1\n0,0,1\n", {}, "line 3"),
    "vllm floats": ("vllm", "a.npy", IDS.astype(float), {}, "integers"),
    "vllm rank 2": ("vllm", "a.npy", IDS[0], {}, "tokens, layers, top-k"),
    "vllm empty": ("vllm", "a.npy", IDS[:0], {}, "no routed experts"),
    "vllm id": ("vllm", "a.npy", IDS, {"experts": 5}, "out of range"),
    "vllm layers": ("vllm", "a.npy", IDS, {"moe_layers": (1, 2)}, "3 layers in the file"),
    "vllm cut short": ("vllm", "a.npy", samples.npy_bytes(IDS)[:-1], {}, "cut short"),
    "vllm objects": ("vllm", "a.npy", OBJECTS, {}, "plain numbers"),
    "vllm ending": ("vllm", "a.bin", b"123", {}, "file name"),
    "vllm no choices": ("vllm", "a.json", {"text": "x"}, {}, "choices"),
    "vllm no routing": ("vllm", "a.json", {"choices": [{"text": "x"}]}, {}, "no routed experts"),
    "vllm not base64": ("vllm", "a.json", {"choices": [{"routed_experts": "#"}]}, {}, "base64"),
    "vllm ragged": (
        "vllm", "a.json", {"choices": [{"routed_experts": [[[1, 2]], [[1]]]}]}, {}, "lengths",
    ),
    "vllm raw without shape": (
        "vllm", "a.json", {"choices": [{"routed_experts": "AAAA"}]}, {"top_k": 2}, "of the raw",
    ),
    "vllm layers differ": (
        "vllm", "a.json",
        [{"choices": [{"routed_experts": [[[1, 2]]]}]},
         {"choices": [{"routed_experts": [[[1, 2], [1, 2]]]}]}], {}, "differ in layers",
    ),
    "vllm empty folder": ("vllm", ".", None, {}, "no files"),
    "sglang nothing": ("sglang", "a.json", {"text": "x"}, {}, "return-routed-experts"),
    "sglang counts": ("sglang", "a.json", {"logical_count": [[1, 2]]}, {}, "8 experts"),
    "sglang counts ragged": ("sglang", "a.json", {"logical_count": [[1, 2], [1]]}, {}, "lengths"),
    "sglang counts negative": (
        "sglang", "a.json", {"logical_count": [[-1] * 8]}, {}, "negative",
    ),
    "sglang counts zero": ("sglang", "a.json", {"logical_count": [[0] * 8]}, {}, "nothing was"),
    "sglang counts float": (
        "sglang", "a.json", {"logical_count": [[0.5] * 8]}, {}, "integers for 8",
    ),
    "sglang pattern": ("sglang", "no*.pt", None, {}, "no file matches"),
    "sglang not torch": ("sglang", "a.pt", b"no zip", {}, "not a PyTorch file"),
    "trtllm file": ("trtllm", "a.json", {}, {}, "a folder"),
    "trtllm no meta": ("trtllm", ".", None, {}, "meta_info.json"),
    "llamacpp file": ("llamacpp", "a.npy", IDS, {"top_k": 2}, "a folder"),
    "llamacpp nothing": ("llamacpp", ".", None, {"top_k": 2}, "no router logits"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_file_and_place(name, tmp_path):
    format, file_name, content, options, words = BAD[name]
    folder = tmp_path / "in"
    folder.mkdir()
    file = folder / file_name if content is None else write(folder, file_name, content)
    with pytest.raises(InputError) as caught:
        run(file, format, tmp_path, **options)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_trtllm_bad_folders(tmp_path):
    def refused(words, folder, **options):
        with pytest.raises(InputError, match=words):
            run(folder, "trtllm", tmp_path, **options)

    folder = samples.write_trtllm(tmp_path / "stat", ROUTING, raw=True)
    refused("another model", folder, experts=9)
    refused("another model", folder, top_k=3)
    refused("none of 1 … 2", folder, iterations=(1, 2))
    samples.save_file(
        {"50_1": np.zeros((3, 2), np.int32), "50_2": np.zeros((2, 2), np.int32)},
        folder / "rank0_raw.safetensors",
    )
    refused("51_1|missing", folder)
    (folder / "rank1_raw.safetensors").unlink()
    refused("differ in tokens", folder)
    samples.save_file({"x": np.zeros(3, np.int32)}, folder / "rank0_raw.safetensors")
    refused("not the name", folder)
    (folder / "rank0_raw.safetensors").write_bytes(b"\x00" * 40)
    refused("safetensors", folder)
    (folder / "rank0_raw.safetensors").unlink()
    samples.save_file({"50_1": np.zeros(3, np.int64)}, folder / "rank0.safetensors")
    (folder / "rank1.safetensors").unlink()
    refused("one count per expert", folder)


def test_llamacpp_bad_folders(tmp_path):
    folder = tmp_path / "router"
    folder.mkdir()
    logits = np.zeros((3, 8), np.float32)
    np.save(folder / "ffn_moe_logits-0.npy", logits)
    with pytest.raises(UsageError, match="--top-k"):
        run(folder, "llamacpp", tmp_path)
    with pytest.raises(InputError, match=r"\(tokens, 9\)"):
        run(folder, "llamacpp", tmp_path, experts=9, top_k=2)
    np.save(folder / "ffn_moe_logits-1.npy", logits[:2])
    with pytest.raises(InputError, match="different numbers of tokens"):
        run(folder, "llamacpp", tmp_path, top_k=2)
    logits[1, 5] = np.nan
    np.save(folder / "ffn_moe_logits-1.npy", logits)
    with pytest.raises(InputError, match="token 1, expert 5"):
        run(folder, "llamacpp", tmp_path, top_k=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d[0].update(last_physical_to_logical_map=None), "integer tensor"),
        (lambda d: d[0].update(records=[]), None),
        (lambda d: [dump.update(records=[]) for dump in d], "no forward pass"),
        (lambda d: d[0]["records"][0].pop("forward_pass_id"), "pass and rank"),
        (lambda d: d[0]["records"][0].pop("topk_ids_of_layer"), "integer tensor"),
        (lambda d: d[0]["records"][0]["topk_ids_of_layer"].fill(10), "out of range"),
        (lambda d: d[0]["records"][0]["topk_ids_of_layer"].fill(-2), "out of range"),
        (lambda d: d[0]["last_physical_to_logical_map"].fill(3), "0 … 7"),
        (lambda d: d.append({"logical_count": np.zeros((1, 5, 8), int)}), "different recorder"),
        (lambda d: d.append({"other": 1}), "not a dump"),
        (lambda d: d.append([1]), "not a dump"),
    ],
)  # fmt: skip
def test_sglang_recorder_bad_dumps(change, words):
    dumps = samples.sglang_per_token(ROUTING)
    change(dumps)
    if words is None:
        routing_of_dumps(dumps_of(dumps), ImportOptions(experts=samples.EXPERTS))
        return
    with pytest.raises(InputError, match=words):
        routing_of_dumps(dumps_of(dumps), ImportOptions(experts=samples.EXPERTS))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("other", {}),
        ("jsonl", {"experts": 0}),
        ("jsonl", {"experts": 70_000}),
        ("jsonl", {"top_k": 9}),
        ("jsonl", {"top_k": 0}),
        ("jsonl", {"iterations": (1, 2)}),
        ("csv", {"keep_warm_up": True}),
    ],
)
def test_options_that_cannot_be(format, options, tmp_path):
    file = samples.write_lines(tmp_path / "a.jsonl", [ROW])
    with pytest.raises(UsageError, match=r"allowed|fix"):
        run(file, format, tmp_path, **options)


def test_an_import_is_never_overwritten(tmp_path):
    file = samples.write_lines(tmp_path / "a.jsonl", [ROW])
    run(file, "jsonl", tmp_path)
    with pytest.raises(InputError, match="holds an import already"):
        run(file, "jsonl", tmp_path)


def test_names_with_lone_surrogates_can_be_stored(tmp_path):
    row = ROW | {"domain": "a\ud800", "request": "b\ud800"}
    file = samples.write_lines(tmp_path / "a.jsonl", [{"type": "meta", "model": "m\udfff"}, row])
    result, trace = run(file, "jsonl", tmp_path)
    assert result.model == "m?"
    assert trace.manifest.domains == ("a?",)


def test_more_than_256_experts_need_two_bytes(tmp_path):
    routing = samples.known_routing(layers=2, tokens=40, top_k=8, experts=384)
    file = tmp_path / "a.npy"
    np.save(file, routing.transpose(1, 0, 2))
    _, trace = run(file, "vllm", tmp_path, experts=384)
    assert trace.routing.dtype == np.uint16
    np.testing.assert_array_equal(trace.routing, routing)


def test_every_format_has_a_summary():
    assert list(IMPORTERS) == ["sglang", "vllm", "trtllm", "jsonl", "csv", "llamacpp"]
    assert all(entry.summary for entry in IMPORTERS.values())
