"""Which layers of a model are MoE layers: every way in which configurations say it.

Each rule reads its own fields and says which layers it leaves as MoE layers; a layer is one if all
rules that the configuration states agree on it (as Qwen's ``decoder_sparse_step`` and
``mlp_only_layers``, or DeepSeek's ``first_k_dense_replace`` and ``moe_layer_freq``, are combined).
"""

from __future__ import annotations

from collections.abc import Callable

from moesim.model.fields import Fields

__all__ = ["moe_layers"]

MAX_LAYERS = 4096
Rule = Callable[[Fields, int], set[int] | None]


def moe_layers(fields: Fields, layers: int) -> tuple[int, ...]:
    """Indices of the MoE layers, ascending; all layers if no rule is stated.

    Raises:
        InputError: If a rule cannot be read or the rules contradict each other.
    """
    lists = [(name, rule(fields, layers)) for name, rule in _LISTS]
    stated = [(name, found) for name, found in lists if found is not None]
    for name, found in stated[1:]:
        if found != stated[0][1]:
            raise fields.error(f"contradicts {fields.path(stated[0][0])}", name)
    result = set(range(layers))
    for rule in _RULES:
        if (left := rule(fields, layers)) is not None:
            result &= left
    if stated:
        name, listed = stated[0]
        if listed is not None and not listed <= result:
            raise fields.error(
                "lists MoE layers that another field of the configuration makes dense",
                name,
                found=f"layer {min(listed - result)}",
            )
        result = listed or set()
    return tuple(sorted(result))


def _flags(fields: Fields, layers: int) -> set[int] | None:
    """``moe_layer_freq`` as a list of 0 and 1 (MiMo, MiniMax-M3)."""
    if not isinstance(fields.values.get("moe_layer_freq"), list):
        return None
    flags = fields.sizes("moe_layer_freq", maximum=1, length=layers) or []
    return {layer for layer, flag in enumerate(flags) if flag}


def _types(fields: Fields, layers: int) -> set[int] | None:
    """``mlp_layer_types`` (GLM-5.2 and others since transformers 5)."""
    words = ("sparse", "dense", "moe", "hash_moe")
    types = fields.texts("mlp_layer_types", allowed=words, length=layers)
    if types is None:
        return None
    return {layer for layer, kind in enumerate(types) if kind != "dense"}


def _indices(fields: Fields, layers: int) -> set[int] | None:
    """``moe_layers`` (Llama 4)."""
    indices = fields.sizes("moe_layers", maximum=layers - 1)
    return None if indices is None else set(indices)


def _enumeration(fields: Fields, layers: int) -> set[int] | None:
    """``moe_layers_enum``, a string of indices with commas (Step 3)."""
    text = fields.text("moe_layers_enum")
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() and len(word) < 5 for word in words):
        raise fields.error("layer indices with commas are needed", "moe_layers_enum", found=text)
    # The list runs on over the MTP modules that follow the model.
    return {int(word) for word in words if int(word) < layers}


def _leading(fields: Fields, layers: int) -> set[int] | None:
    """``first_k_dense_replace`` (DeepSeek), ``num_dense_layers`` (LFM2, AFMoE)."""
    names = ("first_k_dense_replace", "num_dense_layers")
    dense = fields.optional_size(*names, minimum=0, maximum=layers)
    return None if dense is None else set(range(dense, layers))


def _period(fields: Fields, layers: int) -> set[int] | None:
    """``moe_layer_freq`` as a number: layers divisible by it (DeepSeek)."""
    if isinstance(fields.values.get("moe_layer_freq"), list):
        return None
    period = fields.optional_size("moe_layer_freq", maximum=MAX_LAYERS)
    return None if period is None else set(range(0, layers, period))


def _sparse_step(fields: Fields, layers: int) -> set[int] | None:
    """``decoder_sparse_step`` (Qwen) and ``interleave_moe_layer_step`` (Llama 4)."""
    names = ("decoder_sparse_step", "interleave_moe_layer_step")
    step = fields.optional_size(*names, maximum=MAX_LAYERS)
    return None if step is None else set(range(step - 1, layers, step))


def _dense_only(fields: Fields, layers: int) -> set[int] | None:
    """``mlp_only_layers`` (Qwen)."""
    dense = fields.sizes("mlp_only_layers", maximum=layers - 1)
    return None if dense is None else set(range(layers)) - set(dense)


def _period_offset(fields: Fields, layers: int) -> set[int] | None:
    """``expert_layer_period`` and ``expert_layer_offset`` (Jamba)."""
    period = fields.optional_size("expert_layer_period", maximum=MAX_LAYERS)
    if period is None:
        return None
    offset = fields.size("expert_layer_offset", minimum=0, maximum=period - 1)
    return set(range(offset, layers, period))


def _interval(fields: Fields, layers: int) -> set[int] | None:
    """``moe_layer_start_index``, ``_end_index``, ``_interval`` (ERNIE 4.5)."""
    start = fields.optional_size("moe_layer_start_index", minimum=0, maximum=layers - 1)
    if start is None:
        return None
    end = fields.optional_size("moe_layer_end_index", minimum=-1, maximum=layers - 1)
    interval = fields.optional_size("moe_layer_interval", maximum=MAX_LAYERS) or 1
    last = layers - 1 if end is None or end == -1 else end
    return {layer for layer in range(start, last + 1) if (layer + 1) % interval == 0}


_LISTS: tuple[tuple[str, Rule], ...] = (
    ("moe_layer_freq", _flags),
    ("mlp_layer_types", _types),
    ("moe_layers", _indices),
    ("moe_layers_enum", _enumeration),
)
_RULES: tuple[Rule, ...] = (_leading, _period, _sparse_step, _dense_only, _period_offset, _interval)
