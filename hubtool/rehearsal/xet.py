"""Reads back what the stock client's hf_xet stored for a repo.

Asked for a xet write token, the Hub answers with a content store of the form `local:///folder`: hf_xet then chunks,
deduplicates and stores there instead of talking to a server. The store's index of files is read here; their bytes are
put together by hf_xet itself. The layout is not documented: it was found by looking at what hf_xet 1.8.0 writes, and
whatever does not look like that is an error.

    xet/xorbs/shards/*.mdb                    which files there are, and of which segments they consist
    xet/xorbs/xorbs/default.*                 the compressed chunks
    xet/xorbs/global_dedup_lookup.redb        index, locked by the client that writes
"""

import fcntl
import functools
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubtool.hub.private import hf_xet
from hubtool.rehearsal.wire import Refusal

RECORD_NBYTES = 48
"""A shard is its header and then records of this size, little-endian."""

SHARD_START = b"HFRepoMetaData\0"
SHARD_VERSION = 2
"""The u64 at byte 32 of a shard."""

END_OF_FILES = b"\xff" * 32
HAS_VERIFICATION = 1 << 31
"""Flag: as many verification records as segments follow the segments."""

HAS_METADATA = 1 << 30
"""Flag: one more record follows, which starts with the sha256."""

BUFFER_NBYTES = 64_000_000
"""What hf_xet may hold of a file it puts together; its own default is 1.5 GB."""


INDEX_FILE = "global_dedup_lookup.redb"
INDEX_HEADER = struct.Struct("<9sB2xIIIII")
"""Magic, flags, bytes a page, header and data pages of a region, regions, data pages of the last (redb 2 and 3)."""

INDEX_START = b"redb\x1a\n\xa9\r\n"
UNFINISHED = 1 << 1
"""Flag: whoever had it open did not close it."""


@dataclass(frozen=True)
class XetFile:
    """A file that the client registered.

    Attributes:
        sha256: As the client says; it is not checked by hf_xet.
        xet_hash: hf_xet's own hash of the file.
        nbytes: Its size.
        xorbs: The chunk files that it refers to.
    """

    sha256: str
    xet_hash: str
    nbytes: int
    xorbs: frozenset[str]


class XetStore:
    """The content store of one repo.

    Args:
        root: Folder of all stores, and of hf_xet's log.
        name: `NAMESPACE/NAME`.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.folder = folder = root / name
        self._log = root / ".log"
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """What the client is told to use as its server."""
        return f"local://{self.folder.resolve()}"

    @property
    def _xorbs(self) -> Path:
        return self.folder / "xet" / "xorbs"

    def files(self) -> list[XetFile]:
        """The files of all finished uploads.

        Raises:
            Refusal: 500, the store does not look as expected.
        """
        return [file for shard in sorted(self._xorbs.glob("shards/*.mdb")) for file in _files_of(shard)]

    def renew_index(self) -> bool:
        """Whether the index was removed, because the client that made it was killed; hf_xet makes it again.

        It only says which chunks are there already. One that is half made lets every client wait for minutes. That of a
        client that is at work is locked.
        """
        index = self._xorbs / INDEX_FILE
        if not index.is_file():
            return False
        with index.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if _is_whole(file.read(INDEX_HEADER.size), index.stat().st_size):
                return False
            index.unlink()
        return True

    def read(self, file: XetFile) -> Iterator[bytes]:
        """The file's bytes in order; fewer, without an error, where the store lacks some."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="reading-") as scratch:
            copy = Path(scratch) / "xet" / "xorbs"
            # The writing client keeps the index locked, so that a copy is opened; the large files are linked.
            for source in self._xorbs.glob("*/*"):
                (copy / source.parent.name).mkdir(parents=True, exist_ok=True)
                os.link(source, copy / source.parent.name / source.name)
            for index in self._xorbs.glob("*.redb"):
                shutil.copyfile(index, copy / index.name)
            group = _session(self._log).new_download_stream_group(endpoint=f"local://{scratch}")
            yield from group.download_stream(hf_xet().XetFileInfo(file.xet_hash, file.nbytes))

    def drop(self, file: XetFile) -> None:
        """Deletes the chunks that a file refers to."""
        for xorb in file.xorbs:
            (self._xorbs / "xorbs" / f"default.{xorb}").unlink(missing_ok=True)


@functools.cache
def _session(log: Path) -> Any:  # hf_xet has no types
    limits = {
        f"reconstruction.{name}": BUFFER_NBYTES
        for name in ("download_buffer_size", "download_buffer_perfile_size", "download_buffer_limit")
    }
    others = {
        "reconstruction.min_prefetch_buffer": BUFFER_NBYTES // 2,
        "telemetry.enabled": False,
        "log.dest": str(log),
    }
    return hf_xet().XetSession(hf_xet().XetConfig().with_config({**limits, **others}))


def _is_whole(header: bytes, nbytes: int) -> bool:
    """Whether an index that begins with `header` and has `nbytes` bytes was finished and closed; an empty one was."""
    if len(header) < INDEX_HEADER.size:
        return nbytes == 0
    start, flags, page, header_pages, region_pages, regions, last_pages = INDEX_HEADER.unpack(header)
    pages = 1 + regions * (header_pages + region_pages) + (header_pages + last_pages if last_pages else 0)
    return start == INDEX_START and not flags & UNFINISHED and nbytes >= pages * page


def _files_of(shard: Path) -> Iterator[XetFile]:
    """The files of one shard that have a sha256."""
    data = shard.read_bytes()
    if not data.startswith(SHARD_START) or data[32:40] != struct.pack("<Q", SHARD_VERSION):
        raise _unknown(shard, "its start is another")
    at = RECORD_NBYTES
    while data[at : at + 32] != END_OF_FILES:
        if at + RECORD_NBYTES > len(data):
            raise _unknown(shard, "its list of files has no end")
        xet_hash = _hexadecimal(data[at : at + 32])
        flags, count = struct.unpack_from("<II", data, at + 32)
        first = at + RECORD_NBYTES
        at = first + RECORD_NBYTES * count * (2 if flags & HAS_VERIFICATION else 1)
        if at + RECORD_NBYTES > len(data):
            raise _unknown(shard, "a file has more segments than the shard has room for")
        segments = [data[start : start + RECORD_NBYTES] for start in range(first, first + RECORD_NBYTES * count, 48)]
        if flags & HAS_METADATA:
            nbytes = sum(struct.unpack_from("<I", segment, 36)[0] for segment in segments)
            xorbs = frozenset(_hexadecimal(segment[:32]) for segment in segments)
            yield XetFile(_hexadecimal(data[at : at + 32]), xet_hash, nbytes, xorbs)
            at += RECORD_NBYTES


def _hexadecimal(raw: bytes) -> str:
    """hf_xet prints a hash as four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def _unknown(shard: Path, why: str) -> Refusal:
    return Refusal(
        500,
        f"hf_xet stored {shard.name} in a format this rehearsal Hub does not know: {why}; it knows that of hf_xet 1.8. "
        "Switch xet off for the client: HF_HUB_DISABLE_XET=1",
    )
