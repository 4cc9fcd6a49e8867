"""What `hubtool quality` takes of a model that is larger than its memory limit, against the models in memory.

    python benchmarks/quality_cost.py [WORK_FOLDER] [--tokens 8192] [--memory-limit 600MB] [--in-memory 1024]

The 1.5 GB sample is converted and measured against its source with a memory limit; peak memory of hubtool and of all
below it is sampled here. Then source (as its lossless conversion) and variant are loaded by stock mlx-lm and read
tokens of the same windows in memory, as many as `--in-memory` says: a prefill of windows takes what one takes, times
their number. Last, three variants are measured in one run and in three, on `--in-memory` tokens.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from hubtool import units

SIZE = "small"
VARIANTS = ("mixed_3_6", "mixed_4_6", "mixed_2_6")
WORDS = 60_000

IN_MEMORY = """
import sys, time
import mlx.core as mx, mlx_lm, numpy as np
windows = mx.array(np.load(sys.argv[1]))
begun = time.monotonic()
for folder in sys.argv[2:]:
    model = mlx_lm.load(folder, trust_remote_code=True)[0]
    for window in windows:
        mx.eval(model(window[None]))
    del model
print(time.monotonic() - begun)
"""


def hubtool(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hubtool", *map(str, arguments)]


def memory(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def measured(*arguments: object) -> tuple[dict[str, Any], float, int, int]:
    """The answer, seconds, and the peaks of resident memory: of hubtool's own process, and of those below it."""
    own = below = 0
    with tempfile.TemporaryFile() as out:
        begun = time.monotonic()
        running = subprocess.Popen(hubtool("quality", *arguments, "--json", "-q"), stdout=out)
        process = psutil.Process(running.pid)
        while running.poll() is None:
            try:
                children = process.children(recursive=True)
            except psutil.Error:
                children = []
            own, below = max(own, memory([process])), max(below, memory(children))
            time.sleep(0.02)
        seconds = time.monotonic() - begun
        out.seek(0)
        return json.loads(out.read() or b"{}"), seconds, own, below


def prepare(work: Path, recipes: list[str]) -> tuple[Path, list[Path], Path]:
    """Source, its conversions (native first), and a text."""
    source, text = work / SIZE, work / "text.txt"
    if not source.is_dir():
        subprocess.run(hubtool("sample", source, "--size", SIZE, "-q"), check=True)
    folders = [work / f"{SIZE}-{recipe}" for recipe in recipes]
    for folder, recipe in zip(folders, recipes, strict=True):
        subprocess.run(hubtool("convert", source, "--recipe", recipe, "--out", folder, "-q"), check=True)
        subprocess.run(hubtool("validate", folder, "--integrity", "-q"), check=True, stdout=subprocess.DEVNULL)
    if not text.is_file():
        import random

        chosen = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz"
        known = ["".join(chosen.choices(letters, k=chosen.randint(2, 8))) for _ in range(5000)]
        text.write_text(" ".join(chosen.choices(known, k=WORDS)))
    return source, folders, text


def in_memory(work: Path, source: Path, folders: list[Path], text: Path, tokens: int) -> float:
    """Seconds that stock mlx-lm takes to read windows with each of the models, loading them included."""
    import numpy as np

    from hubtool.checkpoint.open import open_source
    from hubtool.worker.quality import load_tokenizer
    from hubtool.worker.text import read_windows

    windows = read_windows(text, load_tokenizer(open_source(str(source))), tokens, 512).tokens
    np.save(work / "windows.npy", windows)
    command = [sys.executable, "-c", IN_MEMORY, work / "windows.npy", *folders]
    return float(subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--memory-limit", default="600MB")
    parser.add_argument("--in-memory", type=int, default=1024)
    parser.add_argument("--no-floor", action="store_true")
    parser.add_argument("--variants", action="store_true", help="Three variants in one run and in three as well.")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    recipes = ["native", *(VARIANTS if options.variants else VARIANTS[:1])]
    source, (native, mixed, *others), text = prepare(work, recipes)
    common = ["--against", source, "--text", text, *(["--no-floor"] if options.no_floor else [])]
    limit = ["--memory-limit", options.memory_limit]
    answer, seconds, own, below = measured(mixed, *common, *limit, "--tokens", options.tokens)
    print(f"{options.tokens} tokens under {options.memory_limit}: {answer['outcome']}, {seconds:.0f} s")
    peaks = units.format_size(below), units.format_size(own)
    print(f"  peak of the guarded process, from outside: {peaks[0]}; of hubtool itself {peaks[1]}")
    read, weights = answer["figures"].get("read_nbytes", 0), answer["cost"]["read_nbytes"]
    print(f"  read {units.format_size(read)}, {read / weights:.3f} of the weights of both")
    plain = in_memory(work, source, [native, mixed], text, options.in_memory)
    whole = plain * options.tokens / options.in_memory
    print(
        f"  in memory {plain:.0f} s for {options.in_memory} tokens, {whole:.0f} s for all: ratio {seconds / whole:.2f}"
    )
    if options.variants:
        few = ["--tokens", options.in_memory]
        together = measured(mixed, *others, *common, *few)[1]
        apart = sum(measured(each, *common, *few)[1] for each in (mixed, *others))
        print(f"  three variants in one run {together:.0f} s, in three {apart:.0f} s: {together / apart:.2f}")


if __name__ == "__main__":
    main()
