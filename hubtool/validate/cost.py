"""What a run over a text layer by layer will take, from names and shapes alone: bytes read, memory, disk."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from hubtool.checkpoint.source import Source
from hubtool.errors import UsageError
from hubtool.models import Parameter, experts_per_token, find_layer, find_projection
from hubtool.plan.plan import plan_source
from hubtool.units import MB, format_size
from hubtool.worker.events import PUBLISHED

PROCESS_NBYTES = 300 * MB
"""Python, MLX, mlx-lm, transformers with a tokenizer, and the slices of the heads: measured on Linux."""

DECODED_NBYTES = 4
"""Of a weight of a layer: float32 where it is affine, the most that there is."""

FLOAT_NBYTES = 4

WIDEST_COPIES = 6
"""How many activations as wide as the widest of a layer there are at a time, about."""

STATE_COPIES = 10
"""The same of what a layer returns."""

TOGETHER = 4096
"""Tokens that go through a layer together at most: more make products no faster."""


@dataclass(frozen=True)
class Cost:
    """What a run will take.

    Attributes:
        read_nbytes: Bytes of weights, each read once.
        memory_nbytes: Of the process, with `keep_nbytes` of what layers return.
        disk_nbytes: Of what does not fit in memory, and of what a run goes on from after it was ended.
        together: Windows that go through a layer together.
        keep_nbytes: Memory for what layers return.
    """

    read_nbytes: int
    memory_nbytes: int
    disk_nbytes: int
    together: int
    keep_nbytes: int

    def describe(self) -> str:
        """`reads 295.0 GB of weights once, takes 9.1 GB of memory and 4.0 GB of disk`."""
        disk = f" and {format_size(self.disk_nbytes)} of disk" if self.disk_nbytes else ""
        weights, memory = format_size(self.read_nbytes), format_size(self.memory_nbytes)
        return f"reads {weights} of weights once, takes {memory} of memory{disk}"


def estimate_cost(
    source: Source, variants: Sequence[Source], windows: tuple[int, int], limit_nbytes: int, *, floor: bool
) -> Cost:
    """What source and variants take to run over windows of a text.

    Args:
        source: As published.
        variants: Finished folders.
        windows: How many, and tokens of each.
        limit_nbytes: Most memory.
        floor: Whether the source runs a second time with other activations.

    Raises:
        UsageError: The limit does not hold a layer and a window.
    """
    (plan,) = plan_source(source, [PUBLISHED])
    shape = _Shape(plan.model.parameters, source.config)
    read = sum(source.tensors[name].nbytes for parameter in plan.model.parameters for name in parameter.names)
    read += sum(stored.nbytes for variant in variants for stored in variant.tensors.values())
    count, context = windows
    fixed = PROCESS_NBYTES + shape.layer_nbytes
    room = limit_nbytes - fixed
    window = context * shape.working_nbytes(context)
    if window > room:
        raise UsageError(
            "too little memory for a layer and a window",
            where="--memory-limit",
            found=format_size(limit_nbytes),
            expected=f"at least {format_size(fixed + window)}",
            remedy="raise it, or take a smaller --context",
        )
    together = max(1, min(count, TOGETHER // context, room // (2 * window)))
    kept = count * context * shape.kept_nbytes(len(variants) + 1 + floor, 1 + floor)
    keep = min(room - together * window, kept)
    states = count * context * shape.state_nbytes * (len(variants) + 1 + floor)
    return Cost(
        read_nbytes=read,
        memory_nbytes=fixed + together * window + keep,
        disk_nbytes=kept - keep + 2 * states,
        together=together,
        keep_nbytes=keep,
    )


class _Shape:
    """Sizes of a model that decide what a token and a layer take."""

    def __init__(self, parameters: Sequence[Parameter], config: Mapping[str, Any]) -> None:
        text = config.get("text_config")
        fields: Mapping[str, Any] = text if isinstance(text, dict) else config
        layers: Counter[int] = Counter()
        expert = largest = widest = 0
        for parameter in parameters:
            layer = find_layer(parameter.module)
            if layer is None:
                continue
            if find_projection(parameter.path):
                expert = max(expert, prod(parameter.shape[1:]))
                widest = max(widest, parameter.shape[-2])
                continue
            layers[layer] += parameter.size
            if parameter.quantizable:
                largest, widest = max(largest, parameter.size), max(widest, parameter.shape[-2])
        hidden = int(fields.get("hidden_size") or max(widest, 1))
        # Two experts of three projections, the next while one is at work; and the largest matrix once more.
        self.layer_nbytes = DECODED_NBYTES * (max(layers.values(), default=0) + 6 * expert + largest)
        self.state_nbytes = FLOAT_NBYTES * hidden * int(fields.get("hc_mult") or 1)
        self._hidden = hidden
        self._widest = widest
        self._heads = int(fields.get("num_attention_heads") or 1)
        self._chosen = experts_per_token(config) if expert else 0

    def working_nbytes(self, context: int) -> int:
        """Of a token while a layer is computed."""
        scores = 2 * self._heads * context
        return FLOAT_NBYTES * (WIDEST_COPIES * self._widest + scores) + STATE_COPIES * self.state_nbytes

    def kept_nbytes(self, lanes: int, together: int) -> int:
        """Of a token between layers, and while it waits for experts: `together` lanes of a model do at a time."""
        experts = FLOAT_NBYTES * self._hidden * (2 + self._chosen) if self._chosen else 0
        return (lanes + together) * self.state_nbytes + together * experts
