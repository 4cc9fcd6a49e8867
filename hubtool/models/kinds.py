"""Which component a parameter belongs to, by its MLX path and the classes of the modules around it."""

import re
from collections.abc import Sequence

from hubtool.models.model import Component

_NORM = re.compile(r"norm|(^|\.)ln(_\w+)?(\.|$)", re.IGNORECASE)
_ROUTER = re.compile(r"(^|\.)(gate|router|wg|shared_expert_gate|expert_bias|e_score_correction_bias)(\.|$)")
_INDEXER = re.compile(r"(^|\.)(indexer|compressor)(\.|$)")
_SHARED = re.compile(r"shared_(experts?|mlp)|shared\.")
_ROUTED = re.compile(r"(^|\.)(\w*experts|switch_\w+)(\.|$)")
_EMBEDDINGS = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|tok_embeddings)(\.|$)")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|head)(\.|$)")
_ATTENTION = re.compile(r"(^|\.)(\w*attn\w*|\w*attention\w*)(\.|$)")
_MLP = re.compile(r"(^|\.)(\w*mlp\w*|ffn|feed_forward|ff)(\.|$)")

_SPACE_CLASS = re.compile(r"mamba|ssm|deltanet|timemix|rwkv|recurrent|shortconv|lru|linearattention|kda", re.IGNORECASE)
_ATTENTION_CLASS = re.compile(r"attention|mla\b", re.IGNORECASE)
_MLP_CLASS = re.compile(r"mlp|feedforward|ffn", re.IGNORECASE)


def find_component(path: str, layer: int | None, classes: Sequence[str]) -> Component:
    """The component of a parameter.

    Args:
        path: Its MLX path, its name included.
        layer: Decoder layer index, None outside the layers.
        classes: Names of the classes of the modules around it, the outermost first.
    """
    module = path.rpartition(".")[0] or path
    leaf = classes[-1] if classes else ""
    if _NORM.search(leaf) or _NORM.search(path.rpartition(".")[2]) or _NORM.search(module.rpartition(".")[2]):
        return Component.NORMS
    if layer is None:
        if _HEAD.search(module):
            return Component.HEAD
        return Component.EMBEDDINGS if leaf == "Embedding" or _EMBEDDINGS.search(module) else Component.REST
    return _within_layer(path, module, classes)


def _within_layer(path: str, module: str, classes: Sequence[str]) -> Component:
    around = " ".join(classes[1:])
    inner = module.partition("layers.")[2] or module
    for pattern, component in (
        (_INDEXER, Component.COMPRESSOR_INDEXER),
        (_SHARED, Component.SHARED_EXPERTS),
        (_ROUTED, Component.ROUTED_EXPERTS),
    ):
        if pattern.search(inner) and not inner.endswith("shared_expert_gate"):
            return component
    in_attention = bool(_ATTENTION.search(inner) or _ATTENTION_CLASS.search(around))
    if not in_attention and _ROUTER.search(path):
        return Component.ROUTER
    if _SPACE_CLASS.search(around):
        return Component.STATE_SPACE
    if in_attention:
        return Component.ATTENTION
    if _MLP.search(inner) or _MLP_CLASS.search(around):
        return Component.MLP
    return Component.REST
