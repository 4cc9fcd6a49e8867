"""Makes one piece of a conversion: bytes of the source in, arrays of the output out."""

import mlx.core as mx
import numpy as np

from hubtool import decode
from hubtool.device import decodes_on_device
from hubtool.errors import SourceError
from hubtool.plan import Piece, Step
from hubtool.quantize import MLX_DTYPES, Array, dequantize, from_bytes, quantize, to_numpy
from hubtool.recipe import lossless_format
from hubtool.source import Source

BF16_INFINITY = 0x7F80
"""The exponent bits of bfloat16: all set in infinities and NaNs, and only there."""

E4M3_NAN = 0x7F
"""The magnitude bits of E4M3's only NaN (OCP 8-bit Floating Point 1.0: no infinities)."""


class LoadedPiece:
    """The published bytes of one piece, checked, and decoded when first asked for.

    It serves every plan that has the piece: they differ in what they make of it, not in what it is.

    Args:
        source: Where the bytes are read.
        step: A step of any of the plans.
        piece: Which rows of which part.

    Raises:
        SourceError: The bytes cannot be read, or hold a NaN.
    """

    def __init__(self, source: Source, step: Step, piece: Piece) -> None:
        self._parameter = step.parameter
        part = step.parameter.parts[piece.part]
        self._name = part.weight
        self._raw = _read_rows(source, part.weight, step.rows, piece.start, piece.stop)
        self._scale: decode.Bytes | None = None
        if part.scale is not None:
            block_rows = self._parameter.block[0]
            first, last = piece.start // block_rows, -(-piece.stop // block_rows)
            self._scale = _read_rows(source, part.scale, -(-step.rows // block_rows), first, last)
            if (self._scale == decode.E8M0_NAN).any():
                raise _not_finite(part.scale, "E8M0 byte 255, which is NaN")
            if self._parameter.encoding == "fp8" and ((self._raw & E4M3_NAN) == E4M3_NAN).any():
                raise _not_finite(part.weight, "E4M3 byte 127 or 255, which is NaN")
        self._values: mx.array | None = None

    def make(self, step: Step) -> tuple[Array, ...]:
        """The arrays of a step's outputs for this piece, in their order.

        Raises:
            SourceError: A scale or bias is not finite.
        """
        if step.how == "copy":
            return (self._raw,)
        if step.how == "repack":
            return self._repacked()
        if step.how == "cast":
            return to_numpy([self.values().astype(MLX_DTYPES[step.outputs[0].spec.dtype])])
        arrays = to_numpy(quantize(self.values(), step.format))
        if step.format.has_biases:
            for output, array in zip(step.outputs[1:], arrays[1:], strict=True):
                if ((array & BF16_INFINITY) == BF16_INFINITY).any():
                    raise _not_finite(self._name, f"infinity or NaN in {output.spec.name}")
        return arrays

    def values(self) -> mx.array:
        """The decoded rows on MLX's device, [rows, columns]; bfloat16 where they are encoded, else as published."""
        if self._values is None:
            self._values = self._decode()
        return self._values

    def _decode(self) -> mx.array:
        if self._scale is None:
            return from_bytes(self._raw, self._parameter.dtype)
        if decodes_on_device():
            repacked = [mx.array(array) for array in self._repacked()]
            return dequantize(repacked, lossless_format(self._parameter.encoding), mx.bfloat16)
        if self._parameter.encoding == "fp4":
            bits = decode.decode_fp4(self._raw, self._scale)
        else:
            bits = decode.decode_fp8(self._raw, self._scale, self._parameter.block)
        return mx.array(bits).view(mx.bfloat16)

    def _repacked(self) -> tuple[Array, ...]:
        assert self._scale is not None, self._name
        if self._parameter.encoding == "fp4":
            return decode.repack_fp4(self._raw, self._scale)
        return decode.repack_fp8(self._raw, self._scale, self._parameter.block)


def _read_rows(source: Source, name: str, rows: int, start: int, stop: int) -> decode.Bytes:
    """The bytes of rows `start` to `stop` of a tensor that has `rows` rows, [rows, bytes of a row]."""
    stored = source.tensors[name]
    row_nbytes = stored.nbytes // rows
    buffer = np.empty((stop - start, row_nbytes), np.uint8)
    source.read_into(stored.file, stored.offset + start * row_nbytes, buffer.data.cast("B"))
    return buffer


def _not_finite(name: str, found: str) -> SourceError:
    return SourceError("not finite", where=name, found=found, remedy="fetch its shard again, or report the checkpoint")
