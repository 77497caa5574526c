"""From configuration fields to recurrent mixers.

The formulas follow the layers' published implementations in ``transformers``; a test compares the
totals with models that it builds.
"""

from __future__ import annotations

import math

from moesim.model.fields import Fields
from moesim.model.mixers import Recurrence, StateHeads

__all__ = ["gated_delta_net", "kimi_delta_attention", "mamba", "mamba2", "short_convolution"]

Layers = tuple[int, ...]


def mamba(fields: Fields, layers: Layers) -> Recurrence:
    """Mamba as in Jamba (arXiv 2403.19887): selective state space with norms on dt, B and C."""
    hidden = fields.size("hidden_size")
    inner = fields.size("mamba_expand", maximum=64) * hidden
    state = fields.size("mamba_d_state")
    kernel = fields.size("mamba_d_conv", maximum=1024)
    rank = (
        math.ceil(hidden / 16)
        if fields.values.get("mamba_dt_rank") in {None, "auto"}
        else fields.size("mamba_dt_rank")
    )
    biases = inner if fields.flag("mamba_conv_bias", default=True) else 0
    if fields.flag("mamba_proj_bias", default=False):
        biases += 2 * inner + hidden
    return Recurrence(
        kind="mamba",
        layers=layers,
        matrix_parameters=hidden * 2 * inner
        + inner * kernel
        + inner * (rank + 2 * state)
        + rank * inner
        + inner * hidden,
        extra_parameters=biases + inner * state + 2 * inner + rank + 2 * state,
        state_elements=inner * (state + kernel - 1),
    )


def mamba2(fields: Fields, layers: Layers) -> Recurrence:
    """Mamba-2 as in Nemotron-H and Granite 4 (arXiv 2405.21060)."""
    hidden = fields.size("hidden_size")
    heads = fields.size("mamba_num_heads", "mamba_n_heads")
    expand = fields.optional_size("mamba_expand", "expand", maximum=64)
    stated = fields.values.get("mamba_d_head")
    if stated == "auto":
        if expand is None:
            raise fields.missing("mamba_expand")
        head_dim = expand * hidden // heads
    else:
        head_dim = fields.size("mamba_head_dim", "mamba_d_head")
    inner = heads * head_dim
    groups = fields.size("n_groups", "mamba_n_groups")
    state = fields.size("ssm_state_size", "mamba_d_state")
    kernel = fields.size("conv_kernel", "mamba_d_conv", maximum=1024)
    convolved = inner + 2 * groups * state
    projected = inner + convolved + heads
    biases = convolved if fields.flag("use_conv_bias", "mamba_conv_bias", default=True) else 0
    if fields.flag("mamba_proj_bias", "use_bias", default=False):
        biases += projected + hidden
    return Recurrence(
        kind="mamba2",
        layers=layers,
        matrix_parameters=hidden * projected + convolved * kernel + inner * hidden,
        extra_parameters=biases + 3 * heads + inner,
        state_elements=inner * state + convolved * (kernel - 1),
        state_heads=StateHeads(
            key_heads=groups,
            key_dim=state,
            value_heads=heads,
            value_dim=head_dim,
            convolution_width=kernel,
        ),
    )


def gated_delta_net(fields: Fields, layers: Layers) -> Recurrence:
    """Gated delta net as in Qwen3-Next and Qwen3.5 (arXiv 2412.06464)."""
    hidden = fields.size("hidden_size")
    key_dim = fields.size("linear_key_head_dim")
    value_dim = fields.size("linear_value_head_dim")
    value_heads = fields.size("linear_num_value_heads")
    key_heads = fields.size("linear_num_key_heads")
    keys = key_heads * key_dim
    values = value_heads * value_dim
    kernel = fields.size("linear_conv_kernel_dim", maximum=1024)
    convolved = 2 * keys + values
    return Recurrence(
        kind="gated-delta-net",
        layers=layers,
        matrix_parameters=hidden * (convolved + values + 2 * value_heads)
        + convolved * kernel
        + values * hidden,
        extra_parameters=2 * value_heads + value_dim,
        state_elements=value_heads * key_dim * value_dim + convolved * (kernel - 1),
        state_heads=StateHeads(
            key_heads=key_heads,
            key_dim=key_dim,
            value_heads=value_heads,
            value_dim=value_dim,
            convolution_width=kernel,
        ),
    )


def kimi_delta_attention(fields: Fields, layers: Layers) -> Recurrence:
    """Kimi delta attention (Kimi Linear, arXiv 2510.26692); low-rank gates unless stated full."""
    hidden = fields.size("hidden_size")
    section = fields.section("linear_attn_config")
    if section is not None:
        heads, head_dim = section.size("num_heads"), section.size("head_dim")
        kernel = section.size("short_conv_kernel_size", maximum=1024)
        full_rank = section.flag("use_full_rank_gate", default=False)
    else:
        heads, head_dim = fields.size("linear_num_heads"), fields.size("linear_head_dim")
        kernel = fields.size("linear_conv_kernel_dim", maximum=1024)
        full_rank = False
    width = heads * head_dim
    low_rank = head_dim * (hidden + width)
    gate = hidden * width if full_rank else low_rank
    return Recurrence(
        kind="kimi-delta-attention",
        layers=layers,
        matrix_parameters=4 * hidden * width
        + 3 * width * kernel
        + low_rank
        + gate
        + hidden * heads,
        extra_parameters=width + heads + head_dim,
        state_elements=heads * head_dim**2 + 3 * width * (kernel - 1),
        state_heads=StateHeads(
            key_heads=heads,
            key_dim=head_dim,
            value_heads=heads,
            value_dim=head_dim,
            convolution_width=kernel,
        ),
    )


def short_convolution(fields: Fields, layers: Layers) -> Recurrence:
    """Doubly gated short convolution of LFM2."""
    hidden = fields.size("hidden_size")
    kernel = fields.size("conv_L_cache", maximum=1024)
    biases = 5 * hidden if fields.flag("conv_bias", default=False) else 0
    return Recurrence(
        kind="short-convolution",
        layers=layers,
        matrix_parameters=4 * hidden**2 + hidden * kernel,
        extra_parameters=biases,
        state_elements=hidden * (kernel - 1),
    )
