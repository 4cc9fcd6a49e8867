"""How many operations that launch work a layer of the runtime takes for a decoded token, on a GPU.

    .venv/bin/python benchmarks/kernels.py

A GPU spends a decoded token's time on starting kernels, whatever the machine, so the number is what decides its speed.
It is counted in the graph that MLX builds, without running it, so any machine can count it: the model is small and
quantized as mixed_3_6 quantizes, and takes the path for GPUs with one operation standing in for each kernel and each
`mx.fast.rms_norm`, which MLX takes apart on a processor. Operations that only look at memory in another way are not
counted. `closing` is a token with which windows close, so that entries are made.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from hubtool.runtime import deepseek_v4 as runtime

VIEWS = (
    *("Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "StopGradient"),
    *("Transpose", "Unflatten", "View"),
)
"""Primitives that launch nothing where what they look at is contiguous, which a single token's rows are."""

ARGUMENTS = runtime.ModelArgs(
    vocab_size=64,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=128,
    qk_rope_head_dim=64,
    q_lora_rank=128,
    o_lora_rank=128,
    o_groups=2,
    sliding_window=32,
    compress_ratios=[0, 0, 4, 128],
    index_n_heads=4,
    index_head_dim=128,
    index_topk=16,
    moe_intermediate_size=128,
    n_routed_experts=8,
    num_experts_per_tok=6,
    num_hash_layers=1,
)
KINDS = ("window only, hash routed", "window only", "compressed sparse (CSA)", "heavily compressed (HCA)")
POSITIONS = {"in the window": 20, "past the window": 300, "closing": 383}
"""Tokens before the one that is counted; with the last one windows of 4 and of 128 tokens close."""


def made(like: mx.array) -> mx.array:
    """Zeros of the same shape and dtype, evaluated."""
    zeros = mx.zeros_like(like)
    mx.eval(zeros)
    return zeros


def stand_in(inputs: Sequence[mx.array], outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]]) -> list[mx.array]:
    """Outputs of these shapes and dtypes, by one operation on the inputs."""
    arrays = [mx.zeros(shape, dtype) for shape, dtype in outputs]
    mx.eval(arrays)
    return mx.depends(arrays, list(inputs))


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Take the path for GPUs, with stand-ins for what a processor cannot run."""

    def kernel(
        self: runtime.Kernel, inputs: list[mx.array], outputs: list[tuple[tuple[int, ...], mx.Dtype]], **how: object
    ) -> list[mx.array]:
        return stand_in(inputs, outputs)

    def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
        dtype = x.dtype if weight is None or weight.dtype == x.dtype else mx.float32
        converted = [x if x.dtype == dtype else x.astype(dtype)]
        if weight is not None:
            converted.append(weight if weight.dtype == dtype else weight.astype(dtype))
        return stand_in(converted, [(x.shape, dtype)])[0]

    with (
        mock.patch.object(runtime, "_runs_kernels", lambda: True),
        mock.patch.object(runtime.Kernel, "__call__", kernel),
        mock.patch.object(mx.fast, "rms_norm", rms_norm),
    ):
        yield


def quantized_model() -> runtime.Model:
    """A model with weights of no meaning, stored as mixed_3_6 stores them."""
    model = runtime.Model(ARGUMENTS)
    model.set_dtype(mx.bfloat16)

    def how(path: str, module: nn.Module) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized") or path.endswith(".gate"):
            return False
        return {"group_size": 128, "bits": 3 if "switch_mlp" in path else 6}

    nn.quantize(model, class_predicate=how)
    weights = [
        (name, array.astype(mx.float32) if not model.cast_predicate(name) else array)
        for name, array in tree_flatten(model.parameters())
    ]
    model.load_weights(list(model.sanitize(dict(weights)).items()))
    stacks = [
        stack.joined
        for layer in model.layers
        for stack in (layer.attn._projections, layer.attn._compressors, layer.ffn.shared_experts._inner)
    ]
    mx.eval(model.parameters(), stacks)
    return model


def primitives(arrays: list[mx.array]) -> Counter[str]:
    """How often each primitive is in the graph of what is not evaluated yet."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.dot"
        mx.export_to_dot(str(file), *arrays)
        return Counter(re.findall(r'label ="([^"]*)", shape=rectangle', file.read_text()))


def launches(counts: Counter[str]) -> int:
    """How many of them launch work."""
    return sum(count for name, count in counts.items() if name.split()[0] not in VIEWS)


def count_layers(model: runtime.Model, position: int) -> list[Counter[str]]:
    """Primitives of each layer for one token of one sequence after `position` others."""
    with as_on_gpu():
        cache, inputs = model.make_cache(), mx.zeros((1, position), mx.int32)
        for length in (position, 1):
            h = model.model.embed_tokens(inputs[:, :length])
            step = runtime.Step(ARGUMENTS, model.model._ropes, cache[0], length, h.dtype)
            streams = mx.repeat(h[:, :, None].astype(mx.float32), ARGUMENTS.hc_mult, axis=2)
            mx.eval(streams, *step.plain_rotations, *step.rotations, step.index_rotations, step.start)
            for windows in step.windows.values():
                mx.eval(windows.index, windows.visible, windows.row_array)
            mx.eval(step.entry_rotations)
            counted = []
            for layer, layer_cache in zip(model.layers, cache, strict=True):
                streams = layer(streams, inputs[:, :length], step, layer_cache)
                layer_cache.advance(length)
                held = [array for array in layer_cache.arrays if array is not None]
                counted.append(primitives([streams, *held]))
                # Nothing is run: the next layer, and the next token, go on from arrays of the same shapes.
                streams = made(streams)
                layer_cache.arrays = [None if array is None else made(array) for array in layer_cache.arrays]
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="also which primitives they are")
    names = parser.parse_args().names
    model = quantized_model()
    for where, position in POSITIONS.items():
        for kind, counts in zip(KINDS, count_layers(model, position), strict=True):
            print(f"{where:16} {kind:26} {launches(counts):3} launch work, {counts.total() - launches(counts):3} views")
            if names:
                print("   ", ", ".join(f"{count} {name}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
