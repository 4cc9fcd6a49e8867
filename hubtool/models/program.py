"""Programs: how a parameter is computed from published tensors, and which part of them some of its rows need.

A program is the trace of what mlx-lm does to a checkpoint's tensors, as data: nodes with MLX's own names of operations.
A box is a range for each axis of a node; `demand` pushes a box from a node to its inputs. No MLX, no I/O.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

from hubtool.checkpoint.tensors import DTYPE_NBYTES

Box = tuple[tuple[int, int], ...]
"""First index and the one after the last, for each axis."""

ELEMENTWISE = frozenset(
    {
        *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power"),
        *("Negative", "Exp", "Log", "Log1p", "Square", "Abs", "AsType", "FromFP8"),
    }
)
"""Operations of which an element depends on the same element of each input."""


@dataclass(frozen=True, eq=False)
class Node:
    """An array of a program.

    Attributes:
        op: MLX's name of the primitive; `Input` for a published tensor, `Constant` for a value.
        inputs: What it is made of.
        shape: Its shape.
        dtype: Its safetensors dtype as MLX holds it: FP8 bytes are U8.
        args: Of the operation: axes, starts, offsets; the name of an input; the value of a constant.
    """

    op: str
    inputs: tuple["Node", ...]
    shape: tuple[int, ...]
    dtype: str
    args: tuple[Any, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return prod(self.shape) * DTYPE_NBYTES[self.dtype]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each input of a concatenation begins on its axis, and where the last ends."""
        return tuple(accumulate((each.shape[self.args[0]] for each in self.inputs), initial=0))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Published tensors that it is made of, each once, in the order in which they are met."""
        found: dict[str, None] = {}
        for node in walk(self):
            if node.op == "Input":
                found[node.args[0]] = None
        return tuple(found)


@dataclass(frozen=True)
class Rerun:
    """What running a model's `sanitize` again needs: its config.json, and every published tensor's dtype and shape."""

    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)


@dataclass(frozen=True)
class Program:
    """How a parameter is computed.

    Attributes:
        weight: Its values, or what is packed of them.
        scales: E8M0 scales of a packed weight, None where it is not packed.
        whole: What to run to get all of it at once, where rows cannot be pushed through an operation; else None.
        stuck: The operation that they cannot be pushed through, empty where they can.
    """

    weight: Node
    scales: Node | None = None
    whole: Rerun | None = None
    stuck: str = ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Published tensors that it reads, in the order of their first need."""
        scales = self.scales.names if self.scales else ()
        return tuple(dict.fromkeys([*self.weight.names, *scales]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides the values."""
        digest = hashlib.sha256()
        for root in filter(None, (self.weight, self.scales)):
            numbers: dict[int, int] = {}
            for node in walk(root):
                inputs = [numbers[id(each)] for each in node.inputs]
                numbers[id(node)] = len(numbers)
                digest.update(f"{node.op} {inputs} {node.shape} {node.dtype} {node.args}\n".encode())
        return digest.hexdigest()

    def reads(self, box: Box) -> Iterator[tuple[str, Box]]:
        """Which part of which published tensor the rows in `box`, a box of the weight as it is stored, need."""
        if self.whole is not None:
            yield from ((node.args[0], full(node.shape)) for node in walk(self.weight) if node.op == "Input")
            return
        yield from _reads(self.weight, box)
        if self.scales is not None:
            yield from _reads(self.scales, scales_box(box, self.scales))

    def peak_nbytes(self, box: Box) -> int:
        """Most memory that computing the rows in `box` takes, in bytes: every array on the way, each held once."""
        if self.whole is not None:
            return 2 * sum(node.nbytes for node in walk(self.weight))
        nbytes = _held(self.weight, box)
        return nbytes if self.scales is None else nbytes + _held(self.scales, scales_box(box, self.scales))


def scales_box(box: Box, scales: Node) -> Box:
    """The box of the scales that belong to whole rows of a packed weight."""
    return (*box[:-1], (0, scales.shape[-1]))


def full(shape: tuple[int, ...]) -> Box:
    """The box that is all of a shape."""
    return tuple((0, side) for side in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    """The shape of what a box holds."""
    return tuple(stop - start for start, stop in box)


def walk(root: Node) -> Iterator[Node]:
    """Every node that a root is made of, each once, inputs before what is made of them."""
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, opened = stack.pop()
        if opened:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((each, False) for each in reversed(node.inputs))


def _reads(node: Node, box: Box) -> Iterator[tuple[str, Box]]:
    if node.op == "Input":
        yield node.args[0], box
    for each, inner in demand(node, box):
        yield from _reads(each, inner)


def _held(node: Node, box: Box) -> int:
    own = prod(box_shape(box)) * DTYPE_NBYTES[node.dtype]
    if node.op == "Input":
        own *= 2  # as it was read, and as MLX holds it
    return own + sum(_held(each, inner) for each, inner in demand(node, box))


def demand(node: Node, box: Box) -> list[tuple[Node, Box]]:
    """The inputs that a box of a node needs, each with the box that it needs of it."""
    if node.op in ELEMENTWISE:
        return [(each, box) for each in node.inputs]
    rule = DEMANDS.get(node.op)
    return rule(node, box) if rule else []


def is_traceable(node: Node) -> bool:
    """Whether boxes can be pushed through the node."""
    return node.op in ELEMENTWISE or node.op in DEMANDS or node.op in ("Input", "Constant")


def _concatenate(node: Node, box: Box) -> list[tuple[Node, Box]]:
    axis = node.args[0]
    start, stop = box[axis]
    found = []
    index = bisect_right(node.offsets, start) - 1
    while index < len(node.inputs) and node.offsets[index] < stop:
        first, last = node.offsets[index], node.offsets[index + 1]
        part = (max(start, first) - first, min(stop, last) - first)
        if part[0] < part[1]:
            found.append((node.inputs[index], (*box[:axis], part, *box[axis + 1 :])))
        index += 1
    return found


def _slice(node: Node, box: Box) -> list[tuple[Node, Box]]:
    starts, strides = node.args
    inner = tuple(
        (first + start * stride, first + (stop - 1) * stride + 1)
        for (start, stop), first, stride in zip(box, starts, strides, strict=True)
    )
    return [(node.inputs[0], inner)]


def _transpose(node: Node, box: Box) -> list[tuple[Node, Box]]:
    inner = dict(zip(node.args[0], box, strict=True))
    return [(node.inputs[0], tuple(inner[axis] for axis in range(len(box))))]


def _broadcast(node: Node, box: Box) -> list[tuple[Node, Box]]:
    shape = node.inputs[0].shape
    kept = box[len(box) - len(shape) :]
    return [(node.inputs[0], tuple((0, 1) if side == 1 else part for side, part in zip(shape, kept, strict=True)))]


def _pad(node: Node, box: Box) -> list[tuple[Node, Box]]:
    source, value = node.inputs
    inner = []
    for (start, stop), low, side in zip(box, node.args[0], source.shape, strict=True):
        first = min(max(start - low, 0), side)
        inner.append((first, max(first, min(stop - low, side))))
    return [(source, tuple(inner)), (value, ())]


def _view(node: Node, box: Box) -> list[tuple[Node, Box]]:
    source = node.inputs[0]
    now, before = DTYPE_NBYTES[node.dtype], DTYPE_NBYTES[source.dtype]
    start, stop = box[-1]
    # A view to wider elements needs whole ones; one to narrower elements is cut afterwards.
    return [(source, (*box[:-1], (start * now // before, -(-stop * now // before))))]


def _reshape(node: Node, box: Box) -> list[tuple[Node, Box]]:
    return [(node.inputs[0], reshaped_box(node, box)[0])]


def reshaped_box(node: Node, box: Box) -> tuple[Box, Box]:
    """For a reshape, the box of its input that holds `box`, and the box of the node that is exactly that.

    Axes are matched in groups of equal size. Within a group, elements from the first to the last that is needed are
    taken, widened to whole inner axes.
    """
    source, inner, outer = node.inputs[0], list[tuple[int, int]](), list[tuple[int, int]]()
    for before, after, part in _axis_groups(source.shape, node.shape, box):
        first, last = _interval(after, part)
        while True:
            wide_in = _cover(before, first, last)
            first, last = _interval(before, wide_in)
            wide_out = _cover(after, first, last)
            if _interval(after, wide_out) == (first, last):
                break
            first, last = _interval(after, wide_out)
        inner += wide_in
        outer += wide_out
    return tuple(inner), tuple(outer)


def _axis_groups(
    before: tuple[int, ...], after: tuple[int, ...], box: Box
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Box]]:
    """Runs of axes of two shapes that hold the same number of elements, with the box's part of the latter."""
    i = j = 0
    while i < len(before) or j < len(after):
        a, b = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        yield before[a:i], after[b:j], box[b:j]


def _interval(shape: tuple[int, ...], box: Box) -> tuple[int, int]:
    """First element of a box in row-major order, and the one after its last."""
    first = last = 0
    for side, (start, stop) in zip(shape, box, strict=True):
        first, last = first * side + start, last * side + stop - 1
    return first, last + 1


def _cover(shape: tuple[int, ...], first: int, last: int) -> Box:
    """The smallest box of contiguous elements that holds those from `first` to before `last`."""
    box: list[tuple[int, int]] = []
    inner = prod(shape)
    for axis, side in enumerate(shape):
        inner //= side
        start, stop = first // inner, (last - 1) // inner + 1
        box.append((start, stop))
        if stop - start > 1:
            return (*box, *((0, each) for each in shape[axis + 1 :]))
        first, last = first - start * inner, last - start * inner
    return tuple(box)


DEMANDS: Mapping[str, Callable[[Node, Box], list[tuple[Node, Box]]]] = {
    "Concatenate": _concatenate,
    "Slice": _slice,
    "Transpose": _transpose,
    "Broadcast": _broadcast,
    "Pad": _pad,
    "View": _view,
    "Reshape": _reshape,
}
"""How a box is pushed through each operation that moves elements."""
