"""Random float32 checkpoints of any shape under the published names, the same numbers on every machine."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Config = dict[str, Any]
Weights = dict[str, NDArray[Any]]

BASE: Config = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "bos_token_id": 0,
    "compress_rope_theta": 160000,
    "eos_token_id": 1,
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "model_type": "deepseek_v4",
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_hash_layers": 1,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 256,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "swiglu_limit": 1.5,  # low enough to clamp about one value in seven
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}

# Enough index heads that the ReLU of all of them is never 0: entries with the same score may be chosen in any order.
SHAPES: dict[str, Config] = {
    # All kinds of layer, a window that is not a power of two, YaRN that stretches some dims.
    "mixed": {
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 5,
        "compress_ratios": [0, 4, 128, 4, 128, 0],
        "num_attention_heads": 4,
        "head_dim": 64,
        "qk_rope_head_dim": 32,
        "q_lora_rank": 32,
        "o_lora_rank": 32,
        "o_groups": 2,
        "index_n_heads": 16,
        "index_head_dim": 64,
        "index_topk": 12,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "vocab_size": 160,
        "sliding_window": 24,
    },
    # Like Flash: two layers without a compressor first, then pairs; three hash layers; more groups than heads a group.
    "flash": {
        "hidden_size": 96,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 7,
        "compress_ratios": [0, 0, 4, 128, 4, 128, 4, 0],
        "num_attention_heads": 8,
        "head_dim": 128,
        "qk_rope_head_dim": 16,
        "q_lora_rank": 64,
        "o_lora_rank": 32,
        "o_groups": 8,
        "index_n_heads": 16,
        "index_head_dim": 32,
        "index_topk": 32,
        "n_routed_experts": 16,
        "num_experts_per_tok": 6,
        "num_hash_layers": 3,
        "vocab_size": 256,
        "sliding_window": 64,
        "swiglu_limit": 2.0,
    },
    # Like Pro: heavily compressed layers first. No hash layers, a DSpark drafter's three more ratios, two streams.
    "pro": {
        "hidden_size": 64,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 4,
        "compress_ratios": [128, 128, 4, 4, 0, 0, 0],
        "num_attention_heads": 6,
        "head_dim": 32,
        "qk_rope_head_dim": 32,
        "q_lora_rank": 96,
        "o_lora_rank": 64,
        "o_groups": 3,
        "hc_mult": 2,
        "index_n_heads": 12,
        "index_head_dim": 32,
        "index_topk": 8,
        "n_routed_experts": 12,
        "num_experts_per_tok": 2,
        "num_hash_layers": 0,
        "routed_scaling_factor": 2.5,
        "vocab_size": 128,
        "sliding_window": 128,
    },
}


def random_config(shape: str, **changes: object) -> Config:
    """config.json of one of `SHAPES`, with the published keys."""
    return {**BASE, **SHAPES[shape], **changes}


def random_weights(config: Config, seed: int) -> Weights:
    """Every published tensor but the MTP stage's, decoded: float32, and int64 for `tid2eid`.

    Rows are scaled to keep variance, so that activations stay near 1 and no part is drowned by another.
    """
    return dict(_tensors(config, seed))


def _tensors(config: Config, seed: int) -> Iterator[tuple[str, NDArray[Any]]]:
    hidden, streams = config["hidden_size"], config["hc_mult"]

    def normal(name: str, *shape: int, mean: float = 0.0, std: float | None = None) -> tuple[str, NDArray[Any]]:
        # RandomState's stream is frozen; the newer generators' may change with numpy.
        random = np.random.RandomState(zlib.crc32(f"{seed} {name}".encode()))
        scale = shape[-1] ** -0.5 if std is None else std
        return name, (mean + scale * random.standard_normal(shape)).astype(np.float32)

    def norm(name: str, dims: int) -> tuple[str, NDArray[Any]]:
        return normal(name, dims, mean=1.0, std=0.1)

    def compressor(prefix: str, ratio: int, dims: int) -> Iterator[tuple[str, NDArray[Any]]]:
        width = 2 * dims if ratio == 4 else dims
        yield normal(f"{prefix}.ape", ratio, width, std=1.0)
        yield normal(f"{prefix}.wkv.weight", width, hidden)
        yield normal(f"{prefix}.wgate.weight", width, hidden)
        yield norm(f"{prefix}.norm.weight", dims)

    def mlp(prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
        yield normal(f"{prefix}.w1.weight", config["moe_intermediate_size"], hidden)
        yield normal(f"{prefix}.w2.weight", hidden, config["moe_intermediate_size"])
        yield normal(f"{prefix}.w3.weight", config["moe_intermediate_size"], hidden)

    heads, head_dim, groups = config["num_attention_heads"], config["head_dim"], config["o_groups"]
    yield normal("embed.weight", config["vocab_size"], hidden, std=1.0)
    for layer in range(config["num_hidden_layers"]):
        attn, ffn, ratio = f"layers.{layer}.attn", f"layers.{layer}.ffn", config["compress_ratios"][layer]
        yield normal(f"{attn}.attn_sink", heads, std=1.0)
        yield normal(f"{attn}.wq_a.weight", config["q_lora_rank"], hidden)
        yield norm(f"{attn}.q_norm.weight", config["q_lora_rank"])
        yield normal(f"{attn}.wq_b.weight", heads * head_dim, config["q_lora_rank"])
        yield normal(f"{attn}.wkv.weight", head_dim, hidden)
        yield normal(f"{attn}.kv_norm.weight", head_dim, mean=1.5, std=0.2)
        yield normal(f"{attn}.wo_a.weight", groups * config["o_lora_rank"], heads * head_dim // groups)
        yield normal(f"{attn}.wo_b.weight", hidden, groups * config["o_lora_rank"])
        if ratio:
            yield from compressor(f"{attn}.compressor", ratio, head_dim)
        if ratio == 4:
            index_dim, index_heads = config["index_head_dim"], config["index_n_heads"]
            yield normal(f"{attn}.indexer.wq_b.weight", index_heads * index_dim, config["q_lora_rank"])
            yield normal(f"{attn}.indexer.weights_proj.weight", index_heads, hidden)
            yield from compressor(f"{attn}.indexer.compressor", ratio, index_dim)
        yield norm(f"layers.{layer}.attn_norm.weight", hidden)
        yield norm(f"layers.{layer}.ffn_norm.weight", hidden)
        yield normal(f"{ffn}.gate.weight", config["n_routed_experts"], hidden)
        if layer < config["num_hash_layers"]:
            name, scores = normal(f"{ffn}.gate.tid2eid", config["vocab_size"], config["n_routed_experts"])
            yield name, np.argsort(scores, axis=-1)[:, : config["num_experts_per_tok"]].astype(np.int64)
        else:
            yield normal(f"{ffn}.gate.bias", config["n_routed_experts"], std=0.3)
        for expert in range(config["n_routed_experts"]):
            yield from mlp(f"{ffn}.experts.{expert}")
        yield from mlp(f"{ffn}.shared_experts")
        for part in ("attn", "ffn"):
            yield normal(f"layers.{layer}.hc_{part}_fn", (2 + streams) * streams, streams * hidden)
            yield normal(f"layers.{layer}.hc_{part}_base", (2 + streams) * streams, std=1.0)
            yield normal(f"layers.{layer}.hc_{part}_scale", 3, mean=1.0, std=0.2)
    yield normal("hc_head_fn", streams, streams * hidden)
    yield normal("hc_head_base", streams, std=1.0)
    yield normal("hc_head_scale", 1, mean=1.0, std=0.2)
    yield norm("norm.weight", hidden)
    yield normal("head.weight", config["vocab_size"], hidden, std=3.0 * hidden**-0.5)  # logits of std about 3


def random_tokens(config: Config, length: int, seed: int) -> list[int]:
    """Token ids, uniform over the vocabulary."""
    return [int(token) for token in np.random.RandomState(seed).randint(0, config["vocab_size"], length)]
