"""What the system charges processes for memory, and how hard pressed the system itself is. Only read, never changed."""

import contextlib
import ctypes
import ctypes.util
import errno
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

from hubtool.guard import cgroup

Measure = Literal["pss", "rss", "phys_footprint"]

PSS_SHARE = 0.25
"""The share of a sampling interval that walking page tables may take before `Meter` turns to resident sizes."""

PRESSURE_WINDOW = 1.0  # seconds
"""Over which the time lost to memory stalls is averaged; the kernel's own shortest average is over ten."""

SLOW_WALKS = 5
"""How many walks in a row have to take longer: one may have been slow for another reason."""

LIBPROC = "/usr/lib/libproc.dylib"
RUSAGE_INFO_V0_NBYTES = 96
PHYS_FOOTPRINT_OFFSET = 72
"""`struct rusage_info_v0` of <sys/resource.h>: 16 bytes of UUID, then ten 64-bit numbers; the eighth is this one."""


class Meter:
    """Bytes of memory that a set of processes takes, as the system charges them.

    macOS: `phys_footprint`, what Activity Monitor shows and the system kills by: dirty, compressed and swapped pages
    and Metal's buffers, without clean pages of mapped files.

    Linux: the proportional set size (Pss of smaps_rollup, a page that n processes share counts 1/n for each, so a
    fork does not count twice) plus SwapPss, so that growth cannot hide in swap. Resident pages of mapped files count:
    they take the memory as long as they are there. The kernel walks the page tables for it, which takes long for
    100 GB of small pages: when that costs more than a quarter of an interval of processor time several times in a row,
    VmRSS + VmSwap is read instead from then on, which is never less.

    Args:
        interval: Seconds between samples.

    Attributes:
        measure: What `nbytes` counts at present.
    """

    def __init__(self, interval: float) -> None:
        self._budget = interval * PSS_SHARE
        self._slow = 0
        self.measure: Measure = "phys_footprint" if sys.platform == "darwin" else "pss"

    def nbytes(self, pids: Iterable[int]) -> int:
        """The sum over processes; one that has ended counts nothing."""
        if self.measure == "phys_footprint":
            return sum(map(_phys_footprint, pids))
        if self.measure == "rss":
            return sum(map(_resident, pids))
        begun = time.thread_time()
        total = sum(map(_proportional, pids))
        self._slow = self._slow + 1 if time.thread_time() - begun > self._budget else 0
        if self._slow == SLOW_WALKS:
            self.measure = "rss"
        return total


def _proportional(pid: int) -> int:
    try:
        return _of_process(pid, "smaps_rollup", ("Pss:", "SwapPss:"))
    except PermissionError:
        return _resident(pid)


def _resident(pid: int) -> int:
    return _of_process(pid, "status", ("VmRSS:", "VmSwap:"))


def _of_process(pid: int, name: str, keys: tuple[str, ...]) -> int:
    """Bytes by a file in /proc, 0 for a process that has ended.

    If only its main thread has ended, its memory is read by another of its threads.
    """
    for thread in (pid, *(each for each in thread_ids(pid) if each != pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if nbytes := _kilobytes(Path(f"/proc/{pid}/task/{thread}/{name}"), keys):
                return nbytes
    return 0


def thread_ids(pid: int) -> list[int]:
    """The threads of a process of Linux; none if it is gone, or on another system."""
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []


def _kilobytes(path: Path, keys: tuple[str, ...]) -> int:
    """The sum of the lines `KEY  N kB` of a file in /proc, in bytes."""
    fields = [line.split() for line in path.read_text().splitlines()]
    return sum(1024 * int(field[1]) for field in fields if field and field[0] in keys)


@cache
def _libproc() -> ctypes.CDLL:
    return ctypes.CDLL(LIBPROC, use_errno=True)


def _phys_footprint(pid: int) -> int:
    buffer = ctypes.create_string_buffer(RUSAGE_INFO_V0_NBYTES)
    if _libproc().proc_pid_rusage(pid, 0, buffer) == 0:
        return int.from_bytes(buffer.raw[PHYS_FOOTPRINT_OFFSET : PHYS_FOOTPRINT_OFFSET + 8], "little")
    if ctypes.get_errno() == errno.ESRCH:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def swap_used_nbytes() -> int:
    """Bytes that the system has swapped out."""
    return int(psutil.swap_memory().used)


class Pressure:
    """How hard pressed for memory the system is, from 0 to 1, or None where the system does not tell.

    Linux: the share of the last second in which every task that had work waited for memory (`full`,
    https://docs.kernel.org/accounting/psi.html), in the whole system or in this process's own control group, whichever
    is more: a group with a limit of its own can thrash while the system is at rest. macOS:
    `kern.memorystatus_vm_pressure_level`, 0 for normal, 0.5 for warning, 1 for critical.
    """

    def __init__(self) -> None:
        files: dict[str, Path | None] = {"the system's memory pressure": SYSTEM_PRESSURE}
        own = cgroup.pressure_file()
        if own or cgroup.room() is not None:
            files["the control group's own memory pressure"] = own
        self._stalls = {name: _Stalls(path) for name, path in files.items()}
        self._seen: set[str] = set()

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """What could not be measured."""
        return tuple(name for name in self._stalls if name not in self._seen)

    def sample(self) -> float | None:
        """The pressure now; on Linux 0 until there is something to compare with."""
        if sys.platform == "darwin":
            level = {1: 0.0, 2: 0.5, 4: 1.0}.get(sysctl_number("kern.memorystatus_vm_pressure_level") or 0)
            self._seen = set() if level is None else set(self._stalls)
            return level
        shares = {name: stalls.share() for name, stalls in self._stalls.items()}
        known = {name: share for name, share in shares.items() if share is not None}
        self._seen |= known.keys()
        return max(known.values(), default=None)


SYSTEM_PRESSURE = Path("/proc/pressure/memory")


class _Stalls:
    """The time that was lost to memory by a file of Linux's pressure stall information."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: deque[tuple[float, float]] = deque()

    def share(self) -> float | None:
        """Of the last second; None if there is no such file."""
        stalled = _stalled_seconds(self._path) if self._path else None
        if stalled is None:
            return None
        now = time.monotonic()
        self._seen.append((now, stalled))
        while len(self._seen) > 2 and now - self._seen[1][0] >= PRESSURE_WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
        return (stalled - before) / max(now - then, PRESSURE_WINDOW)


def _stalled_seconds(path: Path) -> float | None:
    """Seconds in which all tasks waited for memory."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    totals = [int(line.rpartition("total=")[2]) for line in lines if line.startswith("full")]
    return totals[0] / 1e6 if totals else None


@dataclass(frozen=True)
class Capacity:
    """Bytes of memory that processes here can have.

    Attributes:
        total_nbytes: The machine's memory, or this process's control group's limit if that is less.
        available_nbytes: What of it can be had now without swapping.
    """

    total_nbytes: int
    available_nbytes: int


def capacity() -> Capacity:
    """The memory of this machine, or of the container that this process lives in."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    for limit, used in cgroup.limits():
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return Capacity(total, available)


def sysctl_number(name: str) -> int | None:
    """A number that macOS's kernel tells by name, None if it does not know the name."""
    raw = _sysctl(name)
    return None if raw is None else int.from_bytes(raw, "little")


def sysctl_text(name: str) -> str | None:
    """A string that macOS's kernel tells by name, None if it does not know the name."""
    raw = _sysctl(name)
    return None if raw is None else raw.rstrip(b"\0").decode("utf-8", "replace")


def _sysctl(name: str) -> bytes | None:
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    size = ctypes.c_size_t(0)
    if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0) != 0:
        return None
    buffer = ctypes.create_string_buffer(size.value)
    if libc.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0) != 0:
        return None
    return buffer.raw[: size.value]
