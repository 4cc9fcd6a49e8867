"""Traces what a model of mlx-lm does to published tensors, without one byte of them.

`sanitize` runs on placeholders that have dtype and shape alone, while MLX exports the program; the events that it
reports become nodes. This module imports MLX: it is imported when an architecture needs it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from hubtool.models.program import Node, is_traceable, walk

PLACEHOLDERS: Mapping[str, mx.Dtype] = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "F8_E4M3": mx.uint8,
    "F8_E8M0": mx.uint8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F32": mx.float32,
}
"""What `mx.load` makes of each safetensors dtype that it reads."""

DTYPES: Mapping[mx.Dtype, str] = {dtype: name for name, dtype in PLACEHOLDERS.items() if not name.startswith("F8")}
"""Safetensors dtype of what MLX holds."""

Sanitize = Callable[[dict[str, mx.array]], Mapping[str, mx.array]]

MODEL_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the code of a model raises for a config.json or tensors that it does not expect: it has no errors of its own."""

_MOVES = {"ExpandDims", "Squeeze", "Flatten", "Unflatten", "Reshape"}
_SAME = {"Copy", "Contiguous", "StopGradient"}
_MARK = "ArcCosh"
"""Stands for FP8 decoding in a trace: MLX cannot export that, and no `sanitize` computes inverse hyperbolic cosines."""

_patching = threading.Lock()


@dataclass(frozen=True)
class Traced:
    """What `sanitize` makes: a node for each name, in its order."""

    outputs: Mapping[str, Node]


def placeholder(dtype: str, shape: Sequence[int]) -> mx.array:
    """An array of zeros that takes no memory until somebody looks at it."""
    return mx.zeros(tuple(shape), PLACEHOLDERS[dtype])


def trace(sanitize: Sanitize, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Traced:
    """The program of `sanitize` over published tensors of these dtypes and shapes.

    Raises:
        ValueError: It looks at values, or an operation of it cannot be exported.
    """
    names = list(tensors)
    outputs: list[str] = []
    events: list[dict[str, Any]] = []

    def run(*arrays: mx.array) -> list[mx.array]:
        made = sanitize(dict(zip(names, arrays, strict=True)))
        outputs[:] = list(made)
        return list(made.values())

    arrays = [placeholder(dtype, shape) for dtype, shape in tensors.values()]
    with _stand_ins():
        mx.export_function(events.append, run, *arrays)
    return Traced(_read_events(events, names, outputs))


@contextmanager
def _stand_ins() -> Iterator[None]:
    """MLX without the two operations that it cannot export: see `_MARK`; making contiguous changes no value."""
    before = {name: getattr(mx, name) for name in ("from_fp8", "contiguous")}

    def from_fp8(x: mx.array, dtype: mx.Dtype = mx.bfloat16, **options: Any) -> mx.array:
        return mx.arccosh(x.astype(dtype))

    def contiguous(x: mx.array, *arguments: Any, **options: Any) -> mx.array:
        return x

    with _patching:
        vars(mx).update(from_fp8=from_fp8, contiguous=contiguous)
        try:
            yield
        finally:
            vars(mx).update(before)


def _read_events(events: Sequence[dict[str, Any]], names: Sequence[str], outputs: Sequence[str]) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    results: list[str] = []
    for event in events:
        match event["type"]:
            case "inputs":
                for name, (key, shape, dtype) in zip(names, event["inputs"], strict=True):
                    nodes[key] = Node("Input", (), tuple(shape), DTYPES[dtype], (name,))
            case "constants":
                for key, value in event["constants"]:
                    nodes[key] = Node(
                        "Constant", (), tuple(value.shape), DTYPES[value.dtype], (_freeze(value.tolist()),)
                    )
            case "outputs":
                results = [key for key, *_ in event["outputs"]]
            case "primitive":
                _add(event, nodes)
    return {name: nodes[key] for name, key in zip(outputs, results, strict=True)}


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def _add(event: Mapping[str, Any], nodes: dict[str, Node]) -> None:
    """The nodes of one primitive."""
    name, arguments = event["name"], event["arguments"]
    inputs = tuple(nodes[key] for key, *_ in event["inputs"])
    made = [(key, tuple(shape), DTYPES.get(dtype, "F32")) for key, shape, dtype in event["outputs"]]
    if name == "Split":
        _add_split(made, inputs[0], arguments, nodes)
        return
    key, shape, dtype = made[0]
    if name in _SAME or (name in _MOVES and shape == inputs[0].shape):
        nodes[key] = inputs[0]
    elif name == _MARK and inputs[0].op == "AsType":
        nodes[key] = Node("FromFP8", inputs[0].inputs, shape, dtype)
    else:
        op, args = _read_operation(name, arguments, len(shape))
        nodes[key] = Node(op, inputs, shape, dtype, args)
        for more, more_shape, more_dtype in made[1:]:
            nodes[more] = Node(f"{name} {more}", inputs, more_shape, more_dtype)


def _read_operation(name: str, arguments: Sequence[Any], rank: int) -> tuple[str, tuple[Any, ...]]:
    """The operation of a node and what it needs to know; one with an argument that rows cannot follow is named so."""
    match name:
        case "Slice" if all(stride > 0 for stride in arguments[2]):
            return name, (tuple(arguments[0]), tuple(arguments[2]))
        case "Transpose":
            return name, (tuple(arguments[0]),)
        case "Concatenate":
            return name, (arguments[0] % rank,)
        case "Pad":
            return name, (_lows(arguments, rank),)
        case "Slice":
            return "Slice backwards", ()
    return ("Reshape", ()) if name in _MOVES else (name, ())


def _add_split(
    made: Sequence[tuple[str, tuple[int, ...], str]], source: Node, arguments: Sequence[Any], nodes: dict[str, Node]
) -> None:
    axis, begin = arguments[1] % len(source.shape), 0
    for key, shape, dtype in made:
        starts = tuple(begin if each == axis else 0 for each in range(len(shape)))
        nodes[key] = Node("Slice", (source,), shape, dtype, (starts, (1,) * len(shape)))
        begin += shape[axis]


def _lows(arguments: Sequence[Any], rank: int) -> tuple[int, ...]:
    """Padding before the first element of each axis."""
    lows = [0] * rank
    for axis, low in zip(arguments[0], arguments[1], strict=True):
        lows[axis] = low
    return tuple(lows)


def stuck(node: Node) -> str:
    """The first operation of a node's program that boxes cannot be pushed through, empty if there is none."""
    return next((each.op.partition(" ")[0] for each in walk(node) if not is_traceable(each)), "")
