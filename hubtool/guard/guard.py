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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Literal

from hubtool.guard import cgroup
from hubtool.guard.group import KILL_SECONDS, Group
from hubtool.guard.memory import Measure, Meter, Pressure, swap_used_nbytes
from hubtool.units import GB, format_size

Reason = Literal["memory", "swap", "pressure"]

FAR_PAST = 1.1
"""A group that is this many times over its limit is killed at once: it would not wait for a second sample."""

ROOM_SHARE = 0.9
"""Of what the control group leaves: `FAR_PAST` times that is still within it."""

PROMISED_INTERVAL = 0.05  # seconds
"""A longer gap between samples, as on a machine that is overloaded, is reported among the figures."""

ERRORS_NBYTES = 4096
"""How much of the end of the command's stderr is kept."""

PR_SET_CHILD_SUBREAPER = 36
"""<linux/prctl.h>: orphans below this process become its children rather than init's, so that none escapes."""


@dataclass(frozen=True)
class Limits:
    """When a guarded command is stopped.

    Attributes:
        memory_nbytes: Of all its processes together, as `Meter` counts.
        swap_growth_nbytes: By which the system's swap may grow while it runs, whoever it is that grows it.
        pressure: The memory pressure of the system or the control group, from 0 to 1, as `Pressure` gives it.
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
        pressure: The highest memory pressure, None if it could not be measured.
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
            "swap_limit_nbytes": self.limits.swap_growth_nbytes,
        }
        if self.pressure is not None:
            figures |= {"pressure_peak": round(self.pressure, 4), "pressure_limit": self.limits.pressure}
        if self.reason:
            figures["reason"] = self.reason
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
                return f"memory pressure reached {self.pressure:.2f}, over the limit of {limits.pressure}"
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
    stdin is a pipe that this process holds: it ends when this process dies, in whatever way. It stands still while this
    process is suspended by Ctrl-Z.

    Args:
        command: The program and its arguments.
        limits: When it is stopped. Its memory limit is lowered to `ROOM_SHARE` of what this process's control group
            leaves: there the system kills by itself, and gives no reason.
        environment: Its environment, this process's by default.
        on_line: Called in this thread with each line that it writes to stdout.
    """
    room = cgroup.room()
    if room is not None:
        limits = replace(limits, memory_nbytes=min(limits.memory_nbytes, int(room * ROOM_SHARE)))
    with _ONE_AT_A_TIME, _adopting_orphans(), _noticing_suspension() as suspension, tempfile.TemporaryFile() as errors:
        group = Group()
        try:
            with (
                group.start(command, errors, environment) as child,
                _lines(child, on_line) as hand_on,
                contextlib.ExitStack() as first,
            ):
                first.callback(group.kill)  # before the lines are read to their end, and the child is waited for
                watch = _Watch(group, limits, suspension)
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


@dataclass
class _Suspension:
    """Whether this process was asked to stop, as by Ctrl-Z, and has not done so yet."""

    asked: bool = False


@contextlib.contextmanager
def _noticing_suspension() -> Iterator[_Suspension]:
    """While it lasts, SIGTSTP does no more than to ask: the guard must not stand still while its child runs."""
    suspension = _Suspension()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTSTP) != signal.SIG_DFL:
        yield suspension
        return

    def ask(signum: int, frame: object) -> None:
        suspension.asked = True

    signal.signal(signal.SIGTSTP, ask)
    try:
        yield suspension
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


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


class _Watch:
    """Samples a group and decides when it must end."""

    def __init__(self, group: Group, limits: Limits, suspension: _Suspension) -> None:
        self._group = group
        self._limits = limits
        self._suspension = suspension
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
            memory = self._sample(process.pid for process in alive)
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
            if self._suspension.asked:
                self._suspend()
            time.sleep(max(self._last + self._limits.interval - time.monotonic(), 0))

    def _suspend(self) -> None:
        """Stop the group, then this process; once that is continued, continue the group."""
        self._suspension.asked = False
        self._group.send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._group.send(signal.SIGCONT)
        self._last = time.monotonic()

    def _sample(self, pids: Iterable[int]) -> int:
        now = time.monotonic()
        self._gap, self._last = max(self._gap, now - self._last), now
        self._samples += 1
        memory = self._meter.nbytes(pids)
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
            unmeasured=self._pressure.unmeasured,
            errors=errors,
        )
