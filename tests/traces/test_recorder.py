"""The recorder against routing computed by other means, on tiny models with random weights."""

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import typer

from moesim.cli.console import run
from moesim.cli.trace_record import record
from moesim.errors import InputError, MissingExtraError
from moesim.traces.bundle import open_trace
from moesim.traces.recorder import RoutingRecorder
from moesim.traces.router_outputs import STANDARD_ROUTERS, find_routers

FORWARD = inspect.signature(transformers.Qwen3MoeForCausalLM.forward).parameters
CACHE = "cache" if "cache" in FORWARD else "past_key_values"  # renamed in transformers 5.24

VOCABULARY = 97
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "intermediate_size": 48,
    "n_shared_experts": 1,
}
# Configuration class, its parameters, model layers with experts, experts, top-k.
FAMILIES = {
    "mixtral": (
        "MixtralConfig",
        {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2},
        (0, 1, 2),
        8,
        2,
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            "moe_intermediate_size": 24,
            "intermediate_size": 48,
            "shared_expert_intermediate_size": 24,
            "num_experts": 12,
            "num_experts_per_tok": 4,
        },
        (0, 1, 2),
        12,
        4,
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "moe_intermediate_size": 24,
            "intermediate_size": 48,
            "head_dim": 8,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
        (0, 2),
        16,
        4,
    ),
    "olmoe": (
        "OlmoeConfig",
        {"intermediate_size": 24, "num_experts": 16, "num_experts_per_tok": 4},
        (0, 1, 2),
        16,
        4,
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        MLA
        | {
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "topk_method": "group_limited_greedy",
            "first_k_dense_replace": 1,
        },
        (1, 2),
        16,
        4,
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        MLA
        | {
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
        },
        (1, 2),
        16,
        4,
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        {
            "moe_intermediate_size": 24,
            "intermediate_size": 48,
            "head_dim": 8,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
        },
        (1, 2),
        8,
        2,
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "intermediate_size": 24,
            "head_dim": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 8,
        },
        (0, 1, 2),
        8,
        2,
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        {"intermediate_size": 24, "num_local_experts": 8, "num_experts_per_tok": 2},
        (0, 1, 2),
        8,
        2,
    ),
    "phimoe": (
        "PhimoeConfig",
        {"intermediate_size": 24, "num_local_experts": 8, "num_experts_per_tok": 2},
        (0, 1, 2),
        8,
        2,
    ),
    "jamba": (
        "JambaConfig",
        {
            "intermediate_size": 24,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
        (1,),
        8,
        2,
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            "intermediate_size": 24,
            "intermediate_size_mlp": 48,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 32,
        },
        (1,),
        4,
        1,
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    kind, parameters, layers, experts, top_k = FAMILIES[request.param]
    return request.param, build(kind, parameters), layers, experts, top_k


def build(kind, parameters=None):
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(COMMON | (parameters or FAMILIES[kind][1])))
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            # Routers are often created with zeros; large weights also make near-ties rare.
            if any(part in name for part in ("gate.", "router.")) and "proj" not in name:
                tensor.normal_(std=0.3 if "bias" in name else 1.0)
    return model


def family_model(name):
    kind, parameters, *_ = FAMILIES[name]
    return build(kind, parameters)


def prompts(rows=3, tokens=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    return ids, mask  # what lies under the padding must not matter


class ExpertInputs:
    """What the experts modules were really given: an independent look at the routing."""

    def __init__(self, model):
        self.seen = []
        self.handles = [
            module.register_forward_pre_hook(self._take)
            for name, module in model.named_modules()
            if name.endswith(".experts")
        ]

    def _take(self, module, args):
        self.seen.append([argument.detach().numpy() for argument in args])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def test_every_family_records_what_its_experts_are_given(family):
    name, model, layers, experts, top_k = family
    ids, _ = prompts()
    with torch.no_grad(), RoutingRecorder(model) as recorder, ExpertInputs(model) as inputs:
        model(input_ids=ids)
    routing, gates = recorder.routing(), recorder.gates()
    assert recorder.moe_layers == layers
    assert routing.shape == gates.shape == (len(layers), 27, top_k)
    assert routing.max() < experts
    assert len(inputs.seen) == len(layers)
    for layer, given in enumerate(inputs.seen):
        if name == "llama4":
            # The experts get every token once per expert, scaled by its score: 0 if not chosen.
            used = np.abs(given[0]).reshape(experts, 27, -1).sum(axis=2).T > 0
            expected = np.argwhere(used)[:, 1].reshape(27, 1)
            assert (routing[layer] == expected).all()
            continue
        _, indices, weights = given
        assert (routing[layer] == indices).all()
        assert np.allclose(gates[layer].astype(float), weights, rtol=2e-3, atol=1e-6)
    assert len(np.unique(routing)) > 1


def test_decoding_agrees_with_one_pass_over_the_whole_text(family):
    """Prefill, padding and KV cache against each whole sequence on its own, without any."""
    name, model, *_ = family
    ids, mask = prompts()
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    with torch.no_grad():
        with RoutingRecorder(model, eos_token_ids=()) as recorder:
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, **settings)
        frame = recorder.requests()
        for row in range(3):
            alone = out[row : row + 1, 2 * row : -1]
            with RoutingRecorder(model) as whole:
                model(input_ids=alone, use_cache=False)
            rows = (frame["request"] == row).to_numpy()
            mine = np.sort(recorder.routing()[:, rows], axis=2)
            theirs = np.sort(whole.routing(), axis=2)
            assert mine.shape == theirs.shape
            assert (mine == theirs).all(), name
            assert frame["position"][rows].tolist() == list(range(alone.shape[1]))
            phases = ["prefill"] * (9 - 2 * row) + ["decode"] * 4
            assert frame["phase"][rows].tolist() == phases


def moe_inputs(model, ids):
    """Hidden states [N, H] that each router gets, by module name."""
    seen, handles = {}, []
    for router in find_routers(model):

        def take(module, args, name=router.name):
            seen[name] = args[0].detach().reshape(-1, args[0].shape[-1]).numpy()

        handles.append(router.module.register_forward_pre_hook(take))
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return seen, recorder


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def reference(model, name, hidden, weight, bias):
    """Router formulas of the papers, in numpy: [N, E] weights, 0 for experts not chosen."""
    config = model.config
    logits = hidden @ weight.T
    top_k = config.num_experts_per_tok
    if name == "gpt_oss":  # softmax over the chosen logits (gpt-oss model card)
        score, normalise, scale = np.exp(logits + bias), True, 1
        choose = score
    elif name in ("deepseek_v2", "deepseek_v3"):
        score = softmax(logits) if name == "deepseek_v2" else 1 / (1 + np.exp(-logits))
        choose = score if name == "deepseek_v2" else score + bias
        grouped = choose.reshape(len(hidden), config.n_group, -1)
        # V2: best expert of a group; V3: sum of its two best (arXiv 2412.19437, section 2.1.2).
        best = np.sort(grouped, axis=2)[..., -1 if name == "deepseek_v2" else slice(-2, None)]
        group_score = best if name == "deepseek_v2" else best.sum(axis=2)
        group_rank = np.argsort(np.argsort(-group_score, axis=1), axis=1)
        closed = np.repeat(group_rank >= config.topk_group, grouped.shape[2], axis=1)
        choose = np.where(closed, -np.inf, choose)
        normalise, scale = name == "deepseek_v3", config.routed_scaling_factor
    else:  # softmax over all experts, renormalised for some models
        score = choose = softmax(logits)
        normalise = name == "mixtral" or config.norm_topk_prob
        scale = 1
    rank = np.argsort(np.argsort(-choose, axis=1), axis=1)
    weights = np.where(rank < top_k, score, 0)
    if normalise:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return weights * scale


@pytest.mark.parametrize(
    "name", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss"]
)
def test_choices_and_weights_follow_the_published_formula(name):
    model = family_model(name)
    seen, recorder = moe_inputs(model, prompts(rows=4, tokens=16)[0])
    for layer, router in enumerate(find_routers(model)):
        module = router.module
        bias = getattr(module, "e_score_correction_bias", getattr(module, "bias", None))
        expected = reference(
            model,
            name,
            seen[router.name].astype(np.float64),
            module.weight.detach().double().numpy(),
            0 if bias is None else bias.detach().double().numpy(),
        )
        mine = np.zeros_like(expected)
        np.put_along_axis(
            mine, recorder.routing()[layer].astype(int), recorder.gates()[layer], axis=1
        )
        chosen = np.zeros_like(expected, dtype=bool)
        np.put_along_axis(chosen, recorder.routing()[layer].astype(int), True, axis=1)
        assert (chosen == (expected > 0)).all()
        assert np.allclose(mine, expected, rtol=2e-3, atol=1e-5)


def test_router_logits_of_the_model_agree():
    model = family_model("mixtral")
    ids, _ = prompts()
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        out = model(input_ids=ids, output_router_logits=True)
    for layer, logits in enumerate(out.router_logits):
        expected = logits.topk(2, dim=-1).indices.numpy()
        assert (recorder.routing()[layer] == expected).all()


def test_right_padding_is_dropped():
    model = family_model("mixtral")
    ids, _ = prompts(rows=2, tokens=6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(input_ids=ids, attention_mask=mask)
    assert recorder.tokens == 10
    assert recorder.requests()["request"].tolist() == [0] * 4 + [1] * 6


def test_tokens_after_the_end_are_dropped():
    model = family_model("mixtral")
    ids, mask = prompts()
    settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 6}
    free = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=-1, **settings)
    end = int(free[0, 10])  # the second new token of row 0
    model.generation_config.eos_token_id = end
    with RoutingRecorder(model) as recorder:
        out = model.generate(input_ids=ids, attention_mask=mask, **settings)
    decoded = recorder.requests().query("phase == 'decode'").groupby("request").size()
    for row in range(3):
        new = out[row, 9:].tolist()
        # Every new token before the end token is fed back once; the last one never is.
        alive = new.index(end) if end in new else len(new)
        assert decoded.get(row, 0) == min(alive, len(new) - 1)
    assert decoded[0] == 1
    with RoutingRecorder(model, eos_token_ids=()) as everything:
        model.generate(input_ids=ids, attention_mask=mask, **settings)
    assert everything.tokens > recorder.tokens


def test_chunked_prefill_and_interleaved_caches():
    model = family_model("qwen3_moe")
    ids, _ = prompts(rows=2, tokens=8)
    with torch.no_grad(), RoutingRecorder(model) as whole:
        model(input_ids=ids, use_cache=False)
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        caches = [model(input_ids=ids[r : r + 1, :5])[CACHE] for r in range(2)]
        for part in (slice(5, 7), slice(7, 8)):
            for r in (1, 0):
                model(input_ids=ids[r : r + 1, part], **{CACHE: caches[r]})
    assert (recorder.routing() == whole.routing()).all()
    frame = recorder.requests()
    assert frame["request"].tolist() == [0] * 8 + [1] * 8
    assert frame["position"].tolist() == [*range(8), *range(8)]
    assert frame["phase"].tolist() == (["prefill"] * 7 + ["decode"]) * 2


def test_domains_follow_the_requests(tmp_path):
    model = family_model("olmoe")
    ids, _ = prompts(rows=2, tokens=3)
    with torch.no_grad(), RoutingRecorder(model, domain="code") as recorder:
        model(input_ids=ids)
        recorder.domain = ["law", "code"]
        model(input_ids=ids)
        recorder.domain = ["law"]
        with pytest.raises(InputError, match="one domain per row"):
            model(input_ids=ids)
        recorder.domain = "code"
        model(input_ids=ids[:1])
    trace = recorder.write(tmp_path / "trace", model_name="tiny", source="test")
    assert trace.manifest.domains == ("code", "law")
    assert trace.requests()["domain"].tolist() == ["code"] * 6 + ["law"] * 3 + ["code"] * 6
    assert (trace.routing == recorder.routing()).all()
    assert (trace.gates == recorder.gates()).all()
    assert trace.manifest.moe_layers == (0, 1, 2)
    assert trace.manifest.experts == 16


def test_hooks_are_gone_afterwards():
    model = family_model("mixtral")
    ids, _ = prompts()
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(input_ids=ids)
    model(input_ids=ids)
    assert recorder.tokens == 27
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failed_pass_leaves_nothing_behind():
    model = family_model("mixtral")
    ids, _ = prompts()
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        handle = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids)
        handle.remove()
        model(input_ids=ids)
    assert recorder.tokens == 27


class StrangeRouter(torch.nn.Linear):
    """A router nobody has heard of."""


def test_an_unknown_router_is_named():
    model = family_model("mixtral")
    model.model.layers[1].mlp.gate = StrangeRouter(32, 8)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.gate") as caught:
        RoutingRecorder(model)
    assert "StrangeRouter" in str(caught.value)


def test_experts_without_a_router_are_named():
    model = family_model("mixtral")
    block = model.model.layers[2].mlp
    block.selector = torch.nn.Linear(32, 8)
    del block.gate
    with pytest.raises(InputError, match=r"model\.layers\.2\.mlp"):
        RoutingRecorder(model)


@pytest.mark.parametrize("output", [torch.zeros(27, 8), (torch.zeros(27, 8),) * 3])
def test_an_unknown_output_is_refused(output):
    model = family_model("mixtral")
    gate = model.model.layers[0].mlp.gate
    with torch.no_grad(), RoutingRecorder(model):
        handle = gate.register_forward_hook(lambda *_: output, prepend=True)
        with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.gate"):
            model(input_ids=prompts()[0])
        handle.remove()


def test_dense_and_encoder_decoder_models_are_refused():
    dense = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**COMMON, intermediate_size=48)
    )
    with pytest.raises(InputError, match="no MoE layer"):
        RoutingRecorder(dense)
    config = transformers.SwitchTransformersConfig(
        vocab_size=97, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, num_experts=4
    )
    with pytest.raises(InputError, match="SwitchTransformersTop1Router"):
        RoutingRecorder(transformers.SwitchTransformersForConditionalGeneration(config))


def test_what_cannot_be_told_apart_is_refused():
    model = family_model("mixtral")
    ids, _ = prompts()
    cache = model(input_ids=ids[:, :4])[CACHE]
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        with pytest.raises(InputError, match="KV cache"):
            model(input_ids=ids[:, 4:], **{CACHE: cache})
        with pytest.raises(InputError, match="attention mask"):
            model(input_ids=ids, attention_mask=torch.ones(3, 1, 9, 9, dtype=torch.bool))
        with pytest.raises(InputError, match="outside of a forward pass"):
            model.model(input_ids=ids)
        cropped = model(input_ids=ids)[CACHE]
        cropped.crop(-2)
        with pytest.raises(InputError, match="KV cache"):
            model(input_ids=ids[:, :1], **{CACHE: cropped})
    assert recorder.tokens == 27
    with pytest.raises(InputError, match="nothing was recorded"):
        RoutingRecorder(model).routing()


def test_the_table_of_routers_fits_the_installed_transformers():
    """Each class that exists returns three things, the last of them indices."""
    folder = Path(importlib.util.find_spec("transformers").origin).parent / "models"
    found = set()
    for file in folder.glob("*/modeling_*.py"):
        # Only the text of the classes themselves is parsed: whole files take seconds.
        for text in re.findall(r"^class \w+\(.*?(?=^\S|\Z)", file.read_text(), re.M | re.S):
            if text[6 : text.index("(")] not in STANDARD_ROUTERS:
                continue
            (node,) = ast.parse(text).body
            found.add(node.name)
            (forward,) = (i for i in node.body if getattr(i, "name", None) == "forward")
            (answer,) = (i.value for i in ast.walk(forward) if isinstance(i, ast.Return))
            assert len(answer.elts) == 3, node.name
            last = ast.unparse(answer.elts[2])
            assert "ind" in last or "experts" in last, node.name
    assert len(found) > 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen3-MoE with a word tokenizer, as a model folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny-qwen3")
    words = ["<pad>", "<bos>", "<eos>", "<unk>"] + [f"w{n}" for n in range(VOCABULARY - 4)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    model = family_model("qwen3_moe")
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def app():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(record)
    return app


def texts(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for name, count in (("code", 23), ("law", 11)):
        file = tmp_path / f"{name}.txt"
        file.write_text(" ".join(f"w{n}" for n in rng.integers(0, VOCABULARY - 4, count)))
        files += ["--text", str(file)]
    return files


def test_command_records_text_files(app, folder, tmp_path, capsys):
    out = tmp_path / "trace"
    words = [str(folder), *texts(tmp_path), "--out", str(out), "--device", "cpu", "--json"]
    limits = ["--max-tokens", "20", "--request-tokens", "8", "--batch-size", "2"]
    assert run(app, [*words, *limits, "--generate", "3"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "moesim.trace/1"
    assert data["ok"] is True
    assert (data["layers"], data["moe_layers"], data["experts"]) == (2, [0, 2], 16)
    # 20 and 11 tokens in requests of 8: 8 8 4, 8 3; each decodes 3.
    assert data["tokens"] == 31 + 5 * 3
    trace = open_trace(out)
    frame = trace.requests()
    sizes = frame.groupby(["domain", "request", "phase"], observed=True).size()
    assert sizes.xs("prefill", level="phase").tolist() == [8, 8, 4, 8, 3]
    assert sizes.xs("decode", level="phase").tolist() == [3] * 5
    assert frame.groupby("request")["domain"].first().tolist() == ["code"] * 3 + ["law"] * 2
    # The last request on its own, without batch or padding.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer((tmp_path / "law.txt").read_text(), return_tensors="pt")["input_ids"][:, 8:]
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
        )
    last = (frame["request"] == 4).to_numpy()
    assert (np.sort(trace.routing[:, last]) == np.sort(recorder.routing())).all()


def test_command_records_the_prefill_alone(app, folder, tmp_path, capsys):
    out = tmp_path / "trace"
    words = [str(folder), *texts(tmp_path), "--out", str(out), "--device", "cpu", "--quiet"]
    assert run(app, words) == 0
    captured = capsys.readouterr()
    assert "2 MoE layers, 34 tokens, 16 experts, top-4" in captured.out
    assert captured.err == ""
    trace = open_trace(out)
    assert set(trace.requests()["phase"]) == {"prefill"}
    assert trace.manifest.routers == ["Qwen3MoeTopKRouter"]


def test_command_refuses(app, folder, tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "trace"), "--device", "cpu"]
    text = texts(tmp_path)[:2]
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "no such model"}')
    cases = [
        (["someone/some-model", *text, *out], 4, "--allow-download"),
        ([str(folder), *text], 2, "--out"),
        ([str(folder), *out], 2, "--text"),
        ([str(folder), "--text", str(empty), *out], 4, "no text"),
        ([str(folder), "--text", str(tmp_path / "nothing"), *out], 4, "no such file"),
        ([str(broken), *text, *out], 4, "cannot load the model"),
        ([str(folder), *text, *out[:2], "--device", "abacus"], 2, "abacus"),
    ]
    for words, code, message in cases:
        assert run(app, words) == code, words
        captured = capsys.readouterr()
        assert message in captured.err
        assert "Traceback" not in captured.err
    assert not (tmp_path / "trace").exists()


def test_missing_packages_are_named(folder, tmp_path, app, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    words = [str(folder), *texts(tmp_path), "--out", str(tmp_path / "trace")]
    assert run(app, words) == 2
    assert "moesim[record]" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="torch"):
        RoutingRecorder(object())


def test_a_taken_folder_is_refused_before_the_model_is_loaded(app, tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    assert run(app, ["nowhere", *texts(tmp_path), "--out", str(tmp_path)]) == 4
    assert "holds a trace already" in capsys.readouterr().err
