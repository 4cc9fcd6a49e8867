"""GPU kernels compute what the plain path does: their bodies are C, so a C++ compiler can run them here."""

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from hubtool.runtime import deepseek_v4 as runtime
from tests.runtime.conftest import Goldens, Models, load_random
from tests.runtime.random_checkpoint import random_config
from tests.runtime.test_exact import SAME, difference

pytestmark = pytest.mark.slow

PROGRAM = """
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>
using std::exp; using std::sqrt;
struct bfloat16 {{
    unsigned short bits;
    bfloat16() {{}}
    explicit bfloat16(float value) {{
        unsigned int word;
        std::memcpy(&word, &value, 4);
        bits = (word + 0x7FFF + (word >> 16 & 1)) >> 16;
    }}
    explicit operator float() const {{
        const unsigned int word = static_cast<unsigned int>(bits) << 16;
        float value;
        std::memcpy(&value, &word, 4);
        return value;
    }}
}};
#define SHARED static
#define BARRIER barrier.arrive_and_wait()
{constants}
static void run(unsigned int row, unsigned int lane, std::barrier<>& barrier, {parameters}) {{
    {source}
}}
extern "C" void launch(int groups, {parameters}) {{
    std::barrier<> barrier(THREADS);
    std::vector<std::thread> threads;
    for (unsigned int lane = 0; lane < THREADS; ++lane) {{
        threads.emplace_back([&, lane] {{
            for (int row = 0; row < groups; ++row) {{
                run(row, lane, barrier, {names});
                barrier.arrive_and_wait();
            }}
        }});
    }}
    for (auto& thread : threads) thread.join();
}}
"""
C_TYPES = {mx.float32: "float", mx.bfloat16: "bfloat16", mx.int32: "int"}
NUMPY = {mx.float32: np.float32, mx.bfloat16: np.uint16, mx.int32: np.int32}


def as_numpy(array: mx.array) -> np.ndarray:
    return np.ascontiguousarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def run_as_c(folder: Path, kernel: runtime.Kernel, inputs: list[mx.array], outputs: Any, **how: Any) -> list[mx.array]:
    """What a kernel makes, by threads of a processor."""
    rows, threads = how.pop("rows"), how.pop("threads")
    values = {"THREADS": threads} | how
    constants = "\n".join(
        f"using {name} = {C_TYPES[value]};" if isinstance(value, mx.Dtype) else f"constexpr int {name} = {int(value)};"
        for name, value in values.items()
    )
    made = [np.full(shape, 7, NUMPY[dtype]) for shape, dtype in outputs]
    arguments: list[np.ndarray] = []
    parameters: list[str] = []
    for name, array in zip(kernel.inputs, inputs, strict=True):
        parameters += [f"const {C_TYPES[array.dtype]}* {name}", f"const int* {name}_shape"]
        arguments += [as_numpy(array), np.array(array.shape, np.int32)]
    parameters += [f"{C_TYPES[dtype]}* {name}" for name, (_, dtype) in zip(kernel.outputs, outputs, strict=True)]
    arguments += made
    names = ", ".join(parameter.split()[-1] for parameter in parameters)
    source = PROGRAM.format(constants=constants, parameters=", ".join(parameters), names=names, source=kernel.source)
    library = folder / f"{hashlib.sha256(source.encode()).hexdigest()}.so"
    if not library.exists():
        library.with_suffix(".cpp").write_text(source)
        command = [compiler(), "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-o", str(library)]
        subprocess.run([*command, str(library.with_suffix(".cpp"))], check=True)
    ctypes.CDLL(str(library)).launch(rows, *(ctypes.c_void_p(each.ctypes.data) for each in arguments))
    return [
        mx.array(array).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(array)
        for array, (_, dtype) in zip(made, outputs, strict=True)
    ]


@cache
def compiler() -> str:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert found is not None, "MLX itself needs a C++ compiler on a processor"
    return found


@pytest.fixture
def kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[pytest.MonkeyPatch]:
    """The path for GPUs, its kernels run by a processor; with fewer threads than there is to share."""
    threads = getattr(request, "param", 4)

    def launch(kernel: runtime.Kernel, inputs: list[mx.array], outputs: Any, **how: Any) -> list[mx.array]:
        return run_as_c(tmp_path, kernel, inputs, outputs, **how | {"threads": threads})

    with monkeypatch.context() as patch:
        patch.setattr(runtime.Kernel, "__call__", launch)
        patch.setattr(runtime, "_runs_kernels", lambda: True)
        yield patch


def random(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("normalise", ["by weight", "to 1", "not"])
def test_turned_is_normalised_rotated_and_rounded(dtype: mx.Dtype, normalise: str, kernels: pytest.MonkeyPatch) -> None:
    norm = nn.RMSNorm(24)
    norm.weight = random(24).astype(dtype)
    ways: dict[str, dict[str, Any]] = {"by weight": {"norm": norm}, "to 1": {"eps": 1e-6}, "not": {}}
    how = ways[normalise]
    for batch in (1, 2):  # rotations of all sequences, and of each
        x = random(2, 3, 5, 24).astype(dtype)
        rotations = runtime.Rope(8, 10000.0, None, 99)(mx.array([[3, 4, 5], [9, 10, 11]])[:batch], 24)[:, :, None]
        found = runtime._turned(x, rotations, dtype, mx.float32, **how)
        with pytest.MonkeyPatch.context() as plain:
            plain.setattr(runtime, "_runs_kernels", lambda: False)
            expected = runtime._turned(x, rotations, dtype, mx.float32, **how)
        # The plain path rounds what its norm makes too.
        assert difference(found, expected) <= (1e-5 if dtype == mx.float32 else 2**-5)


@pytest.mark.parametrize(("m", "iterations"), [(4, 20), (2, 20), (4, 1), (1, 3)])
def test_hyper_connections_enter_a_block_alike(m: int, iterations: int, kernels: pytest.MonkeyPatch) -> None:
    args = runtime.ModelArgs(hidden_size=40, hc_mult=m, hc_sinkhorn_iters=iterations, compress_ratios=[0] * 43)
    mix, norm = runtime.HyperConnection(args), nn.RMSNorm(40)
    mix.update({"fn": random(*mix.fn.shape) / 4, "base": random(*mix.base.shape), "scale": mx.array([0.5, 1.5, 0.8])})
    norm.weight, streams = random(40), random(2, 3, m, 40)
    found = mix(streams, norm, mx.float32)
    kernels.setattr(runtime, "_runs_kernels", lambda: False)
    for one, other in zip(found, mix(streams, norm, mx.float32), strict=True):
        assert difference(one, other) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [1], indirect=True)  # threads that wait for each other would take a minute
def test_whole_models_agree_in_batches_of_any_lengths(
    models: Models, goldens: Goldens, kernels: pytest.MonkeyPatch
) -> None:
    model, tokens = models("mixed"), goldens("mixed").tokens[0]
    sequences = [tokens[:270], tokens[100:240]]
    padded = mx.stack([sequences[0], mx.concatenate([mx.zeros((130,), mx.int32), sequences[1]])])

    def logits() -> mx.array:
        cache = model.make_cache()
        for layer in cache:
            layer.prepare(left_padding=[0, 130])
        return mx.concatenate([model(padded[:, at : at + 90], cache) for at in range(0, 270, 90)], axis=1)

    found = logits()
    kernels.setattr(runtime, "_runs_kernels", lambda: False)
    expected = logits()
    assert difference(found[0], expected[0]) <= SAME
    assert difference(found[1, 130:], expected[1, 130:]) <= SAME


def test_blocks_of_experts_give_what_rows_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """However tokens are routed: evenly, all to one expert, some experts without any."""
    experts = runtime.Experts(64, 32, 7, activation=runtime.LimitedSwiGLU(2.0))
    nn.quantize(experts, group_size=32, bits=4)
    x = random(2, 150, 64)
    for indices in (
        mx.random.randint(0, 7, (2, 150, 3), key=mx.random.key(0)),
        mx.full((2, 150, 3), 6),
        mx.full((2, 150, 3), 0),
        mx.random.randint(2, 4, (2, 150, 3), key=mx.random.key(1)),
    ):
        blocks = runtime.Blocks(indices.flatten(), 7)
        assert len(blocks.experts) == 900 // 64 + 7
        assert mx.array_equal(blocks.experts[blocks.places // 64], indices.flatten())
        monkeypatch.setattr(runtime, "_needs_blocks", lambda: False)
        expected = experts(x, indices)
        monkeypatch.setattr(runtime, "_needs_blocks", lambda: True)
        assert difference(experts(x, indices), expected) <= 1e-5


@pytest.mark.parametrize("quantized", [False, True])
def test_layers_with_the_same_input_are_one_product_until_they_change(quantized: bool) -> None:
    layers = [nn.Linear(64, rows, bias=False) for rows in (8, 24)]
    if quantized:
        layers = [layer.to_quantized(32, 6) for layer in layers]
    x, stack = random(1, 3, 64), runtime.Stack(mx.float32)
    expected = mx.concatenate([layer(x) for layer in layers], axis=-1)
    stack.join(layers)
    assert stack.joined
    assert difference(stack(x, layers), expected) <= 1e-5
    assert difference(mx.concatenate([layer(x) for layer in layers], axis=-1), expected) <= 1e-5
    layers[1].weight = mx.zeros_like(layers[1].weight)
    changed = mx.concatenate([layer(x) for layer in layers], axis=-1)
    assert difference(changed, expected) > 0.1
    assert difference(stack(x, layers), changed) <= 1e-5
    others = [nn.Linear(64, 8, bias=False).to_quantized(32, bits) for bits in (4, 8)]
    stack.join(others)
    assert not stack.joined
    assert difference(stack(x, others), mx.concatenate([layer(x) for layer in others], axis=-1)) == 0


def test_many_float32_rows_meet_an_unpacked_weight(kernels: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(64, 24, bias=False).to_quantized(32, 6)
    x = random(1, 9, 64)
    kernels.setattr(mx.cuda, "is_available", lambda: True)
    assert difference(runtime._apart(layer, x), layer(x)) <= 1e-5


@pytest.mark.slow
def test_single_tokens_are_compiled_to_the_same_until_the_model_is_told_of_changes(
    goldens: Goldens, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = load_random(random_config("mixed")), goldens("mixed").tokens[:, :150]
    model.eval()

    def decoded() -> mx.array:
        cache = model.make_cache()
        mx.eval(model(tokens[:, :120], cache))
        return mx.concatenate([model(tokens[:, at : at + 1], cache) for at in range(120, 150)], axis=1)

    expected = decoded()
    monkeypatch.setattr(runtime, "_compiles", lambda: True)
    assert difference(decoded(), expected) <= SAME
    for layer in model.layers:
        layer.attn.attn_sink = layer.attn.attn_sink + 1
        layer.ffn.gate.weight = layer.ffn.gate.weight[::-1]
    model.eval()
    changed = decoded()
    assert difference(changed, expected) > 0.1
    model.train()
    assert difference(changed, decoded()) <= SAME
