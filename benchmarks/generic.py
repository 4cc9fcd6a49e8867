"""What an architecture that hubtool has no code for costs: planning time, and memory at true sizes.

    python -m benchmarks.generic [--work FOLDER] [--jobs N] [--keep]

Plans a qwen3_moe of 48 layers with 128 experts (18,867 tensors) from its headers alone, three times, and converts one
layer of qwen3_moe (128 experts of 768 x 2048, BF16) and one of deepseek_v3 (256 of 2048 x 7168, FP8) by `mixed_3_6`,
each in a process of its own whose peak is read from outside (VmHWM of Linux). The checkpoints are sparse files: zeros
take no disk, and memory does not depend on values. Prints seconds, and bytes beside what the plan says.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

from hubtool.checkpoint.source import LocalSource
from hubtool.checkpoint.tensors import encode_header
from hubtool.plan.plan import plan_source
from hubtool.sample import PUBLISHED, published, write_architecture

RECIPE = "mixed_3_6"
MIB = 1024 * 1024


@dataclass(frozen=True)
class Widths:
    """What a published layout is made with here."""

    layers: int
    experts: int
    inner: int
    hidden: int


WHOLE_QWEN = Widths(48, 128, 768, 2048)
QWEN = Widths(1, 128, 768, 2048)
DEEPSEEK = Widths(2, 256, 2048, 7168)
"""The first layer of deepseek_v3 is dense."""


def write_true(folder: Path, architecture: str, widths: Widths) -> Path:
    """A sparse checkpoint of an architecture's published layout with true widths; tokenizer and texts are real."""
    write_architecture(folder, architecture)
    hidden, heads = widths.hidden, published.HEADS * published.HEAD_DIM
    attention = {
        "q_proj": (heads, hidden),
        "k_proj": (heads // 2, hidden),
        "v_proj": (heads // 2, hidden),
        "o_proj": (hidden, heads),
    }
    true: dict[str, Any] = {
        "LAYERS": widths.layers,
        "EXPERTS": widths.experts,
        "EXPERT_INNER": widths.inner,
        "HIDDEN": hidden,
        "_ATTENTION": attention,
    }
    with patch.multiple(published, **true):
        made = PUBLISHED[architecture]()
    with (folder / "model.safetensors").open("wb") as file:
        header = encode_header(list(made.tensors), {"format": "pt"})
        file.write(header)
        file.truncate(len(header) + sum(spec.nbytes for spec in made.tensors))
    (folder / "config.json").write_text(json.dumps(made.config))
    return folder


def time_plan(folder: Path) -> None:
    """Print how long planning takes, from headers."""
    for _ in range(3):
        begun = time.perf_counter()
        source = LocalSource(folder)
        (plan,) = plan_source(source, [RECIPE])
        seconds = time.perf_counter() - begun
        print(f"plan of {len(source.tensors):,} tensors: {seconds:.2f} s, {plan.nbytes:,} bytes")


def peak_nbytes(command: list[str]) -> int:
    """The most resident memory of a command, in bytes, as the system counted it."""
    highest = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            if "VmHWM:" in status:
                highest = max(highest, 1024 * int(status.partition("VmHWM:")[2].split()[0]))
            time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return highest


def measure_peak(folder: Path, jobs: int) -> None:
    """Convert, and print the peak beside the planned one."""
    (plan,) = plan_source(LocalSource(folder), [RECIPE])
    out = folder.with_name(f"{folder.name}-out")
    hubtool = [sys.executable, "-m", "hubtool", "convert", str(folder), "--recipe", RECIPE, "--out", str(out)]
    begun = time.perf_counter()
    peak = peak_nbytes([*hubtool, "--jobs", str(jobs), "--quiet"])
    planned = plan.peak_nbytes(jobs)
    print(
        f"{folder.name}: {plan.parameters:,} parameters, {jobs} jobs: peak {peak / MIB:.0f} MiB, planned "
        f"{planned / MIB:.0f} MiB ({planned / peak:.2f}), {time.perf_counter() - begun:.0f} s"
    )
    shutil.rmtree(out)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the checkpoints and what is made of them lie")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    work = Path(mkdtemp(dir=options.work))
    try:
        time_plan(write_true(work / "plan", "qwen3_moe", WHOLE_QWEN))
        measure_peak(write_true(work / "qwen3_moe", "qwen3_moe", QWEN), options.jobs)
        measure_peak(write_true(work / "deepseek_v3", "deepseek_v3", DEEPSEEK), options.jobs)
    finally:
        if not options.keep:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
