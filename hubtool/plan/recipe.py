"""Recipes: ordered rules that say how each module is stored; the first rule that matches wins."""

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from hubtool.errors import RecipeError
from hubtool.resources import recipes_dir

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
"""Bits of `mx.quantize(mode="affine")`."""

AFFINE_GROUPS = (32, 64, 128)
"""Group sizes of `mx.quantize(mode="affine")`."""

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4", "bfloat16", "float32", "published", "repack"]
LayerSelector = Literal["sensitive"]

FIXED_FORMATS: Mapping[str, tuple[int, int]] = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
"""Bits and group size of MLX's modes that have no choice of them (`mx.quantize`)."""

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

    @property
    def scales_dtype(self) -> str:
        """Safetensors dtype of the scales: those of the weight for affine, E8M0 / E4M3 bytes else."""
        return "BF16" if self.mode == "affine" else "U8"

    def cast(self, dtype: str) -> str:
        """The dtype in which a parameter of `dtype` is stored when it is not quantized."""
        return _CAST_DTYPES.get(self.mode, dtype) if dtype in ("BF16", "F16", "F32") else dtype

    def __str__(self) -> str:
        """As people say it: `affine 3-bit, group 128`, `mxfp4`, `as published`."""
        if self.mode == "affine":
            return f"affine {self.bits}-bit, group {self.group_size}"
        return _SPOKEN.get(self.mode, self.mode)


def lossless_format(encoding: str) -> Format:
    """The format that holds a published encoding bit for bit: mxfp4 for `fp4`, mxfp8 for `fp8`, else as published."""
    return _LOSSLESS.get(encoding, Format("published"))


_LOSSLESS: Mapping[str, Format] = {
    "fp4": Format("mxfp4", *FIXED_FORMATS["mxfp4"]),
    "fp8": Format("mxfp8", *FIXED_FORMATS["mxfp8"]),
}


class _RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    match: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    mode: Mode
    bits: int | None = None
    group_size: int | None = None
    layers: LayerSelector | None = None
    optional: bool = False
    note: str = ""


class _RecipeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    summary: str
    rule: Annotated[list[_RuleTable], msgspec.Meta(min_length=1)]
    description: str = ""


@dataclass(frozen=True)
class Rule:
    """One rule of a recipe.

    Attributes:
        number: Its place in the file, from 1.
        patterns: Module paths; `*` stands for one or part of one name between dots, `**` for any number of them.
        format: What it does.
        layers: Restricts it to a set of layers.
        optional: Whether it may match nothing.
        note: Why, in the recipe author's words.
    """

    number: int
    patterns: tuple[str, ...]
    format: Format
    layers: LayerSelector | None
    optional: bool
    note: str

    def matches(self, subject: str, layer: int | None, num_layers: int) -> bool:
        """Whether the rule is for the module path `subject` in `layer` of `num_layers`."""
        if self.layers and (layer is None or not LAYER_SELECTORS[self.layers](layer, num_layers)):
            return False
        return any(expression.fullmatch(subject) for expression in self._expressions)

    @cached_property
    def _expressions(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_compile_glob(pattern) for pattern in self.patterns)

    def __str__(self) -> str:
        """As messages name it: `rule 3 (lm_head)`."""
        selector = f", {self.layers} layers" if self.layers else ""
        return f"rule {self.number} ({', '.join(self.patterns)}{selector})"


@dataclass(frozen=True)
class Recipe:
    """A named, ordered set of rules.

    Attributes:
        name: The file's stem.
        file: The file's name, for messages.
        text: The TOML text as read, which is recorded.
        summary: One line.
        description: More, or empty.
        rules: In order.
    """

    name: str
    file: str
    text: str
    summary: str
    description: str
    rules: tuple[Rule, ...]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def select(self, subject: str, layer: int | None, num_layers: int, *, quantizable: bool) -> Rule | None:
        """The first rule for a parameter; one that quantizes looks only at what MLX can quantize."""
        for rule in self.rules:
            if rule.format.quantized and not quantizable:
                continue
            if rule.matches(subject, layer, num_layers):
                return rule
        return None


def is_sensitive(layer: int, num_layers: int) -> bool:
    """Whether a layer's `down_proj` gets the high bits of a mixed recipe.

    The first and last eighth and every third layer between, as mlx-lm's mixed recipes choose them
    (`use_more_bits` of mlx_lm/convert.py, which follows llama.cpp).
    """
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


LAYER_SELECTORS: Mapping[LayerSelector, Callable[[int, int], bool]] = {"sensitive": is_sensitive}


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with hubtool, sorted."""
    return tuple(sorted(path.stem for path in recipes_dir().glob("*.toml")))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, or from a file if `name` ends in `.toml`.

    Raises:
        RecipeError: There is no such recipe, or it cannot be used: see `parse_recipe`.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(
                "no such recipe file", where=name, found="nothing", expected="a TOML file", remedy="check the path"
            )
    else:
        path = recipes_dir() / f"{name}.toml"
        if name not in recipe_names():
            raise RecipeError(
                "no such recipe",
                where="--recipe",
                found=name,
                expected=", ".join(recipe_names()),
                remedy="take one of these, or a file that ends in .toml",
            )
    try:
        text = path.read_bytes().decode()  # as it is, so that its hash is the file's
    except UnicodeDecodeError as error:
        raise RecipeError(
            "not TOML", where=path.name, found=str(error), expected="UTF-8", remedy="mend the file"
        ) from error
    return parse_recipe(text, path.name)


def parse_recipe(text: str, file: str) -> Recipe:
    """A recipe from its TOML text.

    Raises:
        RecipeError: Not TOML, an unknown or missing key, a value of the wrong type, or bits or a group size that the
            mode does not have.
    """
    try:
        table = msgspec.convert(tomllib.loads(text), _RecipeTable)
    except msgspec.ValidationError as error:
        raise RecipeError(
            "cannot be used",
            where=_locate(file, str(error)),
            found=str(error),
            expected=f"keys {', '.join(_RuleTable.__struct_fields__)} in each [[rule]]",
            remedy="mend the file",
        ) from error
    except (ValueError, RecursionError) as error:  # tomllib's own error is a ValueError, as that of an endless number
        raise RecipeError("not TOML", where=file, found=str(error), expected="TOML", remedy="mend the file") from error
    rules = tuple(_rule(number, rule, file) for number, rule in enumerate(table.rule, 1))
    return Recipe(file.removesuffix(".toml"), file, text, table.summary, table.description, rules)


def _locate(file: str, message: str) -> str:
    """The file and, where the message names one (`$.rule[2]`), the rule, counted from 1."""
    match = re.search(r"\$\.rule\[(\d+)\]", message)
    return f"{file}: rule {int(match[1]) + 1}" if match else file


def _rule(number: int, table: _RuleTable, file: str) -> Rule:
    patterns = (table.match,) if isinstance(table.match, str) else tuple(table.match)
    where = f"{file}: rule {number} ({', '.join(patterns)})"
    return Rule(number, patterns, _format(table, where), table.layers, table.optional, table.note)


def _format(table: _RuleTable, where: str) -> Format:
    if table.mode == "affine":
        for key, value, choices in (
            ("bits", table.bits, AFFINE_BITS),
            ("group_size", table.group_size, AFFINE_GROUPS),
        ):
            if value not in choices:
                raise RecipeError(
                    f"{key} that MLX does not have for affine",
                    where=where,
                    found="none" if value is None else value,
                    expected=f"one of {', '.join(map(str, choices))}",
                    remedy="mend the rule",
                )
        return Format("affine", table.bits or 0, table.group_size or 0)
    bits, group_size = FIXED_FORMATS.get(table.mode, (0, 0))
    for key, value, fixed in (("bits", table.bits, bits), ("group_size", table.group_size, group_size)):
        if value is not None and value != fixed:
            raise RecipeError(
                f"{key} that {table.mode} does not have",
                where=where,
                found=value,
                expected=fixed or f"no {key}",
                remedy=f"leave {key} out",
            )
    return Format(table.mode, bits, group_size)


def _compile_glob(pattern: str) -> re.Pattern[str]:
    """`*` matches within one name between dots, `**` any number of names, everything else itself."""
    pieces = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join({"**": ".*", "*": r"[^.]*"}.get(piece, re.escape(piece)) for piece in pieces))
