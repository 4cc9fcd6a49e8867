"""What a conversion has finished, kept in `.hubtool/` of the output folder so that a killed run goes on.

    lock         held while a run works on the folder; names its process
    plan.json    which plan, which source and which hubtool the folder is made by
    journal      one line a finished piece (checksums of what it wrote), shard (SHA-256), or file of the source that was
                 read unverified, each with its own checksum
    partial/     shards that are not complete

Data need not be synced before the journal speaks of it: on resuming, whatever an unfinished shard is said to hold is
read back and compared, and a line that was cut off is worth nothing.
"""

import os
import threading
import zlib
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated

import msgspec

from hubtool.files.formats import decode_line
from hubtool.files.whole import STATE_DIR, sync, writing

Checksum = Annotated[int, msgspec.Meta(ge=0)]


class _PieceLine(msgspec.Struct, tag="piece", frozen=True, array_like=True):
    number: int
    checksums: tuple[Checksum, ...]
    errors: tuple[float, ...] | None = None


class _ShardLine(msgspec.Struct, tag="shard", frozen=True, array_like=True):
    file: str
    sha256: str
    mtime_ns: int


class _UnverifiedLine(msgspec.Struct, tag="unverified", frozen=True, array_like=True):
    file: str


_Line = _PieceLine | _ShardLine | _UnverifiedLine


@dataclass
class Progress:
    """What the journal says is done.

    Attributes:
        pieces: Checksums (CRC-32) of the bytes written for each output, by piece number.
        errors: Squared error and squared weight summed over the rows that were measured, by piece number; where
            inputs are known, also both weighted by them.
        unverified: Files of the source of which parts were read without their file's hash having been checked.
        shards: SHA-256 and time of the last change (nanoseconds) of the finished shards, by file name.
    """

    pieces: dict[int, tuple[int, ...]] = field(default_factory=dict)
    errors: dict[int, tuple[float, ...]] = field(default_factory=dict)
    shards: dict[str, tuple[str, int]] = field(default_factory=dict)
    unverified: set[str] = field(default_factory=set)

    def sha256(self, path: Path) -> str | None:
        """The SHA-256 of a finished shard, None if it was not finished or has been changed since."""
        sha256, mtime_ns = self.shards.get(path.name, (None, 0))
        return sha256 if path.is_file() and path.stat().st_mtime_ns == mtime_ns else None


class Journal:
    """The state of one output folder, which its user holds with `locked` while it writes.

    Args:
        folder: The output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / STATE_DIR
        self.partial = self.state / "partial"
        self._file = self.state / "journal"
        self._descriptor: int | None = None
        self._unverified: frozenset[str] = frozenset()
        self._lock = threading.RLock()

    def load(self) -> Progress:
        """What is done, by the lines that are whole and say what this hubtool writes."""
        progress = Progress()
        if not self._file.is_file():
            return progress
        decoder = msgspec.json.Decoder(_Line)
        for raw in self._file.read_bytes().split(b"\n"):
            checksum, _, body = raw.partition(b" ")
            if checksum != b"%08x" % zlib.crc32(body):
                continue
            line = decode_line(body, decoder)
            if line is None:
                continue  # of a hubtool that wrote other lines: what it says is done again
            if isinstance(line, _ShardLine):
                progress.shards[line.file] = (line.sha256, line.mtime_ns)
            elif isinstance(line, _UnverifiedLine):
                progress.unverified.add(line.file)
            else:
                progress.pieces[line.number] = line.checksums
                if line.errors is not None:
                    progress.errors[line.number] = line.errors
        return progress

    def unverified(self, files: frozenset[str]) -> None:
        """Write down that pieces were made of parts of these files whose hashes were not checked."""
        if files == self._unverified:
            return
        with self._lock:
            for file in sorted(files - self._unverified):
                self._append(_UnverifiedLine(file))
            self._unverified |= files

    def piece_done(self, number: int, checksums: tuple[int, ...], errors: tuple[float, ...] | None) -> None:
        """Write down that a piece's outputs were written; JSON has no words for errors that are not finite."""
        assert errors is None or all(map(isfinite, errors)), (number, errors)
        self._append(_PieceLine(number, checksums, errors))

    def shard_done(self, path: Path, sha256: str) -> None:
        """Write down that a shard is complete and synced, and sync that."""
        self._append(_ShardLine(path.name, sha256, path.stat().st_mtime_ns))
        if self._descriptor is not None:
            sync(self._descriptor)

    def _append(self, line: _Line) -> None:
        body = msgspec.json.encode(line)
        with self._lock, writing(self._file):
            if self._descriptor is None:
                descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                self._descriptor = descriptor
                if os.fstat(descriptor).st_size:
                    os.write(descriptor, b"\n")  # a line that was cut off must not swallow the next
            view = memoryview(b"%08x %s\n" % (zlib.crc32(body), body))
            while view:
                view = view[os.write(self._descriptor, view) :]

    def close(self) -> None:
        """Close the journal's file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
