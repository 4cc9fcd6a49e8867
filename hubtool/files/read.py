"""Reading files: parts of them at an offset, and their SHA-256."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from hubtool.errors import SourceError
from hubtool.units import KIB

HASH_BLOCK_NBYTES = 256 * KIB
"""Read and hashed at once: what a core's cache holds."""


AGAIN = "fetch the checkpoint again"


def pread_into(descriptor: int, offset: int, buffer: memoryview, name: str) -> None:
    """Fill `buffer` from an open file, starting at `offset` bytes.

    Raises:
        SourceError: The file ends before the buffer is full, or the disk fails.
    """
    filled = 0
    try:
        while filled < len(buffer):
            count = os.preadv(descriptor, [buffer[filled:]], offset + filled)
            if count == 0:
                raise SourceError(
                    "file ends early",
                    where=name,
                    found=f"{offset + filled} bytes",
                    expected=f"at least {offset + len(buffer)}",
                    remedy=AGAIN,
                )
            filled += count
    except OSError as error:
        raise SourceError(
            "cannot be read", where=name, found=error.strerror, remedy="check the source's disk, then run it again"
        ) from error


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file in hexadecimal, in constant memory.

    Args:
        path: The file.
        progress: Called with the number of bytes of each block that was hashed.

    Raises:
        SourceError: The disk fails.
    """
    digest = hashlib.sha256()
    buffer = bytearray(HASH_BLOCK_NBYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
                if progress:
                    progress(count)
    except OSError as error:
        raise SourceError(
            "cannot be read", where=path, found=error.strerror, remedy="check its disk, then run it again"
        ) from error
    return digest.hexdigest()
