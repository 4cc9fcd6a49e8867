"""Faults of the disk and the machine, put under a conversion: what a crash leaves is what was written before it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class PowerCut(BaseException):
    """The machine stops. Not an Exception: nothing may catch it and go on."""


class Disk:
    """Counts the writes to a journal, and fails where it is told to.

    Once the power is cut, every call that would change the disk raises: what lies there is what a process killed at
    that instant leaves, because the system keeps what it was handed before.
    """

    def __init__(self, patch: pytest.MonkeyPatch, journal: Path) -> None:
        self._journal = journal
        self._write = os.write
        self._pwrite = os.pwrite
        self._read = os.preadv
        self.writes = 0
        self.cut_at: int | None = None
        self.torn = False
        self.off = False
        self.room: int | None = None
        self.unreadable_after: int | None = None
        self.unreadable: Path | None = None
        self.unsyncable: Path | None = None
        self._pread = os.pread
        self._fsync = os.fsync
        patch.setattr(os, "pread", self.pread)
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "write", self.write)
        patch.setattr(os, "pwrite", self.pwrite)
        patch.setattr(os, "preadv", self.preadv)
        for name in ("rename", "replace", "ftruncate", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, self._guarded(getattr(os, name)))

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if self.off:
                raise PowerCut
            return call(*arguments, **options)

        return guarded

    def write(self, descriptor: int, data: bytes) -> int:
        """`os.write`; the power goes at write number `cut_at` to the journal, or in the middle of it."""
        if self.off:
            raise PowerCut
        if self._journal.exists() and os.path.samestat(os.fstat(descriptor), self._journal.stat()):
            self.writes += 1
            if self.writes == self.cut_at:
                self.off = True
                if self.torn:
                    self._write(descriptor, data[: len(data) // 2])
                raise PowerCut
        return self._write(descriptor, data)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        """`os.pwrite`; the disk is full after `room` bytes."""
        if self.off:
            raise PowerCut
        if self.room is not None:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = memoryview(data)[: self.room]
            self.room -= len(data)
        return self._pwrite(descriptor, data, offset)

    def preadv(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        """`os.preadv`; the disk is gone after `unreadable_after` calls, or where `unreadable` lies."""
        self._check(descriptor, self.unreadable)
        if self.unreadable_after is not None and not _is_under(descriptor, self._journal.parent):
            if not self.unreadable_after:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.unreadable_after -= 1
        return self._read(descriptor, buffers, offset)

    def pread(self, descriptor: int, nbytes: int, offset: int) -> bytes:
        """`os.pread`; the disk is gone where `unreadable` lies."""
        self._check(descriptor, self.unreadable)
        return self._pread(descriptor, nbytes, offset)

    def fsync(self, descriptor: int) -> None:
        """`os.fsync`; it fails for files under `unsyncable`."""
        self._check(descriptor, self.unsyncable)
        self._fsync(descriptor)

    def _check(self, descriptor: int, broken: Path | None) -> None:
        if broken is not None and _is_under(descriptor, broken):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def _is_under(descriptor: int, folder: Path) -> bool:
    """Whether an open file has a name under a folder."""
    opened = os.fstat(descriptor)
    return any(os.path.samestat(opened, path.stat()) for path in folder.rglob("*") if path.is_file())
