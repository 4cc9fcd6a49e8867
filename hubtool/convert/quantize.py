"""Arrays on MLX's device -> what a recipe stores: packed weight, scales and biases, or another float dtype."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from hubtool.convert.hints import Hints
from hubtool.convert.nearest import quantize_nearest
from hubtool.convert.weighted import quantize_weighted
from hubtool.plan.format import Format

Array = npt.NDArray[Any]
"""A NumPy array as it lies in a file; bfloat16 as its 16 bits, because NumPy has no bfloat16."""

MLX_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "I64": mx.int64, "I32": mx.int32}
"""MLX's dtype for each safetensors dtype that a parameter can have."""

_NUMPY_DTYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I64": np.int64, "I32": np.int32}


def from_bytes(raw: npt.NDArray[np.uint8], dtype: str) -> mx.array:
    """An array of safetensors dtype `dtype` from rows of its bytes, [rows, columns]."""
    array = mx.array(raw.view(_NUMPY_DTYPES[dtype]))
    return array.view(mx.bfloat16) if dtype == "BF16" else array


def to_numpy(arrays: Sequence[mx.array]) -> tuple[Array, ...]:
    """Evaluated NumPy views of arrays."""
    views = [array.view(mx.uint16) if array.dtype == mx.bfloat16 else array for array in arrays]
    mx.eval(*views)
    return tuple(np.array(view, copy=False) for view in views)


QUANTIZERS: Mapping[str, Callable[[mx.array, Format, Hints], tuple[mx.array, ...]]] = {
    "nearest": quantize_nearest,
    "weighted": quantize_weighted,
}
"""What makes packed weight, scales and, for affine, biases of bfloat16 values [out, in], by the name of the fit."""


def dequantize(arrays: Sequence[mx.array], form: Format, dtype: mx.Dtype) -> mx.array:
    """[out, in] of `dtype` from what a quantizer returns."""
    weight, scales = arrays[:2]
    biases = arrays[2] if form.has_biases else None
    return mx.dequantize(weight, scales, biases, form.group_size, form.bits, form.mode, dtype=dtype)


def squared_error(values: mx.array, arrays: Sequence[mx.array], form: Format) -> tuple[mx.array, mx.array]:
    """Sums of squared error and of squared weight, float32 scalars.

    Args:
        values: What was quantized, [out, in].
        arrays: What a quantizer made of it.
        form: How.
    """
    sample = values.astype(mx.float32)
    return mx.square(dequantize(arrays, form, mx.float32) - sample).sum(), mx.square(sample).sum()


def weighted_error(
    values: mx.array, arrays: Sequence[mx.array], form: Format, moments: mx.array
) -> tuple[mx.array, mx.array]:
    """The same sums with each channel weighted by `moments`, [out or 1, in].

    The stored scale and bias count as they are, as in a product that is summed up in float32: MLX's own rounding of
    dequantized weights to bfloat16 is left out.
    """
    exact = [arrays[0], *(array.astype(mx.float32) for array in arrays[1:])] if form.has_biases else arrays
    sample = values.astype(mx.float32)
    lost = mx.square(dequantize(exact, form, mx.float32) - sample)
    return (moments * lost).sum(), (moments * mx.square(sample)).sum()
