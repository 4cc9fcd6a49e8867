"""mlx-lm's model classes, built without weights: parameters, what can be quantized, and what the class asks for.

This module imports MLX: it is imported when an architecture needs it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm import utils as mlx_lm_utils

from hubtool.errors import SourceError
from hubtool.models.architecture import Config
from hubtool.models.model import OwnFormat
from hubtool.models.program import Node, Rerun
from hubtool.models.tracing import MODEL_ERRORS, placeholder, trace

Classes = tuple[type[nn.Module], Any]
"""Model and ModelArgs of a module of mlx-lm."""

CAST_DTYPES: Mapping[str, str] = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""What mlx-lm's `convert` casts to, by config.json's `torch_dtype` (MODEL_CONVERSION_DTYPES of mlx_lm/convert.py)."""

_MODE_DEFAULTS: Mapping[str, tuple[int, int]] = {
    "affine": (4, 64),
    "mxfp4": (4, 32),
    "mxfp8": (8, 32),
    "nvfp4": (4, 16),
}
"""Bits and group size that a class leaves out (`defaults_for_mode` of mlx_lm/utils.py)."""

_UPDATE = "update mlx-lm, or take another checkpoint"


@dataclass(frozen=True)
class Module:
    """A module that holds parameters.

    Attributes:
        path: Its MLX path.
        classes: Names of the classes around it, the outermost first, its own last.
        parameters: Shape of its own parameters by name, in the order in which they are saved.
        quantizable: Whether MLX can quantize its weight.
        own: What the model's class asks for it, None if nothing.
    """

    path: str
    classes: tuple[str, ...]
    parameters: Mapping[str, tuple[int, ...]]
    quantizable: bool
    own: OwnFormat | None


@dataclass(frozen=True)
class Built:
    """A model without weights."""

    name: str
    model: nn.Module
    config: Config

    @cached_property
    def num_layers(self) -> int:
        """Decoder layers."""
        layers = getattr(self.model, "layers", None)
        if isinstance(layers, list | tuple):
            return len(layers)
        return int(self.config.get("num_hidden_layers") or self.config.get("n_layer") or 1)

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """Modules that hold parameters, in the order in which mlx-lm saves these."""
        by_path: dict[str, nn.Module] = dict(self.model.named_modules())
        classes = {path: type(module).__name__ for path, module in by_path.items()}
        leaves = {id(module) for _, module in _flat(self.model.leaf_modules(), nn.Module.is_module)}
        grouped: dict[str, dict[str, tuple[int, ...]]] = {}
        for path, array in _flat(self.model.parameters()):
            owner = path.rpartition(".")[0]
            while owner and owner not in by_path:
                owner = owner.rpartition(".")[0]
            name = path[len(owner) + 1 :] if owner else path
            shape = _logical_shape(by_path[owner], name, tuple(array.shape))
            if shape is not None:
                grouped.setdefault(owner, {})[name] = shape
        found = []
        for path, parameters in grouped.items():
            module = by_path[path]
            quantizable = id(module) in leaves and (hasattr(module, "to_quantized") or _is_packed(module))
            own = self._own_format(path, module) if quantizable and not _is_packed(module) else None
            around = [classes[prefix] for prefix in _prefixes(path) if prefix in classes]
            found.append(Module(path, tuple(around), parameters, quantizable, own))
        return tuple(found)

    def stored_dtype(self, path: str, dtype: str) -> str:
        """The dtype that mlx-lm's `convert` gives a parameter that is not quantized."""
        wanted = self.config.get("torch_dtype")
        text = self.config.get("text_config")
        if wanted is None and isinstance(text, dict):
            wanted = text.get("dtype")
        cast = CAST_DTYPES.get(wanted) if isinstance(wanted, str) else None
        if cast is None or dtype not in CAST_DTYPES.values():
            return dtype
        predicate: Callable[[str], bool] = getattr(self.model, "cast_predicate", lambda _: True)
        return cast if predicate(path) else dtype

    def _own_format(self, path: str, module: nn.Module) -> OwnFormat | None:
        predicate = getattr(self.model, "quant_predicate", None)
        chosen = True if predicate is None else predicate(path, module)
        if isinstance(chosen, dict):
            mode = str(chosen.get("mode", "affine"))
            bits, group_size = _MODE_DEFAULTS.get(mode, (4, 64))
            return OwnFormat(mode, int(chosen.get("bits", bits)), int(chosen.get("group_size", group_size)))
        return None if chosen else OwnFormat()


def _is_packed(module: nn.Module) -> bool:
    """Whether a class has made a module a quantized one itself, which some do while they look at a source's tensors."""
    return hasattr(module, "bits") and hasattr(module, "group_size") and "scales" in module


def _logical_shape(module: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The unpacked shape of a module's parameter; None for the scales that lie beside a packed weight."""
    if not _is_packed(module) or name not in ("weight", "scales", "biases"):
        return shape
    return (*shape[:-1], 32 * shape[-1] // module.bits) if name == "weight" else None


def _flat(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Leaves of a tree of MLX with their paths."""
    leaves: Any = tree_flatten(tree, is_leaf=is_leaf)
    return list(leaves)


def _prefixes(path: str) -> list[str]:
    """The paths of the modules around a module, the outermost, which has none, first."""
    words = path.split(".") if path else []
    return ["", *(".".join(words[: count + 1]) for count in range(len(words)))]


def build(config: Config, classes: Classes | None = None) -> Built:
    """The model of a config.json, without weights.

    Raises:
        SourceError: mlx-lm has no such class, or it does not take this config.json.
    """
    fields = mlx_lm_utils._decode_tagged_floats(copy.deepcopy(dict(config)))
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise SourceError(
            "no architecture",
            where="config.json: model_type",
            found="none" if model_type is None else model_type,
            expected="the name of one",
            remedy="fetch config.json again",
        )
    try:
        model_class, arguments_class = classes or mlx_lm_utils._get_classes(fields)
    except SystemExit as error:  # mlx-lm's olmo ends the process where a package is missing
        raise SourceError(
            "mlx-lm's class needs a package that is not installed",
            where=f"config.json: {model_type}",
            found=describe(error),
            expected="every package that the class imports",
            remedy=f"install it: `python -c 'import mlx_lm.models.{model_type}'` names it",
        ) from error
    except ValueError as error:
        raise SourceError(
            "an architecture of which mlx-lm has no model",
            where="config.json: model_type",
            found=model_type,
            expected=f"one that mlx-lm {mlx_lm_version()} knows",
            remedy=_UPDATE,
        ) from error
    make: Callable[[Any], nn.Module] = model_class
    try:
        model = make(arguments_class.from_dict(fields))
    except MODEL_ERRORS as error:
        raise SourceError(
            "mlx-lm's class does not take this configuration",
            where=f"config.json: {model_type}",
            found=describe(error),
            expected="the fields that the class needs, as the model's publisher writes them",
            remedy=_UPDATE,
        ) from error
    return Built(model_type, model, config)


def trace_sanitize(built: Built, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Mapping[str, Node]:
    """What the class makes of published tensors: a node for each name.

    Raises:
        SourceError: `sanitize` looks at values, cannot be traced, or does not take these tensors.
    """
    sanitize = getattr(built.model, "sanitize", lambda weights: weights)
    try:
        return trace(sanitize, tensors).outputs
    except MODEL_ERRORS as error:
        text = describe(error)
        what = "mlx-lm's class does not take these tensors"
        if "eval" in text:
            what = "mlx-lm's class looks at values, which cannot be planned from headers"
        elif "primitive" in text:
            what = "mlx-lm's class uses an operation of MLX that cannot be traced"
        raise SourceError(
            what,
            where=f"sanitize of {built.name}",
            found=text,
            expected="tensors as the model's publisher names them",
            remedy=_UPDATE,
        ) from error


def sanitize_again(rerun: Rerun, arrays: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
    """What the class makes of some published tensors, beside placeholders for the others; nothing is evaluated."""
    model = build(rerun.config).model
    weights = {
        name: arrays[name] if name in arrays else placeholder(dtype, shape)
        for name, (dtype, shape) in rerun.tensors.items()
    }
    made: Mapping[str, mx.array] = model.sanitize(weights)
    return made


def mlx_lm_version() -> str:
    """The version of mlx-lm that is installed."""
    import mlx_lm

    return str(mlx_lm.__version__)


def describe(error: BaseException) -> str:
    """What an error of a model's code says, in one line."""
    lines = str(error).splitlines()
    text = " ".join(lines[:1])[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def measure_cache(config: Config, tokens: int, activation_nbytes: int) -> int | None:
    """Bytes that mlx-lm's cache holds after `tokens` tokens, by the shapes of a prompt that is never computed."""
    from mlx_lm.models.cache import make_prompt_cache

    model = build(config).model
    dtype = mx.float32 if activation_nbytes == 4 else mx.bfloat16
    model.apply(lambda array: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array)
    try:
        cache = make_prompt_cache(model)
        model(mx.zeros((1, tokens), mx.int32), cache=cache)
        return sum(array.nbytes for each in cache for _, array in _flat(each.state) if isinstance(array, mx.array))
    except MODEL_ERRORS:
        return None
