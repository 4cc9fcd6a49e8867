"""What the model reads: its own names, those of others, and the published checkpoint as it is."""

import ast
import json
import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from hubtool.runtime import deepseek_v4
from hubtool.runtime.deepseek_v4 import PUBLISHED_NAMES, Model, ModelArgs
from hubtool.sample import FLASH, FLASH_0731, PRO, published_layout
from tests.fixtures import Conversions, Samples
from tests.runtime.conftest import Goldens, Models
from tests.runtime.random_checkpoint import random_config, random_weights
from tests.runtime.test_exact import EXACT, SAME, difference

RUNTIME = Path(deepseek_v4.__file__)
IDS = mx.array([[(7 * i * i + 3) % 1536 for i in range(150)]])

Weights = dict[str, mx.array]


def parameters(model: nn.Module) -> Weights:
    return dict(tree_flatten(model.parameters()))


def published(shape: str) -> Weights:
    return {name: mx.array(array) for name, array in random_weights(random_config(shape), 0).items()}


def empty(shape: str) -> Model:
    return Model(ModelArgs.from_dict(random_config(shape)))


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and mx.array_equal(a[name], b[name]).item() for name in a
    )


def unpacked(module: nn.Module) -> mx.array:
    """The float32 weight that a quantized module multiplies by."""
    scales, biases = module.scales, module.get("biases")
    if biases is not None and not isinstance(module, nn.QuantizedEmbedding):  # which looks up in bfloat16
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(module.weight, scales, biases, module.group_size, module.bits, module.mode)
    return weight.astype(mx.float32)


def test_names_are_a_literal_that_needs_no_import() -> None:
    tree = ast.parse(RUNTIME.read_text())
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["PUBLISHED_NAMES"]
    )
    assert ast.literal_eval(value) == PUBLISHED_NAMES


@pytest.mark.slow
def test_every_published_tensor_has_a_name_or_is_an_mtp_stage_s() -> None:
    for layout in (FLASH, FLASH_0731, PRO):
        for spec in published_layout(layout):
            matches = [re.fullmatch(pattern, spec.name) for pattern, _ in PUBLISHED_NAMES]
            assert sum(match is not None for match in matches) == (not spec.name.startswith("mtp.")), spec.name


@pytest.mark.slow
def test_block_scales_and_scales_that_are_parameters_are_told_apart() -> None:
    for spec in published_layout(PRO):
        for pattern, replacement in PUBLISHED_NAMES:
            if match := re.fullmatch(pattern, spec.name):
                is_block_scale = match.groupdict().get("param") == "scale"
                assert is_block_scale == (spec.dtype == "F8_E8M0")
                assert match.expand(replacement).endswith(".scale") == spec.name.endswith("scale")


def test_file_needs_nothing_but_mlx_and_mlx_lm() -> None:
    tree = ast.parse(RUNTIME.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in froms)
    imported |= {str(node.module) for node in froms}
    outside = {name.split(".")[0] for name in imported} - {"mlx", "mlx_lm"}
    assert outside <= {"collections", "dataclasses", "functools", "itertools", "math", "re", "typing"}


def test_sanitize_is_idempotent(shape: str) -> None:
    model = empty(shape)
    once = model.sanitize(published(shape))
    assert same(model.sanitize(dict(once)), once)
    assert once.keys() == parameters(model).keys()


def test_the_shared_expert_has_one_experts_width_whatever_n_shared_experts_says() -> None:
    config = random_config("mixed", n_shared_experts=2)
    shared = Model(ModelArgs.from_dict(config)).layers[0].ffn.shared_experts
    assert shared.gate_proj.weight.shape == (config["moe_intermediate_size"], config["hidden_size"])


def test_sanitize_reads_the_other_names_and_shapes_in_use() -> None:
    model = empty("mixed")
    expected = model.sanitize(published("mixed"))
    others = {}
    for name, array in expected.items():
        renamed = re.sub(r"\.(attn|ffn)_hc\.", r".hc_\1.", name)
        grouped = array.reshape(2, -1, array.shape[-1]) if ".wo_a." in name else array
        others[renamed] = grouped.astype(mx.int64) if "tid2eid" in name else grouped
    assert others.keys() != expected.keys()
    assert same(model.sanitize(others), expected)


def test_sanitize_keeps_what_meets_float32_in_float32() -> None:
    weights = {name: array.astype(mx.bfloat16) for name, array in published("mixed").items() if "tid2eid" not in name}
    for name, array in empty("mixed").sanitize(weights).items():
        kept = re.search(r"compressor\.(wkv|wgate|ape)|ffn\.gate\.weight", name)
        assert array.dtype == (mx.float32 if kept else mx.bfloat16), name


def test_cast_predicate_keeps_float32_where_it_matters(models: Models) -> None:
    castable = models("mixed").cast_predicate
    kept = {re.sub(r"layers\.\d+", "layers.N", name) for name in parameters(models("mixed")) if not castable(name)}
    assert kept == {
        *(f"model.layers.N.{block}_hc.{name}" for block in ("attn", "ffn") for name in ("fn", "base", "scale")),
        *(f"model.hc_head.{name}" for name in ("fn", "base", "scale")),
        "model.layers.N.attn.attn_sink",
        "model.layers.N.attn.compressor.ape",
        "model.layers.N.attn.indexer.compressor.ape",
        "model.layers.N.ffn.gate.e_score_correction_bias",
    }


@pytest.mark.slow
def test_published_checkpoint_runs_as_it_is(sample: Samples, converted: Conversions) -> None:
    """FP4 and FP8 stay packed, and mean what the conversion to float32 wrote out."""
    direct, _ = load_model(sample("tiny"), get_model_classes=lambda config: (Model, ModelArgs))
    reference, _ = load_model(converted("tiny", "float32").folder, trust_remote_code=True)
    expected = reference(IDS)
    assert difference(direct(IDS), expected) <= EXACT
    modes = {module.mode for module in direct.modules() if hasattr(module, "mode")}
    assert modes == {"mxfp4", "mxfp8"}
    assert not any(module.weight.dtype == mx.uint32 for module in direct.modules() if isinstance(module, nn.Embedding))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base_like", "pro_like", "r0731_like", "other"])
def test_other_releases_run_as_they_are(name: str, sample: Samples, converted: Conversions) -> None:
    direct, _ = load_model(sample(name), get_model_classes=lambda config: (Model, ModelArgs))
    reference, _ = load_model(converted(name, "float32").folder, trust_remote_code=True)
    ids = IDS % direct.args.vocab_size
    assert difference(direct(ids), reference(ids)) <= EXACT


def fp8(block: tuple[int, int], **changes: object) -> tuple[Weights, mx.array, Model]:
    """A published wq_a [64, 96] in FP8 with a scale for each block, what it stands for, and a model to read it."""
    config = random_config("mixed", hidden_size=96, q_lora_rank=64, **changes)
    random = np.random.RandomState(0)
    shape = (-(-64 // block[0]), -(-96 // block[1]))
    weight, scale = random.randint(0, 120, (64, 96)).astype(np.uint8), random.randint(120, 130, shape).astype(np.uint8)
    whole = np.repeat(np.repeat(scale, block[0], 0), block[1], 1)[:64, :96].astype(np.float32)
    values = mx.from_fp8(mx.array(weight), mx.float32) * mx.array(np.exp2(whole - 127))
    name = "layers.0.attn.wq_a"
    return (
        {f"{name}.weight": mx.array(weight), f"{name}.scale": mx.array(scale)},
        values,
        Model(ModelArgs.from_dict(config)),
    )


@pytest.mark.parametrize("block", [(128, 128), (16, 32), (48, 64)])
def test_fp8_blocks_of_any_size_are_read(block: tuple[int, int]) -> None:
    weights, values, model = fp8(block, quantization_config={"weight_block_size": list(block)})
    read = model.sanitize(weights)
    path = "model.layers.0.attn.wq_a"
    found = mx.dequantize(read[f"{path}.weight"], read[f"{path}.scales"], group_size=32, bits=8, mode="mxfp8")
    assert mx.array_equal(found.astype(mx.float32), values)


@pytest.mark.parametrize("block", [(64, 64), (128, 32), (64, 16)])
def test_scales_of_other_blocks_than_config_says_are_refused(block: tuple[int, int]) -> None:
    weights, _, model = fp8(block)
    with pytest.raises(ValueError, match=r"attn.wq_a: .* one for each 128 x 128 values"):
        model.sanitize(weights)
    if block[1] % 32:
        weights, _, model = fp8(block, quantization_config={"weight_block_size": list(block)})
        with pytest.raises(ValueError, match="whole groups of 32 columns"):
            model.sanitize(weights)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["native", "mixed_3_6", "compact_4bit"])
def test_quantized_conversions_load_and_mean_what_their_weights_say(recipe: str, converted: Conversions) -> None:
    """The packed model against one with the same weights unpacked; a grouped projection is among them."""
    folder = converted("tiny", recipe).folder
    packed, config = load_model(folder, trust_remote_code=True)
    assert isinstance(packed.layers[0].attn.wo_a, nn.QuantizedLinear)
    listed = {path for path, value in config["quantization"].items() if isinstance(value, dict)}
    assert listed == {path for path, module in packed.named_modules() if hasattr(module, "bits")}
    plain = Model(ModelArgs.from_dict(json.loads((folder / "config.json").read_text())))
    weights = parameters(packed)
    for path, module in packed.named_modules():
        if hasattr(module, "bits"):
            weights |= {f"{path}.weight": unpacked(module)}
            weights = {
                name: array for name, array in weights.items() if name not in (f"{path}.scales", f"{path}.biases")
            }
    plain.load_weights(list(weights.items()), strict=True)
    cache = packed.make_cache()
    chunks = mx.concatenate([packed(IDS[:, i : i + 50], cache) for i in range(0, 150, 50)], axis=1)
    assert difference(chunks, plain(IDS)) <= EXACT
    assert difference(chunks, packed(IDS)) <= SAME


@pytest.mark.slow
def test_bfloat16_weights_run_where_the_processor_multiplies_float32_only(converted: Conversions) -> None:
    rounded, _ = load_model(converted("tiny", "bf16").folder, trust_remote_code=True)
    reference, _ = load_model(converted("tiny", "float32").folder, trust_remote_code=True)
    assert rounded.lm_head.weight.dtype == mx.bfloat16
    assert difference(rounded(IDS), reference(IDS)) <= EXACT  # FP4 and FP8 are exact in bfloat16


def test_goldens_are_small(goldens: Goldens) -> None:
    assert sum(path.stat().st_size for path in Path(__file__).parent.glob("*.npz")) < 4_000_000
