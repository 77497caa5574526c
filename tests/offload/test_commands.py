"""``moesim whatif cache`` and ``moesim simulate offload`` on the bundled sample."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from moesim.cache.replay import hit_curve
from moesim.cache.setting import CacheSetting
from moesim.offload.whatif import CLOSE_SHARE
from moesim.traces.bundle import open_trace, sample_path
from tests.cli.commands import moesim, tiny_model, tiny_trace


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A trace without requests and the model that it is of."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_trace(folder / "trace")
    return folder / "trace", tiny_model(folder)


def test_whatif_on_the_sample(capsys, tmp_path):
    words = (
        "whatif",
        "cache",
        "--slots",
        "4,8,12,32",
        "--memory",
        "2.5 GB",
        "--out",
        tmp_path,
        "--json",
        "--quiet",
    )
    data = moesim(capsys, *words).json
    assert data["schema"] == "moesim.whatif-cache/1"
    assert (data["contract"], data["cold"]) == ("event-atomic", "miss")
    expected = hit_curve(open_trace(sample_path()), "lru", [4, 8, 12, 32], CacheSetting())
    curve = data["policies"]["lru"]
    assert curve["hit_rate"] == pytest.approx(expected.hit_rate.tolist())
    for name, one in data["policies"].items():
        assert one["slots"] == [4, 8, 12, 32], name
        assert (np.diff(one["tokens_per_s"]) >= 0).all(), name
    speeds = [one["tokens_per_s"] for one in data["policies"].values()]
    # With all experts in slots every policy is as fast, and no causal one beats Belady.
    assert np.ptp([speed[-1] for speed in speeds]) / speeds[0][-1] < 0.01
    assert data["policies"]["belady"]["tokens_per_s"] == np.max(speeds, axis=0).tolist()
    assert not data["policies"]["belady"]["online"]
    assert set(data["with_cpu"]) == {"split", "hybrid"}
    # 2.5 GB: 8 slots leave room for one request of 4,096 tokens, 12 do not.
    assert data["memory"]["requests"][2] == 0
    assert data["recommended"] == 8
    for file in ("report.html", "report.md", "whatif-cache.json"):
        assert (tmp_path / file).stat().st_size > 1000
    drawing = (tmp_path / "tokens-per-s.svg").read_text()
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert "var(--" not in drawing
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_recommendation_is_the_smallest_size_that_is_nearly_as_fast(capsys):
    words = ("whatif", "cache", "--policies", "lru", "--memory", "24 GB", "--json", "--quiet")
    data = moesim(capsys, *words).json
    curve, best = data["policies"]["lru"], data["recommended"]
    at = curve["slots"].index(best)
    top = max(curve["tokens_per_s"])
    assert curve["tokens_per_s"][at] >= CLOSE_SHARE * top
    assert all(speed < CLOSE_SHARE * top for speed in curve["tokens_per_s"][:at])


def test_a_batch_asks_for_more_distinct_experts_and_contracts_differ(capsys, tiny):
    trace, model = tiny
    words = (
        "whatif",
        "cache",
        "--trace",
        trace,
        "--model",
        model,
        "--slots",
        "2,4",
        "--policies",
        "lru",
        "--hardware",
        "rtx4090",
        "--batch",
        "1,4",
        "--json",
        "-q",
    )
    atomic = moesim(capsys, *words).json
    unions = [one["distinct_experts"] for one in atomic["batches"]]
    assert unions[1] > unions[0] == 2
    assert atomic["with_cpu"] == {}
    hit = moesim(capsys, *words, "--cold", "hit").json
    assert hit["policies"]["lru"]["hit_rate"][0] > atomic["policies"]["lru"]["hit_rate"][0]
    sequential = moesim(capsys, *words, "--contract", "sequential").json
    rates = [data["batches"][1]["policies"]["lru"]["hit_rate"][0] for data in (atomic, sequential)]
    assert rates[0] != rates[1]


def test_simulate_offload_compares_systems(capsys):
    words = ("simulate", "offload", "--system", "all", "--prompt", "32", "--output", "16")
    data = moesim(capsys, *words, "--json", "--quiet").json
    assert data["schema"] == "moesim.simulate/1"
    runs = data["systems"]
    assert data["best"] == max(runs, key=lambda name: runs[name]["tokens_per_s"])
    assert data["tpot_s"] == runs[data["best"]]["tpot_s"]
    assert runs["on-demand"]["tpot_s"] < runs["serial"]["tpot_s"]
    assert runs["hybrimoe"]["tpot_s"] < runs["static-split"]["tpot_s"]
    for name, run in runs.items():
        assert run["ttft_s"] > run["tpot_s"], name
        for share in run["decode"]["busy"].values():
            assert 0 <= share <= 1.02, name  # a copy may begin in one step and end in the next
        counts = run["decode"]["per_step"]
        parts = ("resident", "prefetched", "late", "copied", "on_cpu")
        assert sum(counts[part] for part in parts) == pytest.approx(counts["active"])
    assert runs["paths"]["prediction"]["recall"] > 4 / 32
    assert "hybrimoe" in moesim(capsys, *words).out


def test_a_slow_disk_bounds_what_does_not_fit_into_host_memory(capsys):
    words = ("simulate", "offload", "--system", "on-demand", "--prompt", "32", "--output", "16",
             "--slots", "4", "--json", "--quiet")  # fmt: skip
    fast = moesim(capsys, *words).json["systems"]["on-demand"]
    slow = moesim(capsys, *words, "--host-slots", "8", "--nvme", "1 GB/s").json
    assert slow["systems"]["on-demand"]["bound"] == "NVMe"
    assert slow["tpot_s"] > fast["tpot_s"]
    narrow = moesim(capsys, *words, "--bits", "4").json
    assert narrow["tpot_s"] < fast["tpot_s"]
