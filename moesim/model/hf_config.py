"""From a Hugging Face ``config.json`` to a model document.

Nothing is guessed: an architecture that :data:`~moesim.model.families.FAMILIES` does not describe,
a dense model, a missing width or a contradiction is an error that names the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moesim.errors import InputError
from moesim.model.families import ARCHITECTURES, FAMILIES, Family
from moesim.model.fields import Fields
from moesim.model.hybrids import nemotron_kinds
from moesim.model.quantisation import activation_bits, read_quantisation
from moesim.model.spec import MAX_LAYERS, ModelSpec

__all__ = ["parse_hf_config"]

EXPERTS = (
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "moe_num_experts",
    "num_routed_experts",
)
# Not ``top_k``: old configurations carry the sampling parameter of that name.
TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
    "moe_top_k",
    "moe_topk",
    "moe_k",
)
GROUPS = ("n_group", "num_expert_group")
GROUPS_PER_TOKEN = ("topk_group", "num_limited_groups")
LAYERS = ("num_hidden_layers", "n_layers", "num_layers")
MTP = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
MAX_NESTING = 4
FLATTENED = ("ffn_config", "attn_config")
"""Sections of DBRX whose fields other configurations hold at the top."""


def parse_hf_config(
    config: Mapping[str, Any], *, name: str, file: str | Path | None = None
) -> ModelSpec:
    """Read a model from the content of its ``config.json``.

    Args:
        config: The parsed file. Fields that are not read may hold anything.
        name: What to call the model.
        file: For messages, and as the source where the content states none (``_source``).

    Raises:
        InputError: Naming file and field.
    """
    outer = Fields(config, file)
    fields = _language_model(outer)
    family = _family(outer, fields)
    try:
        return _read(outer, fields, family, name)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        where = ".".join(map(str, first["loc"]))
        if isinstance(cause, InputError):
            raise InputError(
                cause.problem,
                file=file,
                field=_stated_name(fields, cause.field or where),
                found=cause.found,
                allowed=cause.allowed,
            ) from error
        raise InputError(str(first["msg"]), file=file, field=where) from error


def _stated_name(fields: Fields, attribute: str) -> str:
    """What the configuration calls an attribute of :class:`ModelSpec`."""
    names = {
        "experts": EXPERTS,
        "top_k": TOP_K,
        "routing_groups": GROUPS,
        "groups_per_token": GROUPS_PER_TOKEN,
    }.get(attribute, ())
    return next((name for name in names if fields.has(name)), attribute)


def _language_model(outer: Fields) -> Fields:
    """The part of a configuration that is about the language model."""
    inner = outer
    for _ in range(MAX_NESTING):
        name = next((name for name in NESTED if inner.has(name)), None)
        if name is None:
            break
        inner = inner.section(name) or inner
    values = dict(inner.values)
    for name in FLATTENED:
        section = inner.section(name)
        for key, value in (section.values if section else {}).items():
            values.setdefault(key, value)
    return Fields(values, inner.file, inner.prefix)


def _family(outer: Fields, fields: Fields) -> Family:
    stated = [fields.text("model_type"), *_architectures(fields)]
    stated += [outer.text("model_type"), *_architectures(outer)]
    for word in stated:
        if word and (word in FAMILIES or word in ARCHITECTURES):
            return FAMILIES[ARCHITECTURES.get(word, word)]
    seen = next((word for word in stated if word), None)
    if not fields.has(*EXPERTS):
        raise _no_experts(fields, seen)
    needs = {
        "number of layers": LAYERS,
        "experts per token": TOP_K,
        "expert width": ("moe_intermediate_size", "intermediate_size"),
        "hidden size": ("hidden_size",),
        "attention heads": ("num_attention_heads",),
        "vocabulary": ("vocab_size",),
    }
    missing = [f"{what} ({names[0]})" for what, names in needs.items() if not fields.has(*names)]
    missing += ["matrices per expert", "parameters of attention and norms"]
    raise fields.error(
        "unknown architecture; its configuration does not say: " + ", ".join(missing),
        "model_type",
        found=seen or "none",
        allowed=", ".join(sorted(FAMILIES)),
        fix="describe the model in a moesim.model/1 document (`moesim model show mixtral-8x7b "
        "--json` prints one)",
    )


def _architectures(fields: Fields) -> list[str]:
    value = fields.values.get("architectures")
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise fields.error("a list of names is needed", "architectures", found=value)
    return value


def _no_experts(fields: Fields, seen: str | None) -> InputError:
    names = ", ".join(EXPERTS)
    return fields.error(
        f"no number of experts (read as: {names}): a dense model, or an incomplete configuration",
        EXPERTS[0],
        allowed="Mixture-of-Experts models",
        fix=f"the architecture is {seen or 'not stated'}; name a Mixture-of-Experts model",
    )


def _read(outer: Fields, fields: Fields, family: Family, name: str) -> ModelSpec:
    if family.dense:
        return _read_dense(outer, fields, family, name)
    if not fields.has(*EXPERTS):
        raise _no_experts(fields, fields.text("model_type"))
    experts = fields.size(*EXPERTS, minimum=0, maximum=65535, what="number of routed experts")
    if experts < 2 or fields.flag("enable_moe_block", default=True) is False:
        raise fields.error(
            "a dense model: it has no experts to place",
            next(word for word in EXPERTS if fields.has(word)),
            found=experts,
            allowed="Mixture-of-Experts models with 2 or more routed experts",
        )
    if fields.values.get("per_layer_config"):
        raise fields.error(
            "layers that differ in this way are not supported",
            "per_layer_config",
            fix="use the config.json that the publisher ships",
        )
    layers = _layer_count(fields, family)
    hidden = fields.size("hidden_size", "d_model")
    width = fields.size(*family.expert_width, what="width of a routed expert")
    moe, dense = _layer_roles(fields, family, layers)
    shared_experts, shared_width = family.shared(fields, width) if family.shared else (0, 0)
    latent = fields.optional_size(*family.latent) if family.latent else None
    top_k = fields.size(*TOP_K, maximum=65535, what="experts per token")
    groups = top_k if family.groups_are_top_k else fields.optional_size(*GROUPS) or 1
    stored = _quantised(outer, fields)
    quantisation = read_quantisation(stored, latent or hidden, width)
    other = hidden * (family.norms * layers + family.final_norms)
    if family.other:
        other += family.other(fields, layers, len(moe), experts)
    return ModelSpec(
        name=name,
        architecture=_architecture(outer, fields),
        source=outer.text("_source") or str(outer.file or "not stated"),
        note=outer.text("_note"),
        layers=layers,
        hidden_size=hidden,
        vocabulary_size=fields.size("vocab_size", maximum=2**27),
        tied_embeddings=_tied(outer, fields, family),
        moe_layers=moe,
        experts=experts,
        top_k=top_k,
        expert_width=width,
        expert_matrices=family.matrices,
        expert_hidden_size=latent,
        expert_extra_parameters=2 * width + hidden if family.expert_biases else 0,
        shared_experts=shared_experts,
        shared_expert_width=shared_width,
        routing_groups=groups,
        groups_per_token=fields.optional_size(*GROUPS_PER_TOKEN) or groups,
        dense_layers=dense,
        dense_width=fields.size(*family.dense_width, what="width of dense layers") if dense else 0,
        mixers=family.mixers(fields, layers),
        other_parameters=other,
        mtp_layers=_mtp_layers(fields),
        quantisation=quantisation,
        activation_bits=activation_bits(stored, quantisation),
    )


def _read_dense(outer: Fields, fields: Fields, family: Family, name: str) -> ModelSpec:
    layers, hidden = _layer_count(fields, family), fields.size("hidden_size")
    stored = _quantised(outer, fields)
    width = fields.size(*family.dense_width, what="width of dense layers")
    quantisation = read_quantisation(stored, hidden, width)
    return ModelSpec(
        name=name,
        architecture=_architecture(outer, fields),
        source=outer.text("_source") or str(outer.file or "not stated"),
        note=outer.text("_note"),
        layers=layers,
        hidden_size=hidden,
        vocabulary_size=fields.size("vocab_size", maximum=2**27),
        tied_embeddings=_tied(outer, fields, family),
        moe_layers=(),
        experts=0,
        top_k=0,
        expert_width=0,
        dense_layers=tuple(range(layers)),
        dense_width=width,
        mixers=family.mixers(fields, layers),
        other_parameters=hidden * (family.norms * layers + family.final_norms),
        quantisation=quantisation,
        activation_bits=activation_bits(stored, quantisation),
    )


def _layer_count(fields: Fields, family: Family) -> int:
    if not family.plain_layers:
        return fields.size(*LAYERS, maximum=MAX_LAYERS, what="number of layers")
    kinds = nemotron_kinds(fields)
    stated = fields.optional_size(*LAYERS, maximum=MAX_LAYERS)
    if stated not in {None, len(kinds)}:
        raise fields.error(
            "contradicts the kinds of layers", LAYERS[0], found=stated, allowed=str(len(kinds))
        )
    return len(kinds)


def _layer_roles(
    fields: Fields, family: Family, layers: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """MoE layers, and layers with a dense MLP."""
    if family.layer_rule and not fields.has(*family.layer_rule):
        raise fields.missing(*family.layer_rule, what="which layers are MoE layers")
    moe = family.moe_layers(fields, layers)
    if not moe:
        raise fields.error(
            "a dense model: the configuration leaves no layer with experts",
            (*family.layer_rule, LAYERS[0])[0],
        )
    if family.plain_layers:
        kinds = nemotron_kinds(fields)
        return moe, tuple(index for index, kind in enumerate(kinds) if kind == "mlp")
    return moe, tuple(sorted(set(range(layers)) - set(moe)))


def _architecture(outer: Fields, fields: Fields) -> str:
    names = [*_architectures(outer), *_architectures(fields)]
    return names[0] if names else fields.text("model_type") or outer.text("model_type") or "unknown"


def _quantised(outer: Fields, fields: Fields) -> Fields:
    """The level that states the quantisation, with the number format of the language model."""
    for level in (outer, fields):
        if level.has("quantization_config", "quantization"):
            values = {
                key: level.values.get(key, fields.values.get(key))
                for key in ("quantization_config", "quantization", "expert_dtype")
            }
            return Fields(values, level.file, level.prefix)
    return fields if fields.has("torch_dtype", "dtype") else outer


def _tied(outer: Fields, fields: Fields, family: Family) -> bool:
    for level in (fields, outer):
        if level.has("tie_word_embeddings"):
            return level.flag("tie_word_embeddings", default=False)
    return family.tied


def _mtp_layers(fields: Fields) -> int:
    for name in MTP:
        if (count := fields.optional_size(name, minimum=0, maximum=64)) is not None:
            return count
    return 0
