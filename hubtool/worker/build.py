"""A model's modules without its weights, as stock mlx-lm builds them."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.utils import _get_classes

import hubtool
from hubtool.errors import SourceError
from hubtool.models import architecture_of

DECODED = (nn.Linear, nn.Embedding, SwitchLinear)
"""What is decoded when its layer is read; other modules compute with their weights as they are stored."""

RUNTIME = Path(hubtool.__file__).parent / "runtime"


def build_model(config: Mapping[str, Any], code: Path | None = None) -> nn.Module:
    """The model that config.json describes, its parameters not yet evaluated, nothing quantized.

    Args:
        config: config.json of a published checkpoint or of a finished folder.
        code: The model's own file, where the folder has one; hubtool's own for what it ships a file for.

    Raises:
        SourceError: mlx-lm has no such model.
    """
    code = code or _own_code(config)
    if code is not None:
        module = _import(code)
        classes = module.Model, module.ModelArgs
    else:
        try:
            classes = _get_classes(dict(config))
        except ValueError as error:
            raise SourceError(
                "mlx-lm has no such model",
                where="config.json: model_type",
                found=str(config.get("model_type")),
                remedy="update mlx-lm, or take another checkpoint",
            ) from error
    model, arguments = classes
    built: nn.Module = model(arguments.from_dict(dict(config)))
    return built


def _own_code(config: Mapping[str, Any]) -> Path | None:
    """The model file that hubtool ships for an architecture, None where mlx-lm has the model itself."""
    files = architecture_of(config).runtime_files
    return RUNTIME / files[0] if files else None


def _import(path: Path) -> ModuleType:
    name = "custom_model"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its own classes look themselves up there
    spec.loader.exec_module(module)
    return module


def formats(config: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Mapping[str, Any]]:
    """How each quantized module is stored, by its path: those that have scales.

    Args:
        config: config.json of a finished folder.
        names: Its tensors.
    """
    quantization = config.get("quantization") or {}
    paths = [name.removesuffix(".scales") for name in names if name.endswith(".scales")]
    top = {key: value for key, value in quantization.items() if not isinstance(value, Mapping | bool)}
    return {path: {**top, **entry} for path in paths if isinstance(entry := quantization.get(path, top), Mapping)}


def quantize_others(model: nn.Module, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Make modules quantized that compute with their weights as they are stored."""

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if isinstance(module, DECODED) or not hasattr(module, "to_quantized"):
            return False
        return dict(found[path]) if path in found else False

    nn.quantize(model, class_predicate=choose)


def is_matrix(module: object) -> bool:
    """Whether a module, or one within it, holds a matrix that tokens are multiplied with."""
    kinds = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
    return isinstance(module, nn.Module) and any(isinstance(each, kinds) for each in module.modules())


def parameter_names(module: nn.Module) -> list[str]:
    """Names of a module's parameters within it."""
    flat: Any = tree_flatten(module.parameters())
    return [name for name, _ in flat]
