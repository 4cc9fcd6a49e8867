"""Formats: how a parameter is stored, as MLX names it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
"""Bits of `mx.quantize(mode="affine")`."""

AFFINE_GROUPS = (32, 64, 128)
"""Group sizes of `mx.quantize(mode="affine")`."""

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4", "bfloat16", "float32", "published", "repack"]

FIXED_FORMATS: Mapping[str, tuple[int, int]] = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
"""Bits and group size of MLX's modes that have no choice of them (`mx.quantize`)."""

FITTED_MODES: tuple[Mode, ...] = ("affine",)
"""Modes whose scales can be fitted to statistics."""

_SPOKEN = {"published": "as published", "repack": "repacked without loss"}
_CAST_DTYPES = {"bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Format:
    """How a parameter is stored: a quantization of MLX, a float dtype, or as published.

    Attributes:
        mode: MLX's quantization mode; `bfloat16` or `float32` (integers stay as they are); `published` (what is
            encoded in FP8 or FP4 is decoded to BF16); or `repack` (FP4 as mxfp4, FP8 as mxfp8, the rest as published:
            lossless).
        bits: Bits a weight, 0 if not quantized.
        group_size: Weights that share a scale, 0 if not quantized.
    """

    mode: Mode
    bits: int = 0
    group_size: int = 0

    @property
    def quantized(self) -> bool:
        """Whether the weight is packed, with scales beside it."""
        return self.bits > 0

    @property
    def has_biases(self) -> bool:
        """Whether there is a bias beside each scale."""
        return self.mode == "affine"

    def scales_dtype(self, weight: str) -> str:
        """Safetensors dtype of the scales: that of the weight for affine, E8M0 / E4M3 bytes else."""
        return weight if self.mode == "affine" else "U8"

    def cast(self, dtype: str) -> str:
        """The dtype in which a parameter of `dtype` is stored when it is not quantized."""
        return _CAST_DTYPES.get(self.mode, dtype) if dtype in ("BF16", "F16", "F32") else dtype

    def __str__(self) -> str:
        """As people say it: `affine 3-bit, group 128`, `mxfp4`, `as published`."""
        if self.mode == "affine":
            return f"affine {self.bits}-bit, group {self.group_size}"
        return _SPOKEN.get(self.mode, self.mode)


PUBLISHED = Format("published")


def lossless_format(encoding: str) -> Format:
    """The format that holds a published encoding bit for bit: mxfp4 for `fp4`, mxfp8 for `fp8`, else as published."""
    return _LOSSLESS.get(encoding, PUBLISHED)


_LOSSLESS: Mapping[str, Format] = {
    "fp4": Format("mxfp4", *FIXED_FORMATS["mxfp4"]),
    "fp8": Format("mxfp8", *FIXED_FORMATS["mxfp8"]),
}
