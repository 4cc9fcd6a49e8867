"""What hubtool knows of each architecture: which published tensors make which MLX parameter.

config.json's model_type -> architecture_of -> Architecture: all that is special of it, as one value
config.json, headers     -> read_model      -> Model: parameters in file order, and what is dropped
"""

from collections.abc import Mapping

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.errors import SourceError
from hubtool.models.architecture import Architecture, Config, experts_per_token, find_layer, find_projection
from hubtool.models.deepseek_v4 import DEEPSEEK_V4
from hubtool.models.model import Component, Dropped, Encoding, Model, OwnFormat, Parameter, Part

__all__ = [
    "Architecture",
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

ARCHITECTURES: Mapping[str | None, Architecture] = {each.model_type: each for each in (DEEPSEEK_V4,)}


def read_model(config: Config, tensors: Mapping[str, TensorSpec]) -> Model:
    """The MLX model that a checkpoint makes, from config.json and its tensors' names, dtypes and shapes.

    Raises:
        SourceError: The architecture is not one that hubtool knows, or the checkpoint contradicts itself.
    """
    return architecture_of(config).read(config, tensors)


def architecture_of(config: Config) -> Architecture:
    """The architecture that config.json names.

    Raises:
        SourceError: It is not one that hubtool knows.
    """
    model_type = config.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise SourceError(
            "another architecture than hubtool converts",
            where="config.json: model_type",
            found=model_type or "none",
            expected=" or ".join(filter(None, ARCHITECTURES)),
            remedy="take a DeepSeek-V4 checkpoint",
        )
    return architecture
