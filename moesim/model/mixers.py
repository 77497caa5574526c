"""What mixes tokens in a layer: attention in its kinds, and recurrences that stand in for it.

One document describes a group of layers that are built alike. A document carries what costs and
memory need: dimensions, how many cached tokens a query reads, what is kept per token and per
sequence. Matrices are counted from the dimensions; ``extra_parameters`` holds what no dimension
shows (norms, biases, sinks), so that totals are exact.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from moesim.schema import Document

__all__ = [
    "CompressedAttention",
    "GroupedQueryAttention",
    "Indexer",
    "LatentAttention",
    "Mixer",
    "Recurrence",
    "Size",
    "StateHeads",
]

Size = Annotated[StrictInt, Field(ge=1, le=2**24)]
"""A dimension: a whole number of at least 1. No real model comes near the upper end."""

Layer = Annotated[StrictInt, Field(ge=0, le=4095)]
Count = Annotated[StrictInt, Field(ge=0, le=2**62)]


class Indexer(Document):
    """The small scorer of sparse attention that picks the cached tokens a query may read.

    Source: DeepSeek-V3.2-Exp report, lightning indexer.
    """

    heads: Size
    head_dim: Size
    query_width: Size
    """Width of what its queries are projected from: the query rank of MLA, else the hidden size."""
    weighs_heads: StrictBool = True
    """Whether a projection of the hidden state weighs the heads."""
    extra_parameters: Count = 0

    def parameters(self, hidden_size: int) -> int:
        """Parameters per layer."""
        queries = self.query_width * self.heads * self.head_dim
        keys = hidden_size * self.head_dim
        weights = hidden_size * self.heads if self.weighs_heads else 0
        return queries + keys + weights + self.extra_parameters


class _Group(Document):
    layers: tuple[Layer, ...] = Field(min_length=1)
    """Model layer indices, ascending."""
    extra_parameters: Count = 0
    """Norms, biases and sinks per layer."""


class GroupedQueryAttention(_Group):
    """Softmax attention with shared key and value heads (MHA and MQA are its two ends)."""

    kind: Literal["gqa"] = "gqa"
    heads: Size
    kv_heads: Size
    head_dim: Size
    value_head_dim: Size
    window_tokens: Size | None = None
    """Only so many tokens are read and kept; ``None`` means all."""
    sparse_tokens: Size | None = None
    """Only so many of the kept tokens are read."""
    output_gate: Literal["none", "head", "element"] = "none"
    keys_are_values: StrictBool = False
    """Values are the keys before their norm (Gemma 4): no value projection, still cached."""
    indexer: Indexer | None = None

    def parameters(self, hidden_size: int) -> int:
        """Parameters per layer: query, key, value, output, gate, indexer, extras."""
        query = self.heads * self.head_dim
        key = self.kv_heads * self.head_dim
        value = 0 if self.keys_are_values else self.kv_heads * self.value_head_dim
        output = self.heads * self.value_head_dim
        gate = {"none": 0, "head": self.heads, "element": output}[self.output_gate]
        indexer = self.indexer.parameters(hidden_size) if self.indexer else 0
        return hidden_size * (query + key + value + output + gate) + indexer + self.extra_parameters

    @property
    def cache_elements_per_token(self) -> float:
        """Keys and values (and indexer keys) kept per token and layer."""
        indexer = self.indexer.head_dim if self.indexer else 0
        return self.kv_heads * (self.head_dim + self.value_head_dim) + indexer

    @property
    def state_elements(self) -> int:
        """Kept per sequence and layer whatever its length."""
        return 0


class LatentAttention(_Group):
    """Multi-head latent attention: keys and values are expanded from one cached latent.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.
    """

    kind: Literal["mla"] = "mla"
    heads: Size
    query_rank: Size | None
    """``None``: queries come from the hidden state by one matrix."""
    kv_rank: Size
    rope_head_dim: Size
    nope_head_dim: Size
    value_head_dim: Size
    output_gate: StrictBool = False
    sparse_tokens: Size | None = None
    indexer: Indexer | None = None
    """``None`` in layers that reuse the choice of an earlier layer (GLM-5.2)."""

    @property
    def window_tokens(self) -> int | None:
        """The latent of every token is kept."""
        return None

    def parameters(self, hidden_size: int) -> int:
        """Parameters per layer; the two latent norms are counted in here."""
        query_width = self.heads * (self.nope_head_dim + self.rope_head_dim)
        if self.query_rank is None:
            query = hidden_size * query_width
        else:
            query = self.query_rank * (hidden_size + query_width + 1)
        down = hidden_size * (self.kv_rank + self.rope_head_dim)
        up = self.kv_rank * (self.heads * (self.nope_head_dim + self.value_head_dim) + 1)
        output = hidden_size * self.heads * self.value_head_dim * (2 if self.output_gate else 1)
        indexer = self.indexer.parameters(hidden_size) if self.indexer else 0
        return query + down + up + output + indexer + self.extra_parameters

    @property
    def cache_elements_per_token(self) -> float:
        """The latent, the shared rotary key and the indexer's key, per token and layer."""
        indexer = self.indexer.head_dim if self.indexer else 0
        return self.kv_rank + self.rope_head_dim + indexer

    @property
    def state_elements(self) -> int:
        """Kept per sequence and layer whatever its length."""
        return 0


class CompressedAttention(_Group):
    """Attention over a short window and over blocks of tokens pressed into one entry each.

    Source: DeepSeek-V4; ``compression`` tokens share one entry (4 with an indexer that picks
    entries, 128 without), 0 means the window alone.
    """

    kind: Literal["compressed"] = "compressed"
    heads: Size
    head_dim: Size
    """Of queries and of the one shared key, which is also the value."""
    query_rank: Size
    output_groups: Size
    output_rank: Size
    window_tokens: Size
    compression: Count
    indexer: Indexer | None = None
    sparse_tokens: Size | None = None
    """Entries that the indexer picks."""

    def parameters(self, hidden_size: int) -> int:
        """Parameters per layer, two projections (entry, gate) per compressor included."""
        width = self.heads * self.head_dim
        query = self.query_rank * (hidden_size + width + 1)
        key = hidden_size * self.head_dim + self.head_dim
        output = self.output_rank * (width + self.output_groups * hidden_size)
        total = query + key + output + self.heads + self.extra_parameters
        if self.compression:
            # Overlapping blocks (those with an indexer) hold two halves of every entry.
            halves = 2 if self.indexer else 1
            total += _compressor(hidden_size, self.head_dim, halves, self.compression)
        if self.indexer:
            total += _compressor(hidden_size, self.indexer.head_dim, 2, self.compression)
            total += self.query_rank * self.indexer.heads * self.indexer.head_dim
            total += hidden_size * self.indexer.heads
        return total

    @property
    def cache_elements_per_token(self) -> float:
        """Compressed entries and indexer keys per token and layer."""
        if not self.compression:
            return 0.0
        indexer = self.indexer.head_dim if self.indexer else 0
        return (self.head_dim + indexer) / self.compression

    @property
    def state_elements(self) -> int:
        """The window, which does not grow with the sequence."""
        return self.window_tokens * self.head_dim


def _compressor(hidden_size: int, width: int, halves: int, block_tokens: int) -> int:
    """Entry and gate projections, a bias per position in the block, and a norm."""
    return 2 * hidden_size * halves * width + block_tokens * halves * width + width


class StateHeads(Document):
    """Sizes of a recurrence whose heads each keep a [key_dim, value_dim] matrix.

    Gated delta rules have queries, keys and values; Mamba-2 calls them C, B and x
    (Dao and Gu, arXiv 2405.21060, section 5).
    """

    key_heads: Size
    key_dim: Size
    value_heads: Size
    value_dim: Size
    convolution_width: Size
    """Of the short causal convolution over queries, keys and values."""

    @property
    def channels(self) -> int:
        """That the convolution runs over."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


class Recurrence(_Group):
    """A recurrent mixer with a state of fixed size: Mamba, gated delta net, Kimi delta attention.

    The kinds differ too much in their projections for shared dimensions to help, so the matrices
    are stated as one count.
    """

    kind: Literal["mamba", "mamba2", "gated-delta-net", "kimi-delta-attention", "short-convolution"]
    matrix_parameters: Count
    """Projections and convolution per layer."""
    state_elements: Count
    """Recurrent and convolution state per sequence and layer."""
    state_heads: StateHeads | None = None
    """Of the kinds that have them; without, the layer's scan is priced by its bytes."""

    @property
    def window_tokens(self) -> int | None:
        """No token is kept."""
        return None

    def parameters(self, hidden_size: int) -> int:
        """Parameters per layer."""
        return self.matrix_parameters + self.extra_parameters

    @property
    def cache_elements_per_token(self) -> float:
        """Nothing grows with the sequence."""
        return 0.0


Mixer = Annotated[
    GroupedQueryAttention | LatentAttention | CompressedAttention | Recurrence,
    Field(discriminator="kind"),
]
