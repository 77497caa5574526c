"""One known routing, written as every engine would write it."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS, TOKENS, TOP_K, EXPERTS = 3, 12, 2, 8
MOE_LAYERS = (1, 2, 4)
MODEL_LAYERS = 5
"""Layers 0 and 3 of the model are dense."""


def known_routing(seed=0, layers=LAYERS, tokens=TOKENS, top_k=TOP_K, experts=EXPERTS):
    """[L, T, K] distinct experts per token."""
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((layers, tokens, experts)), axis=2)[:, :, :top_k].astype(np.int64)


def known_gates(routing):
    """Weights that name their place, exact in float16."""
    return (np.arange(routing.size).reshape(routing.shape) % 1024 + 1) / 1024


def counts_of(routing, experts=EXPERTS):
    return np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in routing])


def in_model(routing, fill):
    """[model layers, T, K]: the MoE layers at their places, the dense ones filled."""
    whole = np.full((MODEL_LAYERS, *routing.shape[1:]), fill, routing.dtype)
    whole[list(MOE_LAYERS)] = routing
    return whole


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def base64_text(data):
    return base64.b64encode(data).decode()


def write_lines(path: Path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def jsonl_rows(dialect, routing, gates):
    """Rows of one dialect; two requests, of 5 tokens and the rest."""
    layers, tokens, _ = routing.shape
    split = 5
    rows = []
    if dialect == "vllm-logger":
        rows.append({"type": "meta", "model_id": "m/vllm", "top_k": TOP_K, "layers_logged": [1]})
        for part in (range(split), range(split, tokens)):  # two forward passes
            for layer in range(layers):
                for index, token in enumerate(part):
                    rows.append(
                        {
                            "type": "route",
                            "req_id": "r1",
                            "token_idx": index,
                            "layer": MOE_LAYERS[layer],
                            "topk_ids": routing[layer, token].tolist(),
                            "topk_weights": gates[layer, token].tolist(),
                        }
                    )
        return rows
    if dialect == "moe-balance":
        for layer in range(layers):
            for batch, part in enumerate((slice(0, split), slice(split, tokens))):
                ids = routing[layer, part].tolist()
                rows.append(
                    {
                        "layer": MOE_LAYERS[layer],
                        "batch_id": batch,
                        "origin_rows": [0] * len(ids),
                        "topk_experts": ids,
                        "topk_weights": gates[layer, part].tolist(),
                    }
                )
        return rows
    if dialect == "moe-cache-lab":
        rows.append(
            {
                "record_type": "metadata",
                "format": "moe-cache-lab.routing-jsonl",
                "format_version": 1,
                "model_id": "m/lab",
                "num_experts": EXPERTS,
                "experts_per_token": TOP_K,
            }
        )
    for layer in range(layers):
        for token in range(tokens):
            ids, weights = routing[layer, token].tolist(), gates[layer, token].tolist()
            request = int(token >= split)
            index = token - split * request
            name = MOE_LAYERS[layer]
            rows.append(
                {
                    "speculative-moe": {
                        "dataset": "gsm8k",
                        "problem_id": request,
                        "layer": name,
                        "token_idx": index,
                        "experts": ids,
                        "gating_probs": weights,
                    },
                    "moe-cache-lab": {
                        "record_type": "routing_selection",
                        "phase": "prompt" if token < split else "generated",
                        "token_position": token,
                        "layer": name,
                        "selected_experts": ids,
                        "selected_probabilities": weights,
                    },
                    "canonical": {
                        "request": f"q{request}",
                        "token": index,
                        "layer": name,
                        "experts": ids,
                        "gates": weights,
                        "phase": "prefill",
                        "domain": "code",
                    },
                }[dialect]
            )
    return rows


def vllm_response(routing, *, prompt=5, form="list", split=True):
    """A completion with one choice over all tokens of the routing."""
    ids = routing.transpose(1, 0, 2)
    encode = {
        "list": lambda a: a.tolist(),
        "npy": lambda a: base64_text(npy_bytes(a.astype(np.uint8))),
        "raw": lambda a: base64_text(a.astype(np.int32).tobytes()),
    }[form]
    usage = {"prompt_tokens": prompt, "completion_tokens": len(ids) - prompt + 1}
    if not split:
        return {"usage": usage, "choices": [{"index": 0, "routed_experts": encode(ids)}]}
    return {
        "usage": usage,
        "prompt_routed_experts": encode(ids[:prompt]),
        "choices": [{"index": 0, "routed_experts": encode(ids[prompt:])}],
    }


def sglang_response(routing, *, prompt=5):
    """An answer of /generate: raw int32 of all model layers, zeros in the dense ones."""
    ids = in_model(routing, 0).transpose(1, 0, 2).astype(np.int32)
    return {
        "text": "…",
        "meta_info": {
            "prompt_tokens": prompt,
            "completion_tokens": len(ids) - prompt + 1,
            "routed_experts": base64_text(ids.tobytes()),
        },
    }


def write_trtllm(folder: Path, routing, *, raw, ranks=2, iterations=(50, 51)):
    """The statistics of two ranks; tokens split over iterations, then ranks."""
    folder.mkdir()
    meta = {"num_experts": EXPERTS, "num_experts_per_token": TOP_K}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    parts = np.split(np.arange(routing.shape[1]), ranks * len(iterations))
    for rank in range(ranks):
        cells, sums = {}, {}
        for step, iteration in enumerate(iterations):
            tokens = parts[step * ranks + rank]
            for layer, name in enumerate(MOE_LAYERS):
                ids = np.ascontiguousarray(routing[layer, tokens].astype(np.int32))
                cells[f"{iteration}_{name}"] = ids
                sums[f"{iteration}_{name}"] = np.bincount(ids.ravel(), minlength=EXPERTS)
        save_file(sums, folder / f"rank{rank}.safetensors")
        if raw:
            save_file(cells, folder / f"rank{rank}_raw.safetensors")
    return folder


def physical_map(seed=1, slots=10):
    """[model layers, P] a map in which two experts have a second slot."""
    rng = np.random.default_rng(seed)
    base = np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, slots - EXPERTS)])
    return np.stack([rng.permutation(base) for _ in range(MODEL_LAYERS)])


def to_physical(logical, table, seed=2):
    """Any slot of each expert; −1 stays."""
    rng = np.random.default_rng(seed)
    result = np.full(logical.shape, -1)
    for index in np.argwhere(logical >= 0):
        layer = index[0]
        result[tuple(index)] = rng.choice(np.flatnonzero(table[layer] == logical[tuple(index)]))
    return result


def sglang_per_token(routing, *, padding=1):
    """Dumps of two ranks, two passes: 8 columns of physical ids, a padded token per record."""
    table = physical_map()
    whole = np.full((MODEL_LAYERS, routing.shape[1], 8), -1)
    whole[list(MOE_LAYERS), :, :TOP_K] = routing
    physical = to_physical(whole, table)
    parts = np.split(np.arange(routing.shape[1]), 4)
    dumps = []
    for rank in range(2):
        records = []
        for step in range(2):
            tokens = parts[step * 2 + rank]
            values = np.pad(physical[:, tokens], ((0, 0), (0, padding), (0, 0)), constant_values=-1)
            count = len(tokens) + padding
            records.append(
                {
                    "forward_pass_id": 7 + step,
                    "rank": rank,
                    "gatherer_key": "primary",
                    "input_ids": list(range(count)),
                    "positions": list(range(count)),
                    "extend_seq_lens": [count] if step == 0 else None,
                    "forward_mode": 1 if step == 0 else 2,
                    "topk_ids_of_layer": values.astype(np.int32),
                    "misc_objects": [],
                    "global_physical_count": np.zeros(table.shape, np.int32),
                }
            )
        dumps.append({"records": records, "last_physical_to_logical_map": table})
    return dumps


def sglang_per_pass(routing):
    """Dumps of two ranks, three passes, and the logical counts [3, model layers, E] in them."""
    table = physical_map()
    rng = np.random.default_rng(5)
    physical = rng.integers(1, 9, (3, 2, *table.shape))
    physical[:, :, [0, 3]] = 0
    expected = np.zeros((3, MODEL_LAYERS, EXPERTS), np.int64)
    for step in range(3):
        for layer in range(MODEL_LAYERS):
            for slot in range(table.shape[1]):
                expected[step, layer, table[layer, slot]] += physical[step, :, layer, slot].sum()
    dumps = [
        {
            "records": [
                {
                    "forward_pass_id": step,
                    "rank": rank,
                    "gatherer_key": "primary",
                    "global_physical_count": physical[step, rank].astype(np.int32),
                }
                for step in range(3)
            ],
            "last_physical_to_logical_map": table,
        }
        for rank in range(2)
    ]
    return dumps, expected
