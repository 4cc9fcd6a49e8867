"""What hubtool knows of each architecture: which published tensors make which MLX parameter."""

from collections.abc import Mapping
from typing import Any

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.errors import SourceError
from hubtool.models import deepseek_v4
from hubtool.models.model import Component, Dropped, Encoding, Model, Parameter, Part

__all__ = [
    "Component",
    "Dropped",
    "Encoding",
    "Model",
    "Parameter",
    "Part",
    "cache_nbytes",
    "read_model",
    "runtime_files",
]

_READERS = {"deepseek_v4": deepseek_v4.read_model}
_CACHES = {"deepseek_v4": deepseek_v4.cache_nbytes}
_RUNTIME_FILES = {"deepseek_v4": ("deepseek_v4.py", "chat_template.jinja")}


def read_model(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> Model:
    """The MLX model that a checkpoint makes, from its config.json and its tensors' names, dtypes and shapes.

    Raises:
        SourceError: The architecture is not one that hubtool knows, or the checkpoint contradicts itself.
    """
    model_type = config.get("model_type")
    reader = _READERS.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        raise SourceError(
            "another architecture than hubtool converts",
            where="config.json: model_type",
            found=model_type or "none",
            expected=" or ".join(_READERS),
            remedy="take a DeepSeek-V4 checkpoint",
        )
    return reader(config, tensors)


def cache_nbytes(model: Model, tokens: int, activation_nbytes: int) -> int:
    """Bytes of the runtime's cache for one sequence of `tokens` tokens, with activations of `activation_nbytes`."""
    return _CACHES[model.model_type](model.config, tokens, activation_nbytes)


def runtime_files(model_type: str) -> tuple[str, ...]:
    """Names of the files of hubtool/runtime that are shipped with a model; the first is its `model_file`."""
    return _RUNTIME_FILES.get(model_type, ())
