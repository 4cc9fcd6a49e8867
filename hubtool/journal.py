"""What a conversion has finished, kept in `.hubtool/` of the output folder so that a killed run goes on.

    lock         held while a run works on the folder; names its process
    plan.json    which plan, which source and which hubtool the folder is made by
    journal      one line a finished piece (checksums of what it wrote), shard (SHA-256), or file of the source that was
                 read unverified, each with its own checksum
    partial/     shards that are not complete

Data need not be synced before the journal speaks of it: on resuming, whatever an unfinished shard is said to hold is
read back and compared, and a line that was cut off is worth nothing.
"""

import fcntl
import os
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated

import msgspec

from hubtool.errors import OutputError
from hubtool.locks import held
from hubtool.source import parse_json

STATE_DIR = ".hubtool"

Checksum = Annotated[int, msgspec.Meta(ge=0)]


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides the bytes of a folder, and what the first run in it was told.

    Attributes:
        plan: The plan's digest.
        source: A digest of the source's identity: see `source_signature`.
        byte_format: hubtool's own mark of how bytes are made; it changes when they would.
        backend: MLX's backend: quantizing on a GPU rounds about one weight in a hundred differently than on a CPU.
        mlx: MLX's version: another may round differently.
        error_rows: Every how many-th row's error is measured, in every run: 1 for all, 0 for none.
        commit: The source's commit then, if it was known; the same bytes may since stand under another.
    """

    plan: str
    source: str
    byte_format: int
    backend: str
    mlx: str
    error_rows: int
    commit: str | None


class _PieceLine(msgspec.Struct, tag="piece", frozen=True, array_like=True):
    number: int
    checksums: tuple[Checksum, ...]
    errors: tuple[float, float] | None = None


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
        errors: Squared error and squared weight summed over the rows that were measured, by piece number.
        unverified: Files of the source of which parts were read without their file's hash having been checked.
        shards: SHA-256 and time of the last change (nanoseconds) of the finished shards, by file name.
    """

    pieces: dict[int, tuple[int, ...]] = field(default_factory=dict)
    errors: dict[int, tuple[float, float]] = field(default_factory=dict)
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
            try:
                line = decoder.decode(body)
            except msgspec.ValidationError:
                continue  # of a hubtool that wrote other lines: what it says is done anew
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

    def piece_done(self, number: int, checksums: tuple[int, ...], errors: tuple[float, float] | None) -> None:
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


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process; the folder and its state are made if they are not there.

    The thread that holds it may hold it once more.

    Args:
        folder: The folder.
        wait: Until another process that holds it lets go.

    Raises:
        OutputError: Another process holds it, and this one is not to wait.
    """
    with writing(folder):
        (folder / STATE_DIR).mkdir(parents=True, exist_ok=True)
    key = folder.resolve(), threading.get_ident()
    if key in _HELD:
        yield
        return
    with held(folder / STATE_DIR / "lock", folder, wait=wait):
        _HELD.add(key)
        try:
            yield
        finally:
            _HELD.discard(key)


_HELD: set[tuple[Path, int]] = set()
"""Folders that are held, each with the thread that holds it."""


def holds_anything(folder: Path) -> bool:
    """Whether a folder holds more than a run leaves that was killed before it made anything: its lock, and downloads.

    Raises:
        OutputError: The folder cannot be read.
    """
    state = folder / STATE_DIR
    with reading(folder):
        if not folder.exists():
            return False
        made = any((state / name).exists() for name in ("plan.json", "journal", "partial"))
        return made or any(path != state for path in folder.iterdir())


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


def describe_change(begun: Origin, now: Origin) -> Mapping[str, str]:
    """What has changed since a folder was begun, in words, by field; empty if nothing has."""
    words = {
        "plan": "the recipe or the source's layout has changed",
        "source": "the source's files have changed",
        "byte_format": "hubtool makes other bytes now",
        "backend": "MLX's backend was another, which rounds differently",
        "mlx": f"MLX was {begun.mlx} and is {now.mlx}, which may round differently",
    }
    if begun.commit and now.commit and begun.commit != now.commit:
        words["source"] += f" between commit {begun.commit} and {now.commit}"
    return {name: text for name, text in words.items() if getattr(begun, name) != getattr(now, name)}
