"""A program that takes memory, as a child for the guard: `hog.py PIDS MODE...`; each process adds its pid to PIDS."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

STEP = 1_000_000
PAUSE = 0.02
"""50 MB a second and process: a guard that a busy machine keeps waiting is overshot by little all the same."""


def main(pids: Path, modes: list[str]) -> None:
    if "ignore-term" in modes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "fork" in modes:
        for _ in range(3):
            if os.fork() == 0:
                break
    if "leave-session" in modes:
        if os.fork():
            time.sleep(60)
        os.setsid()
        if os.fork():
            os._exit(0)
    if "leave-behind" in modes and os.fork():
        sys.exit(0)
    with pids.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if "leave-main-thread" in modes:
        threading.Thread(target=grow).start()
        ctypes.CDLL(None).pthread_exit(None)
    grow()


def grow() -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1) * STEP))
        sys.stdout.write(f"{len(held) * STEP}\n")
        sys.stdout.flush()
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
