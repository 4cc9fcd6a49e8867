"""Random weights, byte for byte the same on every machine, on the scale that keeps a forward pass alive."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hubtool.checkpoint.tensors import TensorSpec

Bytes: TypeAlias = NDArray[np.uint8]

FP4_BLOCK, FP8_BLOCK = 32, 128
"""Columns that share a scale in FP4, and in FP8."""

CHUNK_WORDS = 1 << 17
"""Random 64-bit words generated at a time, 1 MiB of them, rounded so that no draw is split."""

FP4_RMS = math.sqrt((0 + 0.25 + 1 + 2.25 + 4 + 9 + 16 + 36) / 8)
"""Root mean square of the sixteen e2m1 values.

Its eight magnitudes 0 .5 1 1.5 2 3 4 6 are nearly the mid-octiles of |N(0, 3)|: uniform nibbles are a normal sample.
"""

FP8_STD = 96.0
"""Of the stored e4m3 values, whose largest is 448: a block's extreme, about 4 standard deviations, just fits."""

SCALE_STEPS = np.array([-1, 0, 0, 1])
"""A block's exponent against its tensor's: they vary, as trained ones do."""

SCALE_STEPS_RMS = math.sqrt((1 / 4 + 1 + 1 + 4) / 4)
"""What `SCALE_STEPS` multiply a tensor's root mean square by."""

LOGITS_STD = 3.0
"""Of the head's output: far from uniform and far from one-hot."""

DISTRIBUTIONS: Mapping[str, tuple[float, float]] = {
    "norm.weight": (1.0, 0.1),
    "attn_sink": (0.0, 0.5),
    ".ape": (0.0, 0.5),
    "gate.bias": (0.0, 0.1),
    "_base": (0.0, 1.0),
    "_scale": (1.0, 0.1),
    "embed.weight": (0.0, 1.0),
    "embed_tokens.weight": (0.0, 1.0),
    "A_log": (0.5, 0.3),
    ".D": (1.0, 0.1),
    ".sinks": (0.0, 0.5),
    "bias": (0.0, 0.1),
}
"""Mean and standard deviation by the end of a name; every other tensor is (0, 1/sqrt(columns)), which keeps variance.

The hyper-connections (`hc_*`) so get mixes of about unit variance, which the Sinkhorn iterations do not flatten.
"""


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """The bytes of each tensor of one random checkpoint, in any order.

    Attributes:
        specs: Every tensor by name; a `.scale` needs to know its weight.
        n_routed_experts: The experts that `tid2eid` tells apart.
        seed: Another seed gives another checkpoint.
    """

    specs: Mapping[str, TensorSpec]
    n_routed_experts: int
    seed: int

    def chunks(self, spec: TensorSpec) -> Iterator[Bytes]:
        """The stored bytes of a tensor, little-endian, a few megabytes at a time."""
        match spec.dtype:
            case "U8" if spec.name.endswith("_scales"):
                steps = _exponents(TensorSpec(spec.name, "I8", (1, spec.shape[-1] * FP4_BLOCK // 2)))
                yield from (steps[drawn % len(steps)] for drawn in self._draws(spec, spec.size, 1))
            case "I8" | "U8":
                yield from self._draws(spec, spec.size, 1)
            case "F8_E4M3":
                codes = _fp8_codes()
                yield from (codes[drawn] for drawn in self._draws(spec, spec.size, 1))
            case "F8_E8M0":
                steps = _exponents(self.specs[spec.name.removesuffix("scale") + "weight"])
                yield from (steps[drawn % len(steps)] for drawn in self._draws(spec, spec.size, 1))
            case "I64":
                tokens, chosen = spec.shape
                for drawn in self._draws(spec, tokens, 4 * self.n_routed_experts):
                    yield _different_experts(drawn.view("<u4").reshape(-1, self.n_routed_experts), chosen)
            case _:
                mean, std = _distribution(spec)
                for drawn in self._draws(spec, spec.size, 2):
                    yield _normal(drawn.view("<u2"), mean, std, spec.dtype)

    def _draws(self, spec: TensorSpec, count: int, nbytes: int) -> Iterator[Bytes]:
        """Uniform bytes, `nbytes` for each of `count` draws, that depend on nothing but the seed and the tensor's name.

        Raw output of a bit generator: numpy promises that it does not change between versions, as it does not for its
        distributions (NEP 19).
        """
        key = hashlib.sha256(f"{self.seed} {spec.name}".encode()).digest()
        generator = np.random.SFC64(np.random.SeedSequence(int.from_bytes(key, "little")))
        left, whole = count * nbytes, nbytes * max(1, CHUNK_WORDS // nbytes)
        while left > 0:
            words = generator.random_raw(min(whole, -(-left // 8))).astype("<u8", copy=False)
            yield words.view(np.uint8)[:left]
            left -= words.nbytes


def _exponents(weight: TensorSpec) -> Bytes:
    """The e8m0 bytes that bring a weight to a standard deviation of about 1/sqrt(columns), equally likely."""
    packed = weight.dtype == "I8"
    columns, stored = (2 * weight.shape[1], FP4_RMS) if packed else (weight.shape[1], FP8_STD)
    exponent = round(math.log2(1 / math.sqrt(columns) / stored / SCALE_STEPS_RMS))
    steps: Bytes = (127 + exponent + SCALE_STEPS).astype(np.uint8)
    return steps


def _different_experts(keys: NDArray[np.uint32], chosen: int) -> Bytes:
    """For each row of random keys, one an expert, the first experts in the order of the keys."""
    order = np.argsort(keys, axis=1, kind="stable")
    return _stored(order[:, :chosen].astype("<i8"))


def _distribution(spec: TensorSpec) -> tuple[float, float]:
    if spec.name.endswith("weight_scale_inv"):  # of a block's columns, as many as there are in all or fewer
        scale = 1 / math.sqrt(spec.shape[-1] * FP8_BLOCK) / FP8_STD
        return scale, scale / 10
    if spec.name in ("head.weight", "lm_head.weight"):
        return 0.0, LOGITS_STD / math.sqrt(spec.shape[-1])
    for ending, found in DISTRIBUTIONS.items():
        if spec.name.endswith(ending):
            return found
    return 0.0, 1 / math.sqrt(spec.shape[-1])


def _normal(slots: NDArray[np.uint16], mean: float, std: float, dtype: str) -> Bytes:
    values = _normal_quantiles(1 << 16)[slots] * np.float32(std) + np.float32(mean)
    if dtype == "F32":
        return _stored(values.astype("<f4", copy=False))
    # bfloat16 is float32's upper half, rounded to nearest even.
    bits = values.view(np.uint32)
    return _stored(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2"))


def _stored(array: NDArray[Any]) -> Bytes:
    stored: Bytes = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return stored


@cache
def _normal_quantiles(count: int) -> NDArray[np.float32]:
    """The midpoints of `count` equally likely slices of N(0, 1), in order."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((slot + 0.5) / count) for slot in range(count)], dtype=np.float32)


@cache
def _fp8_codes() -> Bytes:
    """256 equally likely e4m3 bytes that make a normal sample of standard deviation `FP8_STD`; none is NaN (x7f)."""
    finite = np.arange(0x7F)
    exponent, mantissa = finite >> 3, finite & 7
    magnitudes = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    wanted = FP8_STD * _normal_quantiles(256)
    nearest = np.abs(np.abs(wanted)[:, None] - magnitudes).argmin(axis=1)
    codes: Bytes = (nearest | np.where(wanted < 0, 0x80, 0)).astype(np.uint8)
    return codes
