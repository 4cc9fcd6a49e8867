"""What a conversion has finished, kept in `.hubtool/` of the output folder so that a killed run goes on.

    lock         held while a run works on the folder; names its process
    plan.json    which plan, which source and which hubtool the folder is made by
    journal      one line a finished piece (checksums of what it wrote) or shard (SHA-256), each with its own checksum
    partial/     shards that are not complete

Data need not be synced before the journal speaks of it: on resuming, whatever an unfinished shard is said to hold is
read back and compared, and a line that was cut off is worth nothing.
"""

import fcntl
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from hubtool.errors import OutputError
from hubtool.source import parse_json

STATE_DIR = ".hubtool"

Checksum = Annotated[int, msgspec.Meta(ge=0)]


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides the bytes of a folder.

    Attributes:
        plan: The plan's digest.
        source: A digest of the source's identity: see `source_signature`.
        byte_format: hubtool's own mark of how bytes are made; it changes when they would.
        backend: MLX's backend: quantizing on a GPU rounds about one weight in a hundred differently than on a CPU.
    """

    plan: str
    source: str
    byte_format: int
    backend: str


class _PieceLine(msgspec.Struct, tag="piece", frozen=True, array_like=True):
    number: int
    checksums: tuple[Checksum, ...]
    errors: tuple[float, float] | None = None


class _ShardLine(msgspec.Struct, tag="shard", frozen=True, array_like=True):
    file: str
    sha256: str
    mtime_ns: int


@dataclass
class Progress:
    """What the journal says is done.

    Attributes:
        pieces: Checksums (CRC-32) of the bytes written for each output, by piece number.
        errors: Squared error and squared weight summed over the rows that were measured, by piece number.
        shards: SHA-256 and time of the last change (nanoseconds) of the finished shards, by file name.
    """

    pieces: dict[int, tuple[int, ...]] = field(default_factory=dict)
    errors: dict[int, tuple[float, float]] = field(default_factory=dict)
    shards: dict[str, tuple[str, int]] = field(default_factory=dict)

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

    def load(self) -> Progress:
        """What is done, by the lines that are whole."""
        progress = Progress()
        if not self._file.is_file():
            return progress
        decoder = msgspec.json.Decoder(_PieceLine | _ShardLine)
        for raw in self._file.read_bytes().split(b"\n"):
            checksum, _, body = raw.partition(b" ")
            if checksum != b"%08x" % zlib.crc32(body):
                continue
            line = decoder.decode(body)
            if isinstance(line, _ShardLine):
                progress.shards[line.file] = (line.sha256, line.mtime_ns)
            else:
                progress.pieces[line.number] = line.checksums
                if line.errors is not None:
                    progress.errors[line.number] = line.errors
        return progress

    def piece_done(self, number: int, checksums: tuple[int, ...], errors: tuple[float, float] | None) -> None:
        """Write down that a piece's outputs were written."""
        self._append(_PieceLine(number, checksums, errors))

    def shard_done(self, path: Path, sha256: str) -> None:
        """Write down that a shard is complete and synced, and sync that."""
        self._append(_ShardLine(path.name, sha256, path.stat().st_mtime_ns))
        if self._descriptor is not None:
            sync(self._descriptor)

    def _append(self, line: _PieceLine | _ShardLine) -> None:
        body = msgspec.json.encode(line)
        with writing(self._file):
            if self._descriptor is None:
                self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                if os.fstat(self._descriptor).st_size:
                    os.write(self._descriptor, b"\n")  # a line that was cut off must not swallow the next
            os.write(self._descriptor, b"%08x %s\n" % (zlib.crc32(body), body))

    def close(self) -> None:
        """Close the journal's file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process; the folder and its state are made if they are not there.

    Args:
        folder: The folder.
        wait: Until another process that holds it lets go.

    Raises:
        OutputError: Another process holds it, and this one is not to wait.
    """
    (folder / STATE_DIR).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / STATE_DIR / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            raise OutputError(
                "another hubtool works on this folder",
                where=folder,
                found=f"process {holder}",
                remedy="wait until it ends, or stop it",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def read_origin(folder: Path) -> Origin | None:
    """What the folder was begun with, or None if no conversion was begun in it."""
    path = folder / STATE_DIR / "plan.json"
    if not path.is_file():
        return None
    try:
        return msgspec.convert(parse_json(path.read_bytes(), str(path)), Origin)
    except msgspec.ValidationError as error:
        raise OutputError(
            "state of another hubtool", where=path, found=str(error), remedy="remove the folder and convert again"
        ) from error


def write_origin(folder: Path, origin: Origin) -> None:
    """Write down what the folder is made from."""
    write_beside(folder / STATE_DIR / "plan.json", msgspec.json.encode(origin))


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


def describe_change(begun: Origin, now: Origin) -> Mapping[str, str]:
    """What has changed since a folder was begun, in words, by field; empty if nothing has."""
    words = {
        "plan": "the recipe or the source's layout has changed",
        "source": "the source's files have changed",
        "byte_format": "hubtool makes other bytes now",
        "backend": "MLX's backend was another, which rounds differently",
    }
    return {name: text for name, text in words.items() if getattr(begun, name) != getattr(now, name)}
