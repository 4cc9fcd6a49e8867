"""The published layout of a DeepSeek-V4 checkpoint: tensors, shards, config.json.

Names, dtypes and shapes are those of deepseek-ai/DeepSeek-V4-Flash and -Pro, tensor counts and bytes included.
"""

from collections.abc import Iterator, Mapping

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.sample.shapes import SampleShape

FP4_BLOCK = 32
"""Columns of one row that share a scale in the FP4 experts."""

FP8_BLOCK = 128
"""Rows and columns of the square that shares a scale in an FP8 linear (`weight_block_size`)."""

STORAGE_ORDER = ("I64", "F32", "BF16", "F8_E8M0", "F8_E4M3", "I8")
"""Dtypes in the order in which `safetensors` lays tensors out, widest first so that each is aligned."""

YARN_FACTOR = 16
"""`max_position_embeddings` over `original_max_position_embeddings` in every release."""


def published_layout(shape: SampleShape) -> list[TensorSpec]:
    """Every tensor of the checkpoint, in the order of the shards."""
    return [spec for shard in published_shards(shape).values() for spec in shard]


def published_shards(shape: SampleShape) -> dict[str, list[TensorSpec]]:
    """The tensors of each shard by file name: the embedding, each layer, the head, each `mtp.*` stage.

    One shard a block gives the 46 of V4-Flash and the 48 of its release of 0731.
    """
    ratios = shape.compress_ratios
    hidden, head = shape.hidden_size, [shape.vocab_size, shape.hidden_size]
    shards = [[_bf16("embed.weight", *head)]]
    for layer in range(shape.num_hidden_layers):
        shards.append(list(_block(shape, f"layers.{layer}", ratios[layer], hashed=layer < shape.num_hash_layers)))
    shards.append([_bf16("norm.weight", hidden), *_hc_head(shape, ""), _bf16("head.weight", *head)])
    for stage in range(shape.mtp_stages):
        block = _block(shape, f"mtp.{stage}", ratios[shape.num_hidden_layers + stage], hashed=False)
        shards.append([*block, *_mtp_extras(shape, stage)])
    names = (f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1))
    return {name: sorted(shard, key=_storage_order) for name, shard in zip(names, shards, strict=True)}


def _storage_order(spec: TensorSpec) -> tuple[int, str]:
    return STORAGE_ORDER.index(spec.dtype), spec.name


def _block(shape: SampleShape, prefix: str, ratio: int, *, hashed: bool) -> Iterator[TensorSpec]:
    hidden, mix = shape.hidden_size, (2 + shape.hc_mult) * shape.hc_mult
    yield from _attention(shape, f"{prefix}.attn", ratio)
    yield _bf16(f"{prefix}.attn_norm.weight", hidden)
    yield _bf16(f"{prefix}.ffn_norm.weight", hidden)
    yield from _ffn(shape, f"{prefix}.ffn", hashed=hashed)
    for part in ("attn", "ffn"):
        yield _f32(f"{prefix}.hc_{part}_fn", mix, shape.hc_mult * hidden)
        yield _f32(f"{prefix}.hc_{part}_base", mix)
        yield _f32(f"{prefix}.hc_{part}_scale", 3)


def _attention(shape: SampleShape, prefix: str, ratio: int) -> Iterator[TensorSpec]:
    hidden, rank, heads = shape.hidden_size, shape.q_lora_rank, shape.num_attention_heads * shape.head_dim
    grouped = shape.o_groups * shape.o_lora_rank
    yield _f32(f"{prefix}.attn_sink", shape.num_attention_heads)
    yield from _fp8(f"{prefix}.wq_a", rank, hidden)
    yield _bf16(f"{prefix}.q_norm.weight", rank)
    yield from _fp8(f"{prefix}.wq_b", heads, rank)
    yield from _fp8(f"{prefix}.wkv", shape.head_dim, hidden)
    yield _bf16(f"{prefix}.kv_norm.weight", shape.head_dim)
    yield from _fp8(f"{prefix}.wo_a", grouped, heads // shape.o_groups)
    yield from _fp8(f"{prefix}.wo_b", hidden, grouped)
    if ratio:
        yield from _compressor(f"{prefix}.compressor", shape.head_dim, hidden, ratio)
    if ratio == 4:
        yield from _fp8(f"{prefix}.indexer.wq_b", shape.index_n_heads * shape.index_head_dim, rank)
        yield _bf16(f"{prefix}.indexer.weights_proj.weight", shape.index_n_heads, hidden)
        yield from _compressor(f"{prefix}.indexer.compressor", shape.index_head_dim, hidden, ratio)


def _compressor(prefix: str, head_dim: int, hidden: int, ratio: int) -> Iterator[TensorSpec]:
    # Windows of ratio 4 overlap, so there each token yields one entry for its own window and one for the next.
    width = 2 * head_dim if ratio == 4 else head_dim
    yield _f32(f"{prefix}.ape", ratio, width)
    yield _bf16(f"{prefix}.wkv.weight", width, hidden)
    yield _bf16(f"{prefix}.wgate.weight", width, hidden)
    yield _bf16(f"{prefix}.norm.weight", head_dim)


def _ffn(shape: SampleShape, prefix: str, *, hashed: bool) -> Iterator[TensorSpec]:
    hidden, inner, experts = shape.hidden_size, shape.moe_intermediate_size, shape.n_routed_experts
    yield _bf16(f"{prefix}.gate.weight", experts, hidden)
    if hashed:
        yield TensorSpec(f"{prefix}.gate.tid2eid", "I64", (shape.vocab_size, shape.num_experts_per_tok))
    else:
        yield _f32(f"{prefix}.gate.bias", experts)
    linear = _fp4 if shape.expert_dtype == "fp4" else _fp8
    for expert in range(experts):
        yield from linear(f"{prefix}.experts.{expert}.w1", inner, hidden)
        yield from linear(f"{prefix}.experts.{expert}.w2", hidden, inner)
        yield from linear(f"{prefix}.experts.{expert}.w3", inner, hidden)
    yield from _fp8(f"{prefix}.shared_experts.w1", inner, hidden)
    yield from _fp8(f"{prefix}.shared_experts.w2", hidden, inner)
    yield from _fp8(f"{prefix}.shared_experts.w3", inner, hidden)


def _mtp_extras(shape: SampleShape, stage: int) -> Iterator[TensorSpec]:
    prefix, hidden, targets = f"mtp.{stage}", shape.hidden_size, len(shape.dspark_target_layer_ids)
    if not targets:
        yield from _fp8(f"{prefix}.e_proj", hidden, hidden)
        yield from _fp8(f"{prefix}.h_proj", hidden, hidden)
        yield _bf16(f"{prefix}.enorm.weight", hidden)
        yield _bf16(f"{prefix}.hnorm.weight", hidden)
    elif stage == 0:
        yield from _fp8(f"{prefix}.main_proj", hidden, targets * hidden)
        yield _bf16(f"{prefix}.main_norm.weight", hidden)
    if not targets or stage == shape.mtp_stages - 1:
        yield _bf16(f"{prefix}.norm.weight", hidden)
        yield from _hc_head(shape, f"{prefix}.")
    if targets and stage == shape.mtp_stages - 1:
        yield _bf16(f"{prefix}.markov_head.markov_w1.weight", shape.vocab_size, shape.dspark_markov_rank)
        yield _bf16(f"{prefix}.markov_head.markov_w2.weight", shape.vocab_size, shape.dspark_markov_rank)
        yield _bf16(f"{prefix}.confidence_head.proj.weight", 1, hidden + shape.dspark_markov_rank)


def _hc_head(shape: SampleShape, prefix: str) -> Iterator[TensorSpec]:
    yield _f32(f"{prefix}hc_head_fn", shape.hc_mult, shape.hc_mult * shape.hidden_size)
    yield _f32(f"{prefix}hc_head_base", shape.hc_mult)
    yield _f32(f"{prefix}hc_head_scale", 1)


def _bf16(name: str, *sides: int) -> TensorSpec:
    return TensorSpec(name, "BF16", sides)


def _f32(name: str, *sides: int) -> TensorSpec:
    return TensorSpec(name, "F32", sides)


def _fp8(prefix: str, rows: int, columns: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.weight", "F8_E4M3", (rows, columns))
    yield TensorSpec(f"{prefix}.scale", "F8_E8M0", (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)))


def _fp4(prefix: str, rows: int, columns: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.weight", "I8", (rows, columns // 2))
    yield TensorSpec(f"{prefix}.scale", "F8_E8M0", (rows, columns // FP4_BLOCK))


def published_config(shape: SampleShape) -> Mapping[str, object]:
    """config.json with the keys of the published one."""
    dspark = {
        "dspark_block_size": shape.dspark_block_size,
        "dspark_markov_rank": shape.dspark_markov_rank,
        "dspark_noise_token_id": shape.dspark_noise_token_id,
        "dspark_target_layer_ids": list(shape.dspark_target_layer_ids),
    }
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "expert_dtype": shape.expert_dtype,
        "hc_eps": 1e-06,
        "hc_mult": shape.hc_mult,
        "hc_sinkhorn_iters": 20,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "index_head_dim": shape.index_head_dim,
        "index_n_heads": shape.index_n_heads,
        "index_topk": shape.index_topk,
        "initializer_range": 0.02,
        "max_position_embeddings": shape.max_position_embeddings,
        "model_type": "deepseek_v4",
        "moe_intermediate_size": shape.moe_intermediate_size,
        "n_routed_experts": shape.n_routed_experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": shape.num_attention_heads,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_hash_layers": shape.num_hash_layers,
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": shape.num_nextn_predict_layers,
        "o_groups": shape.o_groups,
        "o_lora_rank": shape.o_lora_rank,
        "q_lora_rank": shape.q_lora_rank,
        "qk_rope_head_dim": shape.qk_rope_head_dim,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        },
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": YARN_FACTOR,
            "original_max_position_embeddings": shape.max_position_embeddings // YARN_FACTOR,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": shape.routed_scaling_factor,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": shape.sliding_window,
        "swiglu_limit": shape.swiglu_limit,
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.1",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
        "compress_rope_theta": 160000,
        "compress_ratios": list(shape.compress_ratios),
        **(dspark if shape.dspark_target_layer_ids else {}),
    }
