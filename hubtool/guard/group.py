"""All processes that a child started: found, looked at, stopped, continued and killed together."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from hubtool.guard.memory import thread_ids

KILL_SECONDS = 10.0
"""How long a process may take to die of KILL; one that waits for a disk can take a while."""

SWEEP_EVERY = 8
"""Looks at the group from one look at every process of the system to the next: those are many on a large machine."""


class Group:
    """Every process that a child started, and the child.

    They are found by descent at each look, by their session at some, and by having been found before: a process that
    leaves the session, or whose parent dies, stays in it. Only where orphans cannot be adopted can one escape, by doing
    both between two looks.
    """

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._before = {process.pid for process in self._me.children(recursive=True)}
        self._child: subprocess.Popen[bytes] | None = None
        self._known: dict[int, psutil.Process] = {}
        self._looks = 0

    def start(
        self, command: Sequence[str], errors: IO[bytes], environment: Mapping[str, str] | None
    ) -> subprocess.Popen[bytes]:
        """The child, in a session of its own."""
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        return self._child

    def alive(self, *, sweep: bool = False) -> list[psutil.Process]:
        """The processes that have not ended.

        Args:
            sweep: Look through every process of the system, whether it is time for that or not.
        """
        self._looks += 1
        found = self._descendants()
        if sweep or self._looks % SWEEP_EVERY == 1:
            found |= set(self._session())
        for pid in found - self._known.keys() - self._before:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._known[pid] = psutil.Process(pid)
        self._known = {pid: process for pid, process in self._known.items() if _is_alive(process)}
        return list(self._known.values())

    def _descendants(self) -> set[int]:
        """Processes that descend from this one or from one that is known."""
        if sys.platform != "linux":
            return {process.pid for process in self._me.children(recursive=True)}
        found: set[int] = set()
        new = {self._me.pid, *self._known}
        while new:
            found |= new
            new = {child for pid in new for child in _children(pid)} - found - self._before
        return found - {self._me.pid}

    def _session(self) -> Iterator[int]:
        """Processes of the child's session."""
        leader = self._child.pid if self._child else None
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == leader:
                    yield pid

    def child_ended(self) -> bool:
        """Whether the child itself has ended; it is not reaped, so that its number stays its own."""
        assert self._child is not None
        try:
            return not _is_alive(psutil.Process(self._child.pid))
        except psutil.NoSuchProcess:
            return True

    def send(self, signum: int) -> None:
        """Send a signal to all of them."""
        if self._child is not None and self._child.returncode is None:
            # One call for the group: a process that is being forked gets it too.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signum)
        for process in self.alive(sweep=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.send_signal(signum)

    def kill(self) -> None:
        """Kill all of them, and wait until they are gone; those that were adopted are reaped too."""
        deadline = time.monotonic() + KILL_SECONDS
        self.send(signal.SIGKILL)  # whatever is seen of it: an unreaped child's group can be sent to
        while self.alive(sweep=True) and time.monotonic() < deadline:
            self.send(signal.SIGKILL)
            time.sleep(0.005)
        for process in self._me.children():
            if process.pid not in self._before and (self._child is None or process.pid != self._child.pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(max(deadline - time.monotonic(), 0.1))


def _children(pid: int) -> Iterable[int]:
    """Children of a process of Linux: each of its threads has those that it forked itself."""
    for thread in thread_ids(pid):
        with contextlib.suppress(OSError):
            yield from map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())


_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one whose main thread has ended is a zombie for its name, and its other threads run."""
    try:
        return process.is_running() and (process.status() not in _ENDED or len(thread_ids(process.pid)) > 1)
    except psutil.NoSuchProcess:
        return False
