"""How fast the embedded runtime is beside mlx-vlm's, on the same published weights, as ratios measured in one run.

    python -m venv peer && peer/bin/pip install mlx-vlm==0.7.10 "mlx[cpu]"
    .venv/bin/python benchmarks/runtime.py --peer peer/bin/python

A random checkpoint in the published format (FP4 experts, FP8 linears) is loaded by both as it is. For mlx-vlm, whose
loader knows no blocks of 128 x 128, config.json says 32 x 32; it repeats the scales of the right blocks all the same.
Each round runs both, one after the other and each in a process of its own, which prefills the prompt and decodes
greedily, twice: the second time counts. The medians over the rounds are printed; a ratio above 1 means that this
runtime is faster. Three rounds take about 6 minutes on two cores.

    .venv/bin/python benchmarks/runtime.py --true-shapes --layers 6 --runtime old.py --runtime new.py

measures on a GPU with V4-Flash's true shapes instead: random weights that are made in memory (3-bit experts, the rest
6-bit, 2.8 GB a layer), the layers of all kinds by turns, without embedding and head; each model file after the other,
in a process of its own. A token of the whole model takes 43 times as long as a layer.

`bandwidth` is the share of the memory bandwidth, as a large copy reaches it, that reading the weights of a decoded
token alone takes: it says how much of a step is not overhead, and means something where a model outgrows the caches.

On one H200 (6 layers, mlx 0.32.4 for CUDA): prefill 26.8 ms a layer for 2,048 tokens (1,780 tok/s for 43 layers) where
it was 270, decoding 0.85 ms a layer at 512 tokens and 1.15 at 8,192. Half of the latter is the time of the quantized
products themselves: MLX's of one row reach 0.3 to 0.8 TB/s there.

One run on two cores of a shared x86-64 machine, mlx 0.32.4 (cpu): prefill 6.89 times mlx-vlm's tokens a second,
decoding 6.03 times, bandwidth 28.3 %.
"""

import argparse
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "hubtool" / "runtime" / "deepseek_v4.py"

Numbers = dict[str, float]


def write_folders(ours: Path, peers: Path, *, experts: int, layers: int) -> None:
    """The same checkpoint twice: with our model file, and with the config that mlx-vlm needs."""
    from dataclasses import replace

    from hubtool.sample import SMALL, write_sample

    ratios = (0, 0, *(4, 128) * ((layers - 2) // 2), 0)
    write_sample(ours, replace(SMALL, n_routed_experts=experts, num_hidden_layers=layers, compress_ratios=ratios))
    peers.mkdir()
    for path in ours.iterdir():
        if path.name != "config.json":
            (peers / path.name).symlink_to(path)
    config = json.loads((ours / "config.json").read_text())
    (ours / "config.json").write_text(json.dumps(config | {"model_file": RUNTIME.name}))
    shutil.copy(RUNTIME, ours)
    config["quantization_config"]["weight_block_size"] = [32, 32]
    (peers / "config.json").write_text(json.dumps(config))


def load(runtime: str, folder: Path) -> Any:
    """The model, and a function of token ids and cache that gives its logits."""
    if runtime == "mlx-vlm":
        from mlx_vlm.utils import load_model

        model = load_model(folder).language_model
        return model, lambda tokens, cache: model(tokens, cache=cache).logits
    from mlx_lm.utils import load_model as load_stock

    model, _ = load_stock(folder, trust_remote_code=True)
    return model, model


def measure(runtime: str, folder: Path, prompt: int, tokens: int) -> Numbers:
    """Tokens per second of prefill and of greedy decoding, and the share of the bandwidth that decoding takes."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    model, call = load(runtime, folder)
    config = json.loads((folder / "config.json").read_text())
    ids = mx.random.randint(0, config["vocab_size"], (1, prompt), key=mx.random.key(0))
    for _ in range(2):
        cache = model.make_cache()
        begun = time.perf_counter()
        token = mx.argmax(call(ids, cache)[:, -1:], axis=-1)
        mx.eval(token, [layer.state for layer in cache])
        prefill = time.perf_counter() - begun
        begun = time.perf_counter()
        for _ in range(tokens):
            token = mx.argmax(call(token, cache)[:, -1:], axis=-1)
            mx.eval(token)
        decode = (time.perf_counter() - begun) / tokens
    used = config["num_experts_per_tok"] / config["n_routed_experts"]
    read = sum(
        array.nbytes * (used if "switch_mlp" in name else 1)
        for name, array in tree_flatten(model.parameters())
        if "embed_tokens" not in name and "tid2eid" not in name
    )
    return {"prefill": prompt / prefill, "decode": 1 / decode, "bandwidth": read / decode / bandwidth()}


def true_model(runtime: Path, layers: int, plain_compressors: bool) -> Any:
    """A model of some layers with V4-Flash's shapes and random weights, from a model file."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    from hubtool.sample import FLASH, published_config

    spec = importlib.util.spec_from_file_location("custom_model", runtime)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_model"] = module
    spec.loader.exec_module(module)
    ratios = [0, *[4, 128] * layers][:layers]
    changes = {"num_hidden_layers": layers, "compress_ratios": ratios, "num_hash_layers": 0, "vocab_size": 1024}
    model = module.Model(module.ModelArgs.from_dict(dict(published_config(FLASH)) | changes))
    model.set_dtype(mx.bfloat16)
    for layer in model.layers:
        layer.ffn.gate.weight = mx.random.normal(layer.ffn.gate.weight.shape) / 64
        for mix in (layer.attn_hc, layer.ffn_hc):
            mix.fn = mx.random.normal(mix.fn.shape) / 128

    def how(path: str, part: nn.Module) -> bool | dict[str, int]:
        if not hasattr(part, "to_quantized") or path.endswith(".gate"):
            return False
        if plain_compressors and re.search("compressor|indexer", path):
            return False
        return {"group_size": 128, "bits": 3 if "switch_mlp" in path else 6}

    nn.quantize(model, class_predicate=how)
    for layer in model.layers:
        mx.eval(layer.parameters())
    weights = {
        name: array if model.cast_predicate(name) or array.dtype == mx.uint32 else array.astype(mx.float32)
        for name, array in tree_flatten(model.parameters())
    }
    model.load_weights(list(model.sanitize(weights).items()))
    mx.eval(model.parameters())
    model.eval()
    return model


def measure_true(
    runtime: Path, layers: int, plain_compressors: bool, decode_at: Sequence[int], prefill_of: Sequence[int]
) -> Numbers:
    """Seconds a layer of decoded tokens at each context and of prompts, in pieces of 2,048 tokens; shares of a copy."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    model = true_model(runtime, layers, plain_compressors)
    used = model.args.num_experts_per_tok / model.args.n_routed_experts
    read = sum(
        array.nbytes * (used if "switch_mlp" in name else 1)
        for name, array in tree_flatten([layer.parameters() for layer in model.layers])
    )
    numbers: Numbers = {}

    def prefill(tokens: int) -> tuple[float, Any]:
        cache, begun = model.make_cache(), time.perf_counter()
        ids = mx.random.randint(0, 1024, (1, tokens), key=mx.random.key(tokens))
        for start in range(0, tokens, 2048):
            mx.eval(model.model(ids[:, start : start + 2048], cache), [layer.state for layer in cache])
        return (time.perf_counter() - begun) / layers, cache

    for tokens in sorted({*decode_at, *prefill_of}):
        prefill(tokens)
        seconds, cache = prefill(tokens)
        if tokens in prefill_of:
            numbers[f"prefill {tokens}"] = seconds
        if tokens in decode_at:
            steps = []
            for _ in range(64):
                begun = time.perf_counter()
                mx.eval(model.model(mx.array([[7]]), cache))
                steps.append(time.perf_counter() - begun)
            numbers[f"decode {tokens}"] = statistics.mean(steps[16:]) / layers
            numbers[f"bandwidth {tokens}"] = read / layers / numbers[f"decode {tokens}"] / bandwidth()
    numbers["peak"] = mx.get_peak_memory()
    return numbers


def compare_true(runtimes: Sequence[Path], layers: int, plain_compressors: bool) -> None:
    """Print what each model file takes, one after the other."""
    for runtime in runtimes:
        command = [sys.executable, __file__, "--measure-true", str(runtime), str(layers), str(int(plain_compressors))]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
        print(runtime)
        for name, value in numbers.items():
            kind, _, tokens = name.partition(" ")
            if kind == "decode":
                share = numbers[f"bandwidth {tokens}"]
                print(
                    f"  decode at {tokens:>5}: {value * 1e3:6.3f} ms a layer, {1 / value / 43:6.1f} tok/s, {share:.1%}"
                )
            elif kind == "prefill":
                speed = int(tokens) / value / 43
                print(f"  prefill of {tokens:>5}: {value * 1e3:7.1f} ms a layer, {speed:7.0f} tok/s")


def bandwidth() -> float:
    """Bytes a second that a copy of 256 MiB reads and writes."""
    import mlx.core as mx

    array = mx.zeros((1 << 26,), mx.float32)
    mx.eval(array)
    best = min(timed_copy(array) for _ in range(5))
    return 2 * array.nbytes / best


def timed_copy(array: Any) -> float:
    import mlx.core as mx

    begun = time.perf_counter()
    mx.eval(array + 1)
    return time.perf_counter() - begun


def run(python: str, runtime: str, folder: Path, arguments: argparse.Namespace) -> Numbers:
    """`measure` in a process of its own, with the interpreter that has the runtime."""
    sizes = [str(arguments.prompt), str(arguments.tokens)]
    command = [python, __file__, "--measure", runtime, str(folder), *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python with mlx-vlm 0.7.10")
    parser.add_argument("--true-shapes", action="store_true", help="V4-Flash's shapes instead, on a GPU")
    parser.add_argument(
        "--plain-compressors", action="store_true", help="which older model files need on CUDA, where MLX fails on them"
    )
    parser.add_argument("--runtime", action="append", type=Path, help="model file to measure; several for a comparison")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens decoded")
    parser.add_argument("--experts", type=int, default=16, help="routed experts a layer")
    parser.add_argument("--layers", type=int, default=6)
    arguments = parser.parse_args()
    if arguments.true_shapes:
        compare_true(arguments.runtime or [RUNTIME], arguments.layers, arguments.plain_compressors)
        return
    if not arguments.peer:
        parser.error("--peer is needed, or --true-shapes")
    with tempfile.TemporaryDirectory() as folder:
        ours, peers = Path(folder) / "ours", Path(folder) / "peers"
        write_folders(ours, peers, experts=arguments.experts, layers=arguments.layers)
        rounds = [
            (run(sys.executable, "hubtool", ours, arguments), run(arguments.peer, "mlx-vlm", peers, arguments))
            for _ in range(arguments.rounds)
        ]
    for kind in ("prefill", "decode"):
        ratio = statistics.median(mine[kind] / theirs[kind] for mine, theirs in rounds)
        mine, theirs = (statistics.median(numbers[kind] for numbers in side) for side in zip(*rounds, strict=True))
        print(f"{kind:8} {mine:9.1f} tok/s, mlx-vlm {theirs:9.1f} tok/s, ratio {ratio:5.2f}")
    share = statistics.median(mine["bandwidth"] for mine, _ in rounds)
    print(f"bandwidth {share:.1%} of a copy's, while decoding")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))))
    elif sys.argv[1:2] == ["--measure-true"]:
        print(
            json.dumps(measure_true(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1", (512, 8192), (2048, 8192)))
        )
    else:
        main()
