"""A model's own code, cut where its layers and its routed experts are called.

mlx-lm's models know how to go from tokens to logits, not how to go from one layer to the next. So the code is run from
its beginning each time: layers that are done return at once, the one that is due gets what the layer before it returned
earlier, and the run ends where it should. What is computed before the layers, masks and positions, is computed again,
which is little; what of it nobody needs, MLX never evaluates.

Layers that are done, and embeddings after the first layer, return NaN where a model has no business to look: a model
whose layers hand on more than what they return is noticed, and not run wrongly.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.switch_layers import SwitchLinear

from hubtool.worker.build import is_matrix
from hubtool.worker.dense import OneExpert, OnInput, product

Returned = mx.array | tuple[mx.array, ...]
"""What a layer, or a part of one, returns."""

GROUPED = "_grouped_linear"
"""The function of hubtool's DeepSeek-V4 that multiplies with a linear's weight past the linear itself."""

Rows = Callable[[nn.Module, mx.array], mx.array]
"""Vectors of an embedding for tokens."""


class Reached(Exception):  # noqa: N818  # it is no error: it ends a run of the model's code
    """The run has come to the end of the layer that is due, with what it returns; or to the head, with its input."""

    def __init__(self, value: Returned) -> None:
        super().__init__()
        self.value = value


class AtExperts(Reached):
    """The run has come to the routed experts, with their input [B, S, in] and the experts of each token [B, S, k]."""

    def __init__(self, x: mx.array, indices: mx.array) -> None:
        super().__init__(x)
        self.indices = indices


@dataclass
class Run:
    """One run of the model's code.

    Attributes:
        layer: The layer that is due; the number of layers for what follows them.
        dtype: Of the activations.
        before: What the layer before returned; None for the first.
        experts: What the routed experts return, [B, S, k, out]; None to end the run there.
        replayed: What parts of the layer returned when it was run up to its experts; empty if they are to compute.
        recorded: What they return in this run.
        head: What the head is to multiply; None to end the run there.
    """

    layer: int
    dtype: mx.Dtype
    before: Returned | None = None
    experts: mx.array | None = None
    replayed: list[Returned] = field(default_factory=list)
    recorded: list[Returned] = field(default_factory=list)
    head: mx.array | None = None


class Cut:
    """A model whose calls can be ended and answered.

    Args:
        model: As mlx-lm makes them, with `model.layers`. Classes of its modules are changed, nothing else of it.
        rows: Reads the rows of an embedding.
        on_input: Is shown what each matrix is about to multiply.

    Attributes:
        layers: The decoder layers.
        experts: For each layer its routed experts, the module that is called with an input and experts; or None.
        head: What makes logits: the linear after the layers, or the embedding where it is used for both.
    """

    def __init__(self, model: nn.Module, rows: Rows, on_input: OnInput) -> None:
        self._model: Any = model
        self._rows = rows
        self._on_input = on_input
        self._run = Run(0, mx.float32)
        self.layers: list[nn.Module] = list(self._model.layers)
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        outside = [module for module in model.modules() if id(module) not in inside]
        self.embeddings = [module for module in outside if isinstance(module, nn.Embedding)]
        self._widths = {id(module): module.weight.shape[-1] for module in self.embeddings}
        self.head = _find_head(outside, self.embeddings)
        self.experts = [_find_experts(layer) for layer in self.layers]
        for index, (layer, experts) in enumerate(zip(self.layers, self.experts, strict=True)):
            self._hook_layer(index, layer, experts)
        for embedding in self.embeddings:
            _answer(embedding, self._embed)
            setattr(embedding, "as_linear", partial(self._multiply_head, embedding))  # noqa: B010
        code = sys.modules[type(model).__module__]
        if hasattr(code, GROUPED):
            setattr(code, GROUPED, self._multiply_groups)
        for module in outside:
            if isinstance(module, nn.Linear):
                _answer(module, self._multiply_head if module is self.head else self._multiply)

    def run(self, tokens: mx.array, run: Run) -> Reached | mx.array:
        """Where a run of the code on tokens [B, S] ended, or the logits [B, S, rows of the head that are there]."""
        self._run = run
        try:
            logits: mx.array = self._model(tokens)
        except Reached as reached:
            return reached
        return logits

    def meet_expert(self, layer: int, x: mx.array) -> mx.array:
        """[n, out] of rows [n, in] that all go to the one expert of a layer whose weights are there."""
        experts: Any = self.experts[layer]
        made: mx.array = type(experts).original(experts, x, mx.zeros((len(x), 1), mx.uint32))
        return made.squeeze(1)

    def _hook_layer(self, index: int, layer: nn.Module, experts: nn.Module | None) -> None:
        routed = {id(module) for module in experts.modules()} if experts is not None else set()
        for module in layer.modules():
            if isinstance(module, SwitchLinear) and id(module) in routed:
                module.__class__ = OneExpert
                module.on_input = self._on_input
            elif isinstance(module, nn.Linear):
                _answer(module, self._multiply)
        if experts is not None:
            _answer(experts, lambda module, x, indices, *rest: self._call_experts(x, indices))
            for child in _children(layer):
                if is_matrix(child) and id(experts) not in map(id, child.modules()):
                    _answer(child, self._call_part)
        _answer(layer, lambda module, *arguments, **options: self._call_layer(index, module, arguments, options))

    # What modules do instead of what their classes say.

    def _call_layer(self, index: int, module: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Returned:
        run = self._run
        for value in (*arguments, *options.values()):
            # DeepSeek-V4's code hands its layers the dtype of what goes into a block.
            if not isinstance(value, mx.array) and isinstance(getattr(value, "dtype", None), mx.Dtype):
                value.dtype = run.dtype
        if index < run.layer:
            assert run.before is not None
            nothing: Returned = tree_map(lambda array: mx.full(array.shape, mx.nan, array.dtype), run.before)
            return run.before if index == run.layer - 1 else nothing
        raise Reached(type(module).original(module, *arguments, **options))

    def _call_experts(self, x: mx.array, indices: mx.array) -> mx.array:
        if self._run.experts is None:
            raise AtExperts(x, indices)
        return self._run.experts

    def _call_part(self, module: Any, *arguments: Any, **options: Any) -> Returned:
        """A part of a layer with experts: it computes on the way to them, and returns the same on the way on."""
        run = self._run
        if run.experts is not None and len(run.recorded) < len(run.replayed):
            returned = run.replayed[len(run.recorded)]
        else:
            returned = type(module).original(module, *arguments, **options)
        run.recorded.append(returned)
        return returned

    def _embed(self, module: Any, tokens: mx.array) -> mx.array:
        if self._run.layer:
            return mx.full((*tokens.shape, self._widths[id(module)]), mx.nan, self._run.dtype)
        return self._rows(module, tokens).astype(self._run.dtype)

    def _multiply(self, module: Any, x: mx.array) -> mx.array:
        self._on_input(module, x)
        y = product(x, module.weight)
        return y + module.bias.astype(y.dtype) if "bias" in module else y

    def _multiply_groups(self, module: Any, x: mx.array) -> mx.array:
        """[B, S, G * R] of x [B, S, G, in] and a weight [G * R, in]: each R of its rows meet their group of x."""
        self._on_input(module, x)
        groups = x.shape[2]
        weight = module.weight.reshape(groups, -1, x.shape[3])
        return mx.concatenate([product(x[:, :, group], weight[group]) for group in range(groups)], axis=-1)

    def _multiply_head(self, module: Any, x: mx.array) -> mx.array:
        if self._run.head is None:
            raise Reached(x)
        return self._multiply(module, self._run.head)


def _answer(module: Any, call: Callable[..., Any]) -> None:
    """Make a module answer calls by `call`, given the module and what it is called with.

    It stays an instance of its class, whose own answer is the `original` of its new one.
    """
    kind = type(module)
    own = {"__call__": lambda self, *arguments, **options: call(self, *arguments, **options), "original": kind.__call__}
    module.__class__ = type(kind.__name__, (kind,), own)


def _children(module: nn.Module) -> list[nn.Module]:
    children: list[nn.Module] = []
    for child in module.children().values():
        children += [each for each in (child if isinstance(child, list) else [child]) if isinstance(each, nn.Module)]
    return children


def _find_experts(layer: nn.Module) -> nn.Module | None:
    """The module of a layer that holds the projections of its routed experts; None if there is none, or several."""
    holders = [
        module for module in layer.modules() if any(isinstance(child, SwitchLinear) for child in _children(module))
    ]
    return holders[0] if len(holders) == 1 else None


def _find_head(outside: Sequence[nn.Module], embeddings: Sequence[nn.Module]) -> nn.Module:
    linears = [module for module in outside if isinstance(module, nn.Linear)]
    rows = max(len(module.weight) for module in embeddings)
    return next((module for module in linears if len(module.weight) >= rows), embeddings[0])
