"""The checkpoint that is converted: its files, tensors, and what is known of where it comes from.

A source is read with `pread` at known offsets, never mapped and never written.
"""

import hashlib
import os
import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hubtool.checkpoint.identity import REPO, UNKNOWN, Identity, merge_identity, observe_identity
from hubtool.checkpoint.tensors import Header, StoredTensor, read_header
from hubtool.errors import SourceError
from hubtool.files.formats import Failure, convert, parse_json, parse_object
from hubtool.files.read import AGAIN, file_sha256, is_file, is_folder, is_plain_name, pread_into, read_small

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


HUB_PREFIX = "hub:"
"""Before `org/name`, names the Hub even where a folder of that name exists."""

_SPEC = re.compile(rf"(?:{HUB_PREFIX})?({REPO.pattern})(?:@([\w.][\w./-]*))?")


def parse_spec(spec: str) -> tuple[str, str | None] | None:
    """Repo and revision of `[hub:]org/name[@revision]`; None for a folder: one that exists, or written otherwise."""
    match = _SPEC.fullmatch(spec)
    if match is None or (not spec.startswith(HUB_PREFIX) and (is_file(Path(spec)) or is_folder(Path(spec)))):
        return None
    return match[1], match[2]


class SourceSpec(msgspec.Struct, frozen=True):
    """How another process opens the same source: see `hubtool.checkpoint.open.reopen`.

    Attributes:
        name: The absolute path of a folder, or `org/name`.
        commit: The repo's commit, None for a folder.
        endpoint: The Hub that it is on, None for a folder.
        layout: `Checkpoint.layout`, by which another source of that name is noticed.
    """

    name: str
    commit: str | None
    endpoint: str | None
    layout: str


class Source(Protocol):
    """A published checkpoint that can be read piece by piece."""

    @property
    def spec(self) -> SourceSpec:
        """How another process opens the same source."""

    @property
    def name(self) -> str:
        """The folder's name, or `org/name`: for messages."""

    @property
    def identity(self) -> Identity:
        """The Hub repo and commit it is."""

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json."""

    @property
    def shards(self) -> Mapping[str, Header]:
        """Headers by file name, in the order of the names."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by its published name."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that are not weights, sorted."""

    @property
    def broken_links(self) -> tuple[str, ...]:
        """Names of symbolic links in the top folder that lead nowhere, sorted."""

    def read_file(self, name: str) -> bytes:
        """The bytes of a small file."""

    def read_optional(self, name: str) -> bytes | None:
        """The bytes of a small file at a path in the source, None if there is none."""

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a shard, starting `offset` bytes into it; safe from several threads at once."""

    def sha256(self, file: str) -> str:
        """The SHA-256 of a file's bytes in hexadecimal."""

    def prepare(self, files: Sequence[str]) -> None:
        """Get ready for reading shards; called once before a pass, and again before another.

        A source that is elsewhere starts to fetch them, and `read_into` then waits for a file that is on its way.

        Args:
            files: The shards that will be read, in the order in which they are first needed.
        """

    def release(self, file: str) -> None:
        """Let go of a shard that was prepared: all that was made of it is synced and hashed, nothing reads it now.

        If it is read again after all, it is read from where it came.
        """

    def stop(self) -> None:
        """Give up the pass that `prepare` began: no shard is fetched on, and what was fetched stays for another run.

        To be called when a pass fails or is interrupted, before its threads are waited for: whatever waits for the Hub
        raises HubError, and so does `read_into` until another pass is prepared. A local file that is being hashed
        raises SourceError.
        """

    def close(self) -> None:
        """Close what was opened for reading; nothing may read any more."""

    @property
    def disk_nbytes(self) -> int:
        """Most bytes of disk that reading will take for itself; 0 where the files are there already."""

    @property
    def unverified(self) -> frozenset[str]:
        """Files of which parts were read that could not be held against the file's SHA-256."""

    def nbytes(self, file: str) -> int:
        """The size of a file in bytes."""

    def stamp(self, file: str) -> str:
        """What changes when a file is changed, at no cost: the file system's notes on it, or the Hub's hash."""


class Checkpoint(ABC):
    """What the files of a checkpoint say, wherever they are."""

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """Names of the files that are not weights, sorted."""

    @property
    def broken_links(self) -> tuple[str, ...]:
        """Names of symbolic links in the top folder that lead nowhere, sorted."""
        return ()

    @property
    @abstractmethod
    def shards(self) -> Mapping[str, Header]:
        """Headers by file name, in the order of the names."""

    @abstractmethod
    def read_file(self, name: str) -> bytes:
        """The bytes of a small file."""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        return parse_object(self.read_file(CONFIG_FILE), CONFIG_FILE)

    @cached_property
    def layout(self) -> str:
        """A digest of config.json, and of the names and sizes of all shards and their headers: not of a weight."""
        digest = hashlib.sha256(self.read_file(CONFIG_FILE))
        for file, header in sorted(self.shards.items()):
            digest.update(f"\n{file} {header.nbytes} {header.data_nbytes}".encode())
        return digest.hexdigest()

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by its published name."""
        return collect_tensors(self.shards, self._weight_map)

    @cached_property
    def shard_names(self) -> tuple[str, ...]:
        """Names of the shards that the index names, sorted; of the only one if there is no index."""
        return (SINGLE_FILE,) if self._weight_map is None else tuple(sorted(set(self._weight_map.values())))

    @cached_property
    def _weight_map(self) -> Mapping[str, str] | None:
        return parse_index(self.read_file(INDEX_FILE)) if INDEX_FILE in self.files else None


class LocalSource(Checkpoint):
    """A checkpoint in a local folder.

    Args:
        folder: The folder, as published: config.json, shards, and their index.
        stated: What the publisher says it is.

    Raises:
        SourceError: The folder, its config.json, its index or a header of a shard cannot be used; raised when the
            part concerned is first looked at.
        UsageError: `stated` contradicts what huggingface_hub left beside the files.
    """

    def __init__(self, folder: Path, stated: Identity = UNKNOWN) -> None:
        self.folder = folder
        self._stops = 0
        self._descriptors: dict[str, int] = {}
        weakref.finalize(self, _close_all, self._descriptors)
        if not is_folder(folder):
            raise SourceError(
                "no such folder",
                where=folder,
                found="a file" if is_file(folder) else "nothing",
                expected="the folder of a checkpoint, or ORG/NAME on the Hub",
                remedy="check the path of the checkpoint",
            )
        self.identity = merge_identity(observe_identity(folder), stated)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @cached_property
    def spec(self) -> SourceSpec:
        """The folder, by its absolute path."""
        return SourceSpec(str(self.folder.resolve()), None, None, self.layout)

    @cached_property
    def shards(self) -> Mapping[str, Header]:
        """Headers by file name; every shard that the index names is there and as long as its header says."""
        return {name: read_header(self._existing(name)) for name in self.shard_names}

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Names of the top folder's files that are not weights, sorted; hidden ones are left out."""
        return tuple(
            sorted(
                path.name
                for path in self.folder.iterdir()
                if path.is_file() and not path.name.startswith(".") and path.suffix != ".safetensors"
            )
        )

    @cached_property
    def broken_links(self) -> tuple[str, ...]:
        """Names of symbolic links in the folder that lead nowhere, sorted."""
        links = (path for path in self.folder.iterdir() if path.is_symlink())
        return tuple(sorted(path.name for path in links if not is_file(path) and not is_folder(path)))

    def read_file(self, name: str) -> bytes:
        """The bytes of a small file."""
        return read_small(self._existing(name))

    def read_optional(self, name: str) -> bytes | None:
        """The bytes of a small file at a path in the folder, None if there is none."""
        return self.read_file(name) if is_file(self.folder / name) else None

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a shard, starting `offset` bytes into it; safe from several threads at once."""
        descriptor = self._descriptors.get(file)
        if descriptor is None:
            opened = os.open(self._existing(file), os.O_RDONLY)
            descriptor = self._descriptors.setdefault(file, opened)
            if descriptor != opened:
                os.close(opened)
        pread_into(descriptor, offset, buffer, file)

    def sha256(self, file: str) -> str:
        """The SHA-256 of a file's bytes in hexadecimal; SourceError if `stop` is called meanwhile."""
        stops = self._stops

        def check(nbytes: int) -> None:
            if self._stops > stops:
                raise stopped(file)

        return file_sha256(self._existing(file), check)

    def prepare(self, files: Sequence[str]) -> None:
        """Nothing to do: the files are there."""

    def release(self, file: str) -> None:
        """Nothing to do: a source is never touched."""

    def stop(self) -> None:
        """End the hashing of a file: no read waits."""
        self._stops += 1

    @property
    def disk_nbytes(self) -> int:
        """0: nothing is fetched."""
        return 0

    @property
    def unverified(self) -> frozenset[str]:
        """None: the files are hashed as they are read."""
        return frozenset()

    def nbytes(self, file: str) -> int:
        """The size of a file in bytes."""
        return self._existing(file).stat().st_size

    def stamp(self, file: str) -> str:
        """Size, times of the last change of content and of inode, and inode: no copy (`cp -p`) leaves all as it was."""
        status = self._existing(file).stat()
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"

    def close(self) -> None:
        """Close the shards that were opened for reading."""
        _close_all(self._descriptors)

    def _existing(self, name: str) -> Path:
        path = self.folder / name
        if not is_file(path):
            raise SourceError(
                "missing file", where=name, found=f"nothing in {self.name}", expected="a file", remedy=AGAIN
            )
        if not self._is_own(path):
            raise SourceError(
                "a link out of the source",
                where=name,
                found=path.resolve(),
                expected="a file of the folder, or a link into the blobs of the Hub's cache",
                remedy="put the file itself there, if it is to be read and published",
            )
        return path

    def _is_own(self, path: Path) -> bool:
        """Whether a file lies in the folder, or where the Hub's client keeps those of a snapshot."""
        folder, real = self.folder.resolve(), path.resolve()
        if real.is_relative_to(folder):
            return True
        return folder.parent.name == "snapshots" and real.parent == folder.parent.parent / "blobs"


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def stopped(name: str) -> SourceError:
    """The error for whoever reads a file when reading is stopped."""
    return SourceError("reading was stopped", where=name, remedy="run it again and it goes on")


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def parse_index(raw: bytes) -> Mapping[str, str]:
    """Tensor name -> file name, from the bytes of model.safetensors.index.json.

    Raises:
        SourceError: It is not such an index, or names a file outside the checkpoint's folder.
    """
    failure = Failure("a safetensors index", INDEX_FILE, SourceError, AGAIN, "not a safetensors index")
    weight_map = convert(parse_json(raw, INDEX_FILE), _Index, failure).weight_map
    for file in set(weight_map.values()):
        if not is_plain_name(file):
            raise SourceError(
                "names a file outside its folder",
                where=INDEX_FILE,
                found=file or "an empty name",
                expected="a plain file name",
                remedy="do not use this checkpoint: its index is not one that the Hub's tools write",
            )
    return weight_map


def collect_tensors(shards: Mapping[str, Header], weight_map: Mapping[str, str] | None) -> Mapping[str, StoredTensor]:
    """All tensors of the shards by name, checked against the index if there is one.

    Raises:
        SourceError: A name is in two shards, or index and headers disagree.
    """
    tensors: dict[str, StoredTensor] = {}
    for file, header in shards.items():
        for tensor in header.tensors:
            earlier = tensors.setdefault(tensor.spec.name, tensor)
            if earlier is not tensor:
                raise SourceError(
                    "is in two shards",
                    where=tensor.spec.name,
                    found=f"{earlier.file} and {file}",
                    expected="one",
                    remedy=AGAIN,
                )
    if weight_map is None:
        return tensors
    for name, file in weight_map.items():
        found = tensors.get(name)
        if found is None or found.file != file:
            raise SourceError(
                "is not where the index says",
                where=name,
                found=found.file if found else "no such tensor",
                expected=file,
                remedy=AGAIN,
            )
    for name, tensor in tensors.items():
        if name not in weight_map:
            raise SourceError(
                "is not in the index", where=name, found=f"in {tensor.file}", expected=f"in {INDEX_FILE}", remedy=AGAIN
            )
    return tensors
