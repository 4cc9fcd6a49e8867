"""The bytes that the rehearsal Hub holds, each under its own hash.

    blobs/sha256/ab/abcd...   LFS objects
    blobs/heads/ab/abcd...    with `discard`: the safetensors header of an object whose other bytes were dropped
    blobs/git/ab/abcd...      regular files, by git blob id
    blobs/incoming/           what is being received; emptied at every start

Content is hashed while it streams to disk, and gets its final name only if the hash is the promised one.
"""

import hashlib
import secrets
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hubtool.rehearsal import git
from hubtool.rehearsal.disk import replace

HEAD_NBYTES = 512 << 10
"""Of a discarded object at least this much is kept: clients read 100,000 bytes to find a header, or this much."""

HEADER_LIMIT = 100_000_000
"""Bytes of the longest safetensors header that the format's own reader accepts."""


class WrongBytes(Exception):
    """What arrived is not what was announced."""


@dataclass(frozen=True)
class Blob:
    """An LFS object.

    Attributes:
        path: Where its bytes are.
        nbytes: Its size.
        held: How many of its bytes, from the first, are held: all of them unless they were discarded.
    """

    path: Path
    nbytes: int
    held: int


class Blobs:
    """The store under one folder.

    Args:
        root: The folder; made if absent.
        discard: Keep only the header of every safetensors object. Its hash and size are checked all the same.
    """

    def __init__(self, root: Path, *, discard: bool = False) -> None:
        self.root = root
        self.discard = discard
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(parents=True)

    @property
    def _incoming(self) -> Path:
        return self.root / "incoming"

    def get(self, sha256: str) -> Blob | None:
        """The object with this hash, or None if it was never received."""
        whole = self._place("sha256", sha256)
        if whole.is_file():
            nbytes = whole.stat().st_size
            return Blob(whole, nbytes, nbytes)
        head = self._place("heads", sha256)
        if head.is_file():
            (nbytes,) = struct.unpack("<Q", head.with_suffix(".size").read_bytes())
            return Blob(head, nbytes, head.stat().st_size)
        return None

    def receive(self, nbytes: int) -> "Receiver":
        """A sink for an object of this size."""
        return Receiver(self, self._incoming / secrets.token_hex(8), nbytes)

    def put_regular(self, content: bytes) -> str:
        """The git blob id under which this content now lies."""
        oid = git.blob_oid(content)
        place = self._place("git", oid)
        if not place.is_file():
            replace(place, content)
        return oid

    def regular(self, oid: str) -> Path:
        """Where the regular file with this git blob id lies."""
        return self._place("git", oid)

    def adopt(self, source: Path, sha256: str) -> None:
        """Gives a received file its final name."""
        place = self._place("sha256", sha256)
        place.parent.mkdir(parents=True, exist_ok=True)
        source.replace(place)

    def adopt_head(self, head: bytes, nbytes: int, sha256: str) -> None:
        """Keeps the first bytes of an object, and its size."""
        place = self._place("heads", sha256)
        replace(place.with_suffix(".size"), struct.pack("<Q", nbytes))
        replace(place, head)

    def parts(self, upload: str) -> Path:
        """Where the parts of an unfinished multipart upload lie."""
        folder = self._incoming / "parts" / upload
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_parts(self, upload: str) -> None:
        """Forgets the parts of a multipart upload."""
        shutil.rmtree(self._incoming / "parts" / upload, ignore_errors=True)

    def _place(self, kind: str, digest: str) -> Path:
        return self.root / kind / digest[:2] / digest


class Receiver:
    """Hashes and stores one object as it arrives; memory is one chunk, and with `discard` one header."""

    def __init__(self, blobs: Blobs, path: Path, nbytes: int) -> None:
        self._blobs = blobs
        self._path = path
        self._expected = nbytes
        self._received = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb")
        self._head = Head() if blobs.discard else None

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drops whatever `keep` did not give a name."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            WrongBytes: There are more of them than announced.
        """
        self._received += len(data)
        if self._received > self._expected:
            raise WrongBytes(f"more than the announced {self._expected} bytes were sent")
        self._hash.update(data)
        if self._head is None or not self._head.take(data):
            self._file.write(data)

    def read_all(self, parts: Iterable[Path]) -> None:
        """Takes the bytes of these files, one after the other, and deletes each."""
        for part in parts:
            with part.open("rb") as file:
                while data := file.read(1 << 20):
                    self.write(data)
            part.unlink()

    def keep(self, sha256: str) -> None:
        """Gives the object its name.

        Raises:
            WrongBytes: Too few bytes came, or their hash is another.
        """
        self._file.close()
        if self._received != self._expected:
            raise WrongBytes(f"{self._received} bytes were sent, {self._expected} announced")
        found = self._hash.hexdigest()
        if found != sha256:
            raise WrongBytes(f"the bytes hash to {found}, announced was {sha256}")
        if self._head is not None and self._head.complete is not None:
            self._blobs.adopt_head(self._head.complete, self._expected, sha256)
        else:
            self._blobs.adopt(self._path, sha256)


class Head:
    """Keeps the start of a safetensors file that streams by, header included: 8 bytes of length, then JSON."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._length: int | None = None
        self.complete: bytes | None = None

    def take(self, data: bytes) -> bool:
        """True if the caller may drop these bytes, because the file is safetensors and its start is kept here."""
        if self.complete is not None:
            return True
        if self._length == 0:
            return False
        self._bytes += data
        if self._length is None and len(self._bytes) > 8:
            (length,) = struct.unpack_from("<Q", self._bytes)
            plausible = length <= HEADER_LIMIT and self._bytes[8:9] == b"{"
            self._length = max(8 + length, HEAD_NBYTES) if plausible else 0
        if self._length and len(self._bytes) >= self._length:
            self.complete = bytes(self._bytes[: self._length])
            self._bytes.clear()
        return self.complete is not None
