"""How far a child gets past its limit before the guard has stopped it, and what guarding costs.

    python benchmarks/guard.py [LIMIT_MB]

For each way to grow, a fresh process guards a child that takes memory at a rate. `sampled` is the peak that the guard
saw, all processes together; `true` is the kernel's own high-water mark of the largest process. On Linux ru_maxrss is
handed on from whoever starts a process, this one's memory to the guard and the guard's to its child: the guard's own is
read as VmHWM, and where the child's was no more than the guard's it is not told.
"""

import json
import resource
import subprocess
import sys
import time

from hubtool.guard.guard import Limits, run_guarded
from hubtool.units import MB
from hubtool.worker.worker import high_water_nbytes

HOG = """
import os, signal, sys, time
rate, forks, stubborn = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(forks):
    if os.fork() == 0:
        break
step, held, begun = 2_000_000, [], time.monotonic()
while True:
    held.append(bytearray(os.urandom(1) * step))
    ahead = len(held) * step * (forks + 1) / (rate * 1e6) - (time.monotonic() - begun)
    if ahead > 0:
        time.sleep(ahead)
"""

CASES = [
    ("slow", 50, 0, "willing"),
    ("fast", 500, 0, "willing"),
    ("as fast as it can", 1e6, 0, "willing"),
    ("three forks", 500, 3, "willing"),
    ("ignores TERM", 50, 0, "stubborn"),
    ("ignores TERM, fast", 1000, 0, "stubborn"),
]


def guard(limit: int, rate: str, forks: str, manner: str) -> None:
    """Guard one child in this process, and print what became of it as JSON."""
    begun, worked = time.monotonic(), time.process_time()
    report = run_guarded([sys.executable, "-c", HOG, rate, forks, manner], Limits(limit))
    unit = 1 if sys.platform == "darwin" else 1024
    own = high_water_nbytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    figures = {
        "reason": report.reason,
        "killed": report.killed,
        "sampled": report.peak_nbytes,
        "true": child if child > own else 0,
        "own": own,
        "gap": report.longest_gap,
        "cpu": (time.process_time() - worked) / (time.monotonic() - begun),
    }
    print(json.dumps(figures))


def main() -> None:
    limit = int(float(sys.argv[1]) * MB) if len(sys.argv) > 1 else 500 * MB
    print(f"limit {limit / MB:.0f} MB, a sample each {Limits(limit).interval * 1000:.0f} ms")
    heads = (
        ("MB/s", 8),
        ("sampled", 9),
        ("true", 9),
        ("past", 7),
        ("killed", 7),
        ("gap ms", 7),
        ("cpu", 5),
        ("own MB", 7),
    )
    print(f"{'case':20} " + " ".join(head.rjust(width) for head, width in heads))
    for name, rate, forks, manner in CASES:
        command = [sys.executable, __file__, "--one", str(limit), str(rate), str(forks), manner]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seen = json.loads(done.stdout)
        assert seen["reason"] == "memory", seen
        peak = seen["sampled"] if forks else max(seen["sampled"], seen["true"])
        print(
            f"{name:20} {rate if rate < 1e6 else '':>8} {seen['sampled'] / MB:9.0f} {seen['true'] / MB:9.0f} "
            f"{peak / limit - 1:7.1%} {seen['killed']!s:>7} {seen['gap'] * 1000:7.0f} {seen['cpu']:5.0%} "
            f"{seen['own'] / MB:7.0f}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        guard(int(sys.argv[2]), *sys.argv[3:])
    else:
        main()
