"""What a published checkpoint means, written down a second time: from the formats' definitions, and not from ours.

FP4 and E8M0 are those of OCP Microscaling Formats 1.0, E4M3 that of OCP 8-bit Floating Point 1.0.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import Tensor, read_tensors

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
FP4_COLUMNS = 32
FP8_BLOCK = 128

PROJECTIONS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def e4m3(byte: int) -> float:
    """The value of an E4M3 byte: a sign, four exponent bits with bias 7, three mantissa bits; no infinities."""
    if byte & 127 == 127:
        return float("nan")
    exponent, mantissa = byte >> 3 & 15, byte & 7
    magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -magnitude if byte >> 7 else magnitude


E4M3 = np.array([e4m3(byte) for byte in range(256)])

Values = NDArray[Any]


def decode(tensors: Mapping[str, Tensor], name: str) -> Values:
    """A published matrix as numbers: `name` ends in `.weight` where a `.scale` may stand beside it."""
    tensor = tensors[name]
    scale = tensors.get(f"{name.removesuffix('weight')}scale")
    if tensor.dtype == "I8":
        assert scale is not None
        pairs = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
        values = np.empty((tensor.shape[0], 2 * tensor.shape[1]))
        values[:, 0::2], values[:, 1::2] = E2M1[pairs & 15], E2M1[pairs >> 4]
        return np.ldexp(values, exponents(scale, values.shape, (1, FP4_COLUMNS)))
    if tensor.dtype == "F8_E4M3":
        assert scale is not None
        values = E4M3[np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)]
        return np.ldexp(values, exponents(scale, values.shape, (FP8_BLOCK, FP8_BLOCK)))
    return plain(tensor)


def exponents(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> NDArray[np.int64]:
    """b - 127 for every element of a matrix, from the E8M0 bytes b of its blocks."""
    assert scale.dtype == "F8_E8M0"
    stored = np.frombuffer(scale.data, np.uint8).reshape(scale.shape).astype(np.int64)
    rows, columns = (np.arange(side) // width for side, width in zip(shape, block, strict=True))
    spread: NDArray[np.int64] = stored[np.ix_(rows, columns)] - 127
    return spread


def plain(tensor: Tensor) -> Values:
    """A BF16, F32, I64 or U8 tensor as numbers."""
    if tensor.dtype == "BF16":
        bits = np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape).astype(np.float64)
    dtype = {"F32": np.float32, "I64": np.int64, "U8": np.uint8}[tensor.dtype]
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape).astype(np.float64)


def published_names(path: str, experts: int) -> list[str]:
    """The published tensors that the MLX tensor `path` is made of: one, or one an expert."""
    name = path.removeprefix("model.")
    if expert := re.fullmatch(r"(layers\.\d+\.ffn)\.switch_mlp\.(\w+)\.weight", name):
        return [f"{expert[1]}.experts.{n}.{PROJECTIONS[expert[2]]}.weight" for n in range(experts)]
    if shared := re.fullmatch(r"(layers\.\d+\.ffn\.shared_experts)\.(\w+)\.weight", name):
        return [f"{shared[1]}.{PROJECTIONS[shared[2]]}.weight"]
    name = re.sub(r"(attn|ffn)_hc\.(fn|base|scale)", r"hc_\1_\2", name)
    name = re.sub(r"^hc_head\.", "hc_head_", name)
    name = re.sub(r"^embed_tokens\b", "embed", name)
    name = re.sub(r"^lm_head\b", "head", name)
    return [name.replace("e_score_correction_bias", "bias")]


class Published:
    """A checkpoint's tensors, and the numbers of its MLX tensors, decoded when they are first asked for.

    Args:
        folder: The checkpoint, which must not change.
    """

    def __init__(self, folder: Path) -> None:
        self.tensors = read_tensors(folder)
        self.experts = int(json.loads((folder / "config.json").read_bytes())["n_routed_experts"])
        self._values: dict[str, Values] = {}

    def names(self, path: str) -> list[str]:
        """The published tensors that the MLX tensor `path` is made of."""
        return published_names(path, self.experts)

    def values(self, path: str) -> Values:
        """The numbers of the MLX tensor `path`, experts stacked; float32 or int64, which hold them exactly."""
        if path not in self._values:
            parts = [decode(self.tensors, name) for name in self.names(path)]
            values = np.stack(parts) if ".switch_mlp." in path else parts[0]
            self._values[path] = values.astype(np.int64 if path.endswith("tid2eid") else np.float32)
        return self._values[path]
