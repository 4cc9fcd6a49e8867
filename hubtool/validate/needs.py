"""How much memory a generation needs, from names and shapes alone."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubtool.checkpoint.source import CONFIG_FILE
from hubtool.checkpoint.tensors import TensorSpec, read_header
from hubtool.files.formats import parse_object
from hubtool.models import experts_per_token, find_layer, find_projection
from hubtool.record import CacheRecord, Record
from hubtool.units import MB, format_size
from hubtool.worker.events import PROMPT_TOKENS

INTERPRETER_NBYTES = 120 * MB
"""Python, MLX, mlx-lm and a tokenizer: 90 to 100 MB on Linux, measured."""

ACTIVATIONS_NBYTES = 60 * MB
"""What a short prompt is worked out in."""

ALLOCATOR_SHARE = 0.01
"""Of the weights: what allocators round up."""


@dataclass(frozen=True)
class Needs:
    """Bytes of memory for a generation with a short prompt.

    Attributes:
        weights_nbytes: All tensors.
        cache_nbytes: What the model remembers.
        resident_nbytes: With every weight in memory.
        streamed_nbytes: With one layer's at a time.
    """

    weights_nbytes: int
    cache_nbytes: int
    resident_nbytes: int
    streamed_nbytes: int

    def describe_resident(self) -> str:
        """`136.9 GB: weights 135.35 GB, cache 0.1 GB, the rest headroom`."""
        return (
            f"{format_size(self.resident_nbytes)} (weights {format_size(self.weights_nbytes)}, cache "
            f"{format_size(self.cache_nbytes)}, the rest headroom)"
        )


def needs_of_folder(folder: Path, record: Record, tokens: int) -> Needs:
    """What a finished folder needs to generate so many tokens, from its headers, config.json and record."""
    specs = [tensor.spec for path in sorted(folder.glob("*.safetensors")) for tensor in read_header(path).tensors]
    config: Mapping[str, Any] = parse_object((folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
    return estimate_needs(specs, config, cache_for(record.plan.cache, PROMPT_TOKENS + tokens))


def cache_for(cache: Iterable[CacheRecord], tokens: int) -> int:
    """Bytes of the cache of the next longer conversation that is recorded, or of the longest; 0 if none is."""
    known = sorted((item.tokens, item.nbytes) for item in cache)
    return next((nbytes for length, nbytes in known if length >= tokens), known[-1][1] if known else 0)


def estimate_needs(specs: Iterable[TensorSpec], config: Mapping[str, Any], cache_nbytes: int) -> Needs:
    """What a model needs, from its tensors as they are stored.

    Streamed, the most is needed by the largest of: a layer without its experts together with one projection of the
    experts that a prompt can choose; and a module outside the layers. The tensor that is being read is there twice.
    """
    layers: Counter[int] = Counter()
    projections: Counter[tuple[int, str]] = Counter()
    outside: Counter[str] = Counter()
    weights = largest = 0
    chosen = PROMPT_TOKENS * experts_per_token(config)
    for spec in specs:
        weights += spec.nbytes
        layer, projection = find_layer(spec.name), find_projection(spec.name)
        nbytes = spec.nbytes
        if layer is not None and projection:
            nbytes = nbytes * min(chosen, spec.shape[0]) // spec.shape[0]
            projections[layer, projection] += nbytes
        elif layer is not None:
            layers[layer] += nbytes
        elif "embed_tokens" in spec.name:
            nbytes = 0
        else:
            outside[spec.name.rpartition(".")[0]] += nbytes
        largest = max(largest, nbytes)
    in_layer = max(
        (
            nbytes + max((size for (each, _), size in projections.items() if each == layer), default=0)
            for layer, nbytes in layers.items()
        ),
        default=0,
    )
    base = INTERPRETER_NBYTES + ACTIVATIONS_NBYTES + cache_nbytes
    return Needs(
        weights_nbytes=weights,
        cache_nbytes=cache_nbytes,
        resident_nbytes=base + weights + int(weights * ALLOCATOR_SHARE),
        streamed_nbytes=base + max(in_layer, *outside.values(), 0) + largest,
    )
