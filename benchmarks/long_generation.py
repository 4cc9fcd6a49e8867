"""What a long generation holds beside its cache: nothing that grows, over 20,000 tokens of the sample.

    .venv/bin/python benchmarks/long_generation.py            about 10 minutes on two cores
    .venv/bin/python benchmarks/long_generation.py --tokens 4000

The sample is loaded by stock mlx-lm as it is published and decodes greedily, one token at a time. `held` is what MLX
has allocated but for the cache; it is looked at after every thousand tokens, and the greatest is given as a ratio to
what was held after the first thousand. The cache grows by bytes a token that follow from the configuration.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from hubtool.sample import TINY, write_sample

RUNTIME = Path(__file__).resolve().parent.parent / "hubtool" / "runtime" / "deepseek_v4.py"
STEP = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    tokens = parser.parse_args().tokens
    with tempfile.TemporaryDirectory() as name:
        folder = write_sample(Path(name) / "sample", TINY)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_file": RUNTIME.name}))
        shutil.copy(RUNTIME, folder)
        model, _ = load_model(folder, trust_remote_code=True)
    cache = model.make_cache()
    held, cached = [], []
    for count, _ in enumerate(generate_step(mx.array([1, 2, 3]), model, max_tokens=tokens, prompt_cache=cache), 1):
        if count % STEP == 0:
            mx.synchronize()
            cached.append(sum(layer.nbytes for layer in cache))
            held.append(mx.get_active_memory() - cached[-1])
            sizes = f"cache {cached[-1] / 1e6:7.3f} MB, held beside it {held[-1] / 1e6:7.3f} MB"
            print(f"{count:6} tokens: {sizes}", flush=True)
    growth = (cached[-1] - cached[0]) / (tokens - STEP)
    print(f"held, the most / after {STEP} tokens: {max(held) / held[0]:.3f}; cache: {growth:.0f} bytes a token")


if __name__ == "__main__":
    main()
