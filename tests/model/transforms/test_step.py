"""A transformed model in the step model: calls, bytes, memory, and the command line."""

import json

import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.forward.request import StepRequest, run_request

from .test_laws import EXAMPLES, NEEDS_DENSE

# Every transform but those that Mixtral's sizes do not fit.
FITTING = sorted(set(EXAMPLES) - NEEDS_DENSE)


def step(*transforms, model="mixtral-8x7b", **options):
    options = {"cost": "roofline", "batch": 64, "routing": "balanced", "ep": 8} | options
    return run_request(StepRequest(model, "8xh100_sxm", transforms=transforms, **options))


def work(found, name):
    return next(priced.op for priced in found.ops if priced.op.name == name)


@pytest.mark.parametrize("name", FITTING)
def test_every_transform_is_priced(name):
    text = "prune:8" if name == "prune" else EXAMPLES[name]
    found = step(text, ep=None, tp=8)
    assert found.step_s > 0
    assert 0 < found.lo_s <= found.hi_s


def test_null_experts_send_fewer_copies():
    before, after = step(), step("null-experts:8")
    ratio = work(after, "moe.experts").work.flops / work(before, "moe.experts").work.flops
    assert ratio == pytest.approx(0.5)
    assert work(after, "moe.router").work.n == 16


def test_rounds_repeat_all_but_shared_experts():
    plain = {op.op.name: op.op.layers for op in step(model="deepseek-v2-lite").ops}
    chain = {
        op.op.name: op.op.layers for op in step("chain-of-experts:2", model="deepseek-v2-lite").ops
    }
    for name in ("moe.router", "moe.experts"):
        assert chain[name] == 2 * plain[name]
    assert chain["moe.shared_up"] == plain["moe.shared_up"]


def test_narrow_weights_take_fewer_bytes():
    before, after = step(), step("weights:experts=4")
    assert after.memory.experts == pytest.approx(before.memory.experts / 4)
    assert work(after, "moe.experts").work.bytes < 0.3 * work(before, "moe.experts").work.bytes
    assert work(after, "moe.experts").work.flops == work(before, "moe.experts").work.flops
    # No kernel was measured on weights of this form, so no fit is claimed for them.
    fitted = step("weights:experts=4.5", cost="fitted")
    priced = next(p for p in fitted.ops if p.op.name == "moe.experts")
    assert priced.price.evidence.value == "spec"


def test_recursion_stores_weights_once():
    before, after = step(), step("recursion:4")
    assert after.memory.experts == pytest.approx(before.memory.experts / 4)
    assert after.memory.attention == pytest.approx(before.memory.attention / 4)
    assert after.step_s == pytest.approx(before.step_s)


def test_skipping_tokens_and_heads_take_less():
    full = step(phase="prefill", batch=8, context=4096)
    skipped = step("skip:0.5", phase="prefill", batch=8, context=4096)
    assert work(skipped, "moe.experts").work.flops == pytest.approx(
        work(full, "moe.experts").work.flops / 2
    )
    assert skipped.memory.cache == pytest.approx(full.memory.cache / 2)
    heads = step("attention-experts:0.5", phase="prefill", batch=8, context=4096, tp=1, dp=8)
    plain = step(phase="prefill", batch=8, context=4096, tp=1, dp=8)
    name = "gqa.prefill_attention"
    assert work(heads, name).work.flops == work(plain, name).work.flops / 2
    assert heads.memory.cache == plain.memory.cache


def test_transforms_of_the_command_line(capsys):
    assert run(app, ["model", "transforms", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in listed["transforms"]} == set(EXAMPLES)
    command = ["model", "show", "deepseek-r1", "--transform", "prune:128", "--json"]
    assert run(app, command) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["experts"] == 128
    assert shown["variant"]["applied"] == ["prune:128"]


@pytest.mark.parametrize(
    "command",
    [
        ["whatif", "cache", "--slots", "16"],
        ["simulate", "offload", "--system", "on-demand"],
        ["plan", "--planner", "lpt"],
    ],
)
def test_traces_take_what_leaves_the_routing(command, capsys, tmp_path):
    command = [*command, "--model", "small-moe-30b-dims", "--json", "--quiet"]
    if command[0] == "plan":
        command += ["--out", str(tmp_path / "plan")]
    assert run(app, [*command, "--transform", "weights:experts=4,group=128"]) == 0
    assert "weights:experts=4" in capsys.readouterr().out
    assert run(app, [*command, "--transform", "null-experts:4"]) == 2
    assert "changes where tokens go" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert run(app, [*command, "--transform", "prune:1000"]) == 4
    capsys.readouterr()


def test_serving_takes_transforms(capsys):
    command = ["simulate", "serving", "--model", "qwen3-30b-a3b", "--cluster", "1xh200_sxm"]
    command += ["--concurrency", "8", "--requests", "16", "--isl", "256", "--osl", "64"]
    found = {}
    for text in ("prune:128", "skip:0.5"):
        assert run(app, [*command, "--json", "--quiet", "--transform", text]) == 0
        found[text] = json.loads(capsys.readouterr().out)["tokens_per_s"]
    assert found["skip:0.5"] > found["prune:128"]
