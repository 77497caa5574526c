"""Expert counts: every form in, every unusable form refused."""

import json
import re

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.safe_io import sha256_file
from moesim.traces.counts import CountsManifest, read_counts, write_counts

LOADS = np.array([[3, 0, 5], [1, 2, 0]])


def save(tmp_path, name, content):
    file = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(file, content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("name", "content", "layers", "factor"),
    [
        ("a.npy", LOADS, (0, 1), 1),
        ("a.npy", LOADS.astype(np.uint8), (0, 1), 1),
        ("a.npy", LOADS.astype(">f4"), (0, 1), 1),
        ("a.npy", np.stack([LOADS] * 4), (0, 1), 4),
        ("a.json", {"logical_count": LOADS.tolist()}, (0, 1), 1),
        ("a.json", {"logical_count": np.stack([LOADS, LOADS]).tolist()}, (0, 1), 2),
        ("a.json", {"logical_count": [[0, 0, 0], *LOADS.tolist()]}, (1, 2), 1),
        ("a.csv", "layer,expert,count\n4,0,3\n4,2,5\n7,0,1\n7,1,2\n", (4, 7), 1),
        ("a.csv", "\ufeffcount, layer ,expert\r\n2,7,1\r\n1,7,0\r\n5,4,2\r\n3,4,0\r\n", (4, 7), 1),
    ],
)
def test_forms(name, content, layers, factor, tmp_path):
    file = save(tmp_path, name, content)
    counts = read_counts(file, experts=3)
    np.testing.assert_array_equal(counts.loads, LOADS * factor)
    assert counts.loads.dtype == np.float64
    assert counts.moe_layers == layers
    assert counts.sha256 == sha256_file(file)
    assert counts.source == str(file)
    assert counts.experts == 3


def test_folder(tmp_path):
    windows = np.stack([LOADS, LOADS * 2])
    manifest = write_counts(
        tmp_path / "c", windows, model="m", moe_layers=(3, 5), source="test", stepwise=True
    )
    assert CountsManifest.load(tmp_path / "c" / "counts.json") == manifest
    counts = read_counts(tmp_path / "c", experts=3, moe_layers=(3, 5))
    np.testing.assert_array_equal(counts.loads, LOADS * 3)
    assert counts.moe_layers == (3, 5)
    assert counts.source == "test"
    assert counts.sha256 == manifest.sha256["counts.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "c" / "windowed_counts.npy"), windows)
    with pytest.raises(InputError, match="differ from the model's"):
        read_counts(tmp_path / "c", moe_layers=(1, 2))
    with pytest.raises(InputError, match="holds counts already"):
        write_counts(
            tmp_path / "c", windows, model="m", moe_layers=(3, 5), source="", stepwise=False
        )
    np.save(tmp_path / "c" / "counts.npy", LOADS[:1])
    with pytest.raises(InputError, match=r"\(1, 3\)"):
        read_counts(tmp_path / "c")


def test_rows_of_all_model_layers_are_reduced_to_moe_layers(tmp_path):
    whole = np.zeros((5, 3), int)
    whole[[1, 4]] = LOADS
    file = save(tmp_path, "a.npy", whole)
    counts = read_counts(file, moe_layers=(1, 4))
    np.testing.assert_array_equal(counts.loads, LOADS)
    assert counts.moe_layers == (1, 4)
    with pytest.raises(InputError, match="neither the MoE layers nor"):
        read_counts(file, moe_layers=(1, 3))
    with pytest.raises(InputError, match="neither the MoE layers nor"):
        read_counts(file, moe_layers=(1, 4, 5))
    same = read_counts(save(tmp_path, "b.npy", LOADS), moe_layers=(1, 4))
    assert same.moe_layers == (1, 4)


BAD = {
    "NaN": ("a.npy", np.array([[1.0, np.nan]]), "row 0, expert 1"),
    "infinite": ("a.npy", np.array([[1.0, np.inf]]), "row 0, expert 1"),
    "negative": ("a.npy", np.array([[1, 0], [0, -1]]), "row 1, expert 1"),
    "negative in a step": ("a.npy", np.array([[[1]], [[-1]]]), "step 1"),
    "rank 1": ("a.npy", np.arange(4), "shape"),
    "rank 4": ("a.npy", np.ones((1, 1, 1, 1)), "shape"),
    "empty": ("a.npy", np.zeros((0, 3)), "shape"),
    "booleans": ("a.npy", np.ones((2, 2), bool), "bool"),
    "idle layer": ("a.npy", np.array([[1, 2], [0, 0]]), "layer 1"),
    "all zero json": ("a.json", {"logical_count": [[0, 0]]}, "layer 0"),
    "no key": ("a.json", {"counts": [[1]]}, "logical_count"),
    "list": ("a.json", [[1, 2]], "logical_count"),
    "ragged": ("a.json", {"logical_count": [[1, 2], [1]]}, "lengths"),
    "text": ("a.json", {"logical_count": [["1", "2"]]}, "numbers"),
    "huge": ("a.json", {"logical_count": [[10**400, 2]]}, "numbers"),
    "csv empty": ("a.csv", "", "layer,expert,count"),
    "csv header": ("a.csv", "layer,count\n1,2\n", "line 1"),
    "csv no rows": ("a.csv", "layer,expert,count\n", "no counts"),
    "csv text": ("a.csv", "layer,expert,count\n0,x,1\n", "line 2"),
    "csv ragged": ("a.csv", "layer,expert,count\n0,1\n", "line 2"),
    "csv extra": ("a.csv", "layer,expert,count\n0,1,2,3\n", "line 2"),
    "csv twice": ("a.csv", "layer,expert,count\n0,1,2\n0,1,2\n", "line 3"),
    "csv negative id": ("a.csv", "layer,expert,count\n0,-1,2\n", "line 2"),
    "csv wide id": ("a.csv", "layer,expert,count\n0,2000000000,2\n", "out of range"),
    "csv NaN": ("a.csv", "layer,expert,count\n0,1,nan\n", "negative or not a number"),
    "ending": ("a.txt", "1 2", "file name"),
    "pt": ("a.pt", "x", "trace import"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_counts(name, tmp_path):
    file_name, content, words = BAD[name]
    file = save(tmp_path, file_name, content)
    with pytest.raises(InputError) as caught:
        read_counts(file)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert str(file) in str(caught.value)


def test_another_number_of_experts(tmp_path):
    for name, content in (("a.npy", LOADS), ("a.csv", "layer,expert,count\n0,4,2\n")):
        with pytest.raises(InputError, match="one column per expert"):
            read_counts(save(tmp_path, name, content), experts=4)


def test_absent(tmp_path):
    for name in ("a.npy", "a.json", "a.csv"):
        with pytest.raises(InputError, match="no such file"):
            read_counts(tmp_path / name)
    with pytest.raises(InputError, match=r"counts\.json"):
        read_counts(tmp_path)
