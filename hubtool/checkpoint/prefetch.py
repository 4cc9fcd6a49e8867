"""Fetches shards of a Hub repo ahead of whoever reads them, into a folder that never holds more than its limit.

Files are fetched in the order of need. Room for a file is reserved before its first byte comes, and given back when it
is released. Whoever reads a file that is on its way waits for it. Whoever reads one that there is no room for does not
wait, because room may come only of what that very read leads to: such a file is never fetched in this pass, and its
reader takes the rows that it needs straight from the Hub.

A second process is kept out of the folder, by a lock beside it, from `prepare` until it is closed.

A file gets its name only when it is whole, its hash is the Hub's, and it is synced. The folder is laid out as the stock
client lays out a `--local-dir`, so that `hf download` finds the whole files that were fetched here, and the other way
round. Files that are not whole are hubtool's alone: the stock client begins them again, and removes its own.
"""

import os
import shutil
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx2

from hubtool import units
from hubtool.errors import HubtoolError, SourceError, UsageError
from hubtool.files.lock import held
from hubtool.files.read import pread_into
from hubtool.hub.client import HubFile, translated
from hubtool.hub.private import (
    LocalDownloadFilePaths,
    get_local_download_paths,
    read_download_metadata,
    write_download_metadata,
)
from hubtool.hub.reader import RepoReader

PARALLEL = 3
"""Files that are fetched at once: one connection rarely fills the line, and more would delay the file needed first."""

CHUNK_NBYTES = 1 << 20

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 8.0)
"""Waits between tries that bring nothing, as the stock client's; a try that brings bytes resets them."""

STOP_SECONDS = 1.0
"""How long threads that fetch are waited for when they are asked to stop."""

DEFAULT_FILES = 6
"""Room by default, in files of the largest size: by the plans for V4-Flash and V4-Pro four are needed at once at most,
and the others are fetched meanwhile."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where fetched shards lie, and for how long.

    Attributes:
        folder: The folder; made when the first file is fetched.
        limit: Most bytes of shards in it; None for room for `DEFAULT_FILES`, or for all of them if they are kept.
        keep: Whether files stay when they are released.
    """

    folder: Path
    limit: int | None = None
    keep: bool = False


@dataclass(slots=True)
class Traffic:
    """What was fetched so far.

    Attributes:
        total_nbytes: Bytes of the files that were prepared.
        nbytes: Bytes of them that came, those left by an earlier run included.
        direct_nbytes: Bytes that were read straight from the Hub because there was no room for their file.
        direct_reads: How many reads that took.
        held_nbytes: Bytes of disk that are reserved.
        most_held_nbytes: Most that were ever reserved.
    """

    total_nbytes: int = 0
    nbytes: int = 0
    direct_nbytes: int = 0
    direct_reads: int = 0
    held_nbytes: int = 0
    most_held_nbytes: int = 0


State = Literal["queued", "loading", "ready", "direct", "failed", "gone"]


class _File:
    """A file that was prepared: how far it is, and its descriptor when it is there."""

    def __init__(self, entry: HubFile) -> None:
        self.entry = entry
        self.state: State = "queued"
        self.descriptor = -1
        self.error: HubtoolError | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more will come of waiting."""
        return self.state not in ("queued", "loading")

    def close(self) -> None:
        """Close its descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Downloads:
    """The shards of a repo at a commit, as far as there is room for them.

    Args:
        reader: The repo.
        storage: Where they lie.
        shards: All shards of the repo, by name.

    Raises:
        UsageError: The limit is smaller than the largest shard, or than all of them if they are to be kept.
    """

    def __init__(self, reader: RepoReader, storage: Storage, shards: Mapping[str, HubFile]) -> None:
        self.traffic = Traffic()
        self._reader = reader
        self._folder = storage.folder
        self._keep = storage.keep
        self._shards = shards
        self.limit = _limit(storage, shards)
        self._files: dict[str, _File] = {}
        self._queue: deque[_File] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = ExitStack()

    def prepare(self, names: Sequence[str]) -> None:
        """Start to fetch these files, in this order; what an earlier run left of others is removed.

        Raises:
            OutputError: Another process fetches into the folder.
            SourceError: The folder cannot be made.
        """
        self.close()
        for thread in self._threads:
            thread.join()
        with _writing(self._folder):
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(held(self._folder.with_name(f"{self._folder.name}.lock"), self._folder))
        self._stopped.clear()
        self._files = {name: _File(self._shards[name]) for name in names}
        self.traffic.total_nbytes = sum(file.entry.nbytes for file in self._files.values())
        self.traffic.nbytes = self.traffic.held_nbytes = 0
        if not names and not self._keep:
            self._remove_folder()
        if self._folder.is_dir():
            self._take_over()
        self._queue = deque(file for file in self._files.values() if file.state == "queued")
        self._threads = [
            threading.Thread(target=self._work, name=f"hubtool-fetch-{n}", daemon=True)
            for n in range(min(PARALLEL, len(self._queue)))
        ]
        for thread in self._threads:
            thread.start()

    def read_into(self, name: str, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` from a file that is here or on its way; False if it is neither, nor will be.

        Raises:
            HubError: The file could not be fetched, or the downloads were stopped.
            SourceError: The disk failed.
        """
        with self._changed:
            file = self._files.get(name)
            if file is None:
                return False
            if file.state == "queued" and not self._will_fit(file):
                file.state = "direct"
                self._changed.notify_all()
            self._changed.wait_for(lambda: file.settled or self._stopped.is_set())
            if not file.settled:
                self._check_stopped(name)
            state = file.state
        if state == "failed":
            # Without an error of ours the thread has ended with a traceback.
            raise file.error or RuntimeError(f"{name}: its download broke off")
        if state == "ready":
            pread_into(file.descriptor, offset, buffer, name)
        return state == "ready"

    def release(self, name: str) -> None:
        """Drop a file, unless files are kept; the room that it took is free for the next."""
        if self._keep:
            return
        with self._changed:
            file = self._files[name]
            before, file.state = file.state, "gone"
            if before == "ready":
                self._let_go(file)
            if all(each.state == "gone" for each in self._files.values()):
                self._remove_folder()
            self._changed.notify_all()

    def stop(self) -> None:
        """End the downloads: readers that wait get a HubError, parts of files stay for the next run."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            # One that waits for a silent Hub is left to die with the process.
            thread.join(timeout=STOP_SECONDS / len(self._threads))

    def close(self) -> None:
        """Stop, and close the files; nothing may read any more."""
        self.stop()
        for file in self._files.values():
            file.close()
        self._lock.close()

    @property
    def disk_nbytes(self) -> int:
        """Most bytes of disk that fetching will take beside those of files that lie in the folder already."""
        there = sum(path.stat().st_blocks * 512 for path in self._folder.rglob("*") if path.is_file())
        return max(0, self.limit - there)

    def count_direct(self, nbytes: int) -> None:
        """Take down that so many bytes were read straight from the Hub."""
        with self._changed:
            self.traffic.direct_nbytes += nbytes
            self.traffic.direct_reads += 1

    def _take_over(self) -> None:
        """Believe what an earlier run fetched whole, and remove what is not needed or does not fit."""
        room = self.limit
        for name in self._shards:
            if name not in self._files and not self._keep:
                self._drop(name)
        for name, file in self._files.items():
            room -= file.entry.nbytes
            path = self._folder / name
            known = read_download_metadata(self._folder, name)
            if room < 0:
                self._drop(name)
            elif known and known.etag == file.entry.etag and path.stat().st_size == file.entry.nbytes:
                file.descriptor = os.open(path, os.O_RDONLY)
                file.state = "ready"
                self._reserve(file.entry.nbytes)
                self.traffic.nbytes += file.entry.nbytes
            else:
                path.unlink(missing_ok=True)

    def _will_fit(self, wanted: _File) -> bool:
        """Whether a queued file will have room without any release: after all that stand before it."""
        before = 0
        for file in self._queue:
            if file.state == "queued":
                before += file.entry.nbytes
            if file is wanted:
                break
        return self.traffic.held_nbytes + before <= self.limit

    def _reserve(self, nbytes: int) -> None:
        self.traffic.held_nbytes += nbytes
        self.traffic.most_held_nbytes = max(self.traffic.most_held_nbytes, self.traffic.held_nbytes)

    def _work(self) -> None:
        """Fetch one file after the other until there is none left: the life of a thread."""
        while (file := self._next()) is not None:
            state: State = "failed"
            try:
                file.descriptor = self._fetch(file.entry)
                state = "ready"
            except HubtoolError as error:
                file.error = error
            finally:
                with self._changed:
                    if file.state == "gone":
                        self._let_go(file)
                    else:
                        file.state = state
                    self._changed.notify_all()

    def _next(self) -> _File | None:
        """The next file, when there is room for it; None when there is none, or the downloads were stopped."""
        with self._changed:
            while not self._stopped.is_set():
                while self._queue and self._queue[0].state != "queued":
                    self._queue.popleft()
                if not self._queue:
                    return None
                if self.traffic.held_nbytes + self._queue[0].entry.nbytes <= self.limit:
                    file = self._queue.popleft()
                    file.state = "loading"
                    self._reserve(file.entry.nbytes)
                    return file
                self._changed.wait()
        return None

    def _fetch(self, entry: HubFile) -> int:
        """The descriptor of a file that was fetched, checked, synced and given its name."""
        with _writing(self._folder):
            paths = get_local_download_paths(self._folder, entry.name)
            resumed = True
            while resumed:
                with _Partial(paths, entry) as partial:
                    resumed = partial.nbytes > 0
                    self._count(partial.nbytes)
                    self._fill(partial, entry)
                    found = partial.digest.hexdigest()
                    if found == entry.etag:
                        partial.finish()
                        write_download_metadata(self._folder, entry.name, self._reader.commit, entry.etag)
                        return os.open(paths.file_path, os.O_RDONLY)
                    partial.path.unlink(missing_ok=True)
                    self._count(-partial.nbytes)
        raise self._reader.wrong_bytes(entry, found)

    def _fill(self, partial: "_Partial", entry: HubFile) -> None:
        """Fetch what a partial file lacks, through broken connections."""
        waits = iter(RETRY_SECONDS)
        with translated(self._reader.where(entry.name)):
            while partial.nbytes < entry.nbytes:
                self._check_stopped(entry.name)
                before, failure = partial.nbytes, None
                try:
                    self._append(partial, entry)
                except httpx2.TransportError as error:
                    failure = error
                if partial.nbytes > before:
                    waits = iter(RETRY_SECONDS)
                    if failure is None:
                        continue
                wait = next(waits, None)
                if wait is None:
                    raise failure or httpx2.RemoteProtocolError("the answer was empty")
                self._stopped.wait(wait)

    def _append(self, partial: "_Partial", entry: HubFile) -> None:
        """Append what one answer brings."""
        with self._reader.stream(entry.name, partial.nbytes) as response:
            if partial.nbytes and response.status_code != 206:
                self._count(-partial.nbytes)
                partial.restart()
            # Without a size for the chunks none is held back, and lost when the connection breaks.
            for chunk in response.iter_raw():
                partial.append(chunk)
                self._count(len(chunk))
                self._check_stopped(entry.name)

    def _check_stopped(self, name: str) -> None:
        if self._stopped.is_set():
            raise self._reader.stopped(name)

    def _let_go(self, file: _File) -> None:
        file.close()
        self._drop(file.entry.name)
        self._reserve(-file.entry.nbytes)

    def _count(self, nbytes: int) -> None:
        with self._changed:
            self.traffic.nbytes += nbytes

    def _drop(self, name: str) -> None:
        """Remove whatever there is of a file."""
        paths = get_local_download_paths(self._folder, name)
        partial = paths.incomplete_path(self._shards[name].etag)
        for path in (paths.file_path, partial, paths.metadata_path, paths.lock_path):
            path.unlink(missing_ok=True)

    def _remove_folder(self) -> None:
        """Remove the folder, the stock client's notes with it."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder)


class _Partial:
    """A file that is being fetched: appended to, and hashed on the way; what an earlier run left is taken over.

    Attributes:
        path: Where it lies; its name holds the hash that it will have.
        digest: The hash of what is there.
        nbytes: How much is there.
    """

    def __init__(self, paths: LocalDownloadFilePaths, entry: HubFile) -> None:
        self.path = paths.incomplete_path(entry.etag)
        self._final = paths.file_path
        self._entry = entry
        self._begin()

    def _begin(self) -> None:
        self.digest = self._entry.hasher()
        self.nbytes = 0

    def __enter__(self) -> "_Partial":
        self._file = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        while chunk := self._file.read(CHUNK_NBYTES):
            self.digest.update(chunk)
            self.nbytes += len(chunk)
        if self.nbytes > self._entry.nbytes:
            self.restart()
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def restart(self) -> None:
        """Forget what is there."""
        self._file.truncate(0)
        self._begin()

    def append(self, chunk: bytes) -> None:
        """Add bytes after those that were hashed, wherever another process may have left the end of the file."""
        view, offset = memoryview(chunk), self.nbytes
        while view:
            count = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[count:], offset + count
        self.digest.update(chunk)
        self.nbytes += len(chunk)

    def finish(self) -> None:
        """Bring it to the disk, and give it its name.

        Raises:
            SourceError: The file under its path is not this one at its length, so that its bytes are not those hashed.
            OSError: It cannot be synced. It is removed: the system may count as written what never came to the disk.
        """
        there = self.path.stat() if self.path.exists() else None
        ours = os.fstat(self._file.fileno())
        if there is None or not os.path.samestat(there, ours) or ours.st_size != self._entry.nbytes:
            raise SourceError(
                "was changed while it was fetched",
                where=self.path,
                found=f"{there.st_size if there else 0} bytes",
                expected=f"{self._entry.nbytes} bytes",
                remedy="see that no other program fetches into this folder, then run it again",
            )
        try:
            os.fsync(self._file.fileno())
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        self.path.rename(self._final)


def _limit(storage: Storage, shards: Mapping[str, HubFile]) -> int:
    largest = max((file.nbytes for file in shards.values()), default=0)
    total = sum(file.nbytes for file in shards.values())
    needed = total if storage.keep else largest
    if storage.limit is None:
        return total if storage.keep else min(total, DEFAULT_FILES * largest)
    if storage.limit < needed:
        raise UsageError(
            "has no room for " + ("the whole source, which is to be kept" if storage.keep else "a single shard"),
            where="--disk-limit",
            found=units.format_nbytes(storage.limit),
            expected=f"at least {units.format_nbytes(needed)}",
            remedy="leave --keep-source out, or give a larger limit" if storage.keep else "give a larger limit",
        )
    return storage.limit


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with the disk into a SourceError."""
    try:
        yield
    except OSError as error:
        raise SourceError(
            "cannot be fetched to", where=folder, found=error.strerror, remedy="free some space, then run it again"
        ) from error
