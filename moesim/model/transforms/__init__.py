"""Published designs as transforms: pure functions from a model document to another.

``transform_model(model, ["prune:128", "weights:experts=4,group=128"])`` applies them in order. A
transform sets dimensions of the document, or the few general fields of
:class:`moesim.model.variant.Variant`; whoever prices the model reads those alone.

Order: sizes of experts (fine-grained, coarse-grained, cartesian, latent) come before what rests on
them; a transform that would undo an earlier one's choice is refused. Others commute.

Figures for comparison with what papers print (:mod:`moesim.model.transforms.figures`):

==========================  ====================================================================
function                    figure
==========================  ====================================================================
``mobe_ratio``              routed-expert parameters after MoBE over before (of layers)
``parameter_change``        all parameters after transforms over before, less one
``active_change``           the same of active parameters
``expert_bytes_change``     the same of stored bytes of routed experts
``weight_bytes``            bytes of a model's weights (PreMoe 390 GB, fit of Jamba-1.5)
``cache_bytes``             KV cache and states of a sequence (Jamba 4, 9, 32, 128 GiB)
``cache_tokens``            tokens of cache that a memory leaves (ExpertWeave 810K, 572K, 477K)
``flops_change``            FLOPs of a token's MoE layers and mixers after over before, less one
``true_experts``            true experts per token that save a share of FLOPs (AdaMoE 1.672)
==========================  ====================================================================
"""

from moesim.model.transforms.parameters import Parameter, Transform
from moesim.model.transforms.registry import TRANSFORMS, parse_transform, transform_model
from moesim.model.transforms.traces import check_routing_of_trace

__all__ = [
    "TRANSFORMS",
    "Parameter",
    "Transform",
    "check_routing_of_trace",
    "parse_transform",
    "transform_model",
]
