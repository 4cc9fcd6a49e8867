"""Hostile files for minutes on end, with counts.

    python -m tests.fuzz [--inputs 100000] [--minutes 60] [--seed 1] [--keep FOLDER]

Every input is a variant of a good file, read by a command of hubtool in this process. Exits 1 if any run ended in a
traceback, took more than five seconds, wrote where it may not, or showed a token; each kind is shown once, and its
input kept.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.harness import TARGETS, Workbench, peak_nbytes


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="hubtool-fuzz-") as folder:
        bench = Workbench(Path(folder) / "bench")
        bench.prepare()
        done = 0
        while done < options.inputs and time.monotonic() < ends:
            known = len(bench.found)
            bench.try_one(chance, TARGETS[done % len(TARGETS)])
            done += 1
            if len(bench.found) > known:
                kind, (outcome, hostile) = list(bench.found.items())[-1]
                sys.stdout.write(f"\n{kind}\n{' '.join(outcome.command)}\n{outcome.trace}")
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{len(bench.found)}.bin").write_bytes(hostile)
            if done % 1000 == 0:
                sys.stdout.write(f"{done} inputs, {len(bench.found)} kinds, {peak_nbytes() / 1e6:.0f} MB at most\n")
            sys.stdout.flush()
        for name, count in bench.counts.items():
            codes = {code: n for (of, code), n in sorted(bench.codes.items(), key=str) if of == name}
            sys.stdout.write(f"{name:16} {count:7} inputs, by exit code {codes}\n")
        sys.stdout.write(f"{done} inputs, {len(bench.found)} kinds of failure, {peak_nbytes() / 1e6:.0f} MB at most\n")
        return 1 if bench.found else 0


if __name__ == "__main__":
    sys.exit(main())
