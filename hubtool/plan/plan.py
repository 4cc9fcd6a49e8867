"""The plan: every tensor of the output with its dtype, shape, file and byte offset, before one weight is read.

Pure: it sees names, dtypes, shapes and a recipe; no weights, no MLX, no files.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from hubtool import units
from hubtool.checkpoint.source import Source
from hubtool.checkpoint.statistics import Inputs, Statistics
from hubtool.checkpoint.tensors import DTYPE_NBYTES, TensorSpec, encode_header
from hubtool.errors import RecipeError
from hubtool.models import Box, Component, Model, OwnFormat, Parameter, architecture_of, read_model
from hubtool.plan import mlx
from hubtool.plan.fitting import choose_fit
from hubtool.plan.format import PUBLISHED, Format, Mode, lossless_format
from hubtool.plan.recipe import Recipe, load_recipe
from hubtool.plan.rule import Fit, Rule

SHARD_NBYTES = 5 * units.GIB
"""Most bytes of tensors in a shard (`MAX_FILE_SIZE_GB = 5` of mlx_lm/utils.py, which counts in GiB)."""

PIECE_SIZE = 8 * 1024 * 1024
"""Most weights in a piece: one expert projection of V4-Flash (2048 x 4096)."""

TRACED_PIECE_SIZE = 2 * 1024 * 1024
"""Most weights in a piece that a program computes: every array on the way takes memory of its own."""

TRACED_ROWS = 128
"""Rows of such a piece are a multiple of this: the FP8 blocks that such programs decode have as many."""

BASE_NBYTES = 90 * units.MIB
"""The process itself: interpreter, MLX, NumPy, hubtool. Measured on Linux x86-64, as are the next two."""

SOURCE_TENSOR_NBYTES = 800
"""What one published tensor takes: its header entry, its names, its place in the plan."""

TRACED_TENSOR_NBYTES = 6500
"""What tracing takes for each of them: MLX's events and the program's nodes (18,867 tensors: 120 MB)."""

TILE_NBYTES = 22 * units.MIB
"""What a thread that decodes or quantizes needs beside the piece: a tile, and MLX's arrays made of it."""

FIT_NBYTES = 8 * units.MIB
"""What fitting scales needs beside that: some arrays of a chunk of weights, in float32 and float64."""

FIT_CANDIDATES = "1"
"""Changes whenever the same statistics would give other scales than before."""

How = Literal["copy", "cast", "repack", "quantize"]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of the output; `shard` counts from 0, `offset` is in bytes from the beginning of that file."""

    spec: TensorSpec
    shard: int
    offset: int


class Piece(msgspec.Struct, frozen=True, gc=False):
    """The smallest unit of conversion: some whole parts of a step, or some rows of one.

    Attributes:
        step: Index of the step in the plan.
        first_part: Index of the first part in the step's parameter.
        parts: How many parts; with more than one, all their rows.
        start: First row of each part.
        stop: Row after the last.
    """

    step: int
    first_part: int
    parts: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.parts * (self.stop - self.start)


@dataclass(frozen=True, slots=True)
class Step:
    """How one parameter becomes one to three tensors of the output.

    Attributes:
        parameter: What it is and which published tensors it comes from.
        format: How it is stored.
        how: `copy` (the published bytes), `cast` (decoded or converted to another float dtype), `repack` (FP4 to
            mxfp4, FP8 to mxfp8, without loss) or `quantize` (decoded to BF16, then `mx.quantize`).
        outputs: weight, and where quantized scales, and where affine biases.
        kept: Why it stays as published although a rule would quantize it, empty where none would.
        fit: How the scales are found, where it is quantized.
        inputs: What calibration measured of its input, None if that is not known.
    """

    parameter: Parameter
    format: Format
    how: How
    outputs: tuple[OutputTensor, ...]
    kept: str = ""
    fit: Fit = "nearest"
    inputs: Inputs | None = None

    @property
    def made_as(self) -> tuple[How, Format, Fit, Inputs | None]:
        """What steps of several plans for one parameter share if they store the same bytes and measure the same."""
        return self.how, self.format, self.fit, self.inputs

    @property
    def nbytes(self) -> int:
        """Bytes of all outputs."""
        return sum(output.spec.nbytes for output in self.outputs)

    @property
    def rows(self) -> int:
        """Rows of one part: its first axis."""
        return self.parameter.part_shape[0] if self.parameter.part_shape else 1

    @property
    def columns(self) -> int:
        """Logical elements of one row of a part."""
        return prod(self.parameter.part_shape[1:])

    def pieces(self, index: int) -> Iterator[Piece]:
        """The pieces of this step, which is number `index`: at most `PIECE_SIZE` weights where a scale block allows.

        They depend on the source alone, so plans of one model have the same pieces.
        """
        parts, block, size = self.parameter.part_count, self.parameter.block[0], PIECE_SIZE
        if (program := self.parameter.program) is not None:
            if program.whole is not None:
                yield Piece(index, 0, parts, 0, self.rows)
                return
            block, size = TRACED_ROWS, TRACED_PIECE_SIZE
        together = size // (self.rows * self.columns)
        if together > 1 and (self.rows % block == 0 or self.parameter.program is not None):
            for first in range(0, parts, together):
                yield Piece(index, first, min(together, parts - first), 0, self.rows)
            return
        rows = max(block, size // self.columns // block * block)
        for part in range(parts):
            for start in range(0, self.rows, rows):
                yield Piece(index, part, 1, start, min(self.rows, start + rows))

    @property
    def source_row_nbytes(self) -> int:
        """Bytes that one row of a part takes as published, scales included."""
        match self.parameter.encoding:
            case "fp4":
                return self.columns // 2 + -(-self.columns // self.parameter.block[1])
            case "fp8":
                return self.columns + -(-self.columns // self.parameter.block[1])
            case _:
                return self.columns * DTYPE_NBYTES[self.parameter.dtype]

    @property
    def largest_piece(self) -> Piece:
        """The piece of the most rows."""
        return max(self.pieces(0), key=lambda piece: piece.rows)

    def loaded_nbytes(self, piece: Piece) -> int:
        """Bytes of memory that a piece takes as it was read, and where it is computed by a program, until it is."""
        program = self.parameter.program
        return piece.rows * self.source_row_nbytes if program is None else program.peak_nbytes(self.box(piece))

    def box(self, piece: Piece) -> Box:
        """The rows of a piece as a box of the parameter's program."""
        assert self.parameter.program is not None, self.parameter.path
        shape = self.parameter.program.weight.shape
        first = (piece.first_part, piece.first_part + piece.parts)
        leading = (first,) if self.parameter.stacked else ()
        rows = ((piece.start, piece.stop),) if self.parameter.part_shape else ()
        return (*leading, *rows, *((0, side) for side in shape[len(leading) + len(rows) :]))

    def reads(self, piece: Piece) -> tuple[str, ...]:
        """Published tensors that a piece is made of, scales included, in the order of their need."""
        if self.parameter.program is not None:
            return tuple(dict.fromkeys(name for name, _ in self.parameter.program.reads(self.box(piece))))
        parts = self.parameter.parts[piece.first_part : piece.first_part + piece.parts]
        return tuple(name for part in parts for name in (part.weight, part.scale) if name is not None)

    def row_nbytes(self, output: OutputTensor) -> int:
        """Bytes that one row of a part takes in `output`."""
        return output.spec.nbytes // (self.rows * self.parameter.part_count)

    def output_range(self, output: OutputTensor, piece: Piece) -> tuple[int, int]:
        """Where a piece is written: offset in bytes from the beginning of the file, and bytes."""
        row_nbytes = self.row_nbytes(output)
        first = piece.first_part * self.rows + piece.start
        return output.offset + first * row_nbytes, piece.rows * row_nbytes


@dataclass(frozen=True)
class Shard:
    """A file of the output.

    Attributes:
        file: Its name.
        header: Its first bytes: the length and the JSON header.
        tensors: In the order of their bytes.
    """

    file: str
    header: bytes
    tensors: tuple[OutputTensor, ...]

    @property
    def data_nbytes(self) -> int:
        """Bytes of tensors."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.data_nbytes


@dataclass(frozen=True, slots=True)
class Share:
    """Totals of one component."""

    component: Component
    parameters: int
    nbytes: int
    formats: tuple[str, ...]

    @property
    def bits(self) -> float:
        """Effective bits of the component."""
        return units.effective_bits(self.nbytes, self.parameters)


@dataclass(frozen=True)
class Plan:
    """A model, a recipe, statistics where scales are fitted to them, and every byte that follows."""

    model: Model
    recipe: Recipe
    steps: tuple[Step, ...]
    shards: tuple[Shard, ...]
    statistics: Statistics | None = None

    @cached_property
    def nbytes(self) -> int:
        """Bytes of tensors, headers not counted: the index's total_size."""
        return sum(shard.data_nbytes for shard in self.shards)

    @property
    def parameters(self) -> int:
        """Logical parameters."""
        return self.model.size

    @property
    def effective_bits(self) -> float:
        """Bits stored per logical parameter, unrounded."""
        return units.effective_bits(self.nbytes, self.parameters)

    @property
    def tensors(self) -> int:
        """Tensors of the output."""
        return sum(len(shard.tensors) for shard in self.shards)

    @property
    def dtypes(self) -> dict[str, int]:
        """Bytes by safetensors dtype, the largest first."""
        counts: Counter[str] = Counter()
        for shard in self.shards:
            for tensor in shard.tensors:
                counts[tensor.spec.dtype] += tensor.spec.nbytes
        return dict(counts.most_common())

    @property
    def disk_nbytes(self) -> int:
        """Bytes of the output's weight files, headers counted."""
        return sum(shard.nbytes for shard in self.shards)

    def peak_nbytes(self, jobs: int) -> int:
        """Most memory of a process that carries out this plan, in bytes: see `peak_nbytes`."""
        return peak_nbytes([self], jobs)

    def machines(self) -> dict[int, bool]:
        """For each size of unified memory in GB, whether the weights fit with room to run."""
        return {size: units.fits(self.nbytes, size) for size in units.MEMORY_SIZES}

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """Parameters and bytes by component, in the components' order; absent ones are left out."""
        parameters: Counter[Component] = Counter()
        nbytes: Counter[Component] = Counter()
        formats: dict[Component, Counter[str]] = defaultdict(Counter)
        for step in self.steps:
            component = step.parameter.component
            parameters[component] += step.parameter.size
            nbytes[component] += step.nbytes
            if step.parameter.quantizable:
                formats[component][spoken_format(step)] += step.parameter.size
        return tuple(
            Share(
                component,
                parameters[component],
                nbytes[component],
                tuple(f for f, _ in formats[component].most_common()),
            )
            for component in Component
            if parameters[component]
        )

    @cached_property
    def kept(self) -> dict[str, tuple[str, ...]]:
        """Modules that stay as published although a rule would quantize them, by the reason."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for step in self.steps:
            if step.kept:
                reasons[step.kept].append(step.parameter.subject)
        return {reason: tuple(modules) for reason, modules in reasons.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what decides every byte of the output: headers, and how and from what each tensor is made."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(shard.header)
        for step in self.steps:
            parameter = step.parameter
            digest.update(f"{parameter.path} {step.format} {step.how} {parameter.encoding} {parameter.block}".encode())
            for part in parameter.parts:
                digest.update(f" {part.weight} {part.scale}".encode())
            if parameter.program is not None:
                digest.update(f" {parameter.program.digest} {parameter.computed}".encode())
            if step.fit != "nearest" and step.inputs is not None:
                digest.update(f" {step.fit} {FIT_CANDIDATES} {step.inputs.digest}".encode())
        return digest.hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """Every piece, in file order."""
        for index, step in enumerate(self.steps):
            yield from step.pieces(index)

    def quantization(self) -> dict[str, Any] | None:
        """The `quantization` block of config.json, or None if nothing is quantized."""
        return mlx.quantization(((step.parameter, step.format) for step in self.steps), self.effective_bits)


def peak_nbytes(plans: Sequence[Plan], jobs: int) -> int:
    """Most memory of a process that carries out `plans` of one model in one pass with `jobs` threads, in bytes.

    Each thread holds one piece as it was read and what each plan makes of it; nothing else grows with the model but
    what is known of the source's tensors.
    """
    model = plans[0].model
    traced = architecture_of(model.config).traced
    tensors = sum(len(each.names) if traced else 2 * each.part_count for each in model.parameters)
    tensors += sum(dropped.tensors for dropped in model.dropped)
    piece = 0
    for steps in zip(*(plan.steps for plan in plans), strict=True):
        largest = steps[0].largest_piece
        row_nbytes = computing = 0
        for step in {step.made_as: step for step in steps if step.how in ("cast", "quantize")}.values():
            row_nbytes += sum(step.row_nbytes(output) for output in step.outputs)
            computing = max(computing, TILE_NBYTES + (FIT_NBYTES if step.fit == "weighted" else 0))
        piece = max(piece, steps[0].loaded_nbytes(largest) + largest.rows * row_nbytes + computing)
    known = SOURCE_TENSOR_NBYTES + (TRACED_TENSOR_NBYTES if traced else 0)
    return BASE_NBYTES + tensors * known + jobs * piece


def spoken_format(step: Step) -> str:
    """How a step's weight is stored, as people say it: `affine 3-bit, group 128`, `mxfp4`, `bf16`."""
    if step.format.quantized:
        return f"{step.format}, fitted" if step.fit == "weighted" else str(step.format)
    return step.outputs[0].spec.dtype.lower()


def make_plan(
    model: Model, recipe: Recipe, shard_nbytes: int = SHARD_NBYTES, statistics: Statistics | None = None
) -> Plan:
    """The plan that stores `model` as `recipe` says, with at most `shard_nbytes` bytes of tensors in a shard.

    With statistics, scales are fitted to them wherever a rule does not say otherwise and they know the module.

    Raises:
        RecipeError: A rule matches nothing and is not optional; a group does not divide a row; a parameter that MLX
            cannot read as published has no rule; a rule fits scales, and there are no statistics.
        SourceError: The statistics are of another model.
    """
    chosen = [_choose(parameter, model, recipe) for parameter in model.parameters]
    used = {choice.rule.number for choice in chosen if choice.rule}
    for rule in recipe.rules:
        if rule.number not in used and not rule.optional:
            raise RecipeError(
                "matches no module, or none that an earlier rule has left",
                where=f"{recipe.file}: {rule}",
                remedy="correct the rule, or write `optional = true`",
            )
    if not used:
        raise RecipeError(
            "no rule matches any module",
            where=recipe.file,
            found=", ".join(sorted(model.components)),
            expected="a rule for a component or a module of this model",
            remedy="take another recipe, or add a rule",
        )
    decided = [
        (parameter, choice, _how(parameter, choice.format), mlx.output_specs(parameter, choice.format))
        for parameter, choice in zip(model.parameters, chosen, strict=True)
    ]
    placed = _place([spec for *_, specs in decided for spec in specs], shard_nbytes)
    shards = _make_shards(placed)
    tensors = iter([tensor for shard in shards for tensor in shard.tensors])
    steps = tuple(
        Step(
            parameter,
            choice.format,
            how,
            tuple(next(tensors) for _ in specs),
            choice.kept,
            *(choose_fit(parameter, choice.format, choice.rule, recipe, statistics) if how == "quantize" else ()),
        )
        for parameter, choice, how, specs in decided
    )
    return Plan(model, recipe, steps, shards, statistics)


@dataclass(frozen=True, slots=True)
class _Choice:
    format: Format
    rule: Rule | None
    kept: str = ""


def _choose(parameter: Parameter, model: Model, recipe: Recipe) -> _Choice:
    rule = recipe.select(parameter, model)
    if rule is None:
        if parameter.encoding != "plain":
            raise RecipeError(
                f"no rule for a weight in {parameter.encoding.upper()}, which MLX cannot hold as it is",
                where=f"{recipe.file}: {parameter.subject}",
                remedy='add a rule for it; mode = "published" decodes it to BF16, mode = "repack" keeps its bytes',
            )
        return _Choice(PUBLISHED, None)
    if rule.format.mode == "repack":
        return _Choice(lossless_format(parameter.encoding), rule)
    if not rule.format.quantized:
        return _Choice(rule.format, rule)
    if parameter.own is not None and not rule.overrule:
        return _own_choice(parameter, parameter.own, rule)
    columns = parameter.shape[-1]
    for group_size in rule.group_sizes:
        if columns % group_size == 0:
            return _Choice(replace(rule.format, group_size=group_size), rule)
    sizes = ", ".join(map(str, rule.group_sizes))
    if rule.lenient:
        return _Choice(PUBLISHED, rule, f"no group size of the recipe ({sizes}) divides rows of {columns}")
    raise RecipeError(
        "group does not divide a row",
        where=f"{recipe.file}: {rule}: {parameter.subject}",
        found=f"rows of {columns}",
        expected=f"a multiple of {sizes}",
        remedy="take a smaller group_size for this module, list several, or leave it as published",
    )


def _own_choice(parameter: Parameter, own: OwnFormat, rule: Rule) -> _Choice:
    """What the model's class asks for a module that a rule would quantize otherwise."""
    if not own.bits:
        return _Choice(PUBLISHED, rule, "mlx-lm's class of this model keeps it unquantized")
    if parameter.shape[-1] % own.group_size:
        return _Choice(PUBLISHED, rule, f"mlx-lm's class asks for groups of {own.group_size}, which do not divide it")
    return _Choice(Format(cast(Mode, own.mode), own.bits, own.group_size), rule)


def _how(parameter: Parameter, form: Format) -> How:
    if form.quantized:
        return "repack" if form == lossless_format(parameter.encoding) else "quantize"
    return "copy" if parameter.encoding == "plain" and form.cast(parameter.dtype) == parameter.dtype else "cast"


def _place(specs: Sequence[TensorSpec], shard_nbytes: int) -> list[list[TensorSpec]]:
    """Specs by shard, filled greedily in order; one that is larger than a shard has one for itself."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.nbytes > shard_nbytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    return shards


def _make_shards(placed: Sequence[Sequence[TensorSpec]]) -> tuple[Shard, ...]:
    shards = []
    for index, specs in enumerate(placed):
        header = encode_header(specs, mlx.HEADER_METADATA)
        position, tensors = len(header), []
        for spec in specs:
            tensors.append(OutputTensor(spec, index, position))
            position += spec.nbytes
        shards.append(Shard(f"model-{index + 1:05d}-of-{len(placed):05d}.safetensors", header, tuple(tensors)))
    return tuple(shards)


def plan_source(source: Source, recipes: Sequence[str], statistics: Path | None = None) -> tuple[Plan, ...]:
    """A plan for each recipe, by name or file; with scales fitted to a file of statistics if there is one.

    Raises:
        SourceError: The checkpoint or the statistics cannot be used.
        RecipeError: A recipe cannot be used, or not for this checkpoint.
    """
    chosen = [load_recipe(recipe) for recipe in recipes]
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    opened = Statistics(statistics) if statistics else None
    return tuple(make_plan(model, recipe, statistics=opened) for recipe in chosen)
