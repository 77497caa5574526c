"""What a synthetic trace is asked to look like."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from moesim.errors import InputError
from moesim.schema import Document

__all__ = ["GeneratorSpec"]

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
        popularity: How the popularity of experts falls with their rank: rank^−s, or exp(−s · rank)
            where a router leaves some experts nearly unused. Ranks are permuted in every layer.
        skew: The s above.
        affinity: 0 … 1, probability that a choice follows the token's topic. A topic prefers some
            experts in every layer, which ties the choices of neighbouring layers (inter-layer
            affinity) and the choices within a layer (co-activation).
        topics: Number of latent topics; 0 for E // K, which cover the experts about once.
        request_topics: Effective number of topics of one request (1 / Σ share²): every request
            ranks the topics anew, and shares fall geometrically along the ranking. So a request
            keeps coming back to the same experts. 0 for all topics, equally often.
        domains: Kinds of text; request r belongs to domain r mod ``domains``.
        domain_shift: 0 … 1, probability that a choice follows the preference of its domain.
        locality: 0 … 1, probability that a token keeps the topic of the token before it in the same
            request; 1 gives every request one topic.
        reuse: 0 … 1, mean share of the experts that a token takes over from the token before it
            where it keeps the topic; chance repetitions come on top. Without locality it has no
            effect. The default is what gives the bundled sample's overlap of adjacent tokens
            without topics (``python -m tests.benchmarks.sample_fit``).
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
    popularity: Literal["zipf", "exponential"] = "zipf"
    skew: float = Field(default=0.0, ge=0, le=4)
    affinity: float = Field(default=0.0, ge=0, le=1)
    topics: int = Field(default=0, ge=0)
    request_topics: float = Field(default=0.0, ge=0)
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
        if 0 < self.request_topics < 1:
            raise InputError(
                "a request has at least one topic",
                field="request_topics",
                found=self.request_topics,
                allowed="1 or more, or 0 for all topics equally often",
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
