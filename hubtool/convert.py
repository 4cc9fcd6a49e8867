"""Carries out plans piece by piece: read, decode, quantize, write at the known offset, write it down.

Several plans over one source are carried out in one pass: a piece is read and decoded once, and what two plans store
alike is made once. Memory is a few pieces for each job, whatever the model's size.
"""

import hashlib
import os
import shutil
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from hubtool import units
from hubtool.device import require_backend
from hubtool.errors import OutputError
from hubtool.journal import (
    Journal,
    Origin,
    describe_change,
    locked,
    read_origin,
    sync_folder,
    write_origin,
)
from hubtool.pieces import LoadedPiece
from hubtool.plan import OutputTensor, Piece, Plan, Step
from hubtool.quantize import Array
from hubtool.recipe import Format
from hubtool.source import Source, file_sha256

BYTE_FORMAT = 1
"""Changes whenever the same plan would give other bytes than before."""


@dataclass(frozen=True, slots=True)
class Target:
    """A plan and the folder it is carried out in."""

    plan: Plan
    folder: Path


@dataclass(frozen=True, slots=True)
class Advance:
    """One step forward: bytes of output that were written or found done, and of what."""

    nbytes: int
    label: str


class _Folder:
    """A target at work.

    Attributes:
        target: Its plan and folder.
        journal: Its state.
        todo: Numbers of the pieces that are left.
        waiting: For each shard that is not complete, how many pieces it still waits for.
    """

    def __init__(self, target: Target, journal: Journal) -> None:
        self.target = target
        self.journal = journal
        self.todo: set[int] = set()
        self.waiting: dict[int, int] = {}
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def partial(self, index: int) -> Path:
        """Where a shard lies until it is complete."""
        return self.journal.partial / self.target.plan.shards[index].file

    def open(self, index: int) -> int:
        """The descriptor of a partial shard, which is made at its full size if it is not there."""
        with self._lock:
            if index not in self._descriptors:
                shard = self.target.plan.shards[index]
                descriptor = os.open(self.partial(index), os.O_RDWR | os.O_CREAT, 0o644)
                self._descriptors[index] = descriptor
                os.ftruncate(descriptor, shard.nbytes)
                os.pwrite(descriptor, shard.header, 0)
            return self._descriptors[index]

    def sync(self, index: int) -> None:
        """Bring a partial shard to the disk and close it."""
        descriptor = self.open(index)
        os.fsync(descriptor)
        with self._lock:
            os.close(self._descriptors.pop(index))

    def close(self) -> None:
        """Close whatever is open."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])
        self.journal.close()


def source_signature(source: Source) -> str:
    """A digest of the source's headers and identity, to notice that it is another one."""
    digest = hashlib.sha256()
    digest.update(f"{source.identity.commit}".encode())
    for file, header in source.shards.items():
        digest.update(f"{file} {header.nbytes} {header.data_nbytes} {source.stamp(file)}\n".encode())
    return digest.hexdigest()


def check_folder(target: Target, source: Source) -> None:
    """Raise OutputError if the folder is not empty and was not begun with the same plan and source."""
    folder = target.folder
    if not folder.exists() or not any(folder.iterdir()):
        return
    begun = read_origin(folder)
    if begun is None:
        raise OutputError(
            "the output folder is not empty, and hubtool has not begun it",
            where=folder,
            remedy="give another --out, or empty it",
        )
    changes = describe_change(begun, _origin(target.plan, source))
    if changes:
        raise OutputError(
            "the output folder was begun with something else",
            where=folder,
            found=" and ".join(changes.values()),
            remedy="give another --out, or remove the folder",
        )


def _origin(plan: Plan, source: Source) -> Origin:
    return Origin(plan.digest, source_signature(source), BYTE_FORMAT)


def check_disk(target: Target) -> None:
    """Raise OutputError if the disk has too little room for what is left to write."""
    folder = target.folder
    there = sum(path.stat().st_blocks * 512 for path in folder.rglob("*.safetensors")) if folder.exists() else 0
    parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    needed = target.plan.disk_nbytes - there
    if needed > free:
        raise OutputError(
            "the disk is too full",
            where=folder,
            found=f"{units.format_nbytes(free)} free",
            expected=f"{units.format_nbytes(needed)}",
            remedy="free some space, or give an --out on another disk",
        )


def convert(source: Source, targets: Sequence[Target], jobs: int = 2) -> Iterator[Advance]:
    """Carry out each target's plan, yielding every step forward; the caller's loop is the progress bar.

    A target that was begun goes on where it stopped. Afterwards `Journal(folder).load().shards` has every shard's
    SHA-256. Peak memory is about `jobs` pieces: see `Plan.peak_nbytes`.

    Raises:
        OutputError: A folder is in use, was begun with something else, or its disk is full.
        SourceError: The source cannot be read, or holds a NaN.
    """
    require_backend()
    for target in targets:
        check_folder(target, source)
        check_disk(target)
    with ExitStack() as stack:
        folders = [stack.enter_context(_opened(target, source)) for target in targets]
        for folder in folders:
            yield from _resume(folder)
        yield from _run(source, folders, jobs)


@contextmanager
def _opened(target: Target, source: Source) -> Iterator[_Folder]:
    """Hold a target's folder and its state."""
    with locked(target.folder):
        if read_origin(target.folder) is None:
            write_origin(target.folder, _origin(target.plan, source))
        journal = Journal(target.folder)
        journal.partial.mkdir(exist_ok=True)
        folder = _Folder(target, journal)
        try:
            yield folder
        finally:
            folder.close()


def _resume(folder: _Folder) -> Iterator[Advance]:
    """Find out what is done, and believe of an unfinished shard only what its bytes say too."""
    plan, progress = folder.target.plan, folder.journal.load()
    for index, shard in enumerate(plan.shards):
        final = folder.target.folder / shard.file
        if shard.file in progress.shards and final.is_file() and final.stat().st_size == shard.nbytes:
            yield Advance(shard.data_nbytes, shard.file)
        else:
            final.unlink(missing_ok=True)
            folder.waiting[index] = 0
    begun = {index for index in folder.waiting if folder.partial(index).is_file()}
    for number, piece in enumerate(plan.pieces()):
        step = plan.steps[piece.step]
        outputs = [output for output in step.outputs if output.shard in folder.waiting]
        checksums = progress.pieces.get(number, ())
        good = len(checksums) == len(step.outputs) and all(
            output.shard in begun and _checksum(folder, step, output, piece) == checksum
            for output, checksum in zip(step.outputs, checksums, strict=True)
            if output.shard in folder.waiting
        )
        if good:
            yield Advance(sum(step.output_range(output, piece)[1] for output in outputs), step.parameter.path)
        elif outputs:
            folder.todo.add(number)
            for output in outputs:
                folder.waiting[output.shard] += 1


def _checksum(folder: _Folder, step: Step, output: OutputTensor, piece: Piece) -> int:
    offset, nbytes = step.output_range(output, piece)
    return zlib.crc32(os.pread(folder.open(output.shard), nbytes, offset))


def _run(source: Source, folders: Sequence[_Folder], jobs: int) -> Iterator[Advance]:
    """Work on the pieces that are left with `jobs` threads, at most one piece a thread in flight and one waiting."""
    plan = folders[0].target.plan
    worker = _Worker(source, folders)
    work = (
        (number, piece, [folder for folder in folders if number in folder.todo])
        for number, piece in enumerate(plan.pieces())
    )
    pending: set[Future[Sequence[Advance]]] = set()
    with ThreadPoolExecutor(jobs, "hubtool-convert") as pool:
        try:
            for folder in folders:
                for index in [index for index, count in folder.waiting.items() if not count]:
                    pending.add(pool.submit(worker.finish_shard, folder, index))
            for number, piece, wanted in work:
                if not wanted:
                    continue
                pending.add(pool.submit(worker.do_piece, number, piece, wanted))
                while len(pending) >= 2 * jobs:
                    yield from _collect(pending, worker, pool)
            while pending:
                yield from _collect(pending, worker, pool)
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(pending: set[Future[Sequence[Advance]]], worker: "_Worker", pool: ThreadPoolExecutor) -> Iterator[Advance]:
    """Wait for something to finish, and start on the shards that it completed."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    pending -= done
    advances = [advance for future in done for advance in future.result()]
    for folder, index in worker.take_complete():
        pending.add(pool.submit(worker.finish_shard, folder, index))
    yield from advances


class _Worker:
    """What the threads share: the source, the folders, and the shards that wait to be finished."""

    def __init__(self, source: Source, folders: Sequence[_Folder]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._complete: list[tuple[_Folder, int]] = []
        self._local = threading.local()

    def take_complete(self) -> list[tuple[_Folder, int]]:
        """Shards all of whose pieces are written, handed out once."""
        with self._lock:
            complete, self._complete = self._complete, []
        return complete

    def do_piece(self, number: int, piece: Piece, folders: Sequence[_Folder]) -> Sequence[Advance]:
        """Make one piece and write it into each folder that lacks it."""
        if not hasattr(self._local, "stream"):
            self._local.stream = mx.new_stream(mx.default_device())
        with mx.stream(self._local.stream):
            loaded = LoadedPiece(self._source, folders[0].target.plan.steps[piece.step], piece)
            made: dict[tuple[str, Format], tuple[Array, ...]] = {}
            advances = []
            for folder in folders:
                step = folder.target.plan.steps[piece.step]
                key = (step.how, step.format)
                if key not in made:
                    made[key] = loaded.make(step)
                advances.append(self._write(folder, number, step, piece, made[key]))
        return advances

    def _write(self, folder: _Folder, number: int, step: Step, piece: Piece, arrays: tuple[Array, ...]) -> Advance:
        checksums, nbytes, written = [], 0, []
        for output, array in zip(step.outputs, arrays, strict=True):
            view = np.ascontiguousarray(array).data.cast("B")
            offset, length = step.output_range(output, piece)
            assert len(view) == length, (step.parameter.path, len(view), length)
            checksums.append(zlib.crc32(view))
            if output.shard in folder.waiting:
                _pwrite(folder.open(output.shard), view, offset, folder.target.folder)
                written.append(output.shard)
                nbytes += length
        with self._lock:
            folder.journal.piece_done(number, tuple(checksums), None)
            for index in written:
                folder.waiting[index] -= 1
                if not folder.waiting[index]:
                    self._complete.append((folder, index))
        return Advance(nbytes, step.parameter.path)

    def finish_shard(self, folder: _Folder, index: int) -> Sequence[Advance]:
        """Sync and hash a shard whose bytes are all written, and give it its name."""
        folder.sync(index)
        sha256 = file_sha256(folder.partial(index))
        file = folder.target.plan.shards[index].file
        with self._lock:
            folder.journal.shard_done(file, sha256)
        folder.partial(index).rename(folder.target.folder / file)
        sync_folder(folder.target.folder)
        return ()


def _pwrite(descriptor: int, view: memoryview, offset: int, folder: Path) -> None:
    try:
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count
    except OSError as error:
        raise OutputError(
            "cannot be written", where=folder, found=error.strerror, remedy="free some space, then run it again"
        ) from error
