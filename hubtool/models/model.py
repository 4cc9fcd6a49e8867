"""A model as MLX will hold it, described by the published tensors that it is made of. No bits, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Any, Literal

import msgspec

from hubtool.models.program import Program

Encoding = Literal["plain", "fp8", "fp4", "fp8_scaled"]
"""How a published matrix is stored: as its dtype says, E4M3 with E8M0 block scales, packed E2M1 with E8M0 row scales,
or E4M3 with float scales."""


class Component(StrEnum):
    """The parts of a model that recipes treat differently and readers ask about."""

    ROUTED_EXPERTS = "routed experts"
    SHARED_EXPERTS = "shared experts"
    MLP = "MLP"
    ATTENTION = "attention"
    COMPRESSOR_INDEXER = "compressor / indexer"
    STATE_SPACE = "state space"
    EMBEDDINGS = "embeddings"
    HEAD = "head"
    ROUTER = "router"
    NORMS = "norms"
    REST = "the rest"


@dataclass(frozen=True, slots=True)
class OwnFormat:
    """What the model's own class asks for a module: to be left as it is (`bits` 0), or a quantization of MLX."""

    mode: str = "affine"
    bits: int = 0
    group_size: int = 0


class Part(msgspec.Struct, frozen=True, gc=False):
    """One published tensor, with the name of its scale where it is encoded."""

    weight: str
    scale: str | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the MLX model before a recipe decides how it is stored.

    Attributes:
        module: Path of the MLX module, `model.layers.3.attn.wq_a`.
        name: Name within the module, `weight`.
        shape: Logical shape: unpacked, and with the experts stacked along the first axis.
        dtype: safetensors dtype of the decoded values: BF16 for an encoded weight (exact), else the published one.
        encoding: How the parts are stored.
        block: Rows and columns that share one scale, (1, 1) for plain parts.
        parts: The published tensors, one an expert for stacked ones, else a single one.
        component: The part of the model it belongs to.
        layer: Decoder layer index, None outside the layers.
        quantizable: Whether MLX can hold it quantized (weights of linears, switch linears and embeddings).
        stacked: Whether the parts are stacked along a first axis of their own.
        computed: Float dtype in which it is quantized, and which affine scales have.
        own: What the model's class asks for it, None if it leaves that to the recipe.
        program: How it is computed where it is not just made of `parts`, which are then none.
    """

    module: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    encoding: Encoding
    block: tuple[int, int]
    parts: tuple[Part, ...]
    component: Component
    layer: int | None
    quantizable: bool
    stacked: bool = False
    computed: str = "BF16"
    own: OwnFormat | None = None
    program: Program | None = None

    @property
    def path(self) -> str:
        """`module.name`, the tensor's name in the MLX file."""
        return f"{self.module}.{self.name}" if self.module else self.name

    @property
    def subject(self) -> str:
        """What recipes match: the module's path for its weight, else the parameter's own path."""
        return self.module if self.name == "weight" else self.path

    @property
    def size(self) -> int:
        """Logical parameters."""
        return prod(self.shape)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Logical shape of one part."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def part_count(self) -> int:
        """Parts: how many times `part_shape` it is."""
        return self.shape[0] if self.stacked else 1

    @property
    def names(self) -> tuple[str, ...]:
        """Published tensors that it is made of, in the order of their need, scales included."""
        if self.program is not None:
            return self.program.names
        return tuple(name for part in self.parts for name in (part.weight, part.scale) if name is not None)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Tensors of the source that are not converted, and why."""

    names: str
    tensors: int
    nbytes: int
    reason: str


@dataclass(frozen=True)
class Model:
    """Every parameter in the order in which the shards are filled.

    Attributes:
        architecture: config.json's `architectures[0]`.
        model_type: config.json's `model_type`.
        num_layers: Decoder layers.
        config: config.json as published.
        parameters: In file order.
        dropped: What of the source has no place in it.
    """

    architecture: str
    model_type: str
    num_layers: int
    config: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    dropped: tuple[Dropped, ...]

    @cached_property
    def size(self) -> int:
        """Logical parameters."""
        return sum(parameter.size for parameter in self.parameters)

    @cached_property
    def components(self) -> frozenset[Component]:
        """Those that it has."""
        return frozenset(parameter.component for parameter in self.parameters)
