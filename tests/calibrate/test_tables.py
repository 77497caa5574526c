"""Finding tables, choosing versions, and reading operators into SI units."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from packaging.version import Version

from moesim.calibrate.operators import OPERATORS, read_operator
from moesim.calibrate.tables import data_folder, open_catalogue, version_key
from moesim.errors import InputError, MissingExtraError, UsageError
from tests.calibrate.synthetic import moe_columns, write_table

VERSIONS = [
    *("0.1.dev19262", "0.5.6.post2", "0.5.9", "0.5.10", "0.5.14", "0.14.0", "0.24.0", "1.0.0"),
    *("1.2.0rc5", "1.3.0rc9", "1.3.0rc10", "1.3.0rc20", "1.3.0", "1.3.0.post1", "1.3", "2.23"),
    *("2.26.2", "2021.15.9", "1.3.0a1", "1.3.0b2", "1.3.0.dev1"),
]


def test_versions_sort_as_python_packaging_sorts_them():
    ours = sorted(VERSIONS, key=version_key)
    theirs = sorted(VERSIONS, key=Version)
    assert [Version(word) for word in ours] == [Version(word) for word in theirs]
    assert version_key("unknown") < version_key("0.0.1")


@pytest.fixture
def folder(tmp_path):
    for version, rows in (("0.5.9", 10), ("0.5.10", 8), ("0.5.16", 2)):
        place = f"h100_sxm/moe/sglang/{version}"
        write_table(tmp_path / "data", place, "moe", moe_columns(rows))
    write_table(tmp_path / "data", "h200_sxm/moe/vllm/0.24.0", "moe", moe_columns(3))
    return tmp_path


def test_newest_is_the_newest_that_is_not_an_addition(folder):
    catalogue = open_catalogue(folder)
    newest = {table.name: table.rows for table in catalogue.select(["moe"])}
    assert newest == {"h100_sxm/sglang/0.5.10/moe": 8, "h200_sxm/vllm/0.24.0/moe": 3}
    assert len(catalogue.select(["moe"], versions="all")) == 4
    named = catalogue.select(["moe"], engines=["sglang"], versions=["0.5.16", "9"])
    assert [table.rows for table in named] == [2]


def test_the_folder_is_found_from_above_and_said_if_not(folder, tmp_path):
    assert data_folder(folder) == data_folder(folder / "data")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no measured tables"):
            data_folder(place)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"moesim\[measured\]"):
        data_folder()


def test_unknown_names_are_refused(folder):
    catalogue = open_catalogue(folder)
    with pytest.raises(InputError, match="allowed: h100_sxm, h200_sxm"):
        catalogue.select(systems=["h300"])
    with pytest.raises(UsageError, match="unknown operator"):
        read_operator(catalogue, "moes")
    with pytest.raises(UsageError, match="no measured table of gemm"):
        read_operator(catalogue, "gemm")


def test_a_moe_table_is_read_into_seconds(folder):
    frame = read_operator(open_catalogue(folder), "moe", systems=["h100_sxm"])
    assert len(frame) == 8
    assert frame.describe(1) == {
        "system": "h100_sxm",
        "engine": "sglang",
        "version": "0.5.10",
        "device": "NVIDIA H100 80GB HBM3",
        "kernel": "sglang_fused_moe_triton",
        "dtype": "fp8",
        "tokens": 2,
        "hidden": 4096,
        "inter": 1024,
        "top_k": 2,
        "experts": 8,
        "moe_tp": 1,
        "moe_ep": 1,
        "distribution": "balanced",
        "latency_s": pytest.approx(2e-4),
    }
    assert np.isnan(frame["power_w"]).all()


def test_schemas_differ_and_frames_do_not(tmp_path):
    plain = moe_columns(4)
    wide = {**plain, "power": [600.0] * 4, "power_limit": [700.0] * 4, "unheard_of": ["x"] * 4}
    for name in ("framework", "moe_dtype", "distribution", "kernel_source"):
        wide[name] = pa.array(wide[name], pa.large_string())
    wide["moe_dtype"] = pa.array(["fp8", None, "fp8", "int4_wo"], pa.large_string())
    write_table(tmp_path, "a100_sxm/moe/sglang/1", "moe", plain)
    write_table(tmp_path, "h100_sxm/moe/sglang/1", "moe", wide)
    frame = read_operator(open_catalogue(tmp_path), "moe")
    assert frame.text("dtype").tolist() == ["fp8"] * 5 + ["", "fp8", "int4_wo"]
    assert "unheard_of" not in frame.columns
    assert frame["power_w"][4:].tolist() == [600.0] * 4


def test_a_missing_column_and_a_broken_file_are_named(tmp_path):
    columns = moe_columns()
    del columns["topk"]
    path = write_table(tmp_path, "h100_sxm/moe/sglang/1", "moe", columns)
    with pytest.raises(InputError, match=r"moe_perf.parquet: topk: a column is missing"):
        read_operator(open_catalogue(tmp_path), "moe")
    path.write_bytes(b"PAR1 this is not one PAR1")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_operator(open_catalogue(tmp_path), "moe")
    write_table(tmp_path, "h100_sxm/moe/sglang/1", "moe", moe_columns(2, topk=[2, None]))
    with pytest.raises(InputError, match="empty cells"):
        read_operator(open_catalogue(tmp_path), "moe")


REUSE = """\
schema_version: 1
reuse:
- table: moe_perf
  from_version: {version}
  reason: same kernels
  approved_by: somebody
"""


def test_reuse_completes_a_table_and_says_so(folder):
    place = folder / "data/h100_sxm/moe/sglang"
    (place / "0.5.16/reuse.yaml").write_text(REUSE.format(version="0.5.9"))
    catalogue = open_catalogue(folder)
    options = {"systems": ["h100_sxm"], "versions": ["0.5.16"]}
    alone = read_operator(catalogue, "moe", **options)
    assert (len(alone), alone.notes) == (2, ())
    whole = read_operator(catalogue, "moe", reuse=True, **options)
    # Keys 1 and 2 are its own; 4 to 512 come from 0.5.9 and keep that version.
    assert whole["tokens"].tolist() == [2**i for i in range(10)]
    assert whole.text("version").tolist() == ["0.5.16"] * 2 + ["0.5.9"] * 8
    assert "8 rows taken from version 0.5.9 (same kernels)" in whole.notes[0]


def test_a_version_may_consist_of_reuse_alone(folder):
    place = folder / "data/h200_sxm/moe/vllm/0.25.0"
    place.mkdir()
    (place / "reuse.yaml").write_text(REUSE.format(version="0.24.0"))
    catalogue = open_catalogue(folder)
    assert [t.version for t in catalogue.select(["moe"], ["h200_sxm"])] == ["0.24.0"]
    options = {"systems": ["h200_sxm"], "versions": ["0.25.0"]}
    assert len(read_operator(catalogue, "moe", reuse=True, **options)) == 3
    with pytest.raises(UsageError, match="no measured table"):
        read_operator(catalogue, "moe", **options)


def test_reuse_of_nothing_is_refused(folder):
    place = folder / "data/h200_sxm/moe/vllm/0.24.0"
    (place / "reuse.yaml").write_text(REUSE.format(version="0.99"))
    with pytest.raises(InputError, match=r"names a version that has no such table; found 0.99"):
        read_operator(open_catalogue(folder), "moe", systems=["h200_sxm"], reuse=True)
    for text in ("reuse: 3", "reuse:\n- table: moe_perf"):
        (place / "reuse.yaml").write_text(text)
        with pytest.raises(InputError, match="reuse"):
            open_catalogue(folder)


def test_collectives_count_bytes(tmp_path):
    columns = {
        "kernel_source": ["NCCL"] * 2,
        "op_name": ["all_gather", "alltoall"],
        "nccl_dtype": ["half", "int8"],
        "num_gpus": [2, 8],
        "message_size": [256, 512],
        "latency": [0.005, 0.006],
    }
    write_table(tmp_path, "h100_sxm/comm/nccl/2.23", "nccl", columns)
    frame = read_operator(open_catalogue(tmp_path), "collective")
    assert frame["message_bytes"].tolist() == [512, 512]
    assert frame["latency_s"].tolist() == pytest.approx([5e-6, 6e-6])
    assert frame.text("device").tolist() == ["", ""]
    columns["nccl_dtype"] = ["half", "fp6"]
    write_table(tmp_path, "h100_sxm/comm/nccl/2.23", "nccl", columns)
    with pytest.raises(InputError, match="a type of unknown width; found fp6"):
        read_operator(open_catalogue(tmp_path), "collective")


def test_a_deepep_row_becomes_a_dispatch_and_a_combine(tmp_path):
    columns = {
        "kernel_source": ["deepep"],
        "node_num": [1],
        "hidden_size": [7168],
        "num_token": [128],
        "num_topk": [8],
        "num_experts": [256],
        "dispatch_sms": [20],
        "dispatch_transmit_us": [30.0],
        "dispatch_notify_us": [5.0],
        "combine_sms": [24],
        "combine_transmit_us": [40.0],
        "combine_notify_us": [0.0],
    }
    write_table(tmp_path, "h100_sxm/comm/sglang/1", "wideep_deepep_normal", columns)
    frame = read_operator(open_catalogue(tmp_path), "deepep_normal")
    rows = [(r["phase"], r["sms"], r["latency_s"]) for r in map(frame.describe, range(2))]
    assert rows == [("dispatch", 20, pytest.approx(35e-6)), ("combine", 24, pytest.approx(40e-6))]


def test_every_operator_has_distinct_files_and_its_shape_and_series_among_its_keys():
    files = [file for operator in OPERATORS.values() for file in operator.files]
    assert len(files) == len(set(files))
    for operator in OPERATORS.values():
        if operator.files:  # operators measured on one's own machine have none
            assert {*operator.shape, operator.series} <= set(operator.key)


def test_reading_imports_no_code_of_the_package(folder):
    program = (
        "import sys\n"
        "from moesim.calibrate.tables import open_catalogue\n"
        "from moesim.calibrate.operators import read_operator\n"
        f"read_operator(open_catalogue({str(folder)!r}), 'moe')\n"
        "bad = {'aiconfigurator_core', 'pandas', 'torch', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {bad}' if bad else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
