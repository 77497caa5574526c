"""Sizes of grouped models: the program against trying everything, and the command."""

import json
from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.cluster import load_cluster
from moesim.forward.formats import Formats
from moesim.forward.machine import Machine
from moesim.forward.request import StepRequest, run_request
from moesim.operators.gemm import FORMATS
from moesim.planners.moge_columns import SizeSpace, size_contexts
from moesim.planners.moge_mass import lost_sets_bits
from moesim.planners.moge_size import (
    AttentionColumn,
    Budgets,
    Context,
    ExpertColumn,
    choose_size,
    priced,
)

CARDS = 4


def drawn(seed):
    rng = np.random.default_rng(seed)

    def attention():
        return AttentionColumn(
            int(rng.integers(1, 9)), 1, rng.uniform(1e-4, 1e-3), rng.uniform(1e7, 1e8),
            rng.uniform(1e7, 5e8),
        )  # fmt: skip

    def experts():
        total = rng.uniform(5e8, 2e9)
        return ExpertColumn(
            int(rng.integers(8, 65)), 8, 1, int(rng.integers(100, 999)), 1,
            rng.uniform(1e-4, 2e-3), total, total * rng.uniform(0.1, 0.4), total / CARDS,
        )  # fmt: skip

    return [
        Context(
            4096 + c, int(rng.integers(20, 60)), 4, 1, int(rng.integers(8, 300)),
            rng.uniform(1e-4, 1e-3), 1e9, 5e8,
            tuple(attention() for _ in range(3)), tuple(experts() for _ in range(4)),
        )
        for c in range(5)
    ]  # fmt: skip


def within(one, budgets):
    return (
        budgets.parameters[0] <= one.parameters <= budgets.parameters[1]
        and budgets.active[0] <= one.active <= budgets.active[1]
        and one.step_s <= budgets.tpot_s
        and one.device_bytes <= budgets.device_bytes
    )


def everything(contexts, budgets):
    found = [
        priced(context, a, e, CARDS)
        for context in contexts
        for a, e in product(context.attention, context.experts)
    ]
    return sorted((one for one in found if within(one, budgets)), key=lambda o: -o.tokens_per_s)


@pytest.mark.parametrize("seed", range(12))
def test_the_program_finds_what_trying_everything_finds(seed):
    contexts = drawn(seed)
    budgets = Budgets((2e10, 7e10), (8e9, inf), 0.06, 3e10)
    best = everything(contexts, budgets)
    found = choose_size(contexts, budgets, CARDS)
    if not best:
        assert found is None
        return
    assert found.tokens_per_s == pytest.approx(best[0].tokens_per_s, rel=1e-5)
    assert found.proven
    assert within(found, replace(budgets, tpot_s=0.0600001))
    second = choose_size(contexts, budgets, CARDS, without=[found.shape])
    others = [one for one in best if one.shape != found.shape]
    assert (second is None) == (not others)
    if others:
        assert second.tokens_per_s == pytest.approx(others[0].tokens_per_s, rel=1e-5)


def test_columns_add_up_to_a_whole_step(tmp_path):
    space = SizeSpace(
        hidden=(5120,), layers=(48,), heads=(40,), kv_heads=(8,), experts=(64,), width=(1344,),
        batch=(64,),
    )  # fmt: skip
    machine = Machine(load_cluster("4xascend_910b4"), "sglang", "fitted")
    contexts = size_contexts(space, machine, Formats("sq", "sq", "bfloat16"), 2048)
    whole = next(c for c in contexts if c.dp == 1)
    one = priced(whole, whole.attention[0], whole.experts[0], CARDS)
    config = {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe",
        "vocab_size": 153376, "hidden_size": 5120, "intermediate_size": 5376,
        "moe_intermediate_size": 1344, "shared_expert_intermediate_size": 5376,
        "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
        "num_experts": 64, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    step = run_request(
        StepRequest(
            str(path), "4xascend_910b4", batch=64, context=2048, tp=4, ep=4, gemm_dtype="sq",
            expert_dtype="sq", routing="balanced",
        )
    )  # fmt: skip
    assert one.step_s == pytest.approx(step.step_s, rel=0.02)
    # Pangu Pro MoE, arXiv 2505.21411, table 1: 71.99 B, 16.50 B active.
    assert one.parameters == pytest.approx(71.99e9, rel=2e-3)
    assert one.active == pytest.approx(16.50e9, rel=5e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8_block"])
def test_bytes_of_weights_are_those_of_the_step_model(dtype):
    space = SizeSpace(
        hidden=(4096,), layers=(48,), heads=(32,), kv_heads=(8,), experts=(64,), width=(1536,),
        batch=(64,),
    )  # fmt: skip
    machine, formats = (
        Machine(load_cluster("4xh200_sxm"), "sglang", "fitted"),
        Formats(dtype, dtype, "bfloat16"),
    )
    whole = next(c for c in size_contexts(space, machine, formats, 2048) if c.dp == 1)
    step = run_request(
        StepRequest(
            "mixtral-8x7b", "4xh200_sxm", batch=64, context=2048, tp=4, ep=4, gemm_dtype=dtype,
            expert_dtype=dtype, routing="balanced",
        )
    )  # fmt: skip
    # The same bytes per weight, of experts of another size and number.
    per_weight = step.memory.experts * 4 / (32 * 8 * 3 * 4096 * 14336)
    routed = 3 * 4096 * 1536 * 64 * per_weight / 4
    shared = 3 * 4096 * 1536 * 4 * FORMATS[dtype].weight_bytes / 4
    assert whole.experts[0].device_bytes == pytest.approx(routed + shared, rel=1e-12)


@pytest.mark.parametrize("cards", [4, 8])
def test_groups_left_open_are_the_fewest_that_balance_the_cards(cards):
    machine = Machine(load_cluster(f"{cards}xascend_910b4"), "sglang", "fitted")
    space = SizeSpace(
        hidden=(4096,), layers=(48,), heads=(32,), kv_heads=(8,), experts=(64,), width=(1344,),
        batch=(64,),
    )  # fmt: skip

    def columns(groups):
        contexts = size_contexts(
            replace(space, groups=groups), machine, Formats("sq", "sq", "bfloat16"), 2048
        )
        return [context.experts for context in contexts]

    (chosen,) = columns(None)[0]
    every = columns(tuple(range(1, 65)))[0]
    # Every number of groups that balances costs the same: what is left is a token's choice.
    assert {column.groups for column in every} == {g for g in (4, 8) if g % cards == 0}
    assert {column.seconds for column in every} == {chosen.seconds}
    bits = {column.groups: lost_sets_bits(64, column.groups, column.per_group) for column in every}
    assert bits[chosen.groups][1] == max(grouped for _, grouped in bits.values())
    assert chosen.groups * chosen.per_group == 8


def test_command(capsys):
    words = [
        *("plan", "moge", "size", "--hidden", "4096,5120", "--layers", "48", "--heads", "40"),
        *("--kv-heads", "8", "--experts", "32,64", "--width", "1344,2304", "--batch", "64,256"),
        *("--keep", "2"),
    ]
    assert run(app, [*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["shapes"]
    assert first["tokens_per_s_per_card"] >= second["tokens_per_s_per_card"]
    assert 60e9 <= first["parameters"] <= 80e9
    assert first["active"] >= 16e9
    assert first["lo_s"] <= first["step_s"] <= first["hi_s"]
    assert first["evidence"] == "assumed"
    assert first["choice_bits"]["grouped"] < first["choice_bits"]["free"]
    assert run(app, words) == 0
    assert "tokens/s per card" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--parameters", "80"], 2, "--parameters"),
        (["--hidden", "wide"], 2, "--hidden"),
        (["--dtype", "int3"], 2, "--dtype"),
        (["--dtype", "int8_wo"], 2, "--dtype"),
        (["--dtype", "nvfp4"], 2, "--dtype"),
        (["--groups", "6", "--experts", "48"], 3, "--groups"),
        (["--groups", "many"], 2, "--groups"),
        (["--top-k", "0"], 2, "--top-k"),
        (["--top-k", "6"], 3, "--top-k"),
        (["--tpot", "0.0001", "--hidden", "4096", "--layers", "40", "--batch", "64"], 3, "--tpot"),
    ],
)
def test_what_cannot_be_asked_is_named(capsys, more, code, words):
    assert run(app, ["plan", "moge", "size", *more]) == code
    assert words in capsys.readouterr().err
