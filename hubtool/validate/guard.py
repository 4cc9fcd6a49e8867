"""The memory guard: runs a command in a session of its own, watches all of it from outside, and stops it in time."""

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

import psutil

from hubtool.units import GB, format_size
from hubtool.validate.memory import Measure, Meter, Pressure, swap_used_nbytes

Reason = Literal["memory", "swap", "pressure"]

FAR_PAST = 1.1
"""A group that is this many times over its limit is killed at once: it would not wait for a second sample."""

PROMISED_INTERVAL = 0.05  # seconds
"""A longer gap between samples, as on a machine that is overloaded, is told among the figures."""

ERRORS_NBYTES = 4096
"""How much of the end of the command's stderr is kept."""

KILL_SECONDS = 10.0
"""How long a process may take to die of KILL; one that waits for a disk can take a while."""

PR_SET_CHILD_SUBREAPER = 36
"""<linux/prctl.h>: orphans below this process become its children rather than init's, so that none escapes."""


@dataclass(frozen=True)
class Limits:
    """When a guarded command is stopped.

    Attributes:
        memory_nbytes: Of all its processes together, as `Meter` counts.
        swap_growth_nbytes: By which the system's swap may grow while it runs, whoever it is that grows it.
        pressure: The system's memory pressure, from 0 to 1, as `Pressure` gives it.
        interval: Seconds from one sample to the next.
        grace: Seconds between TERM and KILL.
    """

    memory_nbytes: int
    swap_growth_nbytes: int = 1 * GB
    pressure: float = 0.6
    interval: float = 0.025
    grace: float = 3.0


@dataclass(frozen=True)
class GuardReport:
    """How a guarded command ended.

    Attributes:
        returncode: As of subprocess: negative for a signal.
        reason: Why the guard stopped it, None if it did not.
        limits: What it was held to.
        peak_nbytes: The most memory that its processes took together.
        swap_growth_nbytes: The most that the system's swap grew meanwhile.
        pressure: The highest pressure of the system, None if it could not be measured.
        killed: Whether TERM was not enough.
        left: How many of its processes were alive when the first of them ended by itself; they were stopped too.
        samples: How often it was looked at.
        longest_gap: The longest time between two samples, in seconds.
        seconds: How long it ran.
        measure: What was counted as memory.
        unmeasured: What could not be measured on this system.
        errors: The end of its stderr.
    """

    returncode: int
    reason: Reason | None
    limits: Limits
    peak_nbytes: int
    swap_growth_nbytes: int
    pressure: float | None
    killed: bool
    left: int
    samples: int
    longest_gap: float
    seconds: float
    measure: Measure
    unmeasured: tuple[str, ...]
    errors: str

    def figures(self) -> dict[str, int | float | str]:
        """What evidence says of it."""
        figures: dict[str, int | float | str] = {
            "limit_nbytes": self.limits.memory_nbytes,
            "peak_nbytes": self.peak_nbytes,
            "memory_measure": self.measure,
            "swap_growth_nbytes": self.swap_growth_nbytes,
        }
        if self.pressure is not None:
            figures["pressure_peak"] = round(self.pressure, 4)
        if self.longest_gap > PROMISED_INTERVAL:
            figures["longest_gap_seconds"] = round(self.longest_gap, 3)
        if self.unmeasured:
            figures["unmeasured"] = "; ".join(self.unmeasured)
        return figures

    def explanation(self) -> str:
        """Why it was stopped, as a clause; empty if it was not."""
        limits = self.limits
        match self.reason:
            case "memory":
                return (
                    f"its memory reached {format_size(self.peak_nbytes)}, over the limit of "
                    f"{format_size(limits.memory_nbytes)}"
                )
            case "swap":
                return (
                    f"the system's swap grew by {format_size(self.swap_growth_nbytes)}, over the limit of "
                    f"{format_size(limits.swap_growth_nbytes)}"
                )
            case "pressure":
                return f"the system's memory pressure reached {self.pressure:.2f}, over the limit of {limits.pressure}"
            case None:
                return ""


def run_guarded(
    command: Sequence[str],
    limits: Limits,
    *,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> GuardReport:
    """Run a command to its end, or stop it when it passes a limit in two samples one after the other.

    It is stopped by TERM, and by KILL after a grace, or at once if it is 10 % past its memory limit. Nothing that it
    started is alive afterwards, whether it ended, was stopped, or this function was left by an exception. The command's
    stdin is a pipe that this process holds: it ends when this process dies, in whatever way.

    Args:
        command: The program and its arguments.
        limits: When it is stopped.
        environment: Its environment, this process's by default.
        on_line: Called in this thread with each line that it writes to stdout.
    """
    with _ONE_AT_A_TIME, _adopting_orphans(), tempfile.TemporaryFile() as errors:
        group = _Group()
        try:
            with (
                group.start(command, errors, environment) as child,
                _lines(child, on_line) as hand_on,
                contextlib.ExitStack() as first,
            ):
                first.callback(group.kill)  # before the lines are read to their end, and the child is waited for
                watch = _Watch(group, limits)
                watch.run(hand_on)
        finally:
            group.kill()  # what was forked by a start that was interrupted, too
        return watch.report(child.returncode, _tail(errors))


_ONE_AT_A_TIME = threading.Lock()
"""A process that is adopted cannot tell which of two guarded commands it came from."""


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """While it lasts, a process whose parent has died becomes a child of this one, on Linux."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@contextlib.contextmanager
def _lines(child: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """A function that hands on the lines that have come; the last of them are handed on at the end."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    stdout = child.stdout
    assert stdout is not None

    def read() -> None:
        for raw in stdout:
            lines.put(raw.decode("utf-8", "replace").rstrip("\n"))

    def hand_on() -> None:
        while not lines.empty():
            on_line(lines.get())

    reader = threading.Thread(target=read, name="hubtool-guard", daemon=True)
    reader.start()
    try:
        yield hand_on
    finally:
        reader.join(KILL_SECONDS)
    hand_on()


def _tail(file: IO[bytes]) -> str:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - ERRORS_NBYTES, 0))
    return file.read().decode("utf-8", "replace").strip()


class _Group:
    """Every process that a child started, and the child.

    They are found by their session, by descent, and by having been found before: a process that leaves the session,
    or whose parent dies, stays in it. Only where orphans cannot be adopted can one escape, by doing both between two
    samples.
    """

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._before = {process.pid for process in self._me.children(recursive=True)}
        self._child: subprocess.Popen[bytes] | None = None
        self._known: dict[int, psutil.Process] = {}

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

    def alive(self) -> list[psutil.Process]:
        """The processes that have not ended."""
        for process in self._found():
            self._known.setdefault(process.pid, process)
        alive = [process for process in self._known.values() if _is_alive(process)]
        self._known = {process.pid: process for process in alive}
        return alive

    def _found(self) -> Iterator[psutil.Process]:
        leader = self._child.pid if self._child else None
        for process in self._me.children(recursive=True):
            if process.pid not in self._before:
                yield process
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                if pid not in self._known and os.getsid(pid) == leader:
                    yield psutil.Process(pid)

    def child_ended(self) -> bool:
        """Whether the child itself has ended; it is not reaped, so that its number stays its own."""
        assert self._child is not None
        try:
            return psutil.Process(self._child.pid).status() in _ENDED
        except psutil.NoSuchProcess:
            return True

    def send(self, signum: int) -> None:
        """Send a signal to all of them."""
        if self._child is not None and self._child.returncode is None:
            # One call for the group: a process that is being forked gets it too.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signum)
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.send_signal(signum)

    def kill(self) -> None:
        """Kill all of them, and wait until they are gone; those that were adopted are reaped too."""
        deadline = time.monotonic() + KILL_SECONDS
        while self.alive() and time.monotonic() < deadline:
            self.send(signal.SIGKILL)
            time.sleep(0.005)
        for process in self._me.children():
            if process.pid not in self._before and (self._child is None or process.pid != self._child.pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(max(deadline - time.monotonic(), 0.1))


_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in _ENDED
    except psutil.NoSuchProcess:
        return False


class _Watch:
    """Samples a group and decides when it must end."""

    def __init__(self, group: _Group, limits: Limits) -> None:
        self._group = group
        self._limits = limits
        self._meter = Meter(limits.interval)
        self._pressure = Pressure()
        self._swap_before = swap_used_nbytes()
        self._begun = self._last = time.monotonic()
        self._in_a_row: Counter[Reason] = Counter()
        self._reason: Reason | None = None
        self._killed = False
        self._peak = self._swap_growth = self._samples = self._left = 0
        self._pressure_peak: float | None = None
        self._gap = 0.0

    def run(self, between: Callable[[], None]) -> None:
        """Sample until nothing of the group is alive."""
        deadline = None
        while alive := self._group.alive():
            if self._group.child_ended() and self._reason is None:
                self._left = len(alive)
                return
            memory = self._sample(alive)
            if self._reason is None:
                self._reason = self._breach()
                if self._reason:
                    self._group.send(signal.SIGTERM)
                    deadline = time.monotonic() + self._limits.grace
            too_far = memory > FAR_PAST * self._limits.memory_nbytes
            if too_far or (deadline is not None and time.monotonic() > deadline):
                self._reason = self._reason or "memory"
                self._killed = True
                return
            between()
            time.sleep(max(self._last + self._limits.interval - time.monotonic(), 0))

    def _sample(self, alive: Sequence[psutil.Process]) -> int:
        now = time.monotonic()
        self._gap, self._last = max(self._gap, now - self._last), now
        self._samples += 1
        memory = self._meter.nbytes(process.pid for process in alive)
        growth = swap_used_nbytes() - self._swap_before
        pressure = self._pressure.sample()
        self._peak = max(self._peak, memory)
        self._swap_growth = max(self._swap_growth, growth)
        if pressure is not None:
            self._pressure_peak = max(self._pressure_peak or 0.0, pressure)
        past_limits: dict[Reason, bool] = {
            "memory": memory > self._limits.memory_nbytes,
            "swap": growth > self._limits.swap_growth_nbytes,
            "pressure": pressure is not None and pressure > self._limits.pressure,
        }
        for reason, past in past_limits.items():
            self._in_a_row[reason] = self._in_a_row[reason] + 1 if past else 0
        return memory

    def _breach(self) -> Reason | None:
        """The first limit that was passed in two samples one after the other."""
        return next((reason for reason, times in self._in_a_row.items() if times >= 2), None)

    def report(self, returncode: int, errors: str) -> GuardReport:
        """What was seen."""
        return GuardReport(
            returncode=returncode,
            reason=self._reason,
            limits=self._limits,
            peak_nbytes=self._peak,
            swap_growth_nbytes=self._swap_growth,
            pressure=self._pressure_peak,
            killed=self._killed,
            left=self._left,
            samples=self._samples,
            longest_gap=self._gap,
            seconds=time.monotonic() - self._begun,
            measure=self._meter.measure,
            unmeasured=() if self._pressure_peak is not None else ("the system's memory pressure",),
            errors=errors,
        )
