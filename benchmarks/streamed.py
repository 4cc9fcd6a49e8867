"""A model that is larger than its memory limit, generating: what a person sees, and what is measured from outside.

    python benchmarks/streamed.py [WORK_FOLDER]

The 1.5 GB sample is converted and validated with --memory-limit 500MB: resident it is refused, and stopped when it is
forced; streamed it passes, with the tokens of a run without a limit. The memory of hubtool and of everything below it
is sampled here, a hundred times a second, as proportional sizes (macOS: unique sizes, which are less).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from hubtool.units import MB

LIMIT = "500MB"
TOKENS = "4"

RUNS = [
    ("resident", ["--smoke", "--memory-limit", LIMIT]),
    ("resident, forced", ["--smoke", "--memory-limit", LIMIT, "--force"]),
    ("streamed", ["--streamed", "--memory-limit", LIMIT]),
    ("resident, no limit", ["--smoke"]),
]


def hubtool(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hubtool", *map(str, arguments)]


def memory(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            seen = process.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(seen, "pss", seen.uss)
    return total


def watched(command: list[str]) -> tuple[int, dict[str, object], int, int]:
    """Exit code, last evidence, and the peaks of hubtool itself and of its children in bytes."""
    own = below = 0
    with tempfile.TemporaryFile() as out:
        running = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        process = psutil.Process(running.pid)
        while running.poll() is None:
            try:
                children = process.children(recursive=True)
            except psutil.Error:
                children = []
            own, below = max(own, memory([process])), max(below, memory(children))
            time.sleep(0.01)
        out.seek(0)
        return running.returncode, json.load(out)["evidence"][-1], own, below


def main() -> None:
    work = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="hubtool-streamed-"))
    source, folder = work / "source", work / "folder"
    if not source.exists():
        subprocess.run(hubtool("sample", source, "--size", "small"), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(hubtool("convert", source, "--recipe", "native", "--out", folder), check=True, stdout=sys.stderr)
    print("run                  exit outcome            tokens             s/token  read/token  peak MB  own MB")
    for name, options in RUNS:
        code, evidence, own, below = watched(hubtool("validate", folder, *options, "--tokens", TOKENS, "--json"))
        figures = evidence["figures"]
        pace = figures.get("seconds_per_token") or (
            1 / figures["tokens_per_second"] if "tokens_per_second" in figures else 0
        )
        read = figures.get("read_per_token_nbytes", 0)
        print(
            f"{name:20} {code:>4} {evidence['outcome']:18} {figures.get('tokens_digest', ''):17} {pace:8.2f} "
            f"{read / MB:8.0f} MB {below / MB:8.0f} {own / MB:7.0f}"
        )


if __name__ == "__main__":
    main()
