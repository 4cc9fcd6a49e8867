"""Architectures that only mlx-lm knows: the same tensors as its own `convert` gives, planned to the byte."""

import itertools
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm import convert as mlx_lm_convert

from hubtool.checkpoint.source import LocalSource
from hubtool.convert.job import Job
from hubtool.errors import SourceError
from hubtool.files.read import file_sha256
from hubtool.models import Component, generic, read_model
from hubtool.plan import plan as plan_module
from hubtool.plan.plan import Plan, make_plan, plan_source
from hubtool.plan.recipe import load_recipe, recipe_names
from hubtool.runtime import deepseek_v4
from hubtool.sample import PUBLISHED, write_architecture
from tests.checkpoints import edit_json
from tests.convert.passes import convert
from tests.fixtures import CommandLine, Samples, convert_source

pytestmark = pytest.mark.slow

Published = Callable[[str], Path]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A checkpoint of an architecture in its published layout, written once."""
    return cache(lambda name: write_architecture(tmp_path_factory.mktemp("published") / name, name))


def _plan(folder: Path, recipe: str) -> Plan:
    return plan_source(LocalSource(folder), [recipe])[0]


def _tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        loaded: Any = mx.load(str(path))
        found |= loaded
    return found


def _same(a: mx.array, b: mx.array) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype in (mx.bfloat16, mx.float16):
        return bool((a.view(mx.uint16) == b.view(mx.uint16)).all())
    return bool((a == b).all())


def _by_mlx_lm(source: Path, plan: Plan, folder: Path) -> dict[str, mx.array]:
    """What mlx-lm makes of a source with a predicate that says the same as a plan."""
    forms = {step.parameter.module: step.format for step in plan.steps if step.format.quantized}

    def predicate(path: str, module: nn.Module) -> Any:
        form = forms.get(path)
        return form is not None and {"group_size": form.group_size, "bits": form.bits, "mode": form.mode}

    # Groups of 32 divide every row here: mlx-lm leaves out what its default group does not divide.
    make: Any = mlx_lm_convert
    make(str(source), str(folder), quantize=bool(forms), q_group_size=32, quant_predicate=predicate)
    return _tensors(folder)


CROSSED = [(name, recipe) for name in PUBLISHED for recipe in recipe_names()]


@pytest.mark.parametrize(("name", "recipe"), CROSSED)
def test_tensors_are_those_of_mlx_lm(name: str, recipe: str, published: Published, tmp_path: Path) -> None:
    source = published(name)
    plan = _plan(source, recipe)
    record = convert_source(LocalSource(source), plan, tmp_path / "ours").record
    assert (record.measured.nbytes, record.measured.tensors) == (plan.nbytes, plan.tensors)
    ours = _tensors(tmp_path / "ours")
    if name == "gpt_oss":
        _assert_unpacked_alike(source, plan, ours, tmp_path)
        return
    theirs = _by_mlx_lm(source, plan, tmp_path / "theirs")
    if recipe == "float32":
        theirs = {key: each.astype(mx.float32) for key, each in theirs.items()}
    assert set(theirs) == set(ours)
    assert [key for key in theirs if not _same(ours[key], theirs[key])] == []


RESUMED = ["qwen3_moe", "deepseek_v3", "gpt_oss", "jamba"]
"""Experts that are stacked, FP8 that is decoded, packed weights, and a program beside both."""


@pytest.mark.parametrize("name", RESUMED)
def test_interrupted_conversion_goes_on_and_gives_the_same_bytes(
    name: str, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "PIECE_SIZE", 4096)  # or a small model is made in one piece a tensor
    source, plan = LocalSource(published(name)), _plan(published(name), "mixed_3_6")
    for _ in convert(source, [Job(plan, tmp_path / "whole")], jobs=1):
        pass
    done = [0]
    for wanted in (3, 9, 27):
        steps = convert(source, [Job(plan, tmp_path / "cut")], jobs=1)
        here = list(itertools.islice(steps, done[-1] + wanted))
        steps.close()
        done.append(sum(step.found for step in here))
    rest = list(convert(source, [Job(plan, tmp_path / "cut")], jobs=1))
    assert done == sorted(done) and 0 < done[-1] <= sum(step.found for step in rest) < len(rest)
    assert [_hashes(tmp_path / "cut")] == [_hashes(tmp_path / "whole")] != [{}]


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.glob("*.safetensors")}


def _assert_unpacked_alike(source: Path, plan: Plan, ours: dict[str, mx.array], tmp_path: Path) -> None:
    """mlx-lm keeps mxfp4 packed whatever is asked for, so that what it decodes is what is quantized here."""
    packed = _by_mlx_lm(source, plan, tmp_path / "theirs")
    for step in plan.steps:
        module, path = step.parameter.module, step.parameter.path
        if step.parameter.encoding == "fp4":
            theirs = [packed[path], packed[f"{module}.scales"]]
            if step.how != "repack":
                values = mx.dequantize(theirs[0], theirs[1], group_size=32, bits=4, mode="mxfp4", dtype=mx.bfloat16)
                form = step.format
                theirs = [values]
                if form.quantized:
                    theirs = list(mx.quantize(values, form.group_size, form.bits, form.mode))
        else:
            theirs = [packed[output.spec.name] for output in step.outputs]
        if step.format.mode == "float32":
            theirs = [array.astype(mx.float32) for array in theirs]
        names = [output.spec.name for output in step.outputs]
        assert all(_same(ours[name], array) for name, array in zip(names, theirs, strict=True)), path


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_is_what_mlx_lm_writes_but_for_the_quantization(name: str, published: Published, tmp_path: Path) -> None:
    source = published(name)
    plan = _plan(source, "mixed_4_6")
    convert_source(LocalSource(source), plan, tmp_path / "ours")
    _by_mlx_lm(source, plan, tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("ours", "theirs"))
    assert "model_file" not in ours
    for config in (ours, theirs):
        config.pop("quantization"), config.pop("quantization_config")
    assert ours == theirs
    text = tmp_path / "ours" / "README.md"
    assert not text.exists() or "V4" not in text.read_text()


def test_what_is_dropped_says_why(published: Published) -> None:
    dropped = {
        name: {(each.names, each.tensors) for each in _plan(published(name), "bf16").model.dropped}
        for name in ("gemma3", "deepseek_v3", "llama")
    }
    assert dropped["gemma3"] == {("vision_tower.*", 4), ("multi_modal_projector.*", 2)}
    assert {names for names, _ in dropped["deepseek_v3"]} == {"model.layers.61.*"}
    assert dropped["llama"] == {("model.layers.*.self_attn.rotary_emb.inv_freq", 4)}


def test_components_of_a_hybrid(published: Published) -> None:
    model = _plan(published("jamba"), "bf16").model
    found = {parameter.path: parameter.component for parameter in model.parameters}
    assert found["model.layers.0.mamba.in_proj.weight"] is Component.STATE_SPACE
    assert found["model.layers.1.self_attn.q_proj.weight"] is Component.ATTENTION
    assert found["model.layers.1.feed_forward.router.weight"] is Component.ROUTER
    assert found["model.layers.1.feed_forward.switch_mlp.up_proj.weight"] is Component.ROUTED_EXPERTS
    assert found["model.layers.0.feed_forward.up_proj.weight"] is Component.MLP
    assert found["model.embed_tokens.weight"] is Component.EMBEDDINGS
    assert found["lm_head.weight"] is Component.HEAD
    assert found["model.layers.1.input_layernorm.weight"] is Component.NORMS


def test_v4_through_both_ways_is_the_same(sample: Samples, tmp_path: Path) -> None:
    source = LocalSource(sample("mini"))
    specs = {name: tensor.spec for name, tensor in source.tensors.items()}
    by_hand = read_model(source.config, specs)
    traced = generic.read_model(source.config, specs, (deepseek_v4.Model, deepseek_v4.ModelArgs))
    for recipe in ("native", "mixed_3_6"):
        plans = [make_plan(model, load_recipe(recipe)) for model in (by_hand, traced)]
        folders = [tmp_path / f"{recipe}-{way}" for way in ("hand", "traced")]
        for plan, folder in zip(plans, folders, strict=True):
            convert_source(source, plan, folder)
        ours, theirs = map(_tensors, folders)
        assert set(ours) == set(theirs)
        assert [key for key in ours if not _same(ours[key], theirs[key])] == []


QUANTIZED = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "compressed-tensors pack-quantized": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_source_of_another_quantization_is_refused_by_name(name: str, published: Published, tmp_path: Path) -> None:
    folder = shutil.copytree(published("llama"), tmp_path / "source")
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=QUANTIZED[name]))
    with pytest.raises(SourceError, match=f"quantized in a way that hubtool does not decode: found {name}, "):
        _plan(folder, "bf16")


def test_layers_that_mlx_lm_does_not_have_are_refused_while_planning() -> None:
    config = {"model_type": "deepseek_v41", "architectures": ["DeepseekV41ForCausalLM"], "engram_layer_ids": [1, 15]}
    with pytest.raises(SourceError, match=r"does not take this configuration.*Layers \[1, 15\] use engram memory"):
        read_model(config, {})


def test_missing_and_unknown_tensors_are_named(published: Published) -> None:
    source = LocalSource(published("llama"))
    specs = {name: tensor.spec for name, tensor in source.tensors.items()}
    gone = {name: spec for name, spec in specs.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(SourceError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: missing tensor"):
        read_model(source.config, gone)
    with pytest.raises(SourceError, match="shape contradicts config.json"):
        read_model({**source.config, "intermediate_size": 512}, specs)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_rung_is_climbed(name: str, published: Published, hubtool: CommandLine, tmp_path: Path) -> None:
    made = hubtool("convert", published(name), "--recipe", "mixed_4_6", "--out", tmp_path / "out")
    assert made.code == 0, made.stderr
    validated = hubtool("validate", tmp_path / "out", "--tokens", 4, "--json")
    outcomes = {each["check"]: (each["outcome"], each["detail"]) for each in validated.document["evidence"]}
    assert {check: outcome for check, (outcome, _) in outcomes.items()} == dict.fromkeys(outcomes, "passed"), outcomes
    card = (tmp_path / "out" / "README.md").read_text()
    assert "V4" not in card and "trust-remote-code" not in card
