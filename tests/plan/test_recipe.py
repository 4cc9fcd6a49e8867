"""Recipes: which rule a module gets, and recipes that cannot be used."""

import re
import tomllib
from pathlib import Path

import pytest

from hubtool.plan.recipe import Format, is_sensitive, load_recipe, parse_recipe, recipe_names
from hubtool.resources import recipes_dir
from tests.fixtures import CommandLine, Refusal, Samples

NAMES = ["bf16", "compact_4bit", "float32", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6", "native"]


def test_the_recipes_are_these() -> None:
    assert list(recipe_names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recipe_keeps_its_text_and_its_hash(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.text == (recipes_dir() / f"{name}.toml").read_text(encoding="utf-8")
    assert tomllib.loads(recipe.text)["summary"] == recipe.summary
    assert recipe == load_recipe(str(recipes_dir() / f"{name}.toml"))


def test_sensitive_layers_of_the_published_conversion() -> None:
    sensitive = [layer for layer in range(43) if is_sensitive(layer, 43)]
    assert sensitive == [*range(5), *range(7, 35, 3), *range(37, 43)]
    assert len(sensitive) == 21


def _select(recipe: str, subject: str, layer: int | None = None, *, quantizable: bool = True) -> str:
    rule = load_recipe(recipe).select(subject, layer, 43, quantizable=quantizable)
    return "as published" if rule is None else str(rule.format)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("mixed_2_6", 2, 6), ("mixed_3_4", 3, 4), ("mixed_3_6", 3, 6), ("mixed_4_6", 4, 6)]
)
def test_mixed_recipes_give_sensitive_paths_the_high_bits(name: str, low: int, high: int) -> None:
    little, much = f"affine {low}-bit, group 128", f"affine {high}-bit, group 128"
    for module in ("model.embed_tokens", "lm_head"):
        assert _select(name, module) == much
    for module in (
        *("attn.wq_a", "attn.wq_b", "attn.wkv", "attn.wo_a", "attn.wo_b"),
        *("attn.compressor.wkv", "attn.compressor.wgate", "attn.indexer.wq_b", "attn.indexer.weights_proj"),
        *("attn.indexer.compressor.wkv", "ffn.shared_experts.gate_proj", "ffn.shared_experts.down_proj"),
    ):
        assert _select(name, f"model.layers.5.{module}", 5) == much
    assert _select(name, "model.layers.5.ffn.switch_mlp.down_proj", 5) == little
    assert _select(name, "model.layers.7.ffn.switch_mlp.down_proj", 7) == much
    for layer in (5, 7):
        assert _select(name, f"model.layers.{layer}.ffn.switch_mlp.gate_proj", layer) == little
        assert _select(name, f"model.layers.{layer}.ffn.switch_mlp.up_proj", layer) == little
        assert _select(name, f"model.layers.{layer}.ffn.gate", layer) == "as published"
    for path in ("attn.compressor.ape", "attn.indexer.compressor.ape"):
        assert _select(name, f"model.layers.5.{path}", 5, quantizable=False) == "bfloat16"
    for path in ("attn_norm", "attn.attn_sink", "attn.indexer.compressor.norm", "ffn.gate.tid2eid", "attn_hc.fn"):
        assert _select(name, f"model.layers.5.{path}", 5, quantizable=False) == "as published"


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
    assert all(recipe.select(path, 0, 1, quantizable=True) for path in matches)
    assert not any(recipe.select(path, 0, 1, quantizable=True) for path in others)


def test_first_rule_that_matches_wins() -> None:
    text = 'summary = "s"\n[[rule]]\nmatch = ["a", "b"]\nmode = "mxfp4"\n[[rule]]\nmatch = "**"\nmode = "mxfp8"'
    recipe = parse_recipe(text, "mine.toml")
    assert [rule.number for name in "abc" if (rule := recipe.select(name, None, 1, quantizable=True))] == [1, 1, 2]


def test_rule_that_quantizes_passes_over_what_cannot_be_quantized() -> None:
    recipe = parse_recipe(f'summary = "s"\n{RULE}mode = "mxfp4"\n{RULE}mode = "bfloat16"', "mine.toml")
    rule = recipe.select("model.norm", None, 1, quantizable=False)
    assert rule is not None and rule.number == 2


AFFINE = 'mode = "affine"\nbits = 4\ngroup_size = 64\n'

REFUSED = {
    "endless number": (f"bits = {'9' * 5000}", r"mine\.toml: not TOML: found .+; mend the file"),
    "nested too deep": (f"match = {'[' * 5000}", r"mine\.toml: not TOML: found .+; mend the file"),
    "no pattern": (
        f'summary = "s"\n[[rule]]\nmatch = []\n{AFFINE}',
        r"mine\.toml: rule 1: cannot be used: found .+; mend the file",
    ),
    "not TOML": ("match = ", r"mine\.toml: not TOML: found .+; mend the file"),
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
        r"expected keys match, mode, bits, group_size, layers, optional, note in each \[\[rule\]\]; mend the file",
    ),
    "no match": (f'summary = "s"\n[[rule]]\n{AFFINE}', r"mine\.toml: rule 1: .+missing required field `match`.+"),
    "unknown mode": (f'summary = "s"\n{RULE}mode = "q4_k"', r"mine\.toml: rule 1: .+Invalid enum value 'q4_k'.+"),
    "unknown selector": (
        f'summary = "s"\n{RULE}{AFFINE}layers = "odd"',
        r"mine\.toml: rule 1: .+Invalid enum value 'odd'.+",
    ),
    "bits that are a string": (
        f'summary = "s"\n{RULE}mode = "affine"\nbits = "4"',
        r"mine\.toml: rule 1: .+got `str`.+",
    ),
    "bits that affine lacks": (
        f'summary = "s"\n{RULE}mode = "affine"\nbits = 7\ngroup_size = 64',
        r"mine\.toml: rule 1 \(\*\*\): bits that MLX does not have for affine: found 7, "
        r"expected one of 2, 3, 4, 5, 6, 8; mend the rule",
    ),
    "affine without bits": (
        f'summary = "s"\n{RULE}mode = "affine"\ngroup_size = 64',
        r"mine\.toml: rule 1 \(\*\*\): bits that MLX does not have for affine: found none, "
        r"expected one of 2, 3, 4, 5, 6, 8; mend the rule",
    ),
    "group that affine lacks": (
        f'summary = "s"\n{RULE}mode = "affine"\nbits = 4\ngroup_size = 16',
        r"mine\.toml: rule 1 \(\*\*\): group_size that MLX does not have for affine: found 16, "
        r"expected one of 32, 64, 128; mend the rule",
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
        r"or none that an earlier rule has left; mend the pattern, or write `optional = true`",
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
        r"or leave it as published",
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
        re.compile(r"mine\.toml: not TOML: found .+; mend the file"),
        recipe=tmp_path / "mine.toml",
        code=2,
    )


@pytest.mark.parametrize("name", ["mixed_9_9", "", "../recipes/native"])
def test_name_of_no_recipe_is_refused(name: str, sample: Samples, assert_refused: Refusal) -> None:
    found = f"found {name}, " if name else ""
    assert_refused(
        sample("mini"),
        f"--recipe: no such recipe: {found}expected {', '.join(NAMES)}; "
        "take one of these, or a file that ends in .toml",
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
    written = tomllib.loads((recipes_dir() / f"{name}.toml").read_text(encoding="utf-8"))["rule"]
    assert [rule["mode"] for rule in explained["rules"]] == [rule["mode"] for rule in written]
    text = hubtool("recipes", name).stdout
    assert all(rule["note"] in text for rule in written)


def test_explaining_no_recipe_is_refused(hubtool: CommandLine) -> None:
    assert hubtool("recipes", "absent").code == 2
