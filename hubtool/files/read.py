"""Reading files: parts of them at an offset, and their SHA-256."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from hubtool.errors import SourceError
from hubtool.units import KIB, MB

HASH_BLOCK_NBYTES = 256 * KIB
"""Read and hashed at once: what a core's cache holds."""


AGAIN = "fetch the checkpoint again"


def is_file(path: Path) -> bool:
    """Whether there is such a file; what the system does not take as a name is none."""
    return _is(Path.is_file, path)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; what the system does not take as a name is none."""
    return _is(Path.is_dir, path)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except (OSError, ValueError):  # too long; or it holds a NUL
        return False


def is_plain_name(text: str) -> bool:
    """Whether this is the name of a file in a folder on any system: no path, nothing unprintable."""
    return is_inner_path(text) and "/" not in text


def is_inner_path(text: str) -> bool:
    """Whether this is a path, with forward slashes, that stays within its folder on any system."""
    if not text.isprintable() or "\\" in text or text[1:2] == ":":
        return False
    parts = text.split("/")
    return all(part not in ("", ".", "..") for part in parts)


MAX_FILE_NBYTES = 100 * MB
"""Of a file that is read whole. The largest tokenizer.json has about 35 MB."""


def read_small(path: Path) -> bytes:
    """The bytes of a file that is not weights.

    Raises:
        SourceError: It is longer than any such file is, or the disk fails.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_NBYTES + 1)
    except OSError as error:
        raise SourceError(
            "cannot be read", where=path, found=error.strerror, remedy="check its disk, then run it again"
        ) from error
    if len(content) > MAX_FILE_NBYTES:
        raise SourceError(
            "too long to be what its name says",
            where=path,
            found=f"{path.stat().st_size} bytes",
            expected=f"at most {MAX_FILE_NBYTES}",
            remedy=AGAIN,
        )
    return content


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
