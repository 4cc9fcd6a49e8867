"""Affine quantization whose scales and biases are fitted to what each input channel is worth.

The error of a group is weighted by the mean square of its inputs, as calibration saw it. Scales and biases are searched
from several starts and refitted by weighted least squares; codes are made with the scale and bias as they are stored.
MLX's own choice is among the candidates, so the weighted error is never larger than that of `mx.quantize`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from hubtool.convert.hints import Hints
from hubtool.plan.format import Format

Array = npt.NDArray[Any]
Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

SHRINKS = {2: (1, 0.75, 0.5), 3: (1, 0.75, 0.5), 4: (1, 0.8, 0.6), 5: (1, 0.9), 6: (1, 0.95), 8: (1, 0.98)}
"""By bits, the parts of a group's least and greatest weight between which codes are spread at the start: measured on
SmolLM2-135M, whose weighted error they bring to 0.33 to 0.45 of that of `mx.quantize`."""

KEPT, REFITS = 2, 2
"""Starts of each group that are refitted further, and how often: within 3 % of the weighted error that refitting all of
them three times leaves, in a third of the time."""

CHUNK = 64 * 1024
"""Weights that are searched at once: four arrays of them in float32 are a megabyte, a core's second cache."""

LEAST_SPREAD = 1e-6
"""Codes that differ by less than this part of their weighted square have no scale that could be fitted."""

MLX_EPSILON = np.float32(1e-7)
"""The least scale of `mx.quantize` (mlx/backend/cpu/quantized.cpp)."""


def quantize_weighted(values: mx.array, form: Format, hints: Hints) -> tuple[mx.array, ...]:
    """The packed weight uint32 [out, in*bits/32], and scales and biases [out, in/group_size] in the dtype of `values`.

    The sum over each group of h (s q + b - w)**2 is at most what it is for the scale and bias of `mx.quantize`, where h
    is the channel's weight, and s and b are as stored. Memory: some 16 bytes for each of `CHUNK` weights.

    Args:
        values: bfloat16, float16 or float32 [out, in].
        form: An affine format.
        hints: What each of the `in` channels is worth, and whether the source is on the FP4 grid.
    """
    stored = _to_numpy(values)
    rows, columns = stored.shape
    moments = _scaled(hints.moments)
    groups = columns // form.group_size
    packed = np.empty((rows, groups, form.group_size * form.bits // 32), np.uint32)
    scales, biases = np.empty((rows, groups), stored.dtype), np.empty((rows, groups), stored.dtype)
    for row, group in _chunks(rows, groups, form.group_size):
        search = _Search(stored[row], moments, group, form)
        scale, bias, words = search.fit(aligned=form.bits == 4 and hints.from_fp4)
        shape = (group.stop - group.start, row.stop - row.start)
        packed[row, group] = words.reshape(-1, *shape).transpose(2, 1, 0)
        scales[row, group] = scale.reshape(shape).T
        biases[row, group] = bias.reshape(shape).T
    return mx.array(packed.reshape(rows, -1)), _to_mlx(scales), _to_mlx(biases)


def _scaled(moments: Single | None) -> Single:
    """Moments whose mean is one, so that no sum of them leaves float32's range."""
    assert moments is not None, "planned with statistics"
    mean = moments.mean(dtype=np.float64)
    return (moments / mean).astype(np.float32) if mean > 0 else moments


def _chunks(rows: int, groups: int, group_size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and groups that are searched at once; which they are changes no result."""
    most = max(1, CHUNK // group_size)
    step = min(groups, max(1, most // rows))
    for start in range(0, rows, most):
        for group in range(0, groups, step):
            yield slice(start, min(rows, start + most)), slice(group, min(groups, group + step))


@dataclass
class _Fits:
    """Scales and biases for each group, one row a candidate, and the weighted squared error they leave."""

    scale: Double
    bias: Double
    error: Double

    @classmethod
    def joined(cls, parts: Sequence["_Fits"]) -> "_Fits":
        """All candidates of some fits of the same groups."""
        scales, biases, errors = zip(*((part.scale, part.bias, part.error) for part in parts), strict=True)
        return cls(np.concatenate(scales), np.concatenate(biases), np.concatenate(errors))

    def take(self, index: npt.NDArray[np.intp]) -> "_Fits":
        """Some candidates of each group, by their index."""
        return _Fits(*(np.take_along_axis(each, index, 0) for each in (self.scale, self.bias, self.error)))

    def best(self) -> tuple[Double, Double, Double]:
        """Scale, bias and error of the best candidate of each group, the first of equal ones."""
        best = self.take(np.argmin(self.error, axis=0)[None])
        return best.scale[0], best.bias[0], best.error[0]


class _Search:
    """Some groups of weights, [group_size, n]: the weights of a group lie n apart, so that sums are of whole rows.

    Args:
        stored: Rows of weights; bfloat16 as its bits.
        moments: The weight of each channel, float32 [in].
        group: Which groups of the rows.
        form: The format.
    """

    def __init__(self, stored: Array, moments: Single, group: slice, form: Format) -> None:
        size, self.bits = form.group_size, form.bits
        self.top = (1 << form.bits) - 1
        columns = slice(group.start * size, group.stop * size)
        shape = (size, group.stop - group.start, len(stored))
        self.dtype = stored.dtype
        wide = np.empty(shape, np.float32)
        turned = stored[:, columns].reshape(shape[2], shape[1], size).transpose(2, 1, 0)
        if self.dtype == np.uint16:
            np.left_shift(turned, 16, out=wide.view(np.uint32), dtype=np.uint32)
        else:
            wide[:] = turned
        self.weights: Single = wide.reshape(size, -1)
        worth = np.empty(shape, np.float32)
        worth[:] = moments[columns].reshape(shape[1], size).T[..., None]
        self.worth: Single = worth.reshape(size, -1)
        self.low, self.high = self.weights.min(axis=0), self.weights.max(axis=0)
        # Distances from the least weight: sums of squares of what all weights have in common would drown the rest.
        self.above = self.weights - self.low
        self.worth_above = self.worth * self.above
        self.codes = np.empty_like(self.above)
        self.sum = _sum(self.worth)
        self.sum_above = _sum(self.worth_above)

    def fit(self, *, aligned: bool) -> tuple[Array, Array, Array]:
        """Scales and biases [n] as they are stored, and packed codes uint32 [group_size*bits/32, n]."""
        with np.errstate(all="ignore"):
            found = [self._refine(self._ranges(), aligned=False)]
            if aligned:
                found.append(self._refine(self._ranges(), aligned=True))
            scale, bias = self._mlx_choice()
            codes, error = self._evaluate(scale, bias)
            for fits in found:
                better_scale, better_bias, _ = fits.best()
                better_codes, better_error = self._evaluate(better_scale, better_bias)
                take = (better_error < error) & (self.high > self.low) & (better_scale != 0)
                codes = np.where(take, better_codes, codes)
                error = np.where(take, better_error, error)
                scale, bias = np.where(take, better_scale, scale), np.where(take, better_bias, bias)
        return _encode(scale, self.dtype), _encode(bias, self.dtype), pack(codes, self.bits)

    def _ranges(self) -> tuple[Double, Double]:
        """Scales and biases to start from, [starts, n]: codes spread between parts of the least and greatest weight."""
        shrinks = np.array(SHRINKS[self.bits])
        low = (self.low * shrinks[:, None])[:, None]
        high = (self.high * shrinks[:, None])[None]
        scale = (high - low) / self.top
        shape = (len(shrinks) ** 2, -1)
        return scale.reshape(shape), np.broadcast_to(low, scale.shape).reshape(shape)

    def _refine(self, start: tuple[Double, Double], *, aligned: bool) -> _Fits:
        """Each group's best starts, refitted: a pass recomputes codes with the last fit, and from them the next."""
        scale, bias = start
        zero = None
        if aligned:
            zero = np.clip(np.rint(-bias / scale), 0, self.top)
            bias = -zero * scale
        fits = self._refit(self._codes_sums(scale, bias), zero)
        order = np.argsort(fits.error, axis=0, kind="stable")[:KEPT]
        chosen = None if zero is None else np.take_along_axis(zero, order, 0)
        history = [fits.take(order)]
        for _ in range(REFITS):
            history.append(self._refit(self._codes_sums(history[-1].scale, history[-1].bias), chosen))
        return _Fits.joined(history)

    def _codes_sums(self, scale: Double, bias: Double) -> tuple[Double, Double, Double]:
        """For each candidate and group, the weighted sums of codes, squared codes, and codes times distances."""
        inverse = (1 / scale).astype(np.float32)
        offset = ((bias - self.low) / scale).astype(np.float32)
        sums = np.empty((3, *scale.shape), np.float32)
        for number in range(len(scale)):
            np.multiply(self.above, inverse[number], out=self.codes)
            np.subtract(self.codes, offset[number], out=self.codes)
            np.rint(self.codes, out=self.codes)
            np.clip(self.codes, 0, self.top, out=self.codes)
            np.einsum("kn,kn->n", self.worth, self.codes, out=sums[0, number])
            np.einsum("kn,kn,kn->n", self.worth, self.codes, self.codes, out=sums[1, number])
            np.einsum("kn,kn->n", self.worth_above, self.codes, out=sums[2, number])
        first, square, cross = sums.astype(np.float64)
        return first, square, cross

    def _refit(self, sums: tuple[Double, Double, Double], zero: Double | None) -> _Fits:
        """Scale and bias of least weighted squares for given codes, rounded as stored, and what error they leave.

        The error is without the sum of the squared distances, which all candidates share.
        """
        code, square, cross = sums
        if zero is None:
            spread = self.sum * square - code * code
            scale = self._round((self.sum * cross - code * self.sum_above) / spread)
            bias = self._round((self.sum_above - scale * code) / self.sum + self.low)
            usable = spread > LEAST_SPREAD * self.sum * square
        else:
            weighted = cross + self.low * code - zero * (self.sum_above + self.low * self.sum)
            spread = square - 2 * zero * code + zero * zero * self.sum
            scale = self._round(weighted / spread)
            bias = self._round(-zero * scale)
            usable = spread > LEAST_SPREAD * square
        above = bias - self.low
        error = scale * scale * square + 2 * scale * above * code + above * above * self.sum
        error -= 2 * (scale * cross + above * self.sum_above)
        usable &= np.isfinite(error) & (scale != 0)
        return _Fits(scale, bias, np.where(usable, error, np.inf))

    def _evaluate(self, scale: Double, bias: Double) -> tuple[npt.NDArray[np.uint8], Double]:
        """Codes with this scale and bias, and the weighted squared error of each group, exact but for the last bits."""
        codes = (self.weights - bias) / scale
        np.rint(codes, out=codes)
        np.clip(codes, 0, self.top, out=codes)
        made = codes.astype(np.uint8)
        codes *= scale
        codes += bias
        codes -= self.weights
        codes *= codes
        codes *= self.worth
        error: Double = np.add.reduce(codes, axis=0)
        return made, error

    def _round(self, values: npt.NDArray[np.floating]) -> Double:
        """Values as they are read back when they have been stored."""
        stored = _encode(values, self.dtype)
        if self.dtype == np.uint16:
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float64)

    def _mlx_choice(self) -> tuple[Double, Double]:
        """Scale and bias of `mx.quantize`, as stored: the edge further from zero falls on a code, and so does zero."""
        from_low = np.abs(self.low) > np.abs(self.high)
        scale = np.maximum((self.high - self.low) / np.float32(self.top), MLX_EPSILON)
        scale = np.where(from_low, scale, -scale)
        edge = np.where(from_low, self.low, self.high)
        steps = np.rint(edge / scale)
        scale = np.where(steps != 0, edge / steps, scale)
        bias = np.where(steps != 0, edge, np.float32(0))
        return self._round(scale), self._round(bias)


def pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint32]:
    """Words [k*bits/32, n] of codes [k, n] below 2**bits, k a multiple of 32: little-endian, as `mx.quantize` packs."""
    wide = codes.reshape(-1, 32, codes.shape[-1]).astype(np.uint32)
    words = np.zeros((wide.shape[0], bits, wide.shape[2]), np.uint32)
    for number in range(32):
        word, shift = divmod(number * bits, 32)
        words[:, word] |= wide[:, number] << np.uint32(shift)
        if shift + bits > 32:
            words[:, word + 1] |= wide[:, number] >> np.uint32(32 - shift)
    return words.reshape(-1, codes.shape[-1])


def _sum(array: Single) -> Double:
    total: Double = np.add.reduce(array, axis=0, dtype=np.float64)
    return total


def _to_numpy(values: mx.array) -> Array:
    """Evaluated values; bfloat16 as its bits, because NumPy has no bfloat16."""
    return np.array(values.view(mx.uint16) if values.dtype == mx.bfloat16 else values, copy=False)


def _to_mlx(array: Array) -> mx.array:
    return mx.array(array).view(mx.bfloat16) if array.dtype == np.uint16 else mx.array(array)


def _encode(values: npt.NDArray[np.floating], dtype: np.dtype[Any]) -> Array:
    """Values in a dtype, half to even; for uint16 the bits of bfloat16."""
    single = values.astype(np.float32)
    if dtype != np.uint16:
        return single.astype(dtype)
    wide = single.view(np.uint32)
    return ((wide + (0x7FFF + (wide >> 16 & 1))) >> 16).astype(np.uint16)
