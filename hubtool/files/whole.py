"""Files that are whole or absent: written beside, synced, then renamed; and the folder that state lives in."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubtool.errors import OutputError

STATE_DIR = ".hubtool"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            "cannot be written",
            where=path,
            found=error.strerror,
            remedy="check the disk and its free space, then run it again: it goes on where it stopped",
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read `path`, which hubtool wrote, into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            "cannot be read",
            where=path,
            found=error.strerror,
            remedy="check the output's disk, then run it again: it goes on where it stopped",
        ) from error


def write_beside(path: Path, content: bytes) -> None:
    """Write a file so that its name never stands for less than all of it: beside, synced, then renamed.

    Raises:
        OutputError: The disk is full or fails.
    """
    beside = path.with_name(f".{path.name}.new")
    with writing(path):
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        beside.rename(path)


def sync(descriptor: int) -> None:
    """Bring a file's bytes to the disk itself: on macOS `fsync` alone stops at the drive's cache."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def forget_cached(descriptor: int, end: int) -> None:
    """Let the system's cache go of a file's first `end` bytes where they are synced, rather than of others' files."""
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, 0, end, os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
