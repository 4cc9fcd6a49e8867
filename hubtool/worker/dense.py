"""Matrix products of many tokens with weights that were decoded before: leaf modules that take the place of MLX's own.

A module keeps its name, its parent and its attributes: only its class is another. Products are accumulated in float32
whatever the activations are, as MLX's kernels do.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.models.switch_layers import SwitchLinear

from hubtool.convert.device import require_backend, usable_cores

PART_PRODUCTS = 1 << 25
"""Multiplications that are worth a thread: a millisecond of them."""

Format = Mapping[str, Any]
"""`group_size`, `bits` and `mode` of a quantized module, as config.json has them."""

OnInput = Callable[[nn.Module, mx.array], None]
"""Takes a module and the rows [.., in] that it is about to multiply."""


def decode(arrays: Mapping[str, mx.array], form: Format | None, *, rounded: bool = False) -> mx.array:
    """A module's weight [.., out, in]: as it is, bfloat16 of mxfp4 and mxfp8, which is exact, else float32.

    Args:
        arrays: Weight, scales and biases as they are stored.
        form: How, None if it is not quantized.
        rounded: Round to the dtype of scales and biases, as MLX's embeddings do and its products do not.
    """
    if form is None:
        return arrays["weight"]
    mode = form.get("mode", "affine")
    exact = mode in ("mxfp4", "mxfp8")
    scales, biases = arrays["scales"], arrays.get("biases")
    if biases is not None and not rounded:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(
        arrays["weight"],
        scales,
        biases,
        group_size=form["group_size"],
        bits=form["bits"],
        mode=mode,
        global_scale=arrays.get("global_scale"),
        dtype=scales.dtype if rounded and biases is not None else mx.bfloat16 if exact else mx.float32,
    )


def product(x: mx.array, weight: mx.array) -> mx.array:
    """The product of x [.., in] and weight [out, in], [.., out] of x's dtype."""
    if require_backend() != "cpu":
        return x @ weight.astype(x.dtype).swapaxes(-1, -2)
    # MLX's CPU products reach a twentieth of what the BLAS in NumPy does.
    rows = np.array(x.reshape(-1, x.shape[-1]).astype(mx.float32), copy=False)
    made = _blas_product(rows, np.array(weight.astype(mx.float32), copy=False))
    return mx.array(made).reshape(*x.shape[:-1], weight.shape[0]).astype(x.dtype)


def _blas_product(x: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The product of x [n, in] and weight [out, in], its rows shared among the cores.

    BLAS's own threads wait for each other by spinning, which on a busy machine takes ten times as long.
    """
    made = np.empty((len(x), len(weight)), np.float32)
    parts = min(usable_cores(), max(1, x.size * len(weight) // PART_PRODUCTS))
    cuts = [len(x) * part // parts for part in range(parts + 1)]

    def multiply(part: int) -> None:
        rows = slice(cuts[part], cuts[part + 1])
        np.matmul(x[rows], weight.T, out=made[rows])

    if parts == 1:
        multiply(0)
    else:
        list(_pool().map(multiply, range(parts)))
    return made


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="hubtool-blas")


class OneExpert(SwitchLinear):
    """A projection of one routed expert, whose weight [1, out, in] was decoded: every row is that expert's."""

    on_input: OnInput | None

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """As `SwitchLinear`."""
        if self.on_input is not None:
            self.on_input(self, x)
        y = product(x, self.weight[0])
        return y + self.bias[0].astype(y.dtype) if "bias" in self else y
