"""DeepSeek-V4's published tensors become MLX parameters, or are refused with what contradicts what."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubtool.checkpoint.source import LocalSource
from hubtool.checkpoint.tensors import DTYPE_NBYTES
from hubtool.models import Component, read_model
from hubtool.models.names import published_name
from tests.checkpoints import Tensor, copied, edit_json, edit_tensors, read_tensors
from tests.fixtures import CommandLine, Refusal, Samples
from tests.reference import published_names

FIELDS_EXPECTED = "expected the fields of DeepSeek-V4's configuration"
AGAIN = "fetch config.json and the shards of one revision"
EXPERT = "layers.1.ffn.experts.2.w1"
LINEAR = "layers.1.attn.wq_a"


@pytest.fixture
def source(sample: Samples, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return copied(sample("mini"), tmp_path / "source")


def _set(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.update(fields)


@pytest.mark.parametrize("name", ["tiny", "other", "pro_like", "r0731_like", "base_like"])
def test_every_published_tensor_is_used_once_or_dropped(name: str, sample: Samples) -> None:
    source = LocalSource(sample(name))
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    used = [part.weight for parameter in model.parameters for part in parameter.parts]
    scales = [part.scale for parameter in model.parameters for part in parameter.parts if part.scale]
    assert len(set(used + scales)) == len(used + scales)
    dropped = set(source.tensors) - set(used + scales)
    assert all(name.startswith("mtp.") for name in dropped)
    assert sum(item.tensors for item in model.dropped) == len(dropped)
    assert sum(item.nbytes for item in model.dropped) == sum(source.tensors[name].nbytes for name in dropped)
    assert all(scale == used_by.removesuffix("weight") + "scale" for scale, used_by in _pairs(model.parameters))


def _pairs(parameters: Any) -> list[tuple[str, str]]:
    return [(part.scale, part.weight) for parameter in parameters for part in parameter.parts if part.scale]


@pytest.mark.parametrize("name", ["tiny", "other", "pro_like"])
def test_parameters_are_made_of_the_tensors_that_the_names_tell(name: str, sample: Samples) -> None:
    source = LocalSource(sample(name))
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    for parameter in model.parameters:
        names = published_names(parameter.path, source.config["n_routed_experts"])
        assert [part.weight for part in parameter.parts] == names


def test_parameters_stand_in_the_order_of_the_files(sample: Samples) -> None:
    source = LocalSource(sample("mini"))
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    paths = [parameter.path for parameter in model.parameters]
    assert paths[0] == "model.embed_tokens.weight"
    assert paths[-2:] == ["model.norm.weight", "lm_head.weight"]
    layer = [path.removeprefix("model.layers.1.") for path in paths if path.startswith("model.layers.1.")]
    heads = list(dict.fromkeys(re.match(r"attn_hc|ffn_hc|attn_norm|ffn_norm|attn|ffn\.\w+", path)[0] for path in layer))  # type: ignore[index]
    assert heads == [
        "attn",
        "ffn.gate",
        "ffn.switch_mlp",
        "ffn.shared_experts",
        "attn_hc",
        "ffn_hc",
        "attn_norm",
        "ffn_norm",
    ]
    projections = [path.split(".")[2] for path in layer if path.startswith("ffn.switch_mlp")]
    assert projections == ["gate_proj", "up_proj", "down_proj"]


def test_layers_have_what_their_ratio_calls_for(sample: Samples) -> None:
    source = LocalSource(sample("mini"))
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    paths = {parameter.path for parameter in model.parameters}
    for layer, (compressor, indexer) in enumerate([(False, False), (True, True), (True, False)]):
        prefix = f"model.layers.{layer}.attn"
        assert (f"{prefix}.compressor.wkv.weight" in paths) == compressor
        assert (f"{prefix}.indexer.wq_b.weight" in paths) == indexer
        assert (f"model.layers.{layer}.ffn.gate.tid2eid" in paths) == (layer == 0)
        assert (f"model.layers.{layer}.ffn.gate.e_score_correction_bias" in paths) == (layer > 0)


def test_components_cover_the_model(sample: Samples) -> None:
    source = LocalSource(sample("mini"))
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    assert {parameter.component for parameter in model.parameters} == set(Component) - {
        Component.MLP,
        Component.STATE_SPACE,
    }


OTHER_TYPES = {
    "llama": r"config\.json: llama: mlx-lm's class does not take this configuration: found TypeError: .+",
    "deepseek_v3": r"model\.embed_tokens\.weight: missing tensor: found nothing in the source from which mlx-lm's "
    r"class makes it, expected .+, as config\.json has it; fetch config\.json and the shards of one revision, "
    r"or update mlx-lm",
    "deepseek_v9": r"config\.json: model_type: an architecture of which mlx-lm has no model: found deepseek_v9, .+",
    None: r"config\.json: model_type: no architecture: found none, .+",
    4: r"config\.json: model_type: no architecture: found 4, .+",
}


@pytest.mark.parametrize("model_type", OTHER_TYPES)
def test_another_model_type_is_refused(model_type: str | int | None, source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", _set(model_type=model_type))
    assert_refused(source, re.compile(OTHER_TYPES[model_type], re.DOTALL))


FIELDS = [
    "architectures",
    "num_hidden_layers",
    "num_hash_layers",
    "hidden_size",
    "vocab_size",
    "head_dim",
    "num_attention_heads",
    "q_lora_rank",
    "o_lora_rank",
    "o_groups",
    "index_n_heads",
    "index_head_dim",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "hc_mult",
    "compress_ratios",
    "sliding_window",
    "index_topk",
    "qk_rope_head_dim",
    "rope_theta",
    "compress_rope_theta",
    "rms_norm_eps",
    "hc_eps",
    "hc_sinkhorn_iters",
    "routed_scaling_factor",
    "swiglu_limit",
]


@pytest.mark.parametrize("field", FIELDS)
def test_config_that_lacks_a_field_is_refused(field: str, source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", lambda config: config.pop(field))
    assert_refused(
        source,
        f"config.json: cannot be used: found Object missing required field `{field}`, {FIELDS_EXPECTED}; {AGAIN}",
        recipe="native",
    )


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"hidden_size": "256"}, "Expected `int`, got `str` - at `$.hidden_size`"),
        ({"o_groups": 0}, "Expected `int` >= 1 - at `$.o_groups`"),
        ({"compress_ratios": [0, -4, 128]}, "Expected `int` >= 0 - at `$.compress_ratios[1]`"),
        (
            {"quantization_config": {"weight_block_size": [128, 48]}},
            "Expected `int` that's a multiple of 32 - at `$.quantization_config.weight_block_size[1]`",
        ),
        (
            {"quantization_config": {"weight_block_size": [0, 128]}},
            "Expected `int` >= 1 - at `$.quantization_config.weight_block_size[0]`",
        ),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "Object missing required field `weight_block_size` - at `$.quantization_config`",
        ),
    ],
)
def test_config_with_an_impossible_field_is_refused(
    fields: dict[str, object], found: str, source: Path, assert_refused: Refusal
) -> None:
    edit_json(source / "config.json", _set(**fields))
    assert_refused(source, f"config.json: cannot be used: found {found}, {FIELDS_EXPECTED}; {AGAIN}")


def test_config_without_a_ratio_for_each_layer_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", _set(compress_ratios=[0, 4]))
    assert_refused(
        source,
        f"config.json: compress_ratios: too few entries: found 2, expected one for each of 3 layers; {AGAIN}",
    )


def test_the_shared_expert_has_one_experts_width_whatever_n_shared_experts_says(source: Path) -> None:
    one = LocalSource(source)
    specs = {name: tensor.spec for name, tensor in one.tensors.items()}
    two = read_model({**one.config, "n_shared_experts": 2}, specs)
    assert two.parameters == read_model(one.config, specs).parameters


@pytest.mark.parametrize(
    ("fields", "tensor", "found", "expected"),
    [
        ({"hidden_size": 512}, "embed.weight", [1280, 256], [1280, 512]),
        ({"vocab_size": 1281}, "embed.weight", [1280, 256], [1281, 256]),
        ({"q_lora_rank": 64}, "layers.0.attn.wq_a.weight", [128, 256], [64, 256]),
        ({"moe_intermediate_size": 64}, "layers.0.ffn.experts.0.w1.weight", [128, 256], [64, 256]),
        ({"num_experts_per_tok": 2}, "layers.0.ffn.gate.tid2eid", [1280, 3], [1280, 2]),
        ({"hc_mult": 2}, "layers.0.hc_attn_fn", [24, 1024], [8, 512]),
    ],
)
def test_config_that_contradicts_a_shape_is_refused(
    fields: dict[str, object], tensor: str, found: list[int], expected: list[int], source: Path, assert_refused: Refusal
) -> None:
    edit_json(source / "config.json", _set(**fields))
    assert_refused(source, f"{tensor}: shape contradicts config.json: found {found}, expected {expected}; {AGAIN}")


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"num_hidden_layers": 2, "compress_ratios": [0, 4]}, "layers.2."),
        ({"compress_ratios": [0, 0, 128]}, "layers.1.attn."),
    ],
    ids=["fewer layers", "no compressor"],
)
def test_tensors_that_the_config_has_no_place_for_are_refused(
    fields: dict[str, object], where: str, source: Path, assert_refused: Refusal
) -> None:
    edit_json(source / "config.json", _set(**fields))
    assert_refused(
        source,
        re.compile(
            rf"{re.escape(where)}\S+: tensor that config\.json has no place for: found would be model\.\S+; {AGAIN}"
        ),
    )


def test_more_layers_than_tensors_are_refused(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", _set(num_hidden_layers=4, compress_ratios=[0, 4, 128, 4]))
    assert_refused(
        source,
        "layers.3.attn.wq_a.weight: missing tensor: found no tensor in the source makes "
        f"model.layers.3.attn.wq_a.weight, expected [128, 256], as config.json has it; {AGAIN}",
    )


def test_more_experts_in_the_config_are_missing_experts(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", _set(n_routed_experts=5))
    assert_refused(source, re.compile(r"layers\.0\.ffn\.gate\.weight: shape contradicts config\.json: found .+"))


def test_weight_without_its_scale_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_tensors(source, lambda tensors: [tensors.pop(f"{LINEAR}.scale"), tensors.pop(f"{EXPERT}.scale")])
    assert_refused(
        source,
        f"{LINEAR}.weight: weight without its scale: found F8_E4M3 alone, expected {LINEAR}.scale; {AGAIN}",
    )


def test_expert_without_its_scale_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_tensors(source, lambda tensors: tensors.pop(f"{EXPERT}.scale"))
    assert_refused(
        source, f"{EXPERT}.weight: weight without its scale: found I8 alone, expected {EXPERT}.scale; {AGAIN}"
    )


@pytest.mark.parametrize("weight", [LINEAR, EXPERT], ids=["linear", "expert"])
def test_scale_without_its_weight_is_refused(weight: str, source: Path, assert_refused: Refusal) -> None:
    edit_tensors(source, lambda tensors: tensors.pop(f"{weight}.weight"))
    assert_refused(source, re.compile(rf"{weight}\.weight: missing (tensor|expert 2): found .+, expected .+; .+"))


@pytest.mark.parametrize(
    ("linear", "shape", "expected"),
    [(LINEAR, (1, 1), "[1, 2]"), (EXPERT, (128, 4), "[128, 8]"), (EXPERT, (8, 128), "[128, 8]")],
)
def test_scale_of_the_wrong_shape_is_refused(
    linear: str, shape: tuple[int, int], expected: str, source: Path, assert_refused: Refusal
) -> None:
    def reshape(tensors: dict[str, Tensor]) -> None:
        scale = tensors[f"{linear}.scale"]
        tensors[f"{linear}.scale"] = replace(scale, shape=shape, data=bytes(shape[0] * shape[1]))

    edit_tensors(source, reshape)
    assert_refused(
        source,
        f"{linear}.scale: scale of the wrong shape or dtype: found F8_E8M0 {list(shape)}, expected F8_E8M0 {expected}; "
        f"{AGAIN}",
    )


def test_scale_of_the_wrong_dtype_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_tensors(
        source, lambda tensors: tensors.update({f"{LINEAR}.scale": replace(tensors[f"{LINEAR}.scale"], dtype="U8")})
    )
    assert_refused(
        source,
        f"{LINEAR}.scale: scale of the wrong shape or dtype: found U8 [1, 2], expected F8_E8M0 [1, 2]; {AGAIN}",
    )


def test_scale_beside_a_plain_weight_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_tensors(source, lambda tensors: tensors.update({"head.scale": tensors[f"{LINEAR}.scale"]}))
    assert_refused(
        source,
        f"head.scale: scale beside a weight that is not encoded: found head.weight is BF16, expected no scale; {AGAIN}",
    )


def test_missing_expert_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_tensors(source, lambda tensors: [tensors.pop(f"{EXPERT}.{part}") for part in ("weight", "scale")])
    assert_refused(
        source,
        f"{EXPERT}.weight: missing expert 2: found no tensor in the source makes "
        f"model.layers.1.ffn.switch_mlp.gate_proj.weight, expected [128, 256], as config.json has it; {AGAIN}",
    )


def test_expert_too_many_is_refused(source: Path, assert_refused: Refusal) -> None:
    extra = "layers.1.ffn.experts.4.w1"
    edit_tensors(
        source,
        lambda tensors: tensors.update(
            {f"{extra}.{part}": tensors[f"{EXPERT}.{part}"] for part in ("weight", "scale")}
        ),
    )
    assert_refused(
        source,
        f"{extra}.weight: expert beyond n_routed_experts: found an expert of that number, "
        f"expected 4 experts, the first of which is 0; {AGAIN}",
    )


def test_expert_that_is_there_twice_is_refused(source: Path, assert_refused: Refusal) -> None:
    twin = "layers.1.ffn.experts.02.w1.weight"
    edit_tensors(source, lambda tensors: tensors.update({twin: tensors[f"{EXPERT}.weight"]}))
    assert_refused(
        source,
        f"{twin}: tensor that DeepSeek-V4 does not have: found I8 [128, 128], expected names as deepseek-ai publishes "
        "them; update hubtool, or report the checkpoint",
    )


def test_experts_stored_in_different_ways_are_refused(source: Path, assert_refused: Refusal) -> None:
    def decode_one(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{EXPERT}.scale"]
        weight = tensors[f"{EXPERT}.weight"]
        tensors[f"{EXPERT}.weight"] = replace(weight, dtype="BF16", shape=(128, 256), data=bytes(128 * 256 * 2))

    edit_tensors(source, decode_one)
    assert_refused(
        source,
        "model.layers.1.ffn.switch_mlp.gate_proj.weight: experts of one projection are stored in different ways: "
        f"found fp4 BF16, plain BF16, expected one way; {AGAIN}",
    )


def test_missing_tensor_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_tensors(source, lambda tensors: tensors.pop("norm.weight"))
    assert_refused(
        source,
        "norm.weight: missing tensor: found no tensor in the source makes model.norm.weight, "
        f"expected [256], as config.json has it; {AGAIN}",
    )


def test_unknown_tensor_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_tensors(source, lambda tensors: tensors.update({"layers.1.attn.wq_c.weight": tensors["norm.weight"]}))
    assert_refused(
        source,
        "layers.1.attn.wq_c.weight: tensor that DeepSeek-V4 does not have: found BF16 [256], expected names as "
        "deepseek-ai publishes them; update hubtool, or report the checkpoint",
    )


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("norm.weight", "F16", "BF16 or F32"),
        ("norm.weight", "I8", "BF16 or F32"),
        ("layers.1.ffn.gate.bias", "I32", "BF16 or F32"),
        ("head.weight", "I64", "BF16 or F32 or I8 or F8_E4M3"),
        ("layers.0.ffn.gate.tid2eid", "F32", "I64 or I32"),
    ],
)
def test_dtype_that_a_parameter_cannot_have_is_refused(
    name: str, dtype: str, expected: str, source: Path, assert_refused: Refusal
) -> None:
    def retype(tensors: dict[str, Tensor]) -> None:
        size = math.prod(tensors[name].shape) * DTYPE_NBYTES[dtype]
        tensors[name] = replace(tensors[name], dtype=dtype, data=bytes(size))

    edit_tensors(source, retype)
    assert_refused(
        source,
        f"{name}: dtype that DeepSeek-V4 does not use here: found {dtype}, expected {expected}; "
        f"{AGAIN}, or update hubtool",
    )


def test_tensor_without_a_shape_is_refused(source: Path, assert_refused: Refusal) -> None:
    name = f"{EXPERT}.weight"
    edit_tensors(source, lambda tensors: tensors.update({name: replace(tensors[name], shape=(), data=b"0")}))
    assert_refused(source, f"{name}: shape contradicts config.json: found [], expected [128, 256]; {AGAIN}")


def test_another_architecture_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", _set(architectures=["LlamaForCausalLM"]))
    assert_refused(
        source,
        "config.json: architectures: another architecture: found LlamaForCausalLM, "
        f"expected DeepseekV4ForCausalLM; {AGAIN}",
        recipe="native",
    )


def test_tied_embeddings_have_no_place_for_a_head(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", _set(tie_word_embeddings=True))
    assert_refused(
        source,
        f"head.weight: tensor that config.json has no place for: found would be lm_head.weight; {AGAIN}",
        recipe="native",
    )


@pytest.mark.parametrize("name", ["mini", "pro_like"])
def test_missing_tensors_are_named_as_they_are_published(name: str, sample: Samples) -> None:
    source = LocalSource(sample(name))
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    for parameter in model.parameters:
        for expert, part in enumerate(parameter.parts):
            assert published_name(parameter.path, expert) == part.weight


def test_fp8_without_a_block_size_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", lambda config: config.pop("quantization_config"))
    assert_refused(
        source,
        "config.json: quantization_config: FP8 weights without weight_block_size: found layers.0.attn.wq_a.weight in "
        f"F8_E4M3, expected weight_block_size, [128, 128] say; {AGAIN}",
        recipe="native",
    )


@pytest.mark.parametrize(
    ("name", "prefixes", "what"),
    [
        ("mini", ["mtp.0"], "multi-token prediction is"),
        ("r0731_like", ["mtp.0", "mtp.1", "mtp.2"], "DSpark, the drafter for speculative decoding, is"),
    ],
)
def test_prediction_stages_are_dropped_and_named(
    name: str, prefixes: list[str], what: str, sample: Samples, hubtool: CommandLine
) -> None:
    dropped = hubtool("plan", sample(name), "--recipe", "native", "--json").document["dropped"]
    stages = [
        [tensor for tensor_name, tensor in read_tensors(sample(name)).items() if tensor_name.startswith(f"{prefix}.")]
        for prefix in prefixes
    ]
    assert dropped == [
        {
            "names": f"{prefix}.*",
            "tensors": len(stage),
            "nbytes": sum(len(tensor.data) for tensor in stage),
            "reason": f"{what} not part of the MLX model",
        }
        for prefix, stage in zip(prefixes, stages, strict=True)
    ]


def test_experts_in_fp8_are_told_by_their_dtype(sample: Samples) -> None:
    source = LocalSource(sample("base_like"))
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    encodings = {p.encoding for p in model.parameters if p.component is Component.ROUTED_EXPERTS}
    assert encodings == {"fp8"}
