"""Quantization as MLX does it: scales from a group's least and greatest weight, each code the nearest."""

import mlx.core as mx

from hubtool.convert.hints import Hints
from hubtool.plan.format import Format


def quantize_nearest(values: mx.array, form: Format, hints: Hints) -> tuple[mx.array, ...]:
    """The packed weight uint32 [out, in*bits/32], scales, and for affine biases, [out, in/group_size].

    Scales and biases have the dtype of `values` for affine; for the mx and nv modes there are only scales, uint8.

    Args:
        values: Floating point [out, in].
        form: A format that quantizes.
        hints: Not needed.
    """
    return tuple(mx.quantize(values, group_size=form.group_size, bits=form.bits, mode=form.mode))
