"""What a synthetic trace is asked to look like, and presets named after real models."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from pydantic import Field, model_validator

from moesim.errors import InputError, UsageError
from moesim.schema import Document

__all__ = ["PRESETS", "GeneratorSpec", "Preset", "find_preset"]

# Tables hold one row per pair of domain and topic, and the pair is kept as uint16 per token.
MAX_CONTEXTS = 65_536
MAX_GROUPS = 64  # groups in use are a 64-bit mask in the sampler


class GeneratorSpec(Document):
    """Shape and statistics of a synthetic trace.

    Skew, affinity, domain shift and locality each have a parameter, and 0 means none: with all four
    at 0 every set of ``top_k`` experts is equally likely for every token.

    Attributes:
        model: Name written into the manifest.
        layers: L, MoE layers.
        experts: E, experts per layer.
        top_k: K, experts per token and layer; always distinct.
        tokens: T, tokens in the trace.
        moe_layers: [L] model layer index of each MoE layer; empty for 0 … L − 1.
        skew: Exponent s of the popularity of experts, rank^−s, ranks permuted in every layer.
        affinity: 0 … 1, probability that a choice follows the token's topic. A topic prefers some
            experts in every layer, which ties the choices of neighbouring layers (inter-layer
            affinity) and the choices within a layer (co-activation).
        topics: Number of latent topics; 0 for E // K, which cover the experts about once.
        domains: Kinds of text; request r belongs to domain r mod ``domains``.
        domain_shift: 0 … 1, probability that a choice follows the preference of its domain.
        locality: 0 … 1, probability that a token keeps the topic of the token before it in the same
            request; 1 gives every request one topic.
        reuse: 0 … 1, mean share of the experts that a token takes over from the token before it
            where it keeps the topic; chance repetitions come on top. Without locality it has no
            effect. The default is what gives the bundled sample's overlap of adjacent tokens
            without topics (``python -m tests.benchmarks.presets --preset sample-no-topics --fit``).
        groups: Groups of consecutive experts (device or node groups); 1 if routing is not limited.
        groups_per_token: At most so many groups serve one token in one layer.
        request_tokens: Mean length of a request, prompt and answer.
        length_spread: Lengths are uniform in (1 ± spread) × ``request_tokens``.
        prompt_fraction: Share of a request's tokens that are prefill; the rest is decode.
    """

    model: str = "synthetic"
    layers: int = Field(ge=1, le=10_000)
    experts: int = Field(ge=1, le=65_536)
    top_k: int = Field(ge=1)
    tokens: int = Field(default=65_536, ge=1, le=2**40)
    moe_layers: tuple[int, ...] = ()
    skew: float = Field(default=0.0, ge=0, le=4)
    affinity: float = Field(default=0.0, ge=0, le=1)
    topics: int = Field(default=0, ge=0)
    domains: int = Field(default=1, ge=1)
    domain_shift: float = Field(default=0.0, ge=0, le=1)
    locality: float = Field(default=0.0, ge=0, le=1)
    reuse: float = Field(default=0.17, ge=0, le=1)
    groups: int = Field(default=1, ge=1, le=MAX_GROUPS)
    groups_per_token: int = Field(default=1, ge=1)
    request_tokens: int = Field(default=512, ge=1, le=2**31 - 1)
    length_spread: float = Field(default=0.5, ge=0, le=1)
    prompt_fraction: float = Field(default=0.5, ge=0, le=1)

    @property
    def topic_count(self) -> int:
        """Topics that make a difference: one if there is no affinity."""
        if not self.affinity:
            return 1
        return self.topics or max(1, self.experts // self.top_k)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.experts:
            raise InputError(
                "top-k is larger than the number of experts",
                field="top_k",
                found=self.top_k,
                allowed=f"1 … {self.experts}",
            )
        if self.moe_layers and len(self.moe_layers) != self.layers:
            raise InputError(
                "one model layer index per MoE layer is needed",
                field="moe_layers",
                found=f"{len(self.moe_layers)} indices",
                allowed=str(self.layers),
            )
        if self.domains * self.topic_count > MAX_CONTEXTS:
            raise InputError(
                "too many pairs of domain and topic",
                field="topics",
                found=self.domains * self.topic_count,
                allowed=f"domains × topics ≤ {MAX_CONTEXTS}",
            )
        if self.domain_shift and self.domains == 1:
            raise InputError(
                "one domain cannot differ from itself",
                field="domain_shift",
                found=self.domain_shift,
                fix="ask for two or more domains, or for no shift",
            )
        if self.experts % self.groups:
            raise InputError(
                "the experts do not divide into equal groups",
                field="groups",
                found=self.groups,
                allowed=f"a divisor of {self.experts}",
            )
        reach = min(self.groups_per_token, self.groups) * (self.experts // self.groups)
        if self.groups_per_token > self.groups or reach < self.top_k:
            raise InputError(
                "a token cannot reach top-k experts within its groups",
                field="groups_per_token",
                found=self.groups_per_token,
                allowed=f"at most {self.groups} groups that hold {self.top_k} experts together",
            )
        return self


@dataclass(frozen=True)
class Preset:
    """A spec named after a real model.

    Attributes:
        spec: The parameters.
        sources: For every statistic of ``spec``: where it comes from, or that it is assumed.
    """

    spec: GeneratorSpec
    sources: MappingProxyType[str, str]


# Fits are made, and the figures fitted to are held against the presets, by this command.
_FIT = "python -m tests.benchmarks.presets --fit"
# SRP: segment routing best performance at 16 tokens, and the standard deviation of the experts'
# activation frequency (mean K/E) over 11 domains, both in per cent (Table 1).
_SRP = "arXiv 2505.16056, Table 1"
# Hit rate of a per-layer LRU cache of 8, 16, 32 and 64 experts over 129 tokens from empty: 42.4,
# 64.7, 81.0 and 91.8 %.
_LRU = "github.com/gajsanders/moe-trace, docs/findings/007"
_SAMPLE = (
    f"fitted to the bundled sample, a small real model ({_FIT}); assumed to hold for this model"
)


def _preset(spec: dict[str, Any], **sources: str) -> Preset:
    return Preset(GeneratorSpec.parse(spec), MappingProxyType(sources))


PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "qwen3-30b-a3b": _preset(
            {
                "model": "qwen3-30b-a3b (synthetic)",
                "layers": 48,
                "experts": 128,
                "top_k": 8,
                "skew": 0.55,
                "affinity": 0.92,
                "domains": 4,
                "domain_shift": 0.91,
                "locality": 0.94,
                "reuse": 0.0,
            },
            shape="config.json of Qwen/Qwen3-30B-A3B",
            skew=f"fitted to the load deviation 3.19 of 6.25 % in {_SRP} ({_FIT})",
            affinity=f"fitted to the LRU 8 hit rate 42.4 % of {_LRU} ({_FIT})",
            locality=f"fitted to SRP 54.14 % of {_SRP} ({_FIT}); not fitted, published against "
            f"generated: LRU 16 64.7 against 62.6, LRU 32 81.0 against 77.0, LRU 64 91.8 against "
            f"85.9 % ({_LRU})",
            reuse=f"of 0 and 0.1 the one that comes closer to LRU 16, all others fitted ({_FIT})",
            domains="assumed",
            domain_shift=_SAMPLE,
        ),
        "deepseek-v3": _preset(
            {
                "model": "deepseek-v3 (synthetic)",
                "layers": 58,
                "moe_layers": list(range(3, 61)),
                "experts": 256,
                "top_k": 8,
                "groups": 8,
                "groups_per_token": 4,
                "skew": 0.81,
                "affinity": 0.92,
                "domains": 4,
                "domain_shift": 0.91,
                "locality": 0.94,
                "reuse": 0.0,
            },
            shape="config.json of deepseek-ai/DeepSeek-V3 (first_k_dense_replace 3, n_group 8, "
            "topk_group 4)",
            skew="fitted, within one domain, to the imbalance 1.564 (max over mean less 1) of "
            "DeepSeek-R1 on 32 ranks of 8 consecutive experts, TensorRT-LLM "
            f"examples/wide_ep/ep_load_balancer/README.md ({_FIT})",
            affinity="assumed as for qwen3-30b-a3b",
            locality="assumed as for qwen3-30b-a3b",
            reuse="assumed as for qwen3-30b-a3b",
            domains="assumed",
            domain_shift=_SAMPLE,
        ),
        "mixtral-8x7b": _preset(
            {
                "model": "mixtral-8x7b (synthetic)",
                "layers": 32,
                "experts": 8,
                "top_k": 2,
                "skew": 0.16,
                "affinity": 0.9,
                "domains": 4,
                "domain_shift": 0.1,
                "locality": 0.69,
                "reuse": 0.0,
            },
            shape="config.json of mistralai/Mixtral-8x7B-v0.1",
            skew=f"fitted to the load deviation 2.70 of 25 % in {_SRP} ({_FIT})",
            affinity="assumed",
            locality=f"fitted to SRP 49.36 % of {_SRP} ({_FIT})",
            reuse=_SAMPLE,
            domains="assumed",
            domain_shift="assumed small: the Mixtral paper (arXiv 2401.04088, section 5) sees no "
            "clear pattern of experts by topic",
        ),
    }
)


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: If there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}; allowed: {', '.join(PRESETS)}")
    return PRESETS[name]
