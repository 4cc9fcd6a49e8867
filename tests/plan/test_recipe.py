"""Recipes: which rule a module gets, and recipes that cannot be used."""

import re
import tomllib
from pathlib import Path

import pytest

from hubtool.errors import RecipeError, did_you_mean
from hubtool.models import Component, Model, Parameter, Part
from hubtool.plan.format import Format
from hubtool.plan.plan import make_plan
from hubtool.plan.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from hubtool.plan.rule import Rule, is_sensitive
from hubtool.resources import recipes_dir, with_base
from tests.fixtures import CommandLine, Refusal, Samples

NAMES = [
    "bf16",
    "compact_4bit",
    "float32",
    "mixed_2_6",
    "mixed_3_4",
    "mixed_3_6",
    "mixed_4_6",
    "mxfp4_3",
    "mxfp4_3_mac128",
    "mxfp4_3_mac192",
    "native",
]


def test_the_recipes_are_these() -> None:
    assert list(recipe_names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recipe_keeps_its_text_and_its_hash(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.text == with_base((recipes_dir() / f"{name}.toml").read_text(encoding="utf-8"))
    assert tomllib.loads(recipe.text)["summary"] == recipe.summary
    assert recipe == load_recipe(str(recipes_dir() / f"{name}.toml"))
    # The text alone says everything: a file of it is the same recipe.
    assert parse_recipe(recipe.text, f"{name}.toml") == recipe


def test_sensitive_layers_of_the_published_conversion() -> None:
    sensitive = [layer for layer in range(43) if is_sensitive(layer, 43)]
    assert sensitive == [*range(5), *range(7, 35, 3), *range(37, 43)]
    assert len(sensitive) == 21


def _parameter(module: str, component: Component, layer: int | None = None, *, columns: int = 0) -> Parameter:
    """A parameter of that module; one with `columns` can be quantized."""
    shape = (64, columns) if columns else (64,)
    part = (Part(module),)
    return Parameter(module, "weight", shape, "BF16", "plain", (1, 1), part, component, layer, bool(columns))


def _select(recipe: Recipe, parameter: Parameter, *others: Component) -> Rule | None:
    more = tuple(_parameter("other", other) for other in others)
    return recipe.select(parameter, Model("A", "a", 43, {}, (parameter, *more), ()))


def _stored(recipe: str, parameter: Parameter, *others: Component) -> str:
    rule = _select(load_recipe(recipe), parameter, *others)
    return "as published" if rule is None else str(rule.format)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("mixed_2_6", 2, 6),
        ("mixed_3_4", 3, 4),
        ("mixed_3_6", 3, 6),
        ("mixed_4_6", 4, 6),
    ],
)
def test_mixed_recipes_give_sensitive_parts_the_high_bits(name: str, low: int, high: int) -> None:
    little, much = f"affine {low}-bit, group 128", f"affine {high}-bit, group 128"
    experts = Component.ROUTED_EXPERTS
    for component in (
        *(Component.EMBEDDINGS, Component.HEAD, Component.ATTENTION, Component.COMPRESSOR_INDEXER),
        *(Component.SHARED_EXPERTS, Component.STATE_SPACE),
    ):
        assert _stored(name, _parameter("model.layers.5.any", component, 5, columns=256)) == much
    for layer, down in ((5, little), (7, much)):
        for projection, stored in (("down_proj", down), ("gate_proj", little), ("up_proj", little)):
            expert = _parameter(f"model.layers.{layer}.ffn.switch_mlp.{projection}", experts, layer, columns=256)
            assert _stored(name, expert) == stored
            dense = _parameter(f"model.layers.{layer}.mlp.{projection}", Component.MLP, layer, columns=256)
            assert _stored(name, dense) == stored
            assert _stored(name, dense, experts) == much
    router = _parameter("model.layers.5.mlp.gate", Component.ROUTER, 5, columns=256)
    assert _stored(name, router) == "affine 8-bit, group 64"
    for path in ("attn.compressor.ape", "attn.indexer.compressor.ape"):
        assert _stored(name, _parameter(f"model.layers.5.{path}", Component.COMPRESSOR_INDEXER, 5)) == "bfloat16"
    for component in (Component.NORMS, Component.REST, Component.ROUTER, Component.ATTENTION):
        assert _stored(name, _parameter("model.layers.5.any", component, 5)) == "as published"


RULE = '[[rule]]\nmatch = "**"\n'


def _parse(rule: str) -> tuple[Format, ...]:
    return tuple(rule.format for rule in parse_recipe(f'summary = "s"\n{RULE}{rule}', "mine.toml").rules)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_affine_formats_are_those_of_mlx(bits: int, group_size: int) -> None:
    assert _parse(f'mode = "affine"\nbits = {bits}\ngroup_size = {group_size}') == (Format("affine", bits, group_size),)


@pytest.mark.parametrize(("mode", "bits", "group_size"), [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)])
def test_fixed_formats_may_name_what_they_have(mode: str, bits: int, group_size: int) -> None:
    assert _parse(f'mode = "{mode}"') == _parse(f'mode = "{mode}"\nbits = {bits}\ngroup_size = {group_size}')


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        (
            "model.layers.*.attn.wq_a",
            ["model.layers.12.attn.wq_a"],
            ["model.layers.1.2.attn.wq_a", "model.layers.1.attn.wq_ab"],
        ),
        ("model.layers.1*.attn", ["model.layers.1.attn", "model.layers.12.attn"], ["model.layers.2.attn"]),
        ("**.ape", ["model.layers.1.attn.compressor.ape"], ["model.ape.x"]),
        ("lm_head", ["lm_head"], ["model.lm_head", "lm_headx"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_patterns_match_whole_paths(pattern: str, matches: list[str], others: list[str]) -> None:
    recipe = parse_recipe(f'summary = "s"\n[[rule]]\nmatch = "{pattern}"\nmode = "published"', "mine.toml")
    found = {path: _select(recipe, _parameter(path, Component.REST)) for path in [*matches, *others]}
    assert [path for path, rule in found.items() if rule] == matches


def test_first_rule_that_matches_wins() -> None:
    text = 'summary = "s"\n[[rule]]\nmatch = ["a", "b"]\nmode = "mxfp4"\n[[rule]]\nmatch = "**"\nmode = "mxfp8"'
    recipe = parse_recipe(text, "mine.toml")
    rules = [_select(recipe, _parameter(name, Component.REST, columns=64)) for name in "abc"]
    assert [rule and rule.number for rule in rules] == [1, 1, 2]


def test_rule_that_quantizes_passes_over_what_cannot_be_quantized() -> None:
    recipe = parse_recipe(f'summary = "s"\n{RULE}mode = "mxfp4"\n{RULE}mode = "bfloat16"', "mine.toml")
    rule = _select(recipe, _parameter("model.norm", Component.NORMS))
    assert rule is not None and rule.number == 2


AFFINE = 'mode = "affine"\nbits = 4\ngroup_size = 64\n'

REFUSED = {
    "endless number": (f"bits = {'9' * 5000}", r"mine\.toml: not TOML: found .+; correct the file"),
    "nested too deep": (f"match = {'[' * 5000}", r"mine\.toml: not TOML: found .+; correct the file"),
    "no pattern": (
        f'summary = "s"\n[[rule]]\nmatch = []\n{AFFINE}',
        r"mine\.toml: rule 1: cannot be used: found .+; correct the file",
    ),
    "not TOML": ("match = ", r"mine\.toml: not TOML: found .+; correct the file"),
    "no rule": ('summary = "s"', r"mine\.toml: cannot be used: found Object missing required field `rule`, .+"),
    "empty list of rules": ('summary = "s"\nrule = []', r"mine\.toml: cannot be used: found Expected `array` .+"),
    "no summary": (RULE + AFFINE, r"mine\.toml: cannot be used: found Object missing required field `summary`, .+"),
    "unknown key of the recipe": (
        f'summary = "s"\nbits = 4\n{RULE}{AFFINE}',
        r"mine\.toml: cannot be used: found Object contains unknown field `bits`, .+",
    ),
    "unknown key of a rule": (
        f'summary = "s"\n{RULE}{AFFINE}\n{RULE}{AFFINE}group = 64',
        r"mine\.toml: rule 2: cannot be used: found Object contains unknown field `group` - at `\$\.rule\[1\]`, "
        r"expected keys mode, match, component, .+, optional, note, fit in each \[\[rule\]\]; "
        r"did you mean group_size\? correct the file",
    ),
    "selects nothing": (
        f'summary = "s"\n[[rule]]\n{AFFINE}',
        r"mine\.toml: rule 1 \(\): selects nothing: found neither match nor component, .+",
    ),
    "unknown component": (
        f'summary = "s"\n[[rule]]\ncomponent = "experts"\n{AFFINE}',
        r"mine\.toml: rule 1: .+Invalid enum value 'experts'.+",
    ),
    "width without a name": (
        f'summary = "s"\n[widths]\nlow = 3\n{RULE}mode = "affine"\nbits = "high"\ngroup_size = 64',
        r"mine\.toml: rule 1 \(\*\*\): width that the recipe does not name: found high, expected one of low; .+",
    ),
    "unknown base": (
        f'summary = "s"\nbase = "absent"\n{RULE}{AFFINE}',
        r"mine\.toml: base: no such base: found absent, expected mixed; .+",
    ),
    "group of a list that affine lacks": (
        f'summary = "s"\n{RULE}mode = "affine"\nbits = 4\ngroup_size = [64, 48]',
        r"mine\.toml: rule 1 \(\*\*\): group_size that MLX does not have for affine: found 48, .+",
    ),
    "unknown mode": (f'summary = "s"\n{RULE}mode = "q4_k"', r"mine\.toml: rule 1: .+Invalid enum value 'q4_k'.+"),
    "unknown selector": (
        f'summary = "s"\n{RULE}{AFFINE}layers = "odd"',
        r"mine\.toml: rule 1: .+Invalid enum value 'odd'.+",
    ),
    "bits that are a string": (
        f'summary = "s"\n{RULE}mode = "affine"\nbits = "4"',
        r"mine\.toml: rule 1 \(\*\*\): width that the recipe does not name: found 4, expected a number; .+",
    ),
    "bits that affine lacks": (
        f'summary = "s"\n{RULE}mode = "affine"\nbits = 7\ngroup_size = 64',
        r"mine\.toml: rule 1 \(\*\*\): bits that MLX does not have for affine: found 7, "
        r"expected one of 2, 3, 4, 5, 6, 8; correct the rule",
    ),
    "affine without bits": (
        f'summary = "s"\n{RULE}mode = "affine"\ngroup_size = 64',
        r"mine\.toml: rule 1 \(\*\*\): bits that MLX does not have for affine: found none, "
        r"expected one of 2, 3, 4, 5, 6, 8; correct the rule",
    ),
    "group that affine lacks": (
        f'summary = "s"\n{RULE}mode = "affine"\nbits = 4\ngroup_size = 16',
        r"mine\.toml: rule 1 \(\*\*\): group_size that MLX does not have for affine: found 16, "
        r"expected one of 32, 64, 128; correct the rule",
    ),
    "bits that mxfp4 lacks": (
        f'summary = "s"\n{RULE}mode = "mxfp4"\nbits = 3',
        r"mine\.toml: rule 1 \(\*\*\): bits that mxfp4 does not have: found 3, expected 4; leave bits out",
    ),
    "group that mxfp8 lacks": (
        f'summary = "s"\n{RULE}mode = "mxfp8"\ngroup_size = 64',
        r"mine\.toml: rule 1 \(\*\*\): group_size that mxfp8 does not have: found 64, expected 32; "
        r"leave group_size out",
    ),
    "bits of a cast": (
        f'summary = "s"\n{RULE}mode = "bfloat16"\nbits = 16',
        r"mine\.toml: rule 1 \(\*\*\): bits that bfloat16 does not have: found 16, expected no bits; leave bits out",
    ),
    "rule that matches nothing": (
        f'summary = "s"\n[[rule]]\nmatch = ["model.layers.*.mlp", "head"]\n{AFFINE}\n{RULE}mode = "repack"',
        r"mine\.toml: rule 1 \(model\.layers\.\*\.mlp, head\): matches no module, "
        r"or none that an earlier rule has left; correct the rule, or write `optional = true`",
    ),
    "rule that an earlier one leaves nothing": (
        f'summary = "s"\n{RULE}mode = "repack"\n[[rule]]\nmatch = "lm_head"\n{AFFINE}',
        r"mine\.toml: rule 2 \(lm_head\): matches no module, or none that an earlier rule has left; .+",
    ),
    "rule for what cannot be quantized": (
        f'summary = "s"\n[[rule]]\nmatch = "model.norm"\n{AFFINE}\n{RULE}mode = "repack"',
        r"mine\.toml: rule 1 \(model\.norm\): matches no module, .+",
    ),
    "no rule for FP8": (
        f'summary = "s"\n[[rule]]\nmatch = "**.switch_mlp.*"\n{AFFINE}',
        r"mine\.toml: model\.layers\.0\.attn\.wq_a: no rule for a weight in FP8, which MLX cannot hold as it is; "
        r'add a rule for it; mode = "published" decodes it to BF16, mode = "repack" keeps its bytes',
    ),
    "group that does not divide a row": (
        'summary = "s"\n[[rule]]\nmatch = "**.wo_a"\nmode = "affine"\nbits = 4\ngroup_size = 128\n'
        f'{RULE}mode = "repack"',
        r"mine\.toml: rule 1 \(\*\*\.wo_a\): model\.layers\.0\.attn\.wo_a: group does not divide a row: "
        r"found rows of 192, expected a multiple of 128; take a smaller group_size for this module, "
        r"list several, or leave it as published",
    ),
}


@pytest.mark.parametrize("text,sentence", REFUSED.values(), ids=REFUSED)
def test_recipe_that_cannot_be_used_is_refused(
    text: str, sentence: str, sample: Samples, assert_refused: Refusal, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    assert_refused(sample("narrow"), re.compile(sentence, re.DOTALL), recipe=tmp_path / "mine.toml", code=2)


def test_recipe_that_is_no_text_is_refused(sample: Samples, assert_refused: Refusal, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b'summary = "\xff"')
    assert_refused(
        sample("mini"),
        re.compile(r"mine\.toml: not TOML: found .+; correct the file"),
        recipe=tmp_path / "mine.toml",
        code=2,
    )


@pytest.mark.parametrize("name", ["mixed_9_9", "", "../recipes/native"])
def test_name_of_no_recipe_is_refused(name: str, sample: Samples, assert_refused: Refusal) -> None:
    found = f"found {name}, " if name else ""
    assert_refused(
        sample("mini"),
        f"--recipe: no such recipe: {found}expected {', '.join(NAMES)}; "
        + f"{did_you_mean(name, NAMES)} take one of these, or a file that ends in .toml".lstrip(),
        recipe=name,
        code=2,
    )


def test_absent_recipe_file_is_refused(sample: Samples, assert_refused: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    assert_refused(
        sample("mini"),
        f"{path}: no such recipe file: found nothing, expected a TOML file; check the path",
        recipe=path,
        code=2,
    )


def test_optional_rule_may_match_nothing(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    text = f'summary = "s"\n[[rule]]\nmatch = "absent"\noptional = true\n{AFFINE}\n{RULE}mode = "repack"'
    (tmp_path / "mine.toml").write_text(text)
    mine = hubtool("plan", sample("mini"), "--recipe", tmp_path / "mine.toml", "--json").document
    native = hubtool("plan", sample("mini"), "--recipe", "native", "--json").document
    assert mine["recipe"]["name"] == "mine"
    assert mine["nbytes"] == native["nbytes"]


def test_recipes_are_listed(hubtool: CommandLine) -> None:
    listed = hubtool("recipes", "--json").document
    assert [entry["name"] for entry in listed] == NAMES
    text = hubtool("recipes").stdout
    assert all(f"{entry['name']} " in text and entry["summary"] in text for entry in listed)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_explained(name: str, hubtool: CommandLine) -> None:
    explained = hubtool("recipes", name, "--json").document
    written = tomllib.loads(load_recipe(name).text)["rule"]
    assert [rule["mode"] for rule in explained["rules"]] == [rule["mode"] for rule in written]
    text = hubtool("recipes", name).stdout
    assert all(rule["note"] in text for rule in written)


def test_explaining_no_recipe_is_refused(hubtool: CommandLine) -> None:
    assert hubtool("recipes", "absent").code == 2


def test_first_group_size_that_divides_a_row_is_taken(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    rule = '[[rule]]\nmatch = "**.wo_a"\nmode = "affine"\nbits = 4\ngroup_size = '
    formats = {}
    for sizes in ("[128, 64, 32]", "[32, 64]", "[128]"):
        (tmp_path / "mine.toml").write_text(f'summary = "s"\n{rule}{sizes}\n{RULE}mode = "repack"')
        document = hubtool("plan", sample("narrow"), "--recipe", tmp_path / "mine.toml", "--json").document
        attention = next(each for each in document["components"] if each["name"] == "attention")
        formats[sizes] = ([form for form in attention["formats"] if form != "mxfp8"], document["kept"])
    assert formats["[128, 64, 32]"] == (["affine 4-bit, group 64"], [])
    assert formats["[32, 64]"] == (["affine 4-bit, group 32"], [])
    stored, kept = formats["[128]"]
    assert stored == ["bf16"]
    assert [each["reason"] for each in kept] == ["no group size of the recipe (128) divides rows of 192"]
    assert all(module.endswith(".wo_a") for module in kept[0]["modules"])


def test_own_rules_stand_before_those_of_the_base(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    rule = '[[rule]]\ncomponent = "shared experts"\nmode = "mxfp8"\n'
    (tmp_path / "mine.toml").write_text(f'summary = "s"\nbase = "mixed"\n[widths]\nlow = 2\nhigh = 4\n{rule}')
    document = hubtool("plan", sample("mini"), "--recipe", tmp_path / "mine.toml", "--json").document
    formats = {each["name"]: each["formats"] for each in document["components"]}
    assert formats["shared experts"] == ["mxfp8"]
    assert formats["attention"] == ["affine 4-bit, group 128"]


def test_recipe_of_which_no_rule_matches_is_refused() -> None:
    text = f'summary = "s"\n[[rule]]\ncomponent = "state space"\noptional = true\n{AFFINE}'
    model = Model("A", "a", 1, {}, (_parameter("model.norm", Component.NORMS),), ())
    with pytest.raises(RecipeError, match=r"mine\.toml: no rule matches any module: found norms, expected a rule .+"):
        make_plan(model, parse_recipe(text, "mine.toml"))
