"""Parts of a model that a recipe for a budget stores alike, and the formats that each may have."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hubtool.models import Component, Model, Parameter
from hubtool.plan import mlx
from hubtool.plan.format import FIXED_FORMATS, Format, Mode, lossless_format

GROUPS = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A format for all parameters of a part.

    Attributes:
        mode: MLX's mode.
        bits: Bits a weight.
        group_sizes: In order of preference, as a recipe's rule lists them.
    """

    mode: Mode
    bits: int
    group_sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        """`affine-3-128`, `mxfp4`."""
        return self.mode if self.mode in FIXED_FORMATS else f"{self.mode}-{self.bits}-{self.group_sizes[0]}"

    def format(self, columns: int) -> Format | None:
        """What rows of so many columns are stored as, None if no group size divides them."""
        sizes = [size for size in self.group_sizes if columns % size == 0]
        return Format(self.mode, self.bits, sizes[0]) if sizes else None

    def nbytes(self, parameters: Sequence[Parameter]) -> int:
        """Bytes of parameters that are stored so."""
        total = 0
        for parameter in parameters:
            form = self.format(parameter.shape[-1])
            assert form is not None, (parameter.path, self)
            total += sum(spec.nbytes for spec in mlx.output_specs(parameter, form))
        return total

    def keeps(self, parameter: Parameter) -> bool:
        """Whether nothing of a parameter is lost."""
        return self.format(parameter.shape[-1]) == lossless_format(parameter.encoding)


def affine(bits: int, group_size: int) -> Candidate:
    """An affine format with groups of this size, or smaller where that does not divide a row."""
    return Candidate("affine", bits, tuple(size for size in GROUPS if size <= group_size))


KEPT_FP4 = Candidate("mxfp4", *FIXED_FORMATS["mxfp4"][:1], (FIXED_FORMATS["mxfp4"][1],))

FP4_CANDIDATES = (KEPT_FP4, affine(3, 128))
"""Where the source is FP4, keeping it costs 4.25 bits and loses nothing: no affine format of four bits or more comes
near, and below it a mixture with 3 bits beats every other (measured on SmolLM2-135M put on the FP4 grid: 0.183 nats at
4.0 bits against 0.279 for affine formats alone)."""

CANDIDATES = (affine(8, 64), affine(6, 64), affine(5, 64), affine(4, 64), affine(4, 128), affine(3, 128))
"""For other sources; 3 bits in smaller groups are dominated by a mixture of 3 and 4 bits."""

LAST_RESORT = (affine(2, 64), affine(2, 128))
"""Where nothing else fits the budget."""


@dataclass(frozen=True)
class Part:
    """Weights of one layer and component that read inputs of one width: their formats are chosen together.

    Attributes:
        layer: Decoder layer.
        component: The component.
        columns: The width.
        parameters: The weights.
    """

    layer: int
    component: Component
    columns: int
    parameters: tuple[Parameter, ...]

    @property
    def name(self) -> str:
        """`3/routed experts/2048`: what measured costs are filed under."""
        return f"{self.layer}/{self.component}/{self.columns}"

    @property
    def size(self) -> int:
        """Weights."""
        return sum(parameter.size for parameter in self.parameters)

    def candidates(self, *, last_resort: bool = False) -> tuple[Candidate, ...]:
        """Formats that all of its rows can have."""
        from_fp4 = all(parameter.encoding == "fp4" for parameter in self.parameters)
        found = (FP4_CANDIDATES if from_fp4 else CANDIDATES) + (LAST_RESORT if last_resort else ())
        return tuple(each for each in found if each.format(self.columns) is not None)


MEASURED = (Component.ROUTED_EXPERTS, Component.SHARED_EXPERTS, Component.MLP, Component.ATTENTION)
"""Components whose formats are chosen; what else can be quantized is small, and wants precision."""


def parts_of(model: Model) -> tuple[Part, ...]:
    """The parts whose formats a recipe for a budget chooses, in the order of the files."""
    found: dict[tuple[int, Component, int], list[Parameter]] = defaultdict(list)
    for parameter in model.parameters:
        if parameter.quantizable and parameter.layer is not None and parameter.component in MEASURED:
            if parameter.own is None:
                found[parameter.layer, parameter.component, parameter.shape[-1]].append(parameter)
    parts = [Part(*key, tuple(parameters)) for key, parameters in found.items()]
    return tuple(part for part in parts if part.candidates())
