"""Published FP4 and FP8 weights -> bfloat16, exactly; and their bytes as MLX's mxfp4 and mxfp8.

bfloat16 arrays are NumPy arrays of their 16 bits (uint16), because NumPy has no bfloat16. An E8M0 byte b means
2**(b - 127), 255 is NaN (OCP Microscaling Formats 1.0, section 5.4).
"""

from functools import cache

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Bits16 = npt.NDArray[np.uint16]

E8M0_NAN = 255

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The non-negative values of FP4, by code; bit 3 is the sign (OCP Microscaling Formats 1.0, table 5)."""

FP4_GROUP = 32
"""Columns that share an E8M0 byte in packed FP4, which is MLX's mxfp4 group."""

MXFP8_GROUP = 32
"""Columns that share an E8M0 byte in MLX's mxfp8."""


def decode_fp4(
    packed: Bytes,
    scale: Bytes,
    index: npt.NDArray[np.uint16] | None = None,
    out: npt.NDArray[np.uint32] | None = None,
) -> Bits16:
    """bfloat16 bits [out, in] of nibble pairs [out, in/2] with E8M0 bytes [out, in/32].

    The low nibble is the even column.

    Args:
        packed: Nibble pairs.
        scale: One byte a row and 32 columns.
        index: Scratch of the shape of `packed`, for callers that decode often.
        out: Where to write, of the shape of `packed`, likewise.
    """
    index = np.empty(packed.shape, np.uint16) if index is None else index
    groups = (packed.shape[0], scale.shape[1], -1)
    np.bitwise_or(packed.reshape(groups), _row_of_table(scale), out=index.reshape(groups))
    decoded: npt.NDArray[np.uint32] = np.take(_fp4_table(), index, out=out, mode="wrap")
    return decoded.view(np.uint16)


def decode_fp8(weight: Bytes, scale: Bytes, block: tuple[int, int]) -> Bits16:
    """bfloat16 bits [out, in] of E4M3 bytes [out, in] with E8M0 bytes [ceil(out/rows), ceil(in/columns)].

    Args:
        weight: Rows that begin with a block.
        scale: The blocks of those rows.
        block: Rows and columns of a block.
    """
    expanded = _expand(scale, block, weight.shape)
    decoded: Bits16 = np.take(_fp8_table(), weight | np.left_shift(expanded, 8, dtype=np.uint16), mode="wrap")
    return decoded


def repack_fp4(packed: Bytes, scale: Bytes) -> tuple[npt.NDArray[np.uint32], Bytes]:
    """MLX's mxfp4 weight [out, in/8] and scales [out, in/32]: the same bytes."""
    return packed.view(np.uint32), scale


def repack_fp8(weight: Bytes, scale: Bytes, block: tuple[int, int]) -> tuple[npt.NDArray[np.uint32], Bytes]:
    """MLX's mxfp8 weight [out, in/4] and scales [out, in/32]: the same bytes, block scales repeated."""
    rows, columns = weight.shape
    expanded = _expand(scale, (block[0], block[1] // MXFP8_GROUP), (rows, columns // MXFP8_GROUP))
    return weight.view(np.uint32), np.ascontiguousarray(expanded)


def _expand(scale: Bytes, block: tuple[int, int], shape: tuple[int, ...]) -> Bytes:
    expanded: Bytes = scale.repeat(block[0], axis=0)[: shape[0]].repeat(block[1], axis=1)[:, : shape[1]]
    return expanded


def _row_of_table(scale: Bytes) -> Bits16:
    """Where a scale's 256 entries begin in a table, [out, groups, 1]."""
    first: Bits16 = np.left_shift(scale, 8, dtype=np.uint16)
    return first[..., None]


@cache
def _fp4_table() -> npt.NDArray[np.uint32]:
    """Two bfloat16 for each (scale byte, packed byte), as uint32 [65536]: 256 KiB, which stays in a core's cache."""
    magnitudes = np.array(E2M1_VALUES, np.float32)
    values = np.concatenate([magnitudes, -magnitudes])
    byte = np.arange(256)
    pairs = np.stack([values[byte & 15], values[byte >> 4]], axis=-1)
    return _scaled_table(pairs).view(np.uint32).reshape(-1)


@cache
def _fp8_table() -> Bits16:
    """One bfloat16 for each (scale byte, E4M3 byte), uint16 [65536]."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    magnitude = np.where(byte & 127 == 127, np.nan, magnitude)
    return _scaled_table(np.where(byte >> 7, -magnitude, magnitude)).reshape(-1)


def _scaled_table(values: npt.NDArray[np.floating]) -> Bits16:
    """bfloat16 bits of values[...] * 2**(b - 127) for b = 0 ... 255, [256, ...].

    The products have at most four significant bits, so cutting float32 to its upper half is exact for all but the
    smallest subnormals, which no weight reaches.
    """
    scales = np.ldexp(1.0, np.arange(256) - 127)
    scales[E8M0_NAN] = np.nan
    with np.errstate(over="ignore"):
        products = (scales.reshape(-1, *[1] * values.ndim) * values).astype(np.float32)
    upper: Bits16 = (products.view(np.uint32) >> 16).astype(np.uint16)
    return upper
