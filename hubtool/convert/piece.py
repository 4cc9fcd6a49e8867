"""Makes one piece of a conversion: bytes of the source in, arrays of the output out."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from hubtool.checkpoint.source import Source
from hubtool.convert import decode
from hubtool.convert.device import decodes_on_device
from hubtool.convert.evaluate import evaluate_rows
from hubtool.convert.hints import Hints, PieceHints
from hubtool.convert.quantize import (
    MLX_DTYPES,
    QUANTIZERS,
    Array,
    dequantize,
    from_bytes,
    squared_error,
    to_numpy,
    weighted_error,
)
from hubtool.errors import SourceError
from hubtool.models import Parameter
from hubtool.plan.format import lossless_format
from hubtool.plan.plan import Piece, Step

BF16_INFINITY = 0x7F80
INFINITIES = {
    "BF16": ("<u2", BF16_INFINITY),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF << 52),
}
"""Integer of the same width, and the bits of the exponent, which are all set in what is not finite (IEEE 754)."""

TILE_NBYTES = 1 << 20
"""Bytes that are looked at together: they stay in a core's cache."""
"""The exponent bits of bfloat16: all set in infinities and NaNs, and only there."""

E4M3_NAN = 0x7F
"""The magnitude bits of E4M3's only NaN (OCP 8-bit Floating Point 1.0: no infinities)."""

OVERFLOWING_E8M0 = {"fp4": 253, "fp8": 247}
"""Scale bytes from which on a published weight can be too large for bfloat16: 4 * 2**126 and 256 * 2**120 are."""

OVERFLOWING_SCALE = {"mxfp4": 253, "mxfp8": 247, "nvfp4": E4M3_NAN}
"""Scale bytes of MLX's modes from which on a weight is read back as an infinity, as above, or as a NaN."""

TILE_SIZE = 1024 * 1024
"""Weights that a CPU decodes and quantizes at once: 2 MiB of bfloat16, which a core's cache holds."""

TILE_ROWS = 128
"""Rows of a tile are a multiple of this: whole FP8 blocks, and whole steps of the sample whose error is measured."""

ERROR_TILE_ROWS = 64
"""Rows of a sample that are compared at once: what that takes in float32 is little beside a tile."""

ErrorSums = tuple[float, ...]
"""Squared error and squared weight, each summed over the rows that were measured; where the inputs are known, both also
weighted by them."""


@dataclass(frozen=True)
class Made:
    """What a piece came to: the arrays of a step's outputs, and what quantizing them lost, if that was measured."""

    arrays: tuple[Array, ...]
    error: ErrorSums | None = None

    @cached_property
    def views(self) -> tuple[memoryview, ...]:
        """The bytes of each array."""
        return tuple(np.ascontiguousarray(array).data.cast("B") for array in self.arrays)

    @cached_property
    def checksums(self) -> tuple[int, ...]:
        """CRC-32 of each array's bytes; folders that store the same share it."""
        return tuple(zlib.crc32(view) for view in self.views)


class PieceMaker:
    """Makes pieces on one thread, in buffers that it uses again for each: what it returned is good until the next.

    Args:
        source: Where the bytes are read.
        error_rows: Measure the error of every how many-th row; 0 measures none.
    """

    def __init__(self, source: Source, error_rows: int) -> None:
        self._source = source
        self._error_rows = error_rows
        self._stream = mx.new_stream(mx.default_device())
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}

    def make(self, piece: Piece, steps: Sequence[Step]) -> list[Made]:
        """The arrays of a piece for each of `steps`, which are several plans' steps for one parameter.

        It is read and decoded once, and what is stored alike is made once.

        Raises:
            SourceError: The bytes cannot be read, or they or a scale or bias made of them are not finite.
        """
        traced = steps[0].parameter.program is not None
        loaded = _Traced(self, piece, steps[0]) if traced else _Loaded(self, piece, steps[0])
        made: dict[object, Made] = {}
        for step in steps:
            if step.how == "copy":
                made[step.made_as] = Made((loaded.raw,))
            elif step.how == "repack":
                made[step.made_as] = Made(loaded.repacked())
        computed = list({step.made_as: step for step in steps if step.made_as not in made}.values())
        if computed:
            with mx.stream(self._stream):
                results = self._compute(loaded, [(step, PieceHints.known(step, piece)) for step in computed])
            made |= {step.made_as: result for step, result in zip(computed, results, strict=True)}
        return [made[step.made_as] for step in steps]

    def buffer(self, name: str, shape: tuple[int, ...], dtype: Any = np.uint8) -> npt.NDArray[Any]:
        """An array in the buffer of that name; what it held before is lost."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if name not in self._buffers or len(self._buffers[name]) < nbytes:
            self._buffers[name] = np.empty(nbytes, np.uint8)
        array: npt.NDArray[Any] = self._buffers[name][:nbytes].view(dtype).reshape(shape)
        return array

    def read_rows(self, into: str, names: Sequence[str], rows: int, start: int, stop: int) -> decode.Bytes:
        """Rows `start` to `stop` of tensors of `rows` rows each, one after the other, [rows, bytes of a row]."""
        row_nbytes = self._source.tensors[names[0]].nbytes // rows
        buffer = self.buffer(into, (len(names), stop - start, row_nbytes))
        for part, name in zip(buffer, names, strict=True):
            stored = self._source.tensors[name]
            self._source.read_into(stored.file, stored.offset + start * row_nbytes, part.data.cast("B"))
        return buffer.reshape(-1, row_nbytes)

    def evaluate(self, step: Step, piece: Piece) -> tuple[mx.array, mx.array | None]:
        """What a parameter's program gives of a piece, evaluated: its weight, and its scales if it is packed."""
        with mx.stream(self._stream):
            return evaluate_rows(step.parameter, step.box(piece), self._source)

    def _compute(self, loaded: "_Loaded | _Traced", work: Sequence[tuple[Step, PieceHints | None]]) -> list[Made]:
        """Decode tile by tile, and make of each tile what every step wants, and what that lost."""
        steps = [step for step, _ in work]
        outputs: list[tuple[Array, ...]] = [() for _ in steps]
        sums: list[ErrorSums | None] = [None for _ in steps]
        # Published BF16 was checked when it was read; all else can overflow on its way to it.
        unchecked = loaded.scale is None and (isinstance(loaded, _Traced) or loaded.parameter.dtype != "BF16")
        checked = loaded.can_overflow or (unchecked and any(step.how == "quantize" for step in steps))
        for start, stop in tiles(loaded.count, steps[0].columns):
            rows = slice(start, stop)
            values = loaded.values(rows) if isinstance(loaded, _Traced) else self._decode(loaded, rows)
            if checked:
                (bits,) = to_numpy([values.astype(mx.bfloat16)])
                loaded.refuse_infinities(bits, start)
            for number, (step, hints) in enumerate(work):
                stored = _store(values, step, hints, start)
                arrays = to_numpy(stored)
                if not outputs[number]:
                    outputs[number] = tuple(
                        self.buffer(f"{number}.{i}", (loaded.count, *array.shape[1:]), array.dtype)
                        for i, array in enumerate(arrays)
                    )
                for output, array in zip(outputs[number], arrays, strict=True):
                    output[start:stop] = array
                if step.how == "quantize" and self._error_rows:
                    lost = self._error_sums(values, stored, (step, hints), start)
                    before = sums[number]
                    sums[number] = lost if before is None else tuple(map(sum, zip(before, lost, strict=True)))
        for step, made, error_sums in zip(steps, outputs, sums, strict=True):
            if step.how == "quantize":
                _refuse_scales(made[1:], step, loaded.weights)
                _refuse_overflow(error_sums, loaded.weights)
        return [Made(arrays, error) for arrays, error in zip(outputs, sums, strict=True)]

    def _error_sums(
        self, values: mx.array, stored: Sequence[mx.array], work: tuple[Step, PieceHints | None], start: int
    ) -> ErrorSums:
        """What quantizing lost on the sample among the rows of a tile that begins with row `start` of the piece."""
        step, hints = work
        sums = np.zeros(2 if hints is None else 4)
        span = ERROR_TILE_ROWS * self._error_rows
        for first in range(-start % self._error_rows, len(values), span):
            rows = range(len(values))[first : first + span : self._error_rows]
            index = slice(rows.start, rows.stop, rows.step)
            sample, arrays = values[index], [array[index] for array in stored]
            sums[:2] += to_numpy(squared_error(sample, arrays, step.format))
            if hints is not None:
                moments = hints.moments(range(start + rows.start, start + rows.stop, rows.step))
                sums[2:] += to_numpy(weighted_error(sample, arrays, step.format, mx.array(moments)))
        return tuple(map(float, sums))

    def _decode(self, loaded: "_Loaded", rows: slice) -> mx.array:
        """Rows on MLX's device: bfloat16 where they are encoded, else as published."""
        parameter, (raw, scale) = loaded.parameter, loaded.rows(rows)
        if scale is None:
            return from_bytes(raw, parameter.dtype)
        if decodes_on_device():
            repacked = [mx.array(array) for array in _repack(raw, scale, parameter)]
            return dequantize(repacked, lossless_format(parameter.encoding), mx.bfloat16)
        if parameter.encoding == "fp4":
            index = self.buffer("index", raw.shape, np.uint16)
            out = self.buffer("decoded", raw.shape, np.uint32)
            return mx.array(decode.decode_fp4(raw, scale, index, out)).view(mx.bfloat16)
        return mx.array(decode.decode_fp8(raw, scale, (1, parameter.block[1]))).view(mx.bfloat16)


def _store(values: mx.array, step: Step, hints: PieceHints | None, start: int) -> Sequence[mx.array]:
    """What a step stores of the rows of a piece from `start` on; what is quantized has its scales' dtype first."""
    if step.how == "cast":
        return [values.astype(MLX_DTYPES[step.outputs[0].spec.dtype])]
    quantizer, narrow = QUANTIZERS[step.fit], values.astype(MLX_DTYPES[step.parameter.computed])
    if hints is None or step.fit == "nearest":
        return quantizer(narrow, step.format, Hints())
    runs = hints.runs(start, start + len(values))
    made = [quantizer(narrow[rows], step.format, each) for rows, each in runs]
    return made[0] if len(made) == 1 else [mx.concatenate(list(each)) for each in zip(*made, strict=True)]


class _Loaded:
    """The published bytes of one piece.

    Attributes:
        parameter: What they belong to.
        weights: Names of the published tensors.
        raw: Bytes of the weights, [rows, bytes of a row].
        scale: E8M0 bytes, [rows of blocks, blocks of a row], None if the weights are not encoded.
    """

    def __init__(self, maker: PieceMaker, piece: Piece, step: Step) -> None:
        parts = step.parameter.parts[piece.first_part : piece.first_part + piece.parts]
        self.parameter = step.parameter
        self.weights = [part.weight for part in parts]
        self.raw = maker.read_rows("raw", self.weights, step.rows, piece.start, piece.stop)
        self.scale: decode.Bytes | None = None
        scales = [part.scale for part in parts if part.scale is not None]
        if scales:
            block_rows = self.parameter.block[0]
            first, last = piece.start // block_rows, -(-piece.stop // block_rows)
            self.scale = maker.read_rows("scale", scales, -(-step.rows // block_rows), first, last)
            _refuse(self.scale == decode.E8M0_NAN, scales, "E8M0 byte 255, which is NaN")
        if self.parameter.encoding == "fp8":
            nan = np.concatenate(
                [
                    ((self.raw[start:stop] & E4M3_NAN) == E4M3_NAN).any(axis=1, keepdims=True)
                    for start, stop in tiles(*self.raw.shape)
                ]
            )
            _refuse(nan, self.weights, "E4M3 byte 127 or 255, which is NaN")
        if self.scale is None and self.parameter.dtype in INFINITIES:
            self._refuse_not_finite(*INFINITIES[self.parameter.dtype])

    def _refuse_not_finite(self, integer: str, infinity: int) -> None:
        """Raise SourceError if any published number is infinite or NaN, however it will be stored."""
        for start in range(0, len(self.raw), step := max(1, TILE_NBYTES // self.raw.shape[1])):
            bad = (self.raw[start : start + step].view(integer) & infinity) == infinity
            if bad.any():
                row = start + int(bad.any(axis=1).argmax())
                _refuse(
                    bad, [self.weights[row * len(self.weights) // len(self.raw)]], "a value that is infinite or NaN"
                )

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.raw)

    @property
    def can_overflow(self) -> bool:
        """Whether a scale is so large that a decoded weight can be infinite."""
        return self.scale is not None and bool(self.scale.max() >= OVERFLOWING_E8M0[self.parameter.encoding])

    def refuse_infinities(self, bits: Array, start: int) -> None:
        """Raise SourceError if any of the decoded rows from `start` on, bfloat16 bits, is infinite or NaN."""
        bad = _not_finite(bits)
        if bad.any():
            row = start + int(bad.reshape(len(bits), -1).any(axis=1).argmax())
            names = [self.weights[row * len(self.weights) // len(self.raw)]]
            _refuse(bad, names, "a weight that is infinite or NaN in bfloat16")

    def rows(self, rows: slice) -> tuple[decode.Bytes, decode.Bytes | None]:
        """Some rows of the weights, and a row of scales for each of them."""
        raw = np.ascontiguousarray(self.raw[rows])
        if self.scale is None:
            return raw, None
        return raw, self.scale[np.arange(len(self.raw))[rows] // self.parameter.block[0]]

    def repacked(self) -> tuple[Array, ...]:
        """The bytes as MLX's mxfp4 or mxfp8: packed weight and scales."""
        raw, scale = self.rows(slice(None))
        assert scale is not None, self.parameter.path
        return _repack(raw, scale, self.parameter)


class _Traced:
    """The values of one piece that a program computes, as `_Loaded` has the bytes of published ones.

    Attributes:
        parameter: What they belong to.
        weights: What messages name: the published tensor if it is one, else the parameter.
        count: Rows.
        scale: E8M0 bytes of packed values, else None.
    """

    def __init__(self, maker: PieceMaker, piece: Piece, step: Step) -> None:
        self.parameter = step.parameter
        names = step.reads(piece)
        self.weights = list(names) if len(names) == 1 else [self.parameter.path]
        self.count = piece.rows
        weight, scales = maker.evaluate(step, piece)
        self._weight = weight.reshape(self.count, -1)
        self.scale: decode.Bytes | None = None
        if scales is not None:
            self._scales = scales.reshape(self.count, -1)
            (self.scale,) = to_numpy([self._scales])
            _refuse(self.scale == decode.E8M0_NAN, self.weights, "E8M0 byte 255, which is NaN")

    @property
    def raw(self) -> Array:
        """The values as they are stored when they stay as they are."""
        return to_numpy([self._weight])[0]

    @property
    def can_overflow(self) -> bool:
        """Whether a decoded weight can be infinite or NaN."""
        if self.scale is None:
            return self.parameter.encoding == "fp8_scaled"
        return self.parameter.encoding == "fp8" or bool(self.scale.max() >= OVERFLOWING_E8M0["fp4"])

    def values(self, rows: slice) -> mx.array:
        """Some rows, decoded."""
        if self.scale is None:
            return self._weight[rows]
        packed = [self._weight[rows], self._scales[rows]]
        return dequantize(packed, lossless_format(self.parameter.encoding), mx.bfloat16)

    def refuse_infinities(self, bits: Array, start: int) -> None:
        """Raise SourceError if any of the decoded rows from `start` on, bfloat16 bits, is infinite or NaN."""
        _refuse(_not_finite(bits), self.weights, "a weight that is infinite or NaN in bfloat16")

    def repacked(self) -> tuple[Array, ...]:
        """The bytes as MLX's mxfp4 or mxfp8: packed weight and scales."""
        assert self.scale is not None, self.parameter.path
        return self.raw, self.scale


def _not_finite(array: Array) -> npt.NDArray[np.bool_]:
    """Which numbers are infinite or NaN; 16-bit integers are the bits of bfloat16."""
    if array.dtype == np.uint16:
        bad: npt.NDArray[np.bool_] = (array & BF16_INFINITY) == BF16_INFINITY
        return bad
    return ~np.isfinite(array)


def _repack(raw: decode.Bytes, scale: decode.Bytes, parameter: Parameter) -> tuple[Array, ...]:
    if parameter.encoding == "fp4":
        return decode.repack_fp4(raw, scale)
    return decode.repack_fp8(raw, scale, (1, parameter.block[1]))


def tiles(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that are worked on at once: all of them on a GPU, a cache's worth on a CPU."""
    step = rows if decodes_on_device() else max(TILE_ROWS, TILE_SIZE // columns // TILE_ROWS * TILE_ROWS)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _refuse_overflow(sums: ErrorSums | None, names: Sequence[str]) -> None:
    """Raise SourceError if weights are too large to be squared, so that the sums are not numbers."""
    if sums is not None and not all(map(isfinite, sums)):
        raise SourceError(
            "too large for its error to be measured",
            where=names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}",
            found="weights whose squares overflow float32",
            remedy="fetch its shard again, or report the checkpoint; `--measure-error off` converts it all the same",
        )


def _refuse_scales(arrays: Sequence[Array], step: Step, names: Sequence[str]) -> None:
    """Raise SourceError if a scale or bias that `step` stores makes its weights infinite or NaN."""
    for kind, array in zip(("scale", "bias"), arrays, strict=False):
        if step.format.has_biases:
            bad = _not_finite(array)
        else:
            bad = array >= OVERFLOWING_SCALE[step.format.mode]
        _refuse(bad, names, f"a {kind} of its quantization is infinite or NaN")


def _refuse(bad: npt.NDArray[np.bool_], names: Sequence[str], found: str) -> None:
    """Raise SourceError if any is bad, naming the tensor; the rows of `bad` are those of `names` in equal parts."""
    if bad.any():
        name = names[int(bad.any(axis=1).argmax()) * len(names) // len(bad)]
        raise SourceError(
            "not finite", where=name, found=found, remedy="fetch its shard again, or report the checkpoint"
        )
