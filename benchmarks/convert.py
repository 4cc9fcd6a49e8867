"""How near the converter is to what its arithmetic and its bytes cost alone, as ratios measured in one run.

    .venv/bin/python benchmarks/convert.py                    about 4 minutes, 5 GB of disk
    .venv/bin/python benchmarks/convert.py --true-shapes      also one layer with V4-Flash's true shapes: 12 GB more

Each round runs, one after the other and each in a process of its own:

    floor      the bare kernels, plainly: a table of 256 and a product with the scales, then `mx.quantize`, of
               as many weights, piece by piece, on as many threads, on bytes that are there; no I/O, no hashing, no
               error measurement
    kernels    the same with hubtool's own decoding and tiles, which are faster: the strictest floor there is
    copy       `cp` of the source and of the output: what reading and writing cost alone
    convert    `hubtool convert` with its defaults: errors measured on every 64th row, everything hashed

and the medians of the ratios are printed. On a GPU hubtool's kernels decode and quantize whole pieces on the device,
and `not I/O` is the share of the conversion that the copy does not explain.

One run on two cores of a shared x86-64 machine, mixed_3_6, 2 jobs: `small` 1.36 times the floor and 1.61 times the
kernels, peak RSS 149 MiB (planned / measured 1.10); one layer of true shapes 1.50 and 1.89 times, 161 MiB (1.12);
mixed_3_6 and mixed_2_6 in one pass 0.79 of the two runs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubtool.checkpoint.open import open_source
from hubtool.plan.plan import Step, plan_source
from hubtool.sample import FLASH, SMALL, write_sample

ROOT = Path(__file__).resolve().parent.parent
TRUE_SHAPES = replace(FLASH, num_hidden_layers=1, compress_ratios=(4,), num_hash_layers=0, num_nextn_predict_layers=0)
SHAPES = {"small": SMALL, "layer": TRUE_SHAPES}
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    peak_nbytes: int
    stdout: str


def run(*command: object) -> Run:
    """A command in a process of its own: its wall and CPU seconds, and its peak resident bytes."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=subprocess.DEVNULL, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        out.seek(0)
        stdout = out.read().decode()
    if status:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {status}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, stdout)


def sample(scratch: Path, name: str) -> Path:
    """A checkpoint, made by a process of its own: what this one starts would inherit its peak of memory."""
    run(sys.executable, __file__, "--sample", scratch / name, name)
    return scratch / name


def convert(source: Path, recipes: Sequence[str], out: Path, jobs: int) -> Run:
    """`hubtool convert` into a fresh folder."""
    shutil.rmtree(out, ignore_errors=True)
    chosen = [word for recipe in recipes for word in ("--recipe", recipe)]
    where = ["--out", out] if len(recipes) == 1 else ["--out-root", out]
    return run(sys.executable, "-m", "hubtool", "convert", source, *chosen, *where, "--jobs", jobs, "--json")


def planned(source: Path, recipe: str, jobs: int) -> dict[str, int]:
    """`hubtool plan --json`."""
    command = [sys.executable, "-m", "hubtool", "plan", source, "--recipe", recipe, "--jobs", jobs, "--json"]
    figures: dict[str, int] = json.loads(run(*command).stdout)
    return figures


def work_of(source: Path, recipe: str) -> Sequence[tuple[Step, int]]:
    """What the plan quantizes: a step and a number of rows for each piece."""
    (plan,) = plan_source(open_source(str(source)), [recipe])
    return [(plan.steps[p.step], p.rows) for p in plan.pieces() if plan.steps[p.step].how == "quantize"]


def compute(kind: str, source: Path, recipe: str, jobs: int) -> None:
    """Decode and quantize as many weights as the plan says, on bytes that are there already; prints the seconds."""
    import mlx.core as mx

    lock, waiting = threading.Lock(), iter(work_of(source, recipe))
    kernels = plain_kernels if kind == "floor" else own_kernels

    def thread() -> None:
        make = kernels()
        with mx.stream(mx.new_stream(mx.default_device())):
            while True:
                with lock:
                    step, rows = next(waiting, (None, 0))
                if step is None:
                    return
                make(step, rows)

    threads = [threading.Thread(target=thread) for _ in range(jobs)]
    begun = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    print(json.dumps({"seconds": time.perf_counter() - begun}))


def plain_kernels() -> Callable[[Step, int], None]:
    """Makes a piece at once: published bytes by a table of 256, times the scales, then quantized."""
    import mlx.core as mx

    from hubtool.convert.decode import E2M1_VALUES
    from hubtool.convert.hints import Hints
    from hubtool.convert.nearest import quantize_nearest

    def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        return (values.view(np.uint32) >> 16).astype(np.uint16)

    byte = np.arange(256)
    fp4 = np.concatenate([np.array(E2M1_VALUES, np.float32), -np.array(E2M1_VALUES, np.float32)])
    pairs = to_bfloat16(np.stack([fp4[byte & 15], fp4[byte >> 4]], axis=-1)).view(np.uint32).reshape(-1)
    e4m3 = np.array(mx.from_fp8(mx.arange(256, dtype=mx.uint8), dtype=mx.float32))
    singles = to_bfloat16(e4m3)
    random = published_bytes()

    def make(step: Step, rows: int) -> None:
        columns, encoding = step.columns, step.parameter.encoding
        if encoding == "fp4":
            bits = pairs[random[: rows * columns // 2]].view(np.uint16)
            scale = mx.full((rows, columns // 32, 1), 2.0**-7, mx.bfloat16)
        elif encoding == "fp8":
            bits = singles[random[: rows * columns]]
            scale = mx.full((rows, -(-columns // 128), 1), 2.0**-7, mx.bfloat16)
        else:
            bits, scale = random[: 2 * rows * columns].view(np.uint16), mx.ones((rows, 1, 1), mx.bfloat16)
        values = mx.array(bits).view(mx.bfloat16).reshape(rows, scale.shape[1], -1) * scale
        mx.eval(quantize_nearest(values.reshape(rows, columns), step.format, Hints()))

    return make


def own_kernels() -> Callable[[Step, int], None]:
    """Makes a piece as hubtool does, tile by tile."""
    import mlx.core as mx

    from hubtool.convert import decode
    from hubtool.convert.hints import Hints
    from hubtool.convert.nearest import quantize_nearest
    from hubtool.convert.piece import tiles

    random, scales = published_bytes(), np.full(8 * MIB, 120, np.uint8)
    index, decoded = np.empty(32 * MIB, np.uint16), np.empty(32 * MIB, np.uint32)

    def make(step: Step, rows: int) -> None:
        columns, block, encoding = step.columns, step.parameter.block, step.parameter.encoding
        for start, stop in tiles(rows, columns):
            size = stop - start
            if encoding == "fp4":
                n, shape = size * columns // 2, (size, columns // 2)
                scale = scales[: size * columns // 32].reshape(size, -1)
                scratch = index[:n].reshape(shape), decoded[:n].reshape(shape)
                bits = decode.decode_fp4(random[:n].reshape(shape), scale, *scratch)
            elif encoding == "fp8":
                shape = (-(-size // block[0]), -(-columns // block[1]))
                scale = scales[: shape[0] * shape[1]].reshape(shape)
                bits = decode.decode_fp8(random[: size * columns].reshape(size, columns), scale, block)
            else:
                bits = random[: 2 * size * columns].view(np.uint16).reshape(size, columns)
            mx.eval(quantize_nearest(mx.array(bits).view(mx.bfloat16), step.format, Hints()))

    return make


def published_bytes() -> npt.NDArray[np.uint8]:
    """Bytes that are finite numbers in every encoding."""
    return np.random.default_rng(0).integers(0, 0x70, 64 * MIB, np.uint8)


def copy(source: Path, out: Path, scratch: Path) -> float:
    """Seconds of `cp` of source and output."""
    seconds = 0.0
    for folder in (source, out):
        shutil.rmtree(scratch, ignore_errors=True)
        seconds += run("cp", "-r", folder, scratch).seconds
    shutil.rmtree(scratch, ignore_errors=True)
    return seconds


def compare(name: str, source: Path, options: argparse.Namespace, rounds: int) -> None:
    """Print what one source's conversion costs."""
    scratch, recipe, jobs = source.parent, options.recipe, options.jobs
    out = scratch / "out"
    runs: dict[str, list[float]] = {kind: [] for kind in ("floor", "kernels", "convert", "copy")}
    cpus, peaks = [], []
    for _ in range(rounds):
        for kind in ("floor", "kernels"):
            bare = run(sys.executable, __file__, "--compute", kind, source, recipe, "--jobs", jobs)
            runs[kind].append(json.loads(bare.stdout)["seconds"])
        made = convert(source, [recipe], out, jobs)
        runs["convert"].append(made.seconds)
        runs["copy"].append(copy(source, out, scratch / "copy"))
        cpus.append(made.cpu_seconds / bare.cpu_seconds)
        peaks.append(made.peak_nbytes)
    plan = planned(source, recipe, jobs)

    def ratio(over: str) -> str:
        value = statistics.median(wall / each for wall, each in zip(runs["convert"], runs[over], strict=True))
        walls = f"{statistics.median(runs['convert']):.1f} s / {statistics.median(runs[over]):.1f} s"
        return f"{value:.2f}   ({walls})"

    peak = max(peaks)
    not_io = statistics.median(1 - each / wall for wall, each in zip(runs["convert"], runs["copy"], strict=True))
    print(f"\n{name}, {recipe}, {jobs} jobs: {sum(f.stat().st_size for f in source.iterdir()) / 1e9:.2f} GB of source")
    print(f"  convert wall / floor wall    {ratio('floor')}")
    print(f"  convert wall / own kernels   {ratio('kernels')}   CPU / their CPU {statistics.median(cpus):.2f}")
    print(f"  convert wall / copy wall     {ratio('copy')}   (not I/O: {max(not_io, 0):.0%})")
    print(f"  peak RSS                     {peak / MIB:.0f} MiB, planned / measured {plan['peak_nbytes'] / peak:.2f}")


def one_pass(source: Path, recipes: Sequence[str], jobs: int, rounds: int, scratch: Path) -> None:
    """Print what one pass for several recipes costs against their single runs."""
    ratios = []
    for _ in range(rounds):
        alone = sum(convert(source, [recipe], scratch / "out", jobs).seconds for recipe in recipes)
        ratios.append(convert(source, recipes, scratch / "out", jobs).seconds / alone)
    print(f"\n{' + '.join(recipes)} in one pass / in two runs: {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", default="mixed_3_6")
    parser.add_argument("--true-shapes", action="store_true")
    parser.add_argument("--scratch", type=Path, help="a folder with room; a temporary one by default")
    parser.add_argument("--compute", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--sample", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compute:
        kind, source, recipe = options.compute
        compute(kind, Path(source), recipe, options.jobs)
        return
    if options.sample:
        write_sample(Path(options.sample[0]), SHAPES[options.sample[1]])
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        small = sample(scratch, "small")
        compare("small", small, options, options.rounds)
        one_pass(small, ["mixed_3_6", "mixed_2_6"], options.jobs, 1 if options.rounds < 3 else 2, scratch)
        shutil.rmtree(small)
        if options.true_shapes:
            layer = sample(scratch, "layer")
            compare("one layer of V4-Flash's true shapes", layer, options, 1)


if __name__ == "__main__":
    main()
