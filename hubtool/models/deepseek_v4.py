"""DeepSeek-V4: published tensors -> MLX parameters, checked against config.json.

The names come from `PUBLISHED_NAMES` of the runtime file, read as data: this module does not import MLX.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from hubtool.checkpoint.tensors import TensorSpec
from hubtool.errors import SourceError
from hubtool.files.formats import Failure, convert
from hubtool.models.architecture import Architecture
from hubtool.models.deepseek_v4_chat import CHAT, is_0731
from hubtool.models.model import Component, Dropped, Encoding, Model, Parameter, Part
from hubtool.models.names import Found, map_names, published_name

ARCHITECTURE = "DeepseekV4ForCausalLM"

FP4_BLOCK = (1, 32)
"""Rows and columns of one E2M1 scale: DeepSeek-V4's packed experts carry one E8M0 byte a row and 32 columns."""

CSA_RATIO = 4
"""The compress_ratio whose layers have an indexer and overlapping windows (compressed sparse attention)."""

CACHE_STEP = 256
"""Entries that the runtime's cache grows by (`DeepseekV4Cache.step`)."""

FLOAT32_NBYTES = 4

_DROPPED_PREFIX = re.compile(r"(mtp\.[0-9]+)\.")
_DROPPED_REASON = "multi-token prediction is not part of the MLX model"
_DRAFTER_REASON = "DSpark, the drafter for speculative decoding, is not part of the MLX model"
_DRAFTER_PART = ".markov_head."
"""What a stage of the drafter has and a multi-token prediction layer has not."""
_AGAIN = "fetch config.json and the shards of one revision"


Positive = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Real = Annotated[float, msgspec.Meta(gt=0)]
BlockColumns = Annotated[int, msgspec.Meta(ge=1, multiple_of=32)]
"""Columns of an FP8 block: whole groups of MLX's mxfp8, or its scales could not be kept."""


class FP8Config(msgspec.Struct, frozen=True):
    """The part of `quantization_config` that decoding needs."""

    weight_block_size: tuple[Positive, BlockColumns]


class Config(msgspec.Struct, frozen=True):
    """The fields of config.json that decide the tensors' shapes, and what the model computes, by DeepSeek's own names.

    The runtime has V4-Flash's values as defaults: a field that is missing would silently make another model.
    """

    architectures: Annotated[list[str], msgspec.Meta(min_length=1)]
    num_hidden_layers: Positive
    num_hash_layers: Count
    hidden_size: Positive
    vocab_size: Positive
    head_dim: Positive
    num_attention_heads: Positive
    q_lora_rank: Positive
    o_lora_rank: Positive
    o_groups: Positive
    index_n_heads: Positive
    index_head_dim: Positive
    n_routed_experts: Positive
    n_shared_experts: Positive
    num_experts_per_tok: Positive
    moe_intermediate_size: Positive
    hc_mult: Positive
    compress_ratios: list[Count]
    sliding_window: Positive
    index_topk: Positive
    qk_rope_head_dim: Positive
    rope_theta: Real
    compress_rope_theta: Real
    rms_norm_eps: Real
    hc_eps: Real
    hc_sinkhorn_iters: Positive
    routed_scaling_factor: Real
    swiglu_limit: Real
    tie_word_embeddings: bool = False
    quantization_config: FP8Config | None = None


@dataclass(frozen=True, slots=True)
class _Slot:
    """A parameter that config.json calls for, before the source's tensors are looked up."""

    module: str
    name: str
    shape: tuple[int, ...]
    component: Component
    layer: int | None = None
    quantizable: bool = False

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that are stored as they are."""
        return ("I64", "I32") if self.name == "tid2eid" else ("BF16", "F32")

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


def read_model(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> Model:
    """The MLX model of a DeepSeek-V4 checkpoint, from config.json and the tensors' names, dtypes and shapes.

    Raises:
        SourceError: config.json lacks a field or contradicts the tensors; a weight, scale or expert is missing or of
            another shape or dtype; a tensor is left over that is not a multi-token prediction stage's.
    """
    fields = _read_config(config)
    found, unmapped = map_names(tensors)
    parameters = []
    for slot in _slots(fields):
        parameters.append(_parameter(slot, found.pop(slot.path, None), tensors, fields))
    for path, left in found.items():
        name = next(iter([*left.weights.values(), *left.scales.values()]))
        raise SourceError(
            "tensor that config.json has no place for", where=name, found=f"would be {path}", remedy=_AGAIN
        )
    return Model(
        architecture=ARCHITECTURE,
        model_type=str(config["model_type"]),
        num_layers=fields.num_hidden_layers,
        config=config,
        parameters=tuple(parameters),
        dropped=_dropped(unmapped, tensors, drafts=is_0731(config)),
    )


def cache_nbytes(config: Mapping[str, Any], tokens: int, activation_nbytes: int) -> int:
    """Bytes that the runtime remembers of one sequence of `tokens` tokens: `DeepseekV4Cache` of the runtime file.

    Float32 is kept in each layer of the window's keys, and of what a compressor needs of the windows that are not
    closed; entries of closed windows have the activations' dtype, and room for a multiple of `CACHE_STEP`.

    Args:
        config: config.json, of the source or of what was made from it.
        tokens: Length of the sequence.
        activation_nbytes: Bytes of one activation, 2 for BF16.

    Raises:
        SourceError: config.json lacks a field.
    """
    # What hubtool writes has MLX's quantization there, which says nothing of the cache.
    fields = _read_config({key: value for key, value in config.items() if key != "quantization_config"})
    total = 0
    for ratio in fields.compress_ratios[: fields.num_hidden_layers]:
        total += FLOAT32_NBYTES * (fields.sliding_window - 1) * fields.head_dim
        if not ratio:
            continue
        overlaps = ratio == CSA_RATIO
        dims = fields.head_dim + (fields.index_head_dim if overlaps else 0)
        span, width = (2 * ratio, 2 * dims) if overlaps else (ratio, dims)
        total += FLOAT32_NBYTES * 2 * (span - 1) * width
        total += activation_nbytes * -(-(tokens // ratio) // CACHE_STEP) * CACHE_STEP * dims
    return total


def _read_config(config: Mapping[str, Any]) -> Config:
    try:
        fields = convert(dict(config), Config, Failure("a config", "config.json", SourceError, _AGAIN))
    except SourceError as error:
        error.expected = "the fields of DeepSeek-V4's configuration"
        raise
    if ARCHITECTURE not in fields.architectures:
        raise SourceError(
            "another architecture",
            where="config.json: architectures",
            found=", ".join(fields.architectures),
            expected=ARCHITECTURE,
            remedy=_AGAIN,
        )
    if len(fields.compress_ratios) < fields.num_hidden_layers:
        raise SourceError(
            "too few entries",
            where="config.json: compress_ratios",
            found=len(fields.compress_ratios),
            expected=f"one for each of {fields.num_hidden_layers} layers",
            remedy=_AGAIN,
        )
    return fields


def _slots(c: Config) -> Iterator[_Slot]:
    """Every parameter in the order of the files: embedding, layers, hc_head, norm, lm_head."""
    vocabulary = (c.vocab_size, c.hidden_size)
    yield _Slot("model.embed_tokens", "weight", vocabulary, Component.EMBEDDINGS, quantizable=True)
    for layer, ratio in enumerate(c.compress_ratios[: c.num_hidden_layers]):
        prefix = f"model.layers.{layer}"
        yield from _attention_slots(c, f"{prefix}.attn", layer, ratio)
        yield from _ffn_slots(c, f"{prefix}.ffn", layer)
        for name in ("attn_hc", "ffn_hc"):
            yield from _hc_slots(c, f"{prefix}.{name}", (2 + c.hc_mult) * c.hc_mult, 3, layer)
        for name in ("attn_norm", "ffn_norm"):
            yield _Slot(f"{prefix}.{name}", "weight", (c.hidden_size,), Component.NORMS, layer)
    yield from _hc_slots(c, "model.hc_head", c.hc_mult, 1, None)
    yield _Slot("model.norm", "weight", (c.hidden_size,), Component.NORMS)
    if not c.tie_word_embeddings:
        yield _Slot("lm_head", "weight", vocabulary, Component.HEAD, quantizable=True)


def _attention_slots(c: Config, prefix: str, layer: int, ratio: int) -> Iterator[_Slot]:
    heads = c.num_attention_heads * c.head_dim
    part = Component.ATTENTION
    yield _Slot(f"{prefix}.wq_a", "weight", (c.q_lora_rank, c.hidden_size), part, layer, True)
    yield _Slot(f"{prefix}.q_norm", "weight", (c.q_lora_rank,), Component.NORMS, layer)
    yield _Slot(f"{prefix}.wq_b", "weight", (heads, c.q_lora_rank), part, layer, True)
    yield _Slot(f"{prefix}.wkv", "weight", (c.head_dim, c.hidden_size), part, layer, True)
    yield _Slot(f"{prefix}.kv_norm", "weight", (c.head_dim,), Component.NORMS, layer)
    yield _Slot(f"{prefix}.wo_a", "weight", (c.o_groups * c.o_lora_rank, heads // c.o_groups), part, layer, True)
    yield _Slot(f"{prefix}.wo_b", "weight", (c.hidden_size, c.o_groups * c.o_lora_rank), part, layer, True)
    yield _Slot(prefix, "attn_sink", (c.num_attention_heads,), part, layer)
    if ratio:
        yield from _compressor_slots(c, f"{prefix}.compressor", c.head_dim, layer, ratio)
    if ratio == CSA_RATIO:
        indexer, part = f"{prefix}.indexer", Component.COMPRESSOR_INDEXER
        index_heads = c.index_n_heads * c.index_head_dim
        yield _Slot(f"{indexer}.wq_b", "weight", (index_heads, c.q_lora_rank), part, layer, True)
        yield _Slot(f"{indexer}.weights_proj", "weight", (c.index_n_heads, c.hidden_size), part, layer, True)
        yield from _compressor_slots(c, f"{indexer}.compressor", c.index_head_dim, layer, ratio)


def _compressor_slots(c: Config, prefix: str, head_dim: int, layer: int, ratio: int) -> Iterator[_Slot]:
    part = Component.COMPRESSOR_INDEXER
    width = head_dim * (2 if ratio == CSA_RATIO else 1)
    yield _Slot(f"{prefix}.wkv", "weight", (width, c.hidden_size), part, layer, True)
    yield _Slot(f"{prefix}.wgate", "weight", (width, c.hidden_size), part, layer, True)
    yield _Slot(prefix, "ape", (ratio, width), part, layer)
    yield _Slot(f"{prefix}.norm", "weight", (head_dim,), Component.NORMS, layer)


def _ffn_slots(c: Config, prefix: str, layer: int) -> Iterator[_Slot]:
    yield _Slot(f"{prefix}.gate", "weight", (c.n_routed_experts, c.hidden_size), Component.ROUTER, layer)
    if layer < c.num_hash_layers:
        yield _Slot(f"{prefix}.gate", "tid2eid", (c.vocab_size, c.num_experts_per_tok), Component.ROUTER, layer)
    else:
        yield _Slot(f"{prefix}.gate", "e_score_correction_bias", (c.n_routed_experts,), Component.ROUTER, layer)
    experts, width = (c.n_routed_experts,), c.moe_intermediate_size
    projections = (
        ("gate_proj", (width, c.hidden_size)),
        ("up_proj", (width, c.hidden_size)),
        ("down_proj", (c.hidden_size, width)),
    )
    for name, shape in projections:
        module = f"{prefix}.switch_mlp.{name}"
        yield _Slot(module, "weight", experts + shape, Component.ROUTED_EXPERTS, layer, True)
    for name, shape in projections:  # as wide as one expert whatever n_shared_experts says, like the runtime's
        yield _Slot(f"{prefix}.shared_experts.{name}", "weight", shape, Component.SHARED_EXPERTS, layer, True)


def _hc_slots(c: Config, module: str, mixes: int, scales: int, layer: int | None) -> Iterator[_Slot]:
    yield _Slot(module, "fn", (mixes, c.hc_mult * c.hidden_size), Component.REST, layer)
    yield _Slot(module, "base", (mixes,), Component.REST, layer)
    yield _Slot(module, "scale", (scales,), Component.REST, layer)


def _parameter(slot: _Slot, found: Found | None, tensors: Mapping[str, TensorSpec], c: Config) -> Parameter:
    found = found or Found()
    stacked = slot.component is Component.ROUTED_EXPERTS
    keys: list[int | None] = [*range(slot.shape[0])] if stacked else [None]
    extra = next((found.weights[key] for key in found.weights.keys() - set(keys)), None)
    if extra:
        raise SourceError(
            "expert beyond n_routed_experts",
            where=extra,
            found="an expert of that number",
            expected=f"{slot.shape[0]} experts, the first of which is 0",
            remedy=_AGAIN,
        )
    parts: list[Part] = []
    checked: dict[tuple[object, ...], _Stored] = {}
    for key in keys:
        if key not in found.weights:
            _raise_missing(slot, key)
        part = Part(found.weights[key], found.scales.pop(key, None))
        spec, scale = tensors[part.weight], tensors[part.scale] if part.scale else None
        alike = (spec.dtype, spec.shape, scale and (scale.dtype, scale.shape))
        if alike not in checked:
            checked[alike] = _check_part(part, slot, slot.shape[1:] if stacked else slot.shape, tensors, c)
        parts.append(part)
    encodings = set(checked.values())
    for name in found.scales.values():
        raise SourceError(
            "scale without its weight",
            where=name,
            found="the scale alone",
            expected=name.removesuffix("scale") + "weight",
            remedy=_AGAIN,
        )
    if len(encodings) > 1:
        raise SourceError(
            "experts of one projection are stored in different ways",
            where=slot.path,
            found=", ".join(sorted(f"{encoding} {dtype}" for encoding, dtype, _ in encodings)),
            expected="one way",
            remedy=_AGAIN,
        )
    encoding, dtype, block = encodings.pop()
    return Parameter(
        module=slot.module,
        name=slot.name,
        shape=slot.shape,
        dtype=dtype,
        encoding=encoding,
        block=block,
        parts=tuple(parts),
        component=slot.component,
        layer=slot.layer,
        quantizable=slot.quantizable,
        stacked=stacked,
    )


_Stored = tuple[Encoding, str, tuple[int, int]]
"""Encoding, decoded dtype, and rows and columns of a scale block."""


def _raise_missing(slot: _Slot, expert: int | None) -> None:
    raise SourceError(
        "missing tensor" if expert is None else f"missing expert {expert}",
        where=published_name(slot.path, expert),
        found=f"no tensor in the source makes {slot.path}",
        expected=f"{list(slot.shape if expert is None else slot.shape[1:])}, as config.json has it",
        remedy=_AGAIN,
    )


def _check_part(
    part: Part, slot: _Slot, shape: tuple[int, ...], tensors: Mapping[str, TensorSpec], c: Config
) -> _Stored:
    """The encoding, decoded dtype and scale block of one published tensor whose logical shape must be `shape`."""
    spec = tensors[part.weight]
    encoding: Encoding
    encoded = ("I8", "F8_E4M3") if slot.quantizable else ()
    if spec.dtype not in (*slot.dtypes, *encoded):
        raise SourceError(
            "dtype that DeepSeek-V4 does not use here",
            where=part.weight,
            found=spec.dtype,
            expected=" or ".join((*slot.dtypes, *encoded)),
            remedy=f"{_AGAIN}, or update hubtool",
        )
    if spec.dtype == "I8":
        encoding, dtype, block = "fp4", "BF16", FP4_BLOCK
        logical = (*spec.shape[:-1], 2 * spec.shape[-1]) if spec.shape else ()
    elif spec.dtype == "F8_E4M3":
        if c.quantization_config is None:
            raise SourceError(
                "FP8 weights without weight_block_size",
                where="config.json: quantization_config",
                found=f"{part.weight} in F8_E4M3",
                expected="weight_block_size, [128, 128] say",
                remedy=_AGAIN,
            )
        encoding, dtype, block = "fp8", "BF16", c.quantization_config.weight_block_size
        logical = spec.shape
    else:
        encoding, dtype, block = "plain", spec.dtype, (1, 1)
        logical = spec.shape
    if logical != shape:
        raise SourceError(
            "shape contradicts config.json",
            where=part.weight,
            found=list(logical),
            expected=list(shape),
            remedy=_AGAIN,
        )
    _check_scale(part, shape, encoding, block, tensors)
    return encoding, dtype, block


def _check_scale(
    part: Part,
    shape: tuple[int, ...],
    encoding: Encoding,
    block: tuple[int, int],
    tensors: Mapping[str, TensorSpec],
) -> None:
    if encoding == "plain":
        if part.scale is not None:
            raise SourceError(
                "scale beside a weight that is not encoded",
                where=part.scale,
                found=f"{part.weight} is {tensors[part.weight].dtype}",
                expected="no scale",
                remedy=_AGAIN,
            )
        return
    if part.scale is None:
        raise SourceError(
            "weight without its scale",
            where=part.weight,
            found=f"{tensors[part.weight].dtype} alone",
            expected=part.weight.removesuffix("weight") + "scale",
            remedy=_AGAIN,
        )
    spec = tensors[part.scale]
    expected = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    if spec.shape != expected or spec.dtype != "F8_E8M0":
        raise SourceError(
            "scale of the wrong shape or dtype",
            where=part.scale,
            found=f"{spec.dtype} {list(spec.shape)}",
            expected=f"F8_E8M0 {list(expected)}",
            remedy=_AGAIN,
        )


def _dropped(unmapped: list[str], tensors: Mapping[str, TensorSpec], *, drafts: bool) -> tuple[Dropped, ...]:
    reason = _DRAFTER_REASON if drafts or any(_DRAFTER_PART in name for name in unmapped) else _DROPPED_REASON
    groups: dict[str, list[TensorSpec]] = defaultdict(list)
    for name in unmapped:
        match = _DROPPED_PREFIX.match(name)
        if match is None:
            raise SourceError(
                "tensor that DeepSeek-V4 does not have",
                where=name,
                found=f"{tensors[name].dtype} {list(tensors[name].shape)}",
                expected="names as deepseek-ai publishes them",
                remedy="update hubtool, or report the checkpoint",
            )
        groups[match[1]].append(tensors[name])
    return tuple(
        Dropped(f"{prefix}.*", len(specs), sum(spec.nbytes for spec in specs), reason)
        for prefix, specs in sorted(groups.items())
    )


DEEPSEEK_V4 = Architecture(
    model_type="deepseek_v4",
    read=read_model,
    cache_nbytes=cache_nbytes,
    runtime_files=("deepseek_v4.py",),
    chat=CHAT,
)
"""DeepSeek-V4, by hand: mlx-lm has no such model."""
