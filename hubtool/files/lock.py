"""Files by which a process keeps others of its kind out, as long as it lives."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubtool.errors import OutputError
from hubtool.files.whole import STATE_DIR, writing


@contextmanager
def held(path: Path, where: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` for this process; it is made, names the process, and stays.

    Args:
        path: The file, in a folder that is there.
        where: What it stands for, for the message.
        wait: Until the process that holds it releases it.

    Raises:
        OutputError: Another process holds it, and this one is not to wait.
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            raise OutputError(
                "another hubtool is working in this folder",
                where=where,
                found=f"process {holder}",
                remedy="wait until it ends, or stop it",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process; the folder and its state are made if they are not there.

    Args:
        folder: The folder.
        wait: Until the process that holds it releases it.

    Raises:
        OutputError: Another process holds it, and this one is not to wait.
    """
    with writing(folder):
        (folder / STATE_DIR).mkdir(parents=True, exist_ok=True)
    with held(folder / STATE_DIR / "lock", folder, wait=wait):
        yield
