"""What hubtool knows of each architecture: which published tensors make which MLX parameter.

config.json's model_type -> architecture_of -> Architecture: all that is special of it, as one value
config.json, headers     -> read_model      -> Model: parameters in file order, and what is dropped
"""

from collections.abc import Mapping

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.models.architecture import Architecture, Config, experts_per_token, find_layer, find_projection
from hubtool.models.deepseek_v4 import DEEPSEEK_V4
from hubtool.models.generic import GENERIC
from hubtool.models.model import Component, Dropped, Encoding, Model, OwnFormat, Parameter, Part
from hubtool.models.program import Box

__all__ = [
    "Architecture",
    "Box",
    "Component",
    "Dropped",
    "Encoding",
    "Model",
    "OwnFormat",
    "Parameter",
    "Part",
    "architecture_of",
    "experts_per_token",
    "find_layer",
    "find_projection",
    "read_model",
]

BY_HAND: Mapping[str, Architecture] = {"deepseek_v4": DEEPSEEK_V4}
"""Architectures that hubtool reads itself, by config.json's model_type."""


def read_model(config: Config, tensors: Mapping[str, TensorSpec]) -> Model:
    """The MLX model that a checkpoint makes, from config.json and its tensors' names, dtypes and shapes.

    Raises:
        SourceError: Neither hubtool nor mlx-lm knows the architecture, or the checkpoint contradicts itself.
    """
    return architecture_of(config).read(config, tensors)


def architecture_of(config: Config) -> Architecture:
    """The architecture that config.json names: one by hand, or what stands for all that mlx-lm knows."""
    model_type = config.get("model_type")
    return BY_HAND.get(model_type, GENERIC) if isinstance(model_type, str) else GENERIC
