"""Work of a step by hand: FLOPs and bytes of published models' layers, and what is conserved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.forward.calls import StepShape, step_ops
from moesim.forward.expert_load import draw_slot_tokens, parse_distribution
from moesim.forward.formats import choose_formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.memory import device_memory
from moesim.forward.work import AttentionWork, ExpertWork, GemmWork
from moesim.hardware import load_device
from moesim.model import load_model, model_names
from moesim.operators.attention import attended_pairs


def shape_of(name, devices=1, phase="decode", batch=8, context=1024, routing="balanced", **sizes):
    model = load_model(name)
    layout = Layout.complete(devices, **sizes)
    layout.check(model)
    load = StepLoad.of(phase, batch, context).busiest(layout.pp)
    tokens = load.busiest(layout.dp).tokens * layout.dp
    slots = draw_slot_tokens(
        parse_distribution(routing), tokens, model.top_k, model.experts, layout.ep, 0
    )
    formats = choose_formats(model, load_device("b200_sxm"))
    return StepShape(model, layout, load, formats, slots)


def works(shape):
    return {op.name: op for op in step_ops(shape)}


def test_deepseek_v3_decode_by_hand():
    """config.json: 7168 hidden, 128 heads, ranks 1536 and 512, heads of 128 + 64 and 128."""
    found = works(shape_of("deepseek-v3", 8, batch=128, context=4096, dp=8))
    tokens = 16
    assert found["mla.down"].work == GemmWork(tokens, 1536 + 512 + 64, 7168, "fp8_block")
    assert found["mla.query_up"].work == GemmWork(tokens, 128 * 192, 1536, "fp8_block")
    assert found["mla.query_absorb"].work == GemmWork(tokens, 512, 128, "bfloat16", 128)
    assert found["mla.value_up"].work == GemmWork(tokens, 128, 512, "bfloat16", 128)
    assert found["mla.output"].work == GemmWork(tokens, 7168, 128 * 128, "fp8_block")
    attention = found["mla.decode_attention"]
    assert attention.layers == 61
    assert attention.work.flops == 2 * 16 * 128 * 4097 * (576 + 512)
    cache = 16 * 4097 * 576 * 2
    assert attention.work.bytes == cache + 16 * 128 * (576 + 512) * 2
    assert found["dense.up"].work == GemmWork(tokens, 2 * 18432, 7168, "fp8_block")
    assert found["dense.up"].layers == 3
    assert found["moe.router"].work == GemmWork(tokens, 256, 7168, "bfloat16")
    assert found["moe.shared_down"].work == GemmWork(tokens, 7168, 2048, "fp8_block")
    experts = found["moe.experts"]
    # 128 tokens to 8 of 256 experts each: 4 tokens for every one of a device's 32.
    assert experts.layers == 58
    assert experts.work.flops == 2 * 3 * 7168 * 2048 * 128
    weights = 32 * 3 * 7168 * 2048 * (1 + 4 / 128**2)
    assert experts.work.bytes == pytest.approx(weights + 128 * (7168 + 2 * 2048 + 2 * 7168))
    assert found["head"].work == GemmWork(16, 129280, 7168, "bfloat16")
    dispatch = found["moe.dispatch"].work
    # FP8 with one float32 scale per 128 values to 7 of 8 ranks.
    assert dispatch.bytes == pytest.approx(16 * 8 * 7 / 8 * (7168 + 56 * 4))
    assert found["moe.combine"].work.bytes == pytest.approx(16 * 8 * 7 / 8 * 2 * 7168)


def test_mixtral_prefill_on_eight_ways_by_hand():
    found = works(shape_of("mixtral-8x7b", 8, phase="prefill", batch=2, context=512))
    tokens = 1024
    assert found["gqa.qkv"].work == GemmWork(tokens, (4 + 2 * 1) * 128, 4096, "bfloat16")
    assert found["gqa.output"].work == GemmWork(tokens, 4096, 4 * 128, "bfloat16")
    attention = found["gqa.prefill_attention"].work
    assert attention.flops == 2 * 2 * 4 * (512 * 513 / 2) * 2 * 128
    assert attention.bytes == 2 * 512 * 4 * 128 * 2 * 2 + 2 * 512 * 2 * 128 * 2
    assert found["gqa.all_reduce"].work.bytes == pytest.approx(2 * 7 / 8 * tokens * 4096 * 2)
    experts = found["moe.experts"].work
    # 2 of 8 experts for each of 1,024 tokens, an eighth of each expert's width.
    assert experts.flops == 2 * 3 * 4096 * (14336 // 8) * 2048
    assert (experts.slot_tokens == 256).all()
    assert found["head"].work == GemmWork(2, 4000, 4096, "bfloat16")


def test_qwen3_with_experts_and_attention_in_parallel_by_hand():
    found = works(shape_of("qwen3-235b-a22b-fp8", 8, batch=64, context=2048, tp=8, ep=8))
    assert found["gqa.qkv"].work == GemmWork(64, (8 + 2) * 128, 4096, "fp8_block")
    experts = found["moe.experts"].work
    assert experts.slot_tokens.shape == (1, 8, 16)
    assert experts.slot_tokens.sum() == 64 * 8
    assert "moe.dispatch" not in found
    assert found["moe.all_reduce"].layers == 94


@pytest.mark.parametrize("name", model_names())
def test_flops_are_two_per_active_parameter_and_token(name):
    """Whatever the architecture, matrices do two FLOPs per parameter and token."""
    model = load_model(name)
    shape = shape_of(name, batch=1, context=8)
    multiplied = sum(
        op.work.flops * op.layers
        for op in step_ops(shape)
        if isinstance(op.work, GemmWork | ExpertWork)
    )
    active = model.active_parameters - model.parameters.embedding
    if model.tied_embeddings:
        active += model.parameters.embedding  # the head's product takes place all the same
    # Norms, biases and gates are parameters without a matrix product, a recurrence's projections
    # are rounded to whole columns.
    assert multiplied == pytest.approx(2 * active, rel=0.02)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_every_model_has_a_step(name, phase):
    for sizes in ({"devices": 1}, {"devices": 2, "dp": 2}, {"devices": 2, "pp": 2}):
        shape = shape_of(name, phase=phase, batch=4, context=300, **sizes)
        ops = step_ops(shape)
        for op in ops:
            assert op.work.flops >= 0
            assert op.work.bytes > 0
            assert op.layers > 0
        mixers = sum(op.layers for op in ops if op.name.endswith(".norm") and "moe" not in op.name)
        assert mixers >= shape.model.layers - len(shape.model.moe_layers)
        assert device_memory(shape).total > 0


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    query=st.integers(1, 50),
    past=st.integers(0, 200),
    window=st.sampled_from([0, 1, 7, 64, 500]),
)
def test_pairs_are_those_counted_one_by_one(query, past, window):
    work = AttentionWork("prefill", 1, query, past, 1, 1, 8, 8, 16, "bfloat16", "bfloat16", window)
    assert work.pairs == attended_pairs(query, past, window)
    seen = np.zeros(past + query, bool)
    for position in range(past, past + query):
        seen[max(0, position + 1 - window) if window else 0 : position + 1] = True
    assert work.keys == seen.sum()


def test_weights_of_all_devices_are_those_of_the_model():
    for name in ("deepseek-v3", "qwen3-235b-a22b", "mixtral-8x7b"):
        model = load_model(name)
        memory = device_memory(shape_of(name, 8, tp=8, ep=8))
        whole = 8 * (memory.attention + memory.experts + memory.embedding)
        bits = 8 if model.activation_bits == 8 else 16
        routed = model.parameters.routed_experts + model.parameters.mixers
        ends = model.parameters.embedding + model.parameters.output_head
        assert whole == pytest.approx(routed * bits / 8 + ends * 2, rel=0.01)


def test_the_cache_is_that_of_the_model():
    """DeepSeek-V3: 70,272 bytes per token in bfloat16 (arXiv 2505.09343, table 1)."""
    memory = device_memory(shape_of("deepseek-v3", 8, batch=8, context=999, dp=8))
    assert memory.cache == 1000 * 70_272
    windowed = device_memory(shape_of("gpt-oss-120b", batch=1, context=9999))
    per_token = 2 * 8 * 64 * 2
    assert windowed.cache == 18 * per_token * 10_000 + 18 * per_token * 128


def test_decode_experts_read_all_that_are_active():
    """Not top-k of them whatever the batch: at batch 128 all of Mixtral's eight are read."""
    one = works(shape_of("mixtral-8x7b", batch=1))["moe.experts"].work
    many = works(shape_of("mixtral-8x7b", batch=128))["moe.experts"].work
    weights = 3 * 4096 * 14336 * 2
    assert one.bytes == pytest.approx(2 * weights, rel=0.001)
    assert many.bytes == pytest.approx(8 * weights, rel=0.01)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    name=st.sampled_from(["balanced", "uniform", "zipf:1.1", "power-law:1.2", "power-law:1"]),
    tokens=st.integers(1, 600),
    top_k=st.integers(1, 8),
    ranks=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 5),
)
def test_every_token_reaches_its_experts(name, tokens, top_k, ranks, seed):
    slots = draw_slot_tokens(parse_distribution(name), tokens, top_k, 16, ranks, seed)
    assert slots.shape[1:] == (ranks, 16 // ranks)
    assert (slots.sum(axis=(1, 2)) == tokens * top_k).all()
    assert slots.min() >= 0
    assert slots.max() <= tokens


def test_balanced_leaves_no_rank_idle():
    slots = draw_slot_tokens(parse_distribution("balanced"), 4, 8, 256, 32, 0)
    assert (slots.sum(axis=-1) == 1).all()


def test_named_distributions_differ_in_skew():
    def skew(name):
        slots = draw_slot_tokens(parse_distribution(name), 4096, 8, 256, 8, 0)
        loads = slots.sum(axis=-1)
        return float((loads.max(axis=-1) / loads.mean(axis=-1)).mean())

    assert skew("balanced") == 1
    assert 1 < skew("uniform") < 1.1 < skew("power-law:1.01") < skew("zipf:1.2")


def test_parallel_layouts_divide_the_work():
    one = works(shape_of("qwen3-30b-a3b", 1, batch=64))
    eight = works(shape_of("qwen3-30b-a3b", 4, batch=64, tp=4, ep=4))
    assert eight["gqa.decode_attention"].work.flops * 4 == one["gqa.decode_attention"].work.flops
    assert eight["moe.experts"].work.flops * 4 == one["moe.experts"].work.flops


def test_communication_follows_the_layout():
    def moving(**sizes):
        ops = step_ops(shape_of("qwen3-30b-a3b", 4, batch=64, **sizes))
        return {
            op.name.split(".")[1]: op.work.bytes
            for op in ops
            if op.operator in ("collective", "dispatch") and op.name.startswith(("moe", "gqa"))
        }

    hidden, tokens = 2048 * 2, 64
    assert moving(tp=4) == {"all_reduce": 2 * 3 / 4 * tokens * hidden}
    gathered = 3 / 4 * tokens * hidden
    assert moving(dp=4, dispatch="allgather") == {
        "all_gather": gathered, "reduce_scatter": gathered
    }  # fmt: skip
    direct = moving(dp=4)
    assert direct.keys() == {"dispatch", "combine"}
    # Every one of a device's 16 tokens goes to 8 experts, three quarters of them elsewhere.
    assert direct["combine"] == pytest.approx(16 * 8 * 3 / 4 * hidden)
    mixed = moving(tp=2, dp=2)
    assert mixed.keys() == {"reduce_scatter", "dispatch", "combine", "tp_all_gather"}
    assert mixed["dispatch"] == direct["dispatch"]


def test_groups_of_a_mixed_step():
    """Chunked prefill beside decode: products see all tokens, attention its own."""
    plain = shape_of("qwen3-30b-a3b", batch=64, context=512)
    mixed = StepLoad((*plain.load.groups, *StepLoad.of("prefill", 2, 256).groups))
    tokens = 64 + 512
    slots = draw_slot_tokens(parse_distribution("balanced"), tokens, 8, 128, 1, 0)
    found = works(StepShape(plain.model, plain.layout, mixed, plain.formats, slots))
    assert found["gqa.qkv"].work.m == tokens
    alone = works(plain)
    assert found["gqa.decode_attention"].work == alone["gqa.decode_attention"].work
    assert found["gqa.prefill_attention"].work.sequences == 2
    assert found["head"].work.m == 66
