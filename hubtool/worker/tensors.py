"""Tensors of a model as MLX names them, read as MLX arrays when they are asked for, from wherever they are.

a finished folder, or a checkpoint that mlx-lm reads as it is  -> StoredTensors
a checkpoint as published, FP4 and FP8 decoded on the way       -> PlannedTensors
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from hubtool.checkpoint.source import Source
from hubtool.checkpoint.tensors import TensorSpec
from hubtool.convert.piece import PieceMaker
from hubtool.plan.plan import PIECE_SIZE, TRACED_ROWS, Piece, Plan, Step

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


class Tensors(Protocol):
    """A model's tensors by MLX's names.

    Attributes:
        read_nbytes: Bytes of the source that were read so far.
    """

    read_nbytes: int

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name, dtype and shape of each."""

    def read(self, name: str, rows: Sequence[int] | None = None) -> mx.array:
        """A tensor, or these of its rows: indices along the first axis, ascending."""


class StoredTensors:
    """Tensors that are stored as MLX reads them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.specs = {name: stored.spec for name, stored in source.tensors.items()}
        self.read_nbytes = 0

    def read(self, name: str, rows: Sequence[int] | None = None) -> mx.array:
        """See `Tensors`."""
        stored = self._source.tensors[name]
        shape = stored.spec.shape
        dtype, mlx_dtype = DTYPES[stored.spec.dtype]
        spans = [(0, stored.nbytes)]
        if rows is not None:
            row_nbytes = stored.nbytes // shape[0]
            spans = [(first * row_nbytes, (stop - first) * row_nbytes) for first, stop in _runs(rows)]
            shape = (len(rows), *shape[1:])
        values = np.empty(shape, dtype)
        view = values.reshape(-1).data.cast("B")
        filled = 0
        for offset, nbytes in spans:
            self._source.read_into(stored.file, stored.offset + offset, view[filled : filled + nbytes])
            filled += nbytes
        self.read_nbytes += filled
        return _as(values, mlx_dtype)


class PlannedTensors:
    """Tensors that a plan which quantizes nothing makes of a published checkpoint: each is decoded when it is read.

    Args:
        source: The checkpoint.
        plan: Of one tensor a parameter.
    """

    def __init__(self, source: Source, plan: Plan) -> None:
        self._source = source
        self._local = threading.local()
        self._steps = {step.outputs[0].spec.name: step for step in plan.steps}
        self.specs = {name: step.outputs[0].spec for name, step in self._steps.items()}
        self.read_nbytes = 0

    def read(self, name: str, rows: Sequence[int] | None = None) -> mx.array:
        """See `Tensors`."""
        step = self._steps[name]
        spec = step.outputs[0].spec
        dtype, mlx_dtype = DTYPES[spec.dtype]
        shape = spec.shape if rows is None else (len(rows), *spec.shape[1:])
        values = np.empty(shape, dtype)
        flat = values.reshape(-1).view(np.uint8)
        filled = 0
        for piece, skipped, wanted in _pieces(step, rows):
            (made,) = self._maker().make(piece, [step])
            row_nbytes = step.row_nbytes(step.outputs[0])
            made_bytes = np.ascontiguousarray(made.arrays[0]).reshape(-1).view(np.uint8)
            nbytes = wanted * row_nbytes
            flat[filled : filled + nbytes] = made_bytes[skipped * row_nbytes :][:nbytes]
            filled += nbytes
            traced = step.parameter.program is not None
            self.read_nbytes += piece.rows * (row_nbytes if traced else step.source_row_nbytes)
        return _as(values, mlx_dtype)

    def _maker(self) -> PieceMaker:
        """This thread's: its buffers are used again for each piece."""
        if not hasattr(self._local, "maker"):
            self._local.maker = PieceMaker(self._source, 0)
        maker: PieceMaker = self._local.maker
        return maker


def _as(values: npt.NDArray[Any], dtype: mx.Dtype) -> mx.array:
    array = mx.array(values)
    return array if array.dtype == dtype else array.view(dtype)


def _pieces(step: Step, rows: Sequence[int] | None) -> list[tuple[Piece, int, int]]:
    """Pieces that hold rows of a step's tensor, with the rows that are not wanted before them, and those wanted."""
    if rows is None:
        return [(piece, 0, piece.rows) for piece in step.pieces(0)]
    program = step.parameter.program
    if program is not None and program.whole is not None:
        (whole,) = step.pieces(0)
        each = step.rows if step.parameter.stacked else 1
        return [(whole, first * each, (stop - first) * each) for first, stop in _runs(rows)]
    if step.parameter.stacked:
        return [(piece, 0, piece.rows) for part in rows for piece in _part(step, part, 0, step.rows)]
    block = _block(step)
    found = []
    for first, stop in _runs(rows):
        for piece in _part(step, 0, first // block * block, min(step.rows, -(-stop // block) * block)):
            begin, end = max(piece.start, first), min(piece.stop, stop)
            found.append((piece, begin - piece.start, end - begin))
    return found


def _part(step: Step, part: int, first: int, stop: int) -> list[Piece]:
    """Pieces of one part, from one row to another: whole blocks, and no more weights at once than a conversion's."""
    block = _block(step)
    most = max(block, PIECE_SIZE // step.columns // block * block)
    return [Piece(0, part, 1, start, min(stop, start + most)) for start in range(first, stop, most)]


def _block(step: Step) -> int:
    """Rows that have to be made together."""
    return step.parameter.block[0] if step.parameter.program is None else TRACED_ROWS


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending indices as ranges, each from its first to behind its last."""
    breaks = [i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1]
    return [(rows[first], rows[stop - 1] + 1) for first, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True)]
