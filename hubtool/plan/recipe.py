"""Recipes: ordered rules that say how each module is stored; the first rule that matches wins."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from hubtool.errors import RecipeError, did_you_mean
from hubtool.files.formats import Failure, convert, parse_toml
from hubtool.files.read import is_file, read_small
from hubtool.models import Component, Model, Parameter
from hubtool.plan.format import AFFINE_BITS, AFFINE_GROUPS, FITTED_MODES, FIXED_FORMATS, PUBLISHED, Format, Mode
from hubtool.plan.rule import Fit, LayerSelector, Rule
from hubtool.resources import base_names, recipes_dir, with_base

_T = TypeVar("_T")
_Some = Annotated[list[_T], msgspec.Meta(min_length=1)]


class _RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: Mode
    match: str | _Some[str] | None = None
    component: Component | _Some[Component] | None = None
    bits: int | str | None = None
    group_size: int | _Some[int] | None = None
    layers: LayerSelector | None = None
    without: Component | None = None
    overrule: bool = False
    optional: bool = False
    note: str = ""
    fit: Fit | None = None


class _RecipeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    summary: str
    rule: Annotated[list[_RuleTable], msgspec.Meta(min_length=1)]
    description: str = ""
    base: str | None = None
    widths: dict[str, int] = {}


@dataclass(frozen=True)
class Recipe:
    """A named, ordered set of rules.

    Attributes:
        name: The file's stem.
        file: The file's name, for messages.
        text: The TOML text with its base's rules, which is recorded: it needs no other file.
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

    def select(self, parameter: Parameter, model: Model) -> Rule | None:
        """The first rule for a parameter of a model; one that quantizes looks only at what MLX can quantize."""
        for rule in self.rules:
            if rule.format.quantized and not parameter.quantizable:
                continue
            if rule.matches(parameter, model.num_layers, model.components):
                return rule
        return None


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
        if not is_file(path):
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
                remedy=f"{did_you_mean(name, recipe_names())} take one of these, or a file that ends in .toml".strip(),
            )
    try:
        text = read_small(path).decode()  # as it is, so that its hash is the file's
    except UnicodeDecodeError as error:
        raise RecipeError(
            "not TOML", where=path.name, found=str(error), expected="UTF-8", remedy="correct the file"
        ) from error
    return parse_recipe(text, path.name)


def parse_recipe(text: str, file: str) -> Recipe:
    """A recipe from its TOML text; the rules of its base follow its own.

    Raises:
        RecipeError: Not TOML, an unknown or missing key, a value of the wrong type, bits or a group size that the mode
            does not have, a width that is not named, or a base that does not come with hubtool.
    """
    remedy = "correct the file"
    tables = parse_toml(text.encode(), file, error=RecipeError, remedy=remedy)
    text = with_base(text)
    if "base" in tables:
        tables = parse_toml(text.encode(), file, error=RecipeError, remedy=remedy)
    try:
        table = convert(tables, _RecipeTable, Failure("TOML", file, RecipeError, remedy))
    except RecipeError as error:
        expected = f"keys {', '.join(_RuleTable.__struct_fields__)} in each [[rule]]"
        where = _locate(file, str(error.found))
        raise RecipeError(error.what, where=where, found=error.found, expected=expected, remedy=error.remedy) from error
    if table.base is not None:
        raise RecipeError(
            "no such base",
            where=f"{file}: base",
            found=table.base,
            expected=" or ".join(base_names()),
            remedy='correct it, and write `base = "NAME"` on a line of its own',
        )
    rules = tuple(_rule(number, rule, table.widths, file) for number, rule in enumerate(table.rule, 1))
    return Recipe(file.removesuffix(".toml"), file, text, table.summary, table.description, rules)


def _locate(file: str, message: str) -> str:
    """The file and, where the message names one (`$.rule[2]`), the rule, counted from 1."""
    match = re.search(r"\$\.rule\[(\d+)\]", message)
    return f"{file}: rule {int(match[1]) + 1}" if match else file


def _rule(number: int, table: _RuleTable, widths: Mapping[str, int], file: str) -> Rule:
    rule = Rule(
        number,
        PUBLISHED,
        patterns=_listed(table.match),
        components=_listed(table.component),
        layers=table.layers,
        without=table.without,
        overrule=table.overrule,
        optional=table.optional,
        note=table.note,
        fit=table.fit,
    )
    where = f"{file}: {rule}"
    if table.fit == "weighted" and table.mode not in FITTED_MODES:
        raise RecipeError(
            "a mode that has no scales to fit",
            where=where,
            found=table.mode,
            expected=" or ".join(FITTED_MODES),
            remedy="leave fit out",
        )
    if not rule.patterns and not rule.components:
        raise RecipeError(
            "selects nothing",
            where=where,
            found="neither match nor component",
            expected='one of them, match = "**" say',
            remedy="add it",
        )
    groups = _listed(table.group_size)
    form = _format(table, widths, groups, where)
    sizes = groups or ((form.group_size,) if form.quantized else ())
    return replace(rule, format=form, group_sizes=sizes, lenient=isinstance(table.group_size, list))


def _listed(value: _T | list[_T] | None) -> tuple[_T, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _format(table: _RuleTable, widths: Mapping[str, int], groups: tuple[int, ...], where: str) -> Format:
    bits = _bits(table, widths, where)
    if table.mode == "affine":
        for key, values, choices in (
            ("bits", [bits], AFFINE_BITS),
            ("group_size", groups or [None], AFFINE_GROUPS),
        ):
            for value in values:
                if value not in choices:
                    raise RecipeError(
                        f"{key} that MLX does not have for affine",
                        where=where,
                        found="none" if value is None else value,
                        expected=f"one of {', '.join(map(str, choices))}",
                        remedy="correct the rule",
                    )
        return Format("affine", bits or 0, groups[0])
    fixed_bits, fixed_group = FIXED_FORMATS.get(table.mode, (0, 0))
    for key, given, fixed in (("bits", bits, fixed_bits), *(("group_size", group, fixed_group) for group in groups)):
        if given is not None and given != fixed:
            raise RecipeError(
                f"{key} that {table.mode} does not have",
                where=where,
                found=given,
                expected=fixed or f"no {key}",
                remedy=f"leave {key} out",
            )
    return Format(table.mode, fixed_bits, fixed_group)


def _bits(table: _RuleTable, widths: Mapping[str, int], where: str) -> int | None:
    """The rule's bits, looked up among the recipe's widths where it names one."""
    if not isinstance(table.bits, str):
        return table.bits
    if table.bits not in widths:
        raise RecipeError(
            "width that the recipe does not name",
            where=where,
            found=table.bits,
            expected=f"one of {', '.join(widths)}" if widths else "a number",
            remedy="write a number, or name the width under [widths]",
        )
    return widths[table.bits]
