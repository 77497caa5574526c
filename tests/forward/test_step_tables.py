"""Tabulated steps against steps that are priced call by call."""

import numpy as np
import pytest

from moesim.cluster import load_cluster
from moesim.forward.expert_load import parse_distribution
from moesim.forward.formats import choose_formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.simulate import simulate_step
from moesim.forward.step_tables import build_step_tables
from moesim.model import load_model

CASES = [
    ("deepseek-v3", "8xh200_sxm", {}),
    ("deepseek-v3", "8xh200_sxm", {"dp": 8}),
    ("gpt-oss-120b", "2xb200_sxm", {}),
    ("qwen3.5-397b-a17b", "8xb200_sxm", {"ep": 8}),
    ("qwen3-235b-a22b-fp8", "8xh200_sxm", {"pp": 2}),
]


def _tables(name, cluster, sizes, **further):
    machine = Machine(load_cluster(cluster), "sglang", "fitted")
    model = load_model(name)
    layout = Layout.complete(machine.cluster.devices, **sizes)
    setting = (model, machine, layout, choose_formats(model, machine.device))
    return build_step_tables(*setting, parse_distribution("uniform"), **further), setting


def _simulated(setting, load, **further):
    model, machine, layout, formats = setting
    uniform = parse_distribution("uniform")
    return simulate_step(
        model, machine, layout, load, formats, uniform, check_memory=False, **further
    )


@pytest.mark.parametrize(("name", "cluster", "sizes"), CASES)
def test_a_decode_step_on_a_grid_point_takes_what_its_calls_take(name, cluster, sizes):
    tables, setting = _tables(name, cluster, sizes)
    layout = setting[2]
    load = StepLoad.of("decode", 64 * layout.dp * layout.pp, 2048)
    place = int(np.searchsorted(tables.tokens, 64))
    row, column = (
        np.searchsorted(tables.decode_sequences, 64),
        np.searchsorted(tables.decode_context, 2048),
    )
    found = (
        tables.token_s[0, :, place].sum()
        + tables.sampled_s[place]
        + tables.decode_attention_s[row, column]
    )
    assert found == pytest.approx(_simulated(setting, load).step_s, rel=1e-3)


@pytest.mark.parametrize(("name", "cluster", "sizes"), CASES)
def test_a_prefill_step_on_a_grid_point_takes_what_its_calls_take(name, cluster, sizes):
    tables, setting = _tables(name, cluster, sizes)
    layout = setting[2]
    load = StepLoad.of("prefill", layout.dp * layout.pp, 2048, 4096)
    place = int(np.searchsorted(tables.tokens, 2048))
    row, column = (
        np.searchsorted(tables.chunk_tokens, 2048),
        np.searchsorted(tables.chunk_past, 4096),
    )
    found = (
        tables.token_s[1, :, place].sum()
        + tables.sampled_s[0]
        + tables.chunk_attention_s[row, column]
    )
    assert found == pytest.approx(_simulated(setting, load).step_s, rel=1e-3)


def test_times_do_not_fall_with_context_or_past():
    tables, _ = _tables(*CASES[0])
    assert (np.diff(tables.decode_attention_s, axis=1) >= 0).all()
    assert (np.diff(tables.chunk_attention_s, axis=1) >= 0).all()


def test_the_cache_takes_what_the_weights_leave():
    tables, _ = _tables(*CASES[0])
    held = tables.memory.total + tables.kv_capacity_tokens * tables.cache_bytes_per_token
    assert held == pytest.approx(0.9 * tables.memory_bytes, rel=1e-4)
    # 61 layers of 512 + 64 elements in bfloat16, on every device (arXiv 2505.09343, table 1).
    assert tables.cache_bytes_per_token == 70_272


def test_a_window_is_a_state_and_no_growing_cache():
    tables, _ = _tables(*CASES[2])
    full, windowed = 18 * 2 * 8 * 64 * 2 / 2, 18 * 128 * 2 * 8 * 64 * 2 / 2
    assert tables.cache_bytes_per_token == full
    assert tables.state_bytes_per_sequence == windowed


def test_a_step_that_verifies_drafts_takes_what_its_calls_take():
    tables, setting = _tables("deepseek-v3", "8xh200_sxm", {"dp": 8}, drafts=3)
    load = StepLoad.of("decode", 64 * 8, 2048, drafts=3)
    place = int(np.searchsorted(tables.tokens, 256))
    assert tables.tokens[place] == 256
    row, column = (
        np.searchsorted(tables.decode_sequences, 64),
        np.searchsorted(tables.decode_context, 2048),
    )
    found = (
        tables.token_s[0, :, place].sum()
        + tables.sampled_s[place]
        + tables.decode_attention_s[row, column]
    )
    assert found == pytest.approx(_simulated(setting, load).step_s, rel=1e-3)


def test_tables_hide_what_a_step_hides():
    sizes = {"dp": 8}
    tables, setting = _tables("deepseek-v3", "8xh200_sxm", sizes, overlap="two-batch")
    load = StepLoad.of("decode", 64 * 8, 1024)
    place = int(np.searchsorted(tables.tokens, 64))
    step = _simulated(setting, load, overlap="two-batch")
    assert tables.hidden_s[0, place] == pytest.approx(step.hidden_s, rel=1e-6)
    assert step.hidden_s > 0
