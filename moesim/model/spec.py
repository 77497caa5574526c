"""The model document: what a Mixture-of-Experts model is, as far as its cost depends on it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, StrictBool, StrictInt, model_validator

from moesim.errors import InputError
from moesim.model.mixers import Mixer, Size
from moesim.model.variant import Variant
from moesim.schema import Document

__all__ = ["ModelSpec", "Parameters", "Quantisation"]

MAX_LAYERS = 4096
Count = Annotated[StrictInt, Field(ge=0, le=2**62)]
Layers = tuple[Annotated[StrictInt, Field(ge=0, lt=MAX_LAYERS)], ...]


class Quantisation(Document):
    """How the routed experts' weights are stored; other weights may be stored wider."""

    method: str = "none"
    """``none``, ``fp8-block``, ``fp8``, ``mxfp8``, ``mxfp4``, ``nvfp4``, ``fp4``, ``int4``, …"""
    weight_bits: Annotated[StrictInt, Field(ge=1, le=64)] = 16
    """Bits of one routed-expert weight without its share of scales."""
    scale_bits_per_weight: Annotated[float, Field(ge=0, le=64, strict=True)] = 0.0
    """Bits of scales (and zero points) per routed-expert weight."""


class Parameters(Document):
    """Parameters of the whole model by role. MTP modules and vision towers are not among them."""

    embedding: int
    output_head: int
    """0 when tied to the embedding."""
    mixers: int
    """Attention and recurrences with their own norms and biases."""
    dense_mlp: int
    routed_experts: int
    routed_experts_active: int
    """What one token uses of :attr:`routed_experts`: the top-k of every MoE layer."""
    shared_experts: int
    router: int
    """Routers, and the projections into and out of a latent that experts work in."""
    other: int
    """Layer norms, router biases, gates of shared experts, residual mixing."""
    skipped: int = 0
    """What a token leaves out beside routed experts: query heads, hidden elements, layers."""

    @property
    def total(self) -> int:
        """All parameters."""
        return (
            self.embedding
            + self.output_head
            + self.mixers
            + self.dense_mlp
            + self.routed_experts
            + self.shared_experts
            + self.router
            + self.other
        )

    @property
    def active(self) -> int:
        """What belongs to one token: everything except the routed experts it does not choose.

        Input embedding and output head count in full. Publishers differ here; without the input
        embedding it is ``active - embedding``.
        """
        return self.total - self.routed_experts + self.routed_experts_active - self.skipped


class ModelSpec(Document):
    """A Mixture-of-Experts model, or a dense one to compare it with.

    Layers are counted as the model's configuration counts them. A layer has a mixer and an MLP in
    most architectures, one of the two in some (Nemotron-H), so MoE layers, dense layers and mixer
    groups each list their layers.
    """

    schema_id: ClassVar[str] = "moesim.model/1"

    name: str = Field(min_length=1)
    architecture: str = Field(min_length=1)
    """Name of the implementation, as in the ``architectures`` of a configuration."""
    source: str = "not stated"
    note: str | None = None
    """Shown wherever the model is used."""

    layers: Annotated[StrictInt, Field(ge=1, le=MAX_LAYERS)]
    hidden_size: Size
    vocabulary_size: Size
    tied_embeddings: StrictBool = False

    moe_layers: Layers
    """None in a dense model, whose experts, top-k and expert width are 0 too."""
    experts: Annotated[StrictInt, Field(ge=0, le=65535)]
    """Routed experts per MoE layer."""
    top_k: Annotated[StrictInt, Field(ge=0, le=65535)]
    expert_width: Annotated[StrictInt, Field(ge=0, le=2**24)]
    """Inner width of one routed expert."""
    expert_matrices: Annotated[StrictInt, Field(ge=2, le=3)] = 3
    """3 when gated (gate, up, down), 2 when plain."""
    expert_hidden_size: Size | None = None
    """Width of the tokens that experts take, where it is not the hidden size (latent MoE)."""
    expert_extra_parameters: Count = 0
    """Biases of one routed expert."""
    shared_experts: Annotated[StrictInt, Field(ge=0, le=65535)] = 0
    shared_expert_width: Annotated[StrictInt, Field(ge=0, le=2**24)] = 0
    """Total inner width of all shared experts of a layer."""
    routing_groups: Size = 1
    """Groups that the routed experts are divided into (``n_group``)."""
    groups_per_token: Size = 1
    """Groups that a token may choose from (``topk_group``)."""

    dense_layers: Layers = ()
    dense_width: Annotated[StrictInt, Field(ge=0, le=2**24)] = 0
    mixers: tuple[Mixer, ...] = Field(min_length=1)
    other_parameters: Count = 0
    """Norms, biases and gates of the whole model outside mixers and experts."""
    mtp_layers: Annotated[StrictInt, Field(ge=0, lt=MAX_LAYERS)] = 0
    """Multi-token-prediction modules that ship with the model, beyond ``layers``."""

    quantisation: Quantisation = Quantisation()
    activation_bits: Annotated[StrictInt, Field(ge=4, le=32)] = 16
    """Bits per element of a dispatched token."""
    variant: Variant = Variant()
    """What no dimension shows; :mod:`moesim.model.transforms` sets it."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        for field, layers in (("moe_layers", self.moe_layers), ("dense_layers", self.dense_layers)):
            _check_layers(field, layers, self.layers)
        if both := set(self.moe_layers) & set(self.dense_layers):
            raise InputError("a layer is both MoE and dense", field="dense_layers", found=min(both))
        if self.dense_layers and not self.dense_width:
            raise InputError("dense layers need a width", field="dense_width", found=0)
        mixed: set[int] = set()
        for index, mixer in enumerate(self.mixers):
            _check_layers(f"mixers[{index}].layers", mixer.layers, self.layers)
            if again := mixed & set(mixer.layers):
                raise InputError(
                    "a layer has two mixers", field=f"mixers[{index}].layers", found=min(again)
                )
            mixed |= set(mixer.layers)
        if bool(self.shared_experts) != bool(self.shared_expert_width):
            raise InputError(
                "shared experts and their width go together",
                field="shared_expert_width",
                found=f"{self.shared_experts} shared experts of total width "
                f"{self.shared_expert_width}",
            )
        self._check_experts()
        if self.moe_layers:
            self._check_routing()
        self._check_variant()
        return self

    def _check_variant(self) -> None:
        variant = self.variant
        if variant.copies and len(variant.copies) != self.top_k + 1:
            raise InputError(
                "one probability for every number of experts from 0 to top-k is needed",
                field="variant.copies",
                found=f"{len(variant.copies)} probabilities",
                allowed=str(self.top_k + 1),
            )
        if variant.equal_groups and self.top_k % self.routing_groups:
            raise InputError(
                "top-k does not divide into the routing groups",
                field="top_k",
                found=self.top_k,
                allowed=f"a multiple of {self.routing_groups}",
            )
        if self.layers % variant.layer_reuse:
            raise InputError(
                "the layers do not divide into passes of one stack",
                field="variant.layer_reuse",
                found=variant.layer_reuse,
                allowed=f"a divisor of {self.layers}",
            )

    def _check_experts(self) -> None:
        for field, least in (("experts", 2), ("top_k", 1), ("expert_width", 1)):
            found, dense = getattr(self, field), not self.moe_layers
            if found != 0 if dense else found < least:
                raise InputError(
                    "contradicts moe_layers",
                    field=field,
                    found=f"{found} with {len(self.moe_layers)} MoE layers",
                    allowed="0 in a dense model" if dense else f"at least {least}",
                )

    def _check_routing(self) -> None:
        if self.top_k > self.experts:
            raise InputError(
                "a token cannot choose more experts than there are",
                field="top_k",
                found=self.top_k,
                allowed=f"1 … {self.experts}",
            )
        if self.experts % self.routing_groups:
            raise InputError(
                "the experts do not divide into the routing groups",
                field="routing_groups",
                found=self.routing_groups,
                allowed=f"a divisor of {self.experts}",
            )
        if self.groups_per_token > self.routing_groups:
            raise InputError(
                "a token cannot choose from more groups than there are",
                field="groups_per_token",
                found=self.groups_per_token,
                allowed=f"1 … {self.routing_groups}",
            )
        reachable = self.groups_per_token * (self.experts // self.routing_groups)
        if self.top_k > reachable:
            raise InputError(
                "the groups of a token hold fewer experts than it chooses",
                field="top_k",
                found=self.top_k,
                allowed=f"1 … {reachable}",
            )

    @property
    def expert_input_size(self) -> int:
        """Width of a token on its way to and from a routed expert."""
        return self.expert_hidden_size or self.hidden_size

    @property
    def expert_matrix_parameters(self) -> int:
        """Parameters of one routed expert as its dimensions say; FLOPs follow from them."""
        matrices = self.expert_matrices * self.expert_input_size * self.expert_width
        return matrices + self.expert_extra_parameters

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed expert, as stored."""
        stored = self.variant.expert_parameters
        return self.expert_matrix_parameters if stored is None else stored

    @property
    def expert_active_parameters(self) -> int:
        """Parameters that a token copy multiplies with at its expert."""
        active = self.variant.expert_active_parameters
        return self.expert_parameters if active is None else active

    @property
    def expert_copy_flops(self) -> float:
        """FLOPs of a token copy at its expert, products that a variant adds to it included."""
        beside = sum(p.columns * p.depth for p in self.variant.products if p.per == "copy")
        return 2.0 * (self.expert_matrix_parameters + beside)

    @property
    def stores_experts_otherwise(self) -> bool:
        """Whether a variant stores experts in a form that measured kernels do not take."""
        return self.variant.expert_parameters is not None or self.variant.bits.experts is not None

    @property
    def copies_per_token(self) -> float:
        """Routed experts that a token goes to in one round of one MoE layer, mean."""
        return self.variant.mean_copies(self.top_k)

    @property
    def router_outputs(self) -> int:
        """Candidates that a router scores."""
        return self.variant.router_outputs or self.experts

    @property
    def expert_bits(self) -> float:
        """Bits per routed-expert weight, scales included."""
        stated = self.quantisation.weight_bits + self.quantisation.scale_bits_per_weight
        return self.variant.bits.experts or stated

    @property
    def expert_weight_bytes(self) -> float:
        """Bytes of one routed expert."""
        return self.expert_parameters * self.expert_bits / 8

    @property
    def parameters(self) -> Parameters:
        """Parameters by role."""
        moe, hidden, variant = len(self.moe_layers), self.hidden_size, self.variant
        embedding = self.vocabulary_size * hidden
        latent = 2 * hidden * self.expert_input_size if self.expert_hidden_size else 0
        per_mlp_width = self.expert_matrices * hidden
        stored = variant.pools * self.experts + variant.adapter_experts
        used = variant.rounds * self.copies_per_token
        routers = moe * variant.pools if variant.routers is None else variant.routers
        share = variant.layer_reuse
        full = Parameters(
            embedding=embedding,
            output_head=0 if self.tied_embeddings else embedding,
            mixers=sum(len(mixer.layers) * mixer.parameters(hidden) for mixer in self.mixers)
            // share,
            dense_mlp=len(self.dense_layers) * per_mlp_width * self.dense_width // share,
            routed_experts=round(
                moe * (stored * self.expert_parameters + variant.layer_expert_parameters)
            )
            // share,
            routed_experts_active=0,
            shared_experts=moe * per_mlp_width * self.shared_expert_width // share,
            router=(routers * hidden * self.router_outputs + moe * latent) // share,
            other=self.other_parameters // share,
        )
        # No more than there are: all rounds may use the same pool.
        active = min(used, float(stored)) * self.expert_active_parameters
        passes = min(variant.token_share, 1.0) * variant.hidden_share
        return full.model_copy(
            update={
                "routed_experts_active": round(moe * active * passes) // share,
                "skipped": self._skipped(full),
            }
        )

    def _skipped(self, full: Parameters) -> int:
        """What a token leaves out of mixers, dense layers and shared experts."""
        variant, hidden = self.variant, self.hidden_size
        by_heads = (
            sum(len(mixer.layers) * _query_parameters(mixer, hidden) for mixer in self.mixers)
            * (1 - variant.head_share)
            / variant.layer_reuse
        )
        left = full.mixers + full.dense_mlp + full.shared_experts - by_heads
        passes = min(variant.token_share, 1.0) * variant.hidden_share
        return round(by_heads + left * (1 - passes))

    @property
    def total_parameters(self) -> int:
        """All parameters of the language model, without MTP modules and vision towers."""
        return self.parameters.total

    @property
    def active_parameters(self) -> int:
        """Parameters that belong to one token; see :attr:`Parameters.active`."""
        return self.parameters.active

    @property
    def mtp_mixer(self) -> Mixer:
        """Of an MTP module: the last kind of attention."""
        attention = [mixer for mixer in self.mixers if not mixer.kind.startswith("mamba")]
        return (attention or list(self.mixers))[-1]

    @property
    def mtp_parameters(self) -> int:
        """Parameters of the MTP modules, beyond :attr:`total_parameters`; embeddings are shared.

        A module is one more MoE layer behind a projection of two hidden states into one
        (DeepSeek-V3, arXiv 2412.19437, section 2.2). Norms are left out.
        """
        if not self.mtp_layers:
            return 0
        hidden = self.hidden_size
        mixer = self.mtp_mixer.parameters(hidden)
        parameters = self.parameters
        mlp = parameters.routed_experts + parameters.shared_experts + parameters.router
        return self.mtp_layers * (2 * hidden**2 + mixer + mlp // len(self.moe_layers))

    @property
    def kv_cache_elements_per_token(self) -> float:
        """Cached elements that every further token of a long sequence adds, all layers."""
        return sum(
            len(mixer.layers) * mixer.cache_elements_per_token
            for mixer in self.mixers
            if mixer.kind != "gqa" or mixer.window_tokens is None
        )

    def summary(self) -> dict[str, Any]:
        """The document with the figures that follow from it, as the command line prints it.

        :func:`moesim.model.load_model` reads it back.
        """
        return self.to_dict() | {
            "total_parameters": self.total_parameters,
            "active_parameters": self.active_parameters,
            "active_parameters_without_input_embedding": (
                self.active_parameters - self.parameters.embedding
            ),
            "mtp_parameters": self.mtp_parameters,
            "parameters": self.parameters.to_dict(),
            "expert_parameters": self.expert_parameters,
            "expert_bits": self.expert_bits,
            "expert_weight_bytes": self.expert_weight_bytes,
            "kv_cache_elements_per_token": self.kv_cache_elements_per_token,
        }


def _query_parameters(mixer: Mixer, hidden: int) -> int:
    """Of the matrices that a query head has for itself in grouped-query attention, per layer."""
    if mixer.kind != "gqa":
        return 0
    return hidden * mixer.heads * (mixer.head_dim + mixer.value_head_dim)


def _check_layers(field: str, indices: tuple[int, ...], layers: int) -> None:
    if list(indices) != sorted(set(indices)):
        raise InputError("layer indices must ascend", field=field, found=indices)
    if indices and indices[-1] >= layers:
        raise InputError(
            "no such layer", field=field, found=indices[-1], allowed=f"0 … {layers - 1}"
        )
