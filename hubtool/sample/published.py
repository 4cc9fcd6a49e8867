"""Tiny checkpoints of other architectures in their published layout: names, dtypes and config.json as on the Hub."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hubtool.checkpoint.tensors import TensorSpec

VOCAB = 1280
HIDDEN = 256
LAYERS = 4
EXPERTS = 8
INNER = 384
EXPERT_INNER = 128
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 64
FP8_BLOCK = 128
MXFP4_BLOCK = 32


@dataclass(frozen=True)
class Published:
    """A checkpoint to be: config.json, and every tensor in the order of its file."""

    config: Mapping[str, Any]
    tensors: tuple[TensorSpec, ...]


def _bf16(name: str, *sides: int) -> TensorSpec:
    return TensorSpec(name, "BF16", sides)


def _linears(prefix: str, sides: Mapping[str, tuple[int, int]], *, bias: bool = False) -> Iterator[TensorSpec]:
    for name, (rows, columns) in sides.items():
        yield _bf16(f"{prefix}.{name}.weight", rows, columns)
        if bias:
            yield _bf16(f"{prefix}.{name}.bias", rows)


def _fp8(prefix: str, sides: Mapping[str, tuple[int, int]]) -> Iterator[TensorSpec]:
    """E4M3 weights with one float32 scale a block, as DeepSeek-V3 publishes them."""
    for name, (rows, columns) in sides.items():
        blocks = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
        yield TensorSpec(f"{prefix}.{name}.weight", "F8_E4M3", (rows, columns))
        yield TensorSpec(f"{prefix}.{name}.weight_scale_inv", "F32", blocks)


def _mlp_sides(inner: int) -> dict[str, tuple[int, int]]:
    return {"gate_proj": (inner, HIDDEN), "up_proj": (inner, HIDDEN), "down_proj": (HIDDEN, inner)}


_ATTENTION = {
    "q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "o_proj": (HIDDEN, HEADS * HEAD_DIM),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")


def _norms(prefix: str, names: tuple[str, ...] = _NORMS) -> Iterator[TensorSpec]:
    for name in names:
        yield _bf16(f"{prefix}.{name}.weight", HIDDEN)


def _query_key_norms(prefix: str) -> Iterator[TensorSpec]:
    for name in ("q_norm", "k_norm"):
        yield _bf16(f"{prefix}.{name}.weight", HEAD_DIM)


def _around(layers: Iterator[TensorSpec], prefix: str = "model", *, head: bool = True) -> Iterator[TensorSpec]:
    yield _bf16(f"{prefix}.embed_tokens.weight", VOCAB, HIDDEN)
    yield from layers
    yield _bf16(f"{prefix}.norm.weight", HIDDEN)
    if head:
        yield _bf16("lm_head.weight", VOCAB, HIDDEN)


def _config(architecture: str, model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-06,
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
        **more,
    }


def _experts_after_the_first(
    prefix: str, layer: int, linears: Callable[[str, Mapping[str, tuple[int, int]]], Iterator[TensorSpec]]
) -> Iterator[TensorSpec]:
    """The feed-forward part of a layer as DeepSeek-V3 and GLM-4 lay it out: dense in the first, else experts."""
    if layer == 0:
        yield from linears(prefix, _mlp_sides(INNER))
        return
    yield _bf16(f"{prefix}.gate.weight", EXPERTS, HIDDEN)
    yield TensorSpec(f"{prefix}.gate.e_score_correction_bias", "F32", (EXPERTS,))
    for expert in range(EXPERTS):
        yield from linears(f"{prefix}.experts.{expert}", _mlp_sides(EXPERT_INNER))
    yield from linears(f"{prefix}.shared_experts", _mlp_sides(EXPERT_INNER))


def _llama() -> Published:
    def layers() -> Iterator[TensorSpec]:
        for layer in range(LAYERS):
            prefix = f"model.layers.{layer}"
            yield from _linears(f"{prefix}.self_attn", _ATTENTION)
            yield from _linears(f"{prefix}.mlp", _mlp_sides(576))
            yield from _norms(prefix)
            yield TensorSpec(f"{prefix}.self_attn.rotary_emb.inv_freq", "F32", (HEAD_DIM // 2,))

    config = _config("LlamaForCausalLM", "llama", intermediate_size=576, rope_theta=10000.0, tie_word_embeddings=True)
    return Published(config, tuple(_around(layers(), head=False)))


def _qwen3_moe() -> Published:
    def layers() -> Iterator[TensorSpec]:
        for layer in range(LAYERS):
            prefix = f"model.layers.{layer}"
            yield from _linears(f"{prefix}.self_attn", _ATTENTION)
            yield from _query_key_norms(f"{prefix}.self_attn")
            yield _bf16(f"{prefix}.mlp.gate.weight", EXPERTS, HIDDEN)
            for expert in range(EXPERTS):
                yield from _linears(f"{prefix}.mlp.experts.{expert}", _mlp_sides(EXPERT_INNER))
            yield from _norms(prefix)

    config = _config(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        intermediate_size=INNER,
        moe_intermediate_size=EXPERT_INNER,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        head_dim=HEAD_DIM,
        rope_theta=1000000.0,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )
    return Published(config, tuple(_around(layers())))


def _deepseek_v3() -> Published:
    rank, kv_rank, rope, nope, value = 128, 64, 32, 64, 64
    attention = {
        "q_a_proj": (rank, HIDDEN),
        "q_b_proj": (HEADS * (nope + rope), rank),
        "kv_a_proj_with_mqa": (kv_rank + rope, HIDDEN),
        "kv_b_proj": (HEADS * (nope + value), kv_rank),
        "o_proj": (HIDDEN, HEADS * value),
    }

    predicts = 61  # the published number, by which mlx-lm's class knows the layer that it leaves out

    def block(layer: int) -> Iterator[TensorSpec]:
        prefix = f"model.layers.{layer}"
        yield from _fp8(f"{prefix}.self_attn", attention)
        yield _bf16(f"{prefix}.self_attn.q_a_layernorm.weight", rank)
        yield _bf16(f"{prefix}.self_attn.kv_a_layernorm.weight", kv_rank)
        yield from _experts_after_the_first(f"{prefix}.mlp", layer, _fp8)
        yield from _norms(prefix)

    def tensors() -> Iterator[TensorSpec]:
        yield from _around(spec for layer in range(LAYERS) for spec in block(layer))
        prefix = f"model.layers.{predicts}"
        yield from block(predicts)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            yield _bf16(f"{prefix}.{name}.weight", HIDDEN)
        yield from _fp8(prefix, {"eh_proj": (HIDDEN, 2 * HIDDEN)})

    config = _config(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        intermediate_size=INNER,
        moe_intermediate_size=EXPERT_INNER,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        n_group=2,
        topk_group=1,
        norm_topk_prob=True,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        routed_scaling_factor=2.5,
        q_lora_rank=rank,
        kv_lora_rank=kv_rank,
        qk_rope_head_dim=rope,
        qk_nope_head_dim=nope,
        v_head_dim=value,
        rope_theta=10000,
        attention_bias=False,
        num_nextn_predict_layers=1,
        tie_word_embeddings=False,
        quantization_config={
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        },
    )
    config["num_key_value_heads"] = HEADS
    return Published(config, tuple(tensors()))


def _gpt_oss() -> Published:
    def experts(prefix: str) -> Iterator[TensorSpec]:
        for name, rows, columns in (("gate_up_proj", 2 * EXPERT_INNER, HIDDEN), ("down_proj", HIDDEN, EXPERT_INNER)):
            blocks = columns // MXFP4_BLOCK
            yield TensorSpec(f"{prefix}.{name}_blocks", "U8", (EXPERTS, rows, blocks, MXFP4_BLOCK // 2))
            yield TensorSpec(f"{prefix}.{name}_scales", "U8", (EXPERTS, rows, blocks))
            yield _bf16(f"{prefix}.{name}_bias", EXPERTS, rows)

    def layers() -> Iterator[TensorSpec]:
        for layer in range(LAYERS):
            prefix = f"model.layers.{layer}"
            yield from _linears(f"{prefix}.self_attn", _ATTENTION, bias=True)
            yield _bf16(f"{prefix}.self_attn.sinks", HEADS)
            yield from _linears(f"{prefix}.mlp", {"router": (EXPERTS, HIDDEN)}, bias=True)
            yield from experts(f"{prefix}.mlp.experts")
            yield from _norms(prefix)

    config = _config(
        "GptOssForCausalLM",
        "gpt_oss",
        intermediate_size=EXPERT_INNER,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        head_dim=HEAD_DIM,
        sliding_window=128,
        rope_theta=150000,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        tie_word_embeddings=False,
        quantization_config={
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
        },
    )
    return Published(config, tuple(_around(layers())))


def _glm4_moe() -> Published:
    def block(layer: int) -> Iterator[TensorSpec]:
        prefix = f"model.layers.{layer}"
        yield from _linears(f"{prefix}.self_attn", {k: v for k, v in _ATTENTION.items() if k != "o_proj"}, bias=True)
        yield from _linears(f"{prefix}.self_attn", {"o_proj": _ATTENTION["o_proj"]})
        yield from _query_key_norms(f"{prefix}.self_attn")
        yield from _experts_after_the_first(f"{prefix}.mlp", layer, _linears)
        yield from _norms(prefix)

    def tensors() -> Iterator[TensorSpec]:
        yield from _around(spec for layer in range(LAYERS) for spec in block(layer))
        yield from block(LAYERS)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            yield _bf16(f"model.layers.{LAYERS}.{name}.weight", HIDDEN)
        yield _bf16(f"model.layers.{LAYERS}.eh_proj.weight", HIDDEN, 2 * HIDDEN)

    config = _config(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        intermediate_size=INNER,
        moe_intermediate_size=EXPERT_INNER,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        head_dim=HEAD_DIM,
        use_qk_norm=True,
        attention_bias=True,
        partial_rotary_factor=0.5,
        rope_theta=1000000,
        rope_scaling=None,
        num_nextn_predict_layers=1,
        tie_word_embeddings=False,
    )
    return Published(config, tuple(tensors()))


def _gemma3() -> Published:
    norms = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")

    def layers() -> Iterator[TensorSpec]:
        for layer in range(LAYERS):
            prefix = f"language_model.model.layers.{layer}"
            yield from _linears(f"{prefix}.self_attn", _ATTENTION)
            yield from _query_key_norms(f"{prefix}.self_attn")
            yield from _linears(f"{prefix}.mlp", _mlp_sides(INNER))
            yield from _norms(prefix, norms)

    def tensors() -> Iterator[TensorSpec]:
        yield from _around(layers(), "language_model.model", head=False)
        yield _bf16("multi_modal_projector.mm_input_projection_weight", 64, HIDDEN)
        yield _bf16("multi_modal_projector.mm_soft_emb_norm.weight", 64)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield _bf16(f"vision_tower.vision_model.encoder.layers.0.self_attn.{name}.weight", 64, 64)

    text = _config(
        "",
        "gemma3_text",
        intermediate_size=INNER,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=HEAD_DIM,
        sliding_window=128,
        sliding_window_pattern=2,
    )
    del text["architectures"], text["torch_dtype"]
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "vocab_size": VOCAB,
        "text_config": text,
        "vision_config": {"hidden_size": 64, "model_type": "siglip_vision_model", "num_hidden_layers": 1},
        "torch_dtype": "bfloat16",
    }
    return Published(config, tuple(tensors()))


def _jamba() -> Published:
    inner, state, rank, width = 2 * HIDDEN, 16, 16, 4

    def mamba(prefix: str) -> Iterator[TensorSpec]:
        yield TensorSpec(f"{prefix}.A_log", "F32", (inner, state))
        yield TensorSpec(f"{prefix}.D", "F32", (inner,))
        yield _bf16(f"{prefix}.conv1d.weight", inner, 1, width)
        yield _bf16(f"{prefix}.conv1d.bias", inner)
        yield from _linears(prefix, {"in_proj": (2 * inner, HIDDEN), "out_proj": (HIDDEN, inner)})
        yield from _linears(prefix, {"x_proj": (rank + 2 * state, inner)})
        yield from _linears(prefix, {"dt_proj": (inner, rank)}, bias=True)
        for name, side in (("dt", rank), ("b", state), ("c", state)):
            yield _bf16(f"{prefix}.{name}_layernorm.weight", side)

    def layers() -> Iterator[TensorSpec]:
        for layer in range(LAYERS):
            prefix = f"model.layers.{layer}"
            if layer % 2:
                yield from _linears(f"{prefix}.self_attn", _ATTENTION)
                yield _bf16(f"{prefix}.feed_forward.router.weight", EXPERTS, HIDDEN)
                for expert in range(EXPERTS):
                    yield from _linears(f"{prefix}.feed_forward.experts.{expert}", _mlp_sides(EXPERT_INNER))
            else:
                yield from mamba(f"{prefix}.mamba")
                yield from _linears(f"{prefix}.feed_forward", _mlp_sides(EXPERT_INNER))
            yield from _norms(prefix, ("input_layernorm", "pre_ff_layernorm"))

    def tensors() -> Iterator[TensorSpec]:
        for spec in _around(layers()):
            yield TensorSpec(spec.name.replace("model.norm", "model.final_layernorm"), spec.dtype, spec.shape)

    config = _config(
        "JambaForCausalLM",
        "jamba",
        intermediate_size=EXPERT_INNER,
        attn_layer_offset=1,
        attn_layer_period=2,
        expert_layer_offset=1,
        expert_layer_period=2,
        mamba_d_conv=width,
        mamba_d_state=state,
        mamba_expand=2,
        mamba_dt_rank=rank,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    )
    return Published(config, tuple(tensors()))


PUBLISHED: Mapping[str, Callable[[], Published]] = {
    "llama": _llama,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v3": _deepseek_v3,
    "gpt_oss": _gpt_oss,
    "glm4_moe": _glm4_moe,
    "gemma3": _gemma3,
    "jamba": _jamba,
}
"""Makes of each checkpoint by config.json's model_type: dense, experts, FP8, mxfp4, vision and text, Mamba."""
