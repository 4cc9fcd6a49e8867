"""Interrupts a publish at random instants, by LFS and by xet: it ends with 130 in time, and the next run finishes.

    python -m benchmarks.interrupts [--tries 200] [--minutes 60] [--seed 1]

Every try publishes a tiny checkpoint to a repo of its own on a rehearsal Hub that runs in this process, sends SIGINT or
SIGTERM after a random part of the time that a whole run takes, waits for the end, and publishes again. Every other try
begins with a converted folder, so that as many instants fall into sending. Counted are: exit codes other than 130, ends
later than two seconds after the signal, tracebacks, next runs that fail, and repos without exactly one commit of ours.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from huggingface_hub import HfApi

from hubtool.rehearsal import RehearsalHub

LATE_SECONDS = 2.0
OWNER = "someone"


def main() -> int:
    """Exit code: 1 if anything was counted that should not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    counts: Counter[str] = Counter()
    slowest = 0.0
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder, RehearsalHub(Path(folder) / "hub") as hub:
        work = Path(folder)
        run(hub, work, "lfs", ["sample", "src", "--size", "tiny"])
        lasts = {}
        for way in ("lfs", "xet"):
            begun = time.monotonic()
            assert run(hub, work, way, publish(f"whole-{way}"))[0] == 0, "a publish that nobody interrupts fails"
            lasts[way] = time.monotonic() - begun
        for number in range(options.tries):
            if time.monotonic() > ends:
                break
            way, kind = ("lfs", "xet")[number % 2], chance.choice([signal.SIGINT, signal.SIGTERM])
            name = f"try-{number}"
            if number % 4 > 1:
                shutil.copytree(work / f"whole-{way}", work / name, ignore=shutil.ignore_patterns("hub"))
            seconds, problems = interrupt(hub, work, (way, name), kind, chance.uniform(0, 0.8 * lasts[way]))
            slowest = max(slowest, seconds or 0.0)
            counts.update(problems or ["fine" if seconds is not None else "was done before the signal"])
            if problems:
                sys.stdout.write(f"{name} {way} {kind.name}: {', '.join(problems)}\n")
                sys.stdout.flush()
            shutil.rmtree(work / name, ignore_errors=True)
    sys.stdout.write(f"{dict(counts)}, latest end {slowest:.2f} s after its signal\n")
    return 0 if counts.keys() <= {"fine", "was done before the signal"} else 1


def publish(name: str) -> list[str]:
    """The command line that publishes to a repo."""
    return ["publish", "src", "--recipe", "mixed_3_6", "--validate", "none", "--to", f"{OWNER}/{name}", "--out", name]


def command(hub: RehearsalHub, work: Path, way: str, arguments: list[str]) -> "subprocess.Popen[str]":
    """A run of hubtool that has begun."""
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(work / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1"} if way == "lfs" else {}
    environment |= {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "hubtool", *arguments],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(hub: RehearsalHub, work: Path, way: str, arguments: list[str]) -> tuple[int, str]:
    """Exit code and words of a run that nobody interrupts."""
    process = command(hub, work, way, arguments)
    try:
        said = process.communicate(timeout=300)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return 124, process.communicate()[0]
    return process.returncode, said


def interrupt(
    hub: RehearsalHub, work: Path, way_and_name: tuple[str, str], kind: signal.Signals, after: float
) -> tuple[float | None, list[str]]:
    """Seconds from the signal to the end, None if the run had ended before; and what was wrong."""
    way, name = way_and_name
    process = command(hub, work, way, publish(name))
    try:
        process.communicate(timeout=after)
        return None, [] if process.returncode == 0 else [f"failed with {process.returncode}"]
    except subprocess.TimeoutExpired:
        pass
    begun = time.monotonic()
    process.send_signal(kind)
    try:
        said = process.communicate(timeout=30)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[0]
    seconds = time.monotonic() - begun
    problems = []
    if process.returncode == 0:
        return None, []
    if process.returncode != 130:
        problems.append(f"exit code {process.returncode} after {after:.2f} s")
    if seconds > LATE_SECONDS:
        problems.append(f"ended {seconds:.1f} s after the signal")
    if "Traceback" in said or "Exception ignored" in said:
        problems.append("traceback")
        sys.stdout.write(said)
    code, again = run(hub, work, way, publish(name))
    if code:
        problems.append(f"next run: {code}")
        sys.stdout.write(again)
    else:
        titles = [each.title for each in HfApi(hub.endpoint, hub.token).list_repo_commits(f"{OWNER}/{name}")]
        if sum(title.startswith("Publish") for title in titles) != 1:
            problems.append(f"commits: {titles}")
    return seconds, problems


if __name__ == "__main__":
    sys.exit(main())
