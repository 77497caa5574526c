"""Two processors over one memory: the split, the choice, and the loop."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.cluster import load_cluster
from moesim.errors import InputError, UsageError
from moesim.forward.layout import Sequences, StepLoad
from moesim.hardware import load_device
from moesim.model import load_model
from moesim.pim.closed_loop import draw_lengths, run_loop
from moesim.pim.processors import break_even_op_per_byte, processors_of
from moesim.pim.split import split_experts
from moesim.pim.systems import system_pricer

MAIN, NEAR = processors_of(load_device("duplex"))


def reads(tokens, unit):
    """The split table, written out: weight reads of the main processor that an expert takes."""
    ridge = unit.flop_per_s / unit.bytes_per_s  # operations per byte, and so tokens of 16 bits
    return max(1.0, tokens / ridge) * MAIN.bytes_per_s / unit.bytes_per_s


def split_one_by_one(tokens, spaces):
    """Duplex's division as it is told: all near the memory, then the fullest space moves away."""
    groups = [
        list(part) for part in np.array_split(np.arange(len(tokens)), min(spaces, len(tokens)))
    ]
    groups.sort(key=lambda part: -sum(tokens[expert] for expert in part))
    here, best = set(), float("inf")
    for moved in range(len(groups) + 1):
        main = sum(reads(tokens[e], MAIN) for part in groups[:moved] for e in part)
        near = sum(reads(tokens[e], NEAR) for part in groups[moved:] for e in part)
        if max(main, near) < best * (1 - 1e-12):
            best, here = max(main, near), {e for part in groups[:moved] for e in part}
    return [expert not in here for expert in range(len(tokens))]


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_experts_are_divided_as_duplex_does(spaces, each, data):
    count = spaces * each
    tokens = data.draw(st.lists(st.integers(0, 500), min_size=count, max_size=count, unique=True))
    found = split_experts(np.array([tokens]), MAIN, NEAR, spaces=spaces)[0]
    assert found.tolist() == split_one_by_one(tokens, spaces)


def test_the_main_processor_gets_only_what_shortens_the_layer():
    few, many = np.full((1, 8), 2), np.full((1, 8), 32)
    assert split_experts(few, MAIN, NEAR).all()
    # 32 tokens are 0.75 reads near the memory: 6 and 2 experts take 4.5 reads, 4 and 4 take 4.
    assert split_experts(many, MAIN, NEAR).sum() == 4
    assert not split_experts(np.full((1, 8), 4096), MAIN, NEAR).any()


def test_a_space_is_used_by_one_processor():
    tokens = np.random.default_rng(0).integers(0, 200, (50, 32))
    chosen = split_experts(tokens, MAIN, NEAR).reshape(50, 4, 8)
    assert (chosen.all(-1) | ~chosen.any(-1)).all()


@given(st.integers(2, 5000), st.integers(2, 5000), st.integers(0, 9))
def test_lengths_shift_tokens_from_prompt_to_answer(prompt, answer, seed):
    prompts, answers = draw_lengths(prompt, answer, 50, np.random.default_rng(seed))
    assert (prompts + answers == prompt + answer).all()
    assert np.abs(prompts - prompt).max() < min(256, prompt, answer)
    assert min(prompts.min(), answers.min()) >= 1


def test_processors_follow_the_profile():
    main, near = processors_of(load_device("duplex"), (1.0, 1.0))
    assert near.bytes_per_s == pytest.approx(4 * main.bytes_per_s)
    assert near.flop_per_s / near.bytes_per_s == pytest.approx(8, rel=0.01)
    assert break_even_op_per_byte(main, near) == pytest.approx(32, rel=0.01)
    with pytest.raises(InputError, match="no second processor"):
        processors_of(load_device("h100_sxm"))


def test_logic_beats_bank_pim_from_few_operations_per_byte_on():
    bank = processors_of(load_device("duplex_bank_pim"))[1]
    logic = processors_of(load_device("duplex"))[1]
    for op_per_byte in (1, 2, 3):
        assert bank.seconds(op_per_byte, 1.0) < logic.seconds(op_per_byte, 1.0)
    for op_per_byte in (8, 16, 32):
        assert logic.seconds(op_per_byte, 1.0) < bank.seconds(op_per_byte, 1.0)


@pytest.mark.parametrize("batch", [1, 32, 256])
def test_a_second_processor_never_slows_a_stage(batch):
    model, cluster = load_model("mixtral-8x7b"), load_cluster("4xduplex")
    load = StepLoad((Sequences(batch, 1, 1024),))
    main, choose, split = (
        system_pricer(model, cluster, way).price(load) for way in ("main", "choose", "split")
    )
    assert choose.time_s <= main.time_s * (1 + 1e-9)
    assert split.time_s <= main.time_s * (1 + 1e-9)
    assert choose.joules < main.joules
    for call in split.calls:
        assert call.time_s >= call.roofline_s * (1 - 1e-9)


def test_the_loop_keeps_its_books():
    model, cluster = load_model("mixtral-8x7b"), load_cluster("4xduplex")
    pricer = system_pricer(model, cluster, "choose")
    found = run_loop(pricer, 256, 64, 16)
    assert found.tbt_p50_s <= found.tbt_p90_s <= found.tbt_p99_s
    # Little's law: requests in flight are rate times time in the system.
    assert found.tokens_per_s / 64 * found.latency_s == pytest.approx(16, rel=0.2)
    slow = run_loop(pricer, 256, 64, 16, arrivals_per_s=1.0)
    assert slow.tokens_per_s < found.tokens_per_s


def test_unknown_ways_are_refused():
    with pytest.raises(UsageError, match="no way"):
        system_pricer(load_model("mixtral-8x7b"), load_cluster("4xduplex"), "both")


def test_command(capsys):
    words = ["simulate", "pim", "--model", "mixtral-8x7b", "--isl", "256", "--osl", "64"]
    assert run(app, [*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["ways"]) == {"main", "choose", "split", "split-et"}
    gains = {way: one["tokens_per_s"] for way, one in found["ways"].items()}
    assert gains["choose"] > gains["main"]
    assert run(app, words) == 0
    assert "Op/B" in capsys.readouterr().out
    assert run(app, [*words, "--cluster", "4xh100_sxm"]) != 0
    assert "no second processor" in capsys.readouterr().err
