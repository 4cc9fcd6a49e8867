"""A shard that is being written: bytes come in any order, and are hashed and synced as soon as they can be."""

import hashlib
import os
import threading
import zlib
from pathlib import Path

from hubtool import units
from hubtool.errors import OutputError
from hubtool.files.read import HASH_BLOCK_NBYTES
from hubtool.files.whole import forget_cached, reading, sync, writing

HASH_STEP_NBYTES = 64 * units.MIB
"""How much of a shard is complete before it is worth hashing further."""


class PartialShard:
    """A shard that is not complete: its partial file, which bytes of it are there, and how far it is hashed.

    Bytes are hashed in order from the beginning as soon as they are there, while others are still being made.
    """

    def __init__(self, path: Path, header: bytes, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self.begun = path.is_file()
        self._header = header
        self._descriptor: int | None = None
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._stopped = False
        self._due = 0
        self._complete = 0
        self._ahead: dict[int, int] = {0: len(header)}
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._writing = threading.Lock()

    def open(self) -> int:
        """The descriptor of the partial file, which is made at its full size if it is not there."""
        with self._lock:
            if self._descriptor is None:
                with writing(self.path):
                    self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                    os.ftruncate(self._descriptor, self.nbytes)
                    _pwrite(self._descriptor, 0, memoryview(self._header))
            return self._descriptor

    def write(self, offset: int, view: memoryview) -> None:
        """Write bytes at their offset; one thread at a time, which the system's own lock on a file would spin for."""
        descriptor = self.open()
        with self._writing, writing(self.path):
            _pwrite(descriptor, offset, view)

    def checksum(self, offset: int, nbytes: int) -> int:
        """CRC-32 of bytes of the partial file."""
        descriptor = self.open()
        with reading(self.path):
            return zlib.crc32(os.pread(descriptor, nbytes, offset))

    def note(self, offset: int, nbytes: int) -> None:
        """Take down that bytes are there."""
        with self._lock:
            self._ahead[offset] = offset + nbytes
            while (end := self._ahead.pop(self._complete, None)) is not None:
                self._complete = end

    def take_due(self) -> int:
        """Offset up to which the shard should now be hashed, returned once; 0 if that can wait."""
        with self._lock:
            whole = self._complete == self.nbytes != self._due
            if not whole and self._complete - self._due < HASH_STEP_NBYTES:
                return 0
            self._due = self._complete
            return self._due

    def hash_to(self, end: int) -> str | None:
        """Hash on to `end`, as `take_due` gave it; the SHA-256 if that is the whole shard, None after `stop` too."""
        descriptor = self.open()
        buffer = memoryview(bytearray(HASH_BLOCK_NBYTES))
        while self._hashed < end and not self._stopped:
            view = buffer[: min(len(buffer), end - self._hashed)]
            with reading(self.path):
                count = os.preadv(descriptor, [view], self._hashed)
            if count == 0:
                raise OutputError(
                    "was cut off while it was written",
                    where=self.path,
                    found=f"{self._hashed} bytes",
                    expected=f"{self.nbytes} bytes",
                    remedy="see that nothing else writes to this folder, then run it again: it goes on",
                )
            self._digest.update(view[:count])
            self._hashed += count
        forget_cached(descriptor, self._hashed)
        return self._digest.hexdigest() if self._hashed == self.nbytes else None

    def stop(self) -> None:
        """Let whoever hashes the shard end soon."""
        self._stopped = True

    def sync(self) -> None:
        """Bring what is written to the disk: as it goes, so that little is left to wait for when the shard is whole.

        Where that fails the partial file is removed: Linux counts its pages as written then, and reads them back as
        they were meant to be until it forgets them.
        """
        with self._syncing, writing(self.path):
            if self._descriptor is not None:
                try:
                    sync(self._descriptor)
                except OSError:
                    self.path.unlink(missing_ok=True)
                    raise

    def close(self) -> None:
        """Close the partial file."""
        with self._syncing, self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _pwrite(descriptor: int, offset: int, view: memoryview) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
