"""All that is special of an architecture, as one value."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.models.chat import ChatFormat
from hubtool.models.model import Model

Config = Mapping[str, Any]
"""config.json."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EXPERTS = re.compile(r"\.(?:\w*experts|switch_\w+)\.(\w+)\.\w+$")

_CHOSEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "num_selected_experts",
    "experts_per_token",
)
"""Keys of config.json that say how many routed experts a token goes through, as mlx-lm's models read them."""


def find_layer(path: str) -> int | None:
    """The decoder layer that an MLX path lies in, None outside the layers."""
    match = _LAYER.search(path)
    return int(match[1]) if match else None


def find_projection(name: str) -> str | None:
    """The projection that a tensor of stacked routed experts belongs to, `gate_proj` say; None for any other tensor."""
    match = _EXPERTS.search(name) if "shared" not in name else None
    return match[1] if match else None


def experts_per_token(config: Config) -> int:
    """Routed experts that a token goes through, 1 where config.json does not say; a text model's own config counts."""
    text = config.get("text_config")
    for fields in (config, text if isinstance(text, dict) else {}):
        for key in _CHOSEN:
            if isinstance(chosen := fields.get(key), int):
                return max(1, chosen)
    return 1


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        model_type: config.json's `model_type`, None for the one that stands for all others.
        read: The model that a checkpoint makes, from config.json and its tensors' names, dtypes and shapes.
        cache_nbytes: Bytes of the runtime's cache for one sequence of so many tokens, with activations of so many
            bytes; None where that is not known.
        runtime_files: Names of the files of hubtool/runtime that are shipped with a model; the first is its model file.
        chat: Its chat formats, where hubtool has templates of them.
        tidy: config.json as the runtime's own tools leave it, before what hubtool puts into it.
    """

    model_type: str | None
    read: Callable[[Config, Mapping[str, TensorSpec]], Model]
    cache_nbytes: Callable[[Config, int, int], int | None]
    runtime_files: tuple[str, ...] = ()
    tidy: Callable[[Config], dict[str, Any]] = dict
    chat: ChatFormat | None = None

    @property
    def traced(self) -> bool:
        """Whether it is read by tracing mlx-lm's class, not by hand."""
        return self.model_type is None
