"""Random float32 checkpoints of any shape under the published names, the same numbers on every machine."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 7
"""Of the checkpoints and the prompts that the goldens are made of."""
PROMPT = 370
"""Tokens of a golden's prompt: far beyond every sliding window, in the third heavily compressed window of 128."""
CONTINUATION = 32
"""Greedy tokens after it: the window closes while they are decoded."""
GOLDENS = Path(__file__).with_name("goldens.npz")
"""For each shape, ids [PROMPT + CONTINUATION] and float32 logits [PROMPT + CONTINUATION, vocab_size]."""

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
    return dict(_Random(config, seed).checkpoint())


Tensors = Iterator[tuple[str, NDArray[Any]]]


class _Random:
    """The tensors of one checkpoint by the part of the model that they belong to."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.seed, self.hidden = config, seed, config["hidden_size"]

    def checkpoint(self) -> Tensors:
        streams, vocab = self.config["hc_mult"], self.config["vocab_size"]
        yield self.normal("embed.weight", vocab, self.hidden, std=1.0)
        for layer in range(self.config["num_hidden_layers"]):
            yield from self.attention(f"layers.{layer}.attn", self.config["compress_ratios"][layer])
            yield from self.ffn(f"layers.{layer}.ffn", hashed=layer < self.config["num_hash_layers"])
            for part in ("attn", "ffn"):
                yield self.norm(f"layers.{layer}.{part}_norm.weight", self.hidden)
                yield from self.streams(f"layers.{layer}.hc_{part}", (2 + streams) * streams, 3)
        yield from self.streams("hc_head", streams, 1)
        yield self.norm("norm.weight", self.hidden)
        yield self.normal("head.weight", vocab, self.hidden, std=3.0 * self.hidden**-0.5)  # logits of std about 3

    def attention(self, prefix: str, ratio: int) -> Tensors:
        config = self.config
        heads, head_dim, groups = config["num_attention_heads"], config["head_dim"], config["o_groups"]
        yield self.normal(f"{prefix}.attn_sink", heads, std=1.0)
        yield self.normal(f"{prefix}.wq_a.weight", config["q_lora_rank"], self.hidden)
        yield self.norm(f"{prefix}.q_norm.weight", config["q_lora_rank"])
        yield self.normal(f"{prefix}.wq_b.weight", heads * head_dim, config["q_lora_rank"])
        yield self.normal(f"{prefix}.wkv.weight", head_dim, self.hidden)
        yield self.normal(f"{prefix}.kv_norm.weight", head_dim, mean=1.5, std=0.2)
        yield self.normal(f"{prefix}.wo_a.weight", groups * config["o_lora_rank"], heads * head_dim // groups)
        yield self.normal(f"{prefix}.wo_b.weight", self.hidden, groups * config["o_lora_rank"])
        if ratio:
            yield from self.compressor(f"{prefix}.compressor", ratio, head_dim)
        if ratio == 4:
            index_dim, index_heads = config["index_head_dim"], config["index_n_heads"]
            yield self.normal(f"{prefix}.indexer.wq_b.weight", index_heads * index_dim, config["q_lora_rank"])
            yield self.normal(f"{prefix}.indexer.weights_proj.weight", index_heads, self.hidden)
            yield from self.compressor(f"{prefix}.indexer.compressor", ratio, index_dim)

    def compressor(self, prefix: str, ratio: int, dims: int) -> Tensors:
        width = 2 * dims if ratio == 4 else dims
        yield self.normal(f"{prefix}.ape", ratio, width, std=1.0)
        yield self.normal(f"{prefix}.wkv.weight", width, self.hidden)
        yield self.normal(f"{prefix}.wgate.weight", width, self.hidden)
        yield self.norm(f"{prefix}.norm.weight", dims)

    def ffn(self, prefix: str, *, hashed: bool) -> Tensors:
        experts, chosen = self.config["n_routed_experts"], self.config["num_experts_per_tok"]
        yield self.normal(f"{prefix}.gate.weight", experts, self.hidden)
        if hashed:
            name, scores = self.normal(f"{prefix}.gate.tid2eid", self.config["vocab_size"], experts)
            yield name, np.argsort(scores, axis=-1)[:, :chosen].astype(np.int64)
        else:
            yield self.normal(f"{prefix}.gate.bias", experts, std=0.3)
        inner = self.config["moe_intermediate_size"]
        for mlp in (*(f"{prefix}.experts.{expert}" for expert in range(experts)), f"{prefix}.shared_experts"):
            yield self.normal(f"{mlp}.w1.weight", inner, self.hidden)
            yield self.normal(f"{mlp}.w2.weight", self.hidden, inner)
            yield self.normal(f"{mlp}.w3.weight", inner, self.hidden)

    def streams(self, prefix: str, rows: int, scales: int) -> Tensors:
        yield self.normal(f"{prefix}_fn", rows, self.config["hc_mult"] * self.hidden)
        yield self.normal(f"{prefix}_base", rows, std=1.0)
        yield self.normal(f"{prefix}_scale", scales, mean=1.0, std=0.2)

    def norm(self, name: str, dims: int) -> tuple[str, NDArray[Any]]:
        return self.normal(name, dims, mean=1.0, std=0.1)

    def normal(self, name: str, *shape: int, mean: float = 0.0, std: float | None = None) -> tuple[str, NDArray[Any]]:
        # RandomState's stream is frozen; the newer generators' may change with numpy.
        random = np.random.RandomState(zlib.crc32(f"{self.seed} {name}".encode()))
        scale = shape[-1] ** -0.5 if std is None else std
        return name, (mean + scale * random.standard_normal(shape)).astype(np.float32)


def random_tokens(config: Config, length: int, seed: int) -> list[int]:
    """Token ids, uniform over the vocabulary."""
    return [int(token) for token in np.random.RandomState(seed).randint(0, config["vocab_size"], length)]
