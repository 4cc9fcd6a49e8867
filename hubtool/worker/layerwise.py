"""Runs a model whose weights are on disk: each layer's are read when the layer is called, and let go when it is done.

The model is the folder's own, as mlx-lm builds it; only where its parameters come from is changed, so there is no
second implementation of it. Of an embedding, and of the routed experts, only the rows that are needed are read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from hubtool.checkpoint.source import LocalSource

Sanitize = Callable[[dict[str, mx.array]], dict[str, mx.array]]

DTYPES: Mapping[str, tuple[Any, mx.Dtype]] = {
    "BF16": (np.uint16, mx.bfloat16),
    "F16": (np.float16, mx.float16),
    "F32": (np.float32, mx.float32),
    "I32": (np.int32, mx.int32),
    "I64": (np.int64, mx.int64),
    "U8": (np.uint8, mx.uint8),
    "U32": (np.uint32, mx.uint32),
}
"""NumPy's and MLX's dtype for what MLX stores; NumPy has no bfloat16."""


def sanitize_of(model: Any) -> Sanitize:
    """What is still to be done to stored tensors before a model takes them.

    That is nothing for mlx-lm's own classes: what is stored is what they made, and some of them count on seeing a whole
    checkpoint at once. A shipped model file may take its weights in another shape than it stores them.
    """
    if type(model).__module__.startswith("mlx_lm.models."):
        return lambda arrays: arrays
    sanitize: Sanitize = getattr(model, "sanitize", lambda arrays: arrays)
    return sanitize


class Weights:
    """A folder's tensors, read as MLX arrays when they are asked for.

    Args:
        source: The folder.
        sanitize: What the model does to weights before it takes them, under its own names.

    Attributes:
        read_nbytes: What was read so far.
    """

    def __init__(self, source: LocalSource, sanitize: Sanitize) -> None:
        self._source = source
        self._sanitize = sanitize
        self.read_nbytes = 0

    def names(self, path: str, without: Sequence[str] = ()) -> list[str]:
        """Tensors of the module at `path`, without those of some modules within it."""
        left_out = tuple(f"{each}." for each in without)
        names = [name for name in self._source.tensors if name.startswith(f"{path}.")]
        return [name for name in names if not name.startswith(left_out)]

    def read(self, path: str, names: Sequence[str], rows: Sequence[int] | None = None) -> dict[str, mx.array]:
        """Arrays by their names within the module at `path`, of all rows or of some along the first axis."""
        arrays = self._sanitize({name: self._read(name, rows) for name in names})
        return {name.removeprefix(f"{path}."): array for name, array in arrays.items()}

    def _read(self, name: str, rows: Sequence[int] | None) -> mx.array:
        stored = self._source.tensors[name]
        shape = stored.spec.shape
        dtype, mlx_dtype = DTYPES[stored.spec.dtype]
        if rows is not None:
            row_nbytes = stored.nbytes // shape[0]
            shape = (len(rows), *shape[1:])
        values = np.empty(shape, dtype)
        view = values.data.cast("B")
        if rows is None:
            self._source.read_into(stored.file, stored.offset, view)
        else:
            for i, row in enumerate(rows):
                part = view[i * row_nbytes : (i + 1) * row_nbytes]
                self._source.read_into(stored.file, stored.offset + row * row_nbytes, part)
        self.read_nbytes += len(view)
        array = mx.array(values)
        return array if array.dtype == mlx_dtype else array.view(mlx_dtype)


class _Streamed:
    """A module whose parameters are there only while it is called; everything else about it is its own."""

    def __init__(self, module: Module, path: str, weights: Weights, names: Sequence[str]) -> None:
        self._module = module
        self._path = path
        self._weights = weights
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __contains__(self, name: str) -> bool:
        return name in self._module

    @contextmanager
    def _loaded(self, rows: Sequence[int] | None = None) -> Iterator[Any]:
        """The module with its weights; what is computed with them must be evaluated before they go."""
        arrays = self._weights.read(self._path, self._names, rows)
        parameters = dict(tree_flatten(self._module.parameters()))
        empty = {name: parameters[name] for name in arrays}
        self._module.update(tree_unflatten(list(arrays.items())))
        del arrays, parameters
        try:
            yield self._module
        finally:
            self._module.update(tree_unflatten(list(empty.items())))


class StreamedLayer(_Streamed):
    """A decoder layer, or any other module, whose weights are read at each call."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The module's output, and its cache if it was given one, evaluated."""
        with self._loaded() as module:
            output = module(*arguments, **options)
            mx.eval(output, [each.state for each in (*arguments, *options.values()) if hasattr(each, "state")])
        return output


class StreamedEmbedding(_Streamed):
    """An embedding of which the rows of the tokens at hand are read."""

    def __call__(self, tokens: mx.array) -> mx.array:
        """Vectors of tokens."""
        rows, index = _distinct(tokens)
        with self._loaded(rows) as module:
            output: mx.array = module(index)
            mx.eval(output)
        return output

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits, where the output layer is the embedding."""
        with self._loaded() as module:
            output: mx.array = module.as_linear(x)
            mx.eval(output)
        return output


class StreamedExperts(_Streamed):
    """One projection of all routed experts, of which those that were chosen are read."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """As `SwitchLinear`."""
        rows, index = _distinct(indices)
        with self._loaded(rows) as module:
            output: mx.array = module(x, index, sorted_indices=sorted_indices)
            mx.eval(output)
        return output


def _distinct(indices: mx.array) -> tuple[list[int], mx.array]:
    """The rows that indices name, ascending, and the indices into those."""
    rows, index = np.unique(np.array(indices), return_inverse=True)
    return [int(row) for row in rows], mx.array(index.reshape(indices.shape)).astype(indices.dtype)


def stream(model: Module, weights: Weights) -> None:
    """Make a model that was loaded lazily read its weights layer by layer, in place.

    Its caches are made before: `make_cache` may look into the layers.

    Args:
        model: As mlx-lm makes them: `model.layers`, routed experts in `SwitchLinear`.
        weights: The folder's.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    layers = model.layers
    inside = {id(module) for layer in layers for module in layer.modules()}
    for path, module in model.named_modules():
        if isinstance(module, Embedding | QuantizedEmbedding) and id(module) not in inside:
            _replace(model, path, StreamedEmbedding(module, path, weights, weights.names(path)))
        elif isinstance(module, Linear | QuantizedLinear) and id(module) not in inside:
            _replace(model, path, StreamedLayer(module, path, weights, weights.names(path)))
    for i, layer in enumerate(layers):
        path = paths[id(layer)]
        experts = [
            name for name, each in layer.named_modules() if isinstance(each, SwitchLinear | QuantizedSwitchLinear)
        ]
        for name in experts:
            full = f"{path}.{name}"
            _replace(layer, name, StreamedExperts(_find(layer, name), full, weights, weights.names(full)))
        names = weights.names(path, [f"{path}.{name}" for name in experts])
        layers[i] = StreamedLayer(layer, path, weights, names)


def _find(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = module[int(name)] if isinstance(module, list) else getattr(module, name)
    return module


def _replace(root: Module, path: str, value: object) -> None:
    parent, _, name = path.rpartition(".")
    setattr(_find(root, parent) if parent else root, name, value)
