"""Carries out a parameter's program for some of its rows: what they need of the source in, MLX arrays out."""

import operator
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from hubtool.checkpoint.source import Source
from hubtool.checkpoint.tensors import DTYPE_NBYTES
from hubtool.models import Box, Parameter
from hubtool.models.mlx_class import sanitize_again
from hubtool.models.program import Node, Program, box_shape, demand, full, reshaped_box, scales_box
from hubtool.models.tracing import PLACEHOLDERS

MIN_READ_NBYTES = 4096
"""Bytes that are read at once at least, as long as that is not more than the whole of an inner axis: a disk's block."""

_Read = Callable[[str, Box], mx.array]


def evaluate_rows(parameter: Parameter, box: Box, source: Source) -> tuple[mx.array, mx.array | None]:
    """What the program of a parameter gives within `box`, evaluated: its weight, and its scales if it is packed.

    Memory is that of `Program.peak_nbytes`.

    Raises:
        SourceError: The source cannot be read.
    """
    program = parameter.program
    assert program is not None, parameter.path

    def read(name: str, inner: Box) -> mx.array:
        return read_box(source, name, inner)

    if program.whole is not None:
        return _whole(program, parameter.path, read), None
    weight = _Evaluation(read).evaluate(program.weight, box)
    if program.scales is None:
        mx.eval(weight)
        return weight, None
    scales = _Evaluation(read).evaluate(program.scales, scales_box(box, program.scales))
    mx.eval(weight, scales)
    return weight, scales


def read_box(source: Source, name: str, box: Box) -> mx.array:
    """The part of a published tensor that a box holds, as MLX holds it: FP8 as its bytes."""
    stored = source.tensors[name]
    dtype, shape = PLACEHOLDERS[stored.spec.dtype], stored.spec.shape
    itemsize = DTYPE_NBYTES[stored.spec.dtype]
    wide = _widened(box, shape, itemsize)
    values = np.empty((*box_shape(wide), itemsize), np.uint8)
    axis = next((axis for axis in reversed(range(len(wide))) if wide[axis] != (0, shape[axis])), 0)
    inner = itemsize * prod(shape[axis + 1 :])
    chunks = values.reshape(prod(box_shape(wide)[:axis]), -1)
    for chunk, index in zip(chunks, np.ndindex(*box_shape(wide)[:axis]), strict=True):
        position = 0
        for side, (start, _), step in zip(shape, wide, index, strict=False):
            position = position * side + start + step
        first = wide[axis][0] if wide else 0
        offset = (position * shape[axis] + first) * inner if wide else 0
        source.read_into(stored.file, stored.offset + offset, chunk.data)
    cut = tuple(_within(part, whole) for part, whole in zip(box, wide, strict=True))
    return _to_mlx(np.ascontiguousarray(values[cut]), dtype, box_shape(box))


def _within(part: tuple[int, int], whole: tuple[int, int]) -> slice:
    return slice(part[0] - whole[0], part[1] - whole[0])


def _widened(box: Box, shape: Sequence[int], itemsize: int) -> Box:
    """The box with its innermost cut axes made whole, until what lies together is worth a read."""
    wide = list(box)
    for axis in reversed(range(len(box))):
        start, stop = wide[axis]
        together = (stop - start) * itemsize * prod(shape[axis + 1 :])
        if together >= MIN_READ_NBYTES or axis == 0:
            break
        wide[axis] = (0, shape[axis])
    return tuple(wide)


def _to_mlx(raw: np.ndarray[Any, Any], dtype: mx.Dtype, shape: Sequence[int]) -> mx.array:
    array = mx.array(raw.reshape(-1)).view(dtype) if raw.size else mx.zeros((0,), dtype)
    return array.reshape(tuple(shape))


class _Evaluation:
    """Evaluates boxes of nodes; what is asked for twice is made once."""

    def __init__(self, read: _Read) -> None:
        self._read = read
        self._made: dict[tuple[int, Box], mx.array] = {}

    def evaluate(self, node: Node, box: Box) -> mx.array:
        """The array, of the box's shape, not yet evaluated."""
        key = (id(node), box)
        if key not in self._made:
            self._made[key] = self._make(node, box)
        return self._made[key]

    def _make(self, node: Node, box: Box) -> mx.array:
        if node.op == "Input":
            return self._read(node.args[0], box)
        if node.op == "Constant":
            return mx.array(_thaw(node.args[0]), PLACEHOLDERS[node.dtype])
        asked = demand(node, box)
        return _OPERATIONS[node.op](node, box, [self.evaluate(each, inner) for each, inner in asked])


def _thaw(value: Any) -> Any:
    return [_thaw(each) for each in value] if isinstance(value, tuple) else value


def _pad(node: Node, box: Box, arrays: Sequence[mx.array]) -> mx.array:
    inner = demand(node, box)[0][1]
    widths = [
        (first + low - start, stop - (last + low)) if last > first else (0, stop - start)
        for (start, stop), (first, last), low in zip(box, inner, node.args[0], strict=True)
    ]
    return mx.pad(arrays[0], widths, constant_values=arrays[1])


def _view(node: Node, box: Box, arrays: Sequence[mx.array]) -> mx.array:
    viewed = arrays[0].view(PLACEHOLDERS[node.dtype])
    first = demand(node, box)[0][1][-1][0] * DTYPE_NBYTES[node.inputs[0].dtype] // DTYPE_NBYTES[node.dtype]
    start, stop = box[-1]
    return viewed[..., start - first : stop - first]


def _reshape(node: Node, box: Box, arrays: Sequence[mx.array]) -> mx.array:
    outer = reshaped_box(node, box)[1]
    reshaped = arrays[0].reshape(box_shape(outer))
    if outer == box:
        return reshaped
    return reshaped[tuple(_within(part, whole) for part, whole in zip(box, outer, strict=True))]


def _slice(node: Node, box: Box, arrays: Sequence[mx.array]) -> mx.array:
    strides = node.args[1]
    return arrays[0] if set(strides) <= {1} else arrays[0][tuple(slice(None, None, stride) for stride in strides)]


def _elementwise(compute: Callable[..., mx.array]) -> "_Operation":
    return lambda node, box, arrays: compute(*arrays)


_Operation = Callable[[Node, Box, Sequence[mx.array]], mx.array]

_OPERATIONS: Mapping[str, _Operation] = {
    "Concatenate": lambda node, box, arrays: mx.concatenate(list(arrays), axis=node.args[0]),
    "Slice": _slice,
    "Transpose": lambda node, box, arrays: mx.transpose(arrays[0], node.args[0]),
    "Broadcast": lambda node, box, arrays: mx.broadcast_to(arrays[0], box_shape(box)),
    "Pad": _pad,
    "View": _view,
    "Reshape": _reshape,
    "AsType": lambda node, box, arrays: arrays[0].astype(PLACEHOLDERS[node.dtype]),
    "FromFP8": lambda node, box, arrays: mx.from_fp8(arrays[0], dtype=PLACEHOLDERS[node.dtype]),
    "Add": _elementwise(operator.add),
    "Subtract": _elementwise(operator.sub),
    "Multiply": _elementwise(operator.mul),
    "Divide": _elementwise(mx.divide),
    "Maximum": _elementwise(mx.maximum),
    "Minimum": _elementwise(mx.minimum),
    "Power": _elementwise(mx.power),
    "Negative": _elementwise(mx.negative),
    "Exp": _elementwise(mx.exp),
    "Log": _elementwise(mx.log),
    "Log1p": _elementwise(mx.log1p),
    "Square": _elementwise(mx.square),
    "Abs": _elementwise(mx.abs),
}
"""What MLX does for each operation of a program, with the arrays that `demand` asks for."""


def _whole(program: Program, path: str, read: _Read) -> mx.array:
    """All of a parameter, by what mlx-lm's class does to all of the tensors that it is made of."""
    assert program.whole is not None
    arrays = {name: read(name, full(program.whole.tensors[name][1])) for name in program.names}
    made = sanitize_again(program.whole, arrays)[path].astype(PLACEHOLDERS[program.weight.dtype])
    mx.eval(made)
    return made
