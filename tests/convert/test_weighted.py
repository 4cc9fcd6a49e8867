"""Fitted scales and biases: never worse than MLX's where it counts, near the plain search, and packed as MLX packs."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hubtool.convert.hints import Hints
from hubtool.convert.weighted import SHRINKS, pack, quantize_weighted
from hubtool.plan.format import AFFINE_BITS, AFFINE_GROUPS, Format

Double = NDArray[np.float64]

BELOW_REFERENCE = 1.05
"""Most weighted error over that of the search that refits every start: the best start alone is refitted here."""


def read_back(arrays: tuple[mx.array, ...], form: Format) -> Double:
    """The weights, in float64, from the definition: little-endian codes, times scale, plus bias."""
    packed, scales, biases = arrays
    stream = np.unpackbits(np.array(packed).view(np.uint8), bitorder="little").reshape(-1, form.bits)
    codes = (stream * (1 << np.arange(form.bits))).sum(axis=1).reshape(*scales.shape, form.group_size)
    scale, bias = (np.array(each.astype(mx.float32)).astype(np.float64)[..., None] for each in (scales, biases))
    values: Double = (codes * scale + bias).reshape(packed.shape[0], -1)
    return values


def group_errors(values: mx.array, arrays: tuple[mx.array, ...], form: Format, worth: NDArray[np.float32]) -> Double:
    """Weighted squared error of each group."""
    lost = read_back(arrays, form) - np.array(values.astype(mx.float32))
    errors: Double = (lost**2 * worth).reshape(len(lost), -1, form.group_size).sum(axis=-1)
    return errors


def nearest(values: mx.array, form: Format) -> tuple[mx.array, ...]:
    return tuple(mx.quantize(values, group_size=form.group_size, bits=form.bits))


Kind = Callable[[np.random.Generator, tuple[int, int]], Double]

KINDS: dict[str, Kind] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "outliers": lambda random, shape: random.standard_normal(shape) * (1 + 30 * (random.random(shape) < 0.02)),
    "constant": lambda random, shape: np.full(shape, random.standard_normal()),
    "zeros": lambda random, shape: np.zeros(shape),
    "mostly zeros": lambda random, shape: random.standard_normal(shape) * (random.random(shape) < 0.05),
    "positive": lambda random, shape: 5 + random.random(shape),
    "negative": lambda random, shape: -5 - random.random(shape) / 16,
    "two values": lambda random, shape: random.choice([-1.0, 3.0], shape),
    "one odd": lambda random, shape: np.where(random.random(shape) < 1 / 64, -1.0, 2.0),
}

WORTHS: dict[str, Kind] = {
    "even": lambda random, shape: np.ones(shape),
    "uneven": lambda random, shape: np.exp(3 * random.standard_normal(shape)),
    "zeros": lambda random, shape: np.zeros(shape),
    "mostly zeros": lambda random, shape: random.random(shape) * (random.random(shape) < 0.03),
    "huge": lambda random, shape: 1e30 * random.random(shape),
    "tiny": lambda random, shape: 1e-30 * random.random(shape),
}


@given(
    bits=st.sampled_from(AFFINE_BITS),
    group_size=st.sampled_from(AFFINE_GROUPS),
    kind=st.sampled_from(sorted(KINDS)),
    worth=st.sampled_from(sorted(WORTHS)),
    magnitude=st.sampled_from([1e-30, 1e-6, 1.0, 1e4, 1e30]),
    from_fp4=st.booleans(),
    dtype=st.sampled_from([mx.bfloat16, mx.bfloat16, mx.float16, mx.float32]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150)
def test_weighted_error_is_at_most_that_of_nearest(
    bits: int, group_size: int, kind: str, worth: str, magnitude: float, from_fp4: bool, dtype: mx.Dtype, seed: int
) -> None:
    random, form = np.random.default_rng(seed), Format("affine", bits, group_size)
    magnitude = min(max(magnitude, 1e-3), 1e2) if dtype == mx.float16 else magnitude
    values = mx.array((magnitude * KINDS[kind](random, (3, 2 * group_size))).astype(np.float32)).astype(dtype)
    moments = WORTHS[worth](random, (1, 2 * group_size))[0].astype(np.float32)
    made = quantize_weighted(values, form, Hints(moments, from_fp4))
    before, after = (group_errors(values, arrays, form, moments) for arrays in (nearest(values, form), made))
    assert [array.dtype for array in made] == [mx.uint32, dtype, dtype]
    assert np.isfinite(after).all()
    assert (after <= before).all(), (before, after)


def plain_search(values: Double, worth: Double, form: Format, start: tuple[Double, Double]) -> Double:
    """Weighted error of each group by the whole search in float64: every start refitted three times."""
    groups = values.reshape(len(values), -1, form.group_size)
    h = np.broadcast_to(worth.reshape(-1, form.group_size), groups.shape)
    top = 2**form.bits - 1

    def codes(s: Double, b: Double) -> Double:
        found: Double = np.clip(np.rint((groups - b[..., None]) / s[..., None]), 0, top)
        return found

    def lost(s: Double, b: Double) -> Double:
        error: Double = (h * (groups - codes(s, b) * s[..., None] - b[..., None]) ** 2).sum(axis=-1)
        return error

    def rounded(array: Double) -> Double:
        return np.array(mx.array(array.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32)).astype(np.float64)

    best = lost(*start)
    total, weighted = h.sum(axis=-1), (h * groups).sum(axis=-1)
    for low in SHRINKS[form.bits]:
        for high in SHRINKS[form.bits]:
            b = groups.min(axis=-1) * low
            s = (groups.max(axis=-1) * high - b) / top
            for _ in range(3):
                q = codes(s, b)
                a, c, d = (h * q).sum(axis=-1), (h * q * q).sum(axis=-1), (h * q * groups).sum(axis=-1)
                s = rounded((total * d - a * weighted) / (total * c - a * a))
                b = rounded((weighted - s * a) / total)
                best = np.minimum(best, lost(s, b))
    return best


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_search_is_near_the_one_that_refits_every_start(bits: int) -> None:
    random, form = np.random.default_rng(bits), Format("affine", bits, 64)
    values = mx.array(random.standard_normal((32, 512)).astype(np.float32) / 50).astype(mx.bfloat16)
    moments = np.exp(1.5 * random.standard_normal(512)).astype(np.float32)
    mlx = nearest(values, form)
    scale, bias = (np.array(each.astype(mx.float32)).astype(np.float64) for each in mlx[1:])
    exact = np.array(values.astype(mx.float32)).astype(np.float64)
    best = plain_search(exact, moments.astype(np.float64), form, (scale, bias)).sum()
    made = group_errors(values, quantize_weighted(values, form, Hints(moments)), form, moments).sum()
    assert best * 0.98 < made < best * BELOW_REFERENCE
    assert made < 0.72 * group_errors(values, mlx, form, moments).sum()


def test_zero_on_a_code_lowers_the_error_of_weights_on_the_fp4_grid() -> None:
    random, form = np.random.default_rng(5), Format("affine", 4, 64)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    drawn = 1.7 * random.standard_normal((64, 1024))
    values = mx.array(np.sign(drawn) * grid[np.abs(np.abs(drawn)[..., None] - grid).argmin(axis=-1)]).astype(
        mx.bfloat16
    )
    moments = np.exp(1.5 * random.standard_normal(1024)).astype(np.float32)
    made = [quantize_weighted(values, form, Hints(moments, from_fp4)) for from_fp4 in (False, True)]
    without, with_zero = (group_errors(values, arrays, form, moments) for arrays in made)
    assert (with_zero <= without).all()
    assert with_zero.sum() < 0.9 * without.sum()


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_rows_do_not_depend_on_what_is_quantized_with_them(bits: int) -> None:
    random, form = np.random.default_rng(0), Format("affine", bits, 32)
    values = mx.array(random.standard_normal((2500, 96)).astype(np.float32)).astype(mx.bfloat16)
    hints = Hints(random.random(96).astype(np.float32), from_fp4=True)
    whole = quantize_weighted(values, form, hints)
    for rows in (slice(0, 1), slice(1, 130), slice(2000, 2500)):
        for array, part in zip(whole, quantize_weighted(values[rows], form, hints), strict=True):
            assert mx.array_equal(array[rows], part)


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_codes_are_packed_as_mlx_packs_them(bits: int) -> None:
    random = np.random.default_rng(bits)
    codes = random.integers(0, 2**bits, (64, 40), np.uint8)
    codes[:2] = [[0], [2**bits - 1]]  # so that each group's scale is one and its bias zero
    values = mx.array(codes.T.astype(np.float32))
    packed, scales, biases = mx.quantize(values, group_size=64, bits=bits)
    stored = mx.array(np.ascontiguousarray(pack(codes, bits).T))
    ones, zeros = mx.ones_like(scales), mx.zeros_like(biases)
    assert mx.array_equal(mx.dequantize(stored, ones, zeros, group_size=64, bits=bits), values)
    if bool((scales == 1).all()) and bool((biases == 0).all()):
        assert mx.array_equal(stored, packed)
