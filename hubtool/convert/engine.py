"""Carries out plans piece by piece: read, decode, quantize, write at the known offset, write it down.

Several plans over one source are carried out in one pass: a piece is read and decoded once, and what two plans store
alike is made once. Memory is a few pieces for each job, whatever the model's size.

`jobs` threads make pieces, each of them from reading to writing, so that one thread's I/O overlaps with the other's
arithmetic. One more thread hashes what is complete from a shard's beginning on, and gives a whole shard its name; one
more brings to the disk what is written.
"""

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from hubtool import units
from hubtool.checkpoint.source import Source
from hubtool.convert.device import require_backend
from hubtool.convert.folder import begin_folder, begun_error_rows, check_disks, check_folder
from hubtool.convert.job import ERROR_ROWS, Job
from hubtool.convert.journal import Journal, Progress
from hubtool.convert.piece import Made, PieceMaker
from hubtool.convert.shard import PartialShard
from hubtool.files.lock import locked
from hubtool.files.read import file_sha256
from hubtool.files.whole import sync_folder, writing
from hubtool.plan.plan import Piece, Shard, Step


@dataclass(frozen=True, slots=True)
class Written:
    """One step forward: bytes of output that were written, or `found` done, and of what."""

    nbytes: int
    label: str
    found: bool = False


def convert(
    source: Source,
    work: Sequence[Job],
    jobs: int = 2,
    error_rows: int = ERROR_ROWS,
    say: Callable[[str], None] = lambda text: None,
) -> Generator[Written, None, None]:
    """Carry out each job's plan, yielding every step forward; the caller's loop is the progress bar.

    A job that was begun goes on where it stopped. Afterwards `Journal(folder).load()` has every shard's SHA-256 and
    the sums of every piece's error. Peak memory is about `jobs` pieces: see `Plan.peak_nbytes`.

    Args:
        source: The checkpoint.
        work: Plans of one model over this source, and a folder for each.
        jobs: Pieces that are made at once.
        error_rows: Every how many-th row's error is measured: 1 for all, 0 for none. A folder that was begun goes on as
            it was: see `begun_error_rows`.
        say: Told what of an earlier run's work is damaged, and made again.

    Raises:
        OutputError: A folder is in use, was begun with something else, or its disk is full.
        SourceError: The source cannot be read, or holds a NaN.
    """
    require_backend()
    for job in work:
        check_folder(job, source)
    check_disks(source, work)
    with ExitStack() as stack:
        for job in work:
            stack.enter_context(locked(job.folder))
        error_rows = begun_error_rows(work, error_rows)
        folders = [stack.enter_context(_opened(job, source, error_rows)) for job in work]
        for folder in folders:
            yield from folder.resume(say)
        yield from _Run(source, folders, jobs, error_rows).advance()
        for folder in folders:
            # Whatever else lies there by now, a file manager's notes say, nothing is left to go on with.
            shutil.rmtree(folder.journal.partial, ignore_errors=True)


@contextmanager
def _opened(job: Job, source: Source, error_rows: int) -> Iterator["_Folder"]:
    """The state of a job's folder, which is held; what it was before that may have changed."""
    check_folder(job, source)
    begin_folder(job, source, error_rows)
    journal = Journal(job.folder)
    with writing(journal.partial):
        journal.partial.mkdir(exist_ok=True)
    folder = _Folder(job, journal)
    try:
        yield folder
    finally:
        folder.close()


class _Folder:
    """A job at work.

    Attributes:
        job: Its plan and folder.
        journal: Its state.
        todo: Numbers of the pieces that are left.
        shards: The shards that are not complete, by index.
    """

    def __init__(self, job: Job, journal: Journal) -> None:
        self.job = job
        self.journal = journal
        self.todo: set[int] = set()
        self.shards: dict[int, PartialShard] = {}

    def resume(self, say: Callable[[str], None]) -> Iterator[Written]:
        """Find out what is done, and believe of an unfinished shard only what its bytes say too; `say` what is not."""
        plan, progress = self.job.plan, self.journal.load()
        for index, shard in enumerate(plan.shards):
            if self._is_finished(shard, progress, say):
                yield Written(shard.data_nbytes, shard.file, found=True)
            else:
                self.shards[index] = PartialShard(self.journal.partial / shard.file, shard.header, shard.nbytes)
        damaged: Counter[str] = Counter()
        for number, piece in enumerate(plan.pieces()):
            step = plan.steps[piece.step]
            checksums = progress.pieces.get(number, ())
            known = len(checksums) == len(step.outputs)
            if known and self._holds(step, piece, checksums):
                yield Written(self._note(step, piece), step.parameter.path, found=True)
            elif any(output.shard in self.shards for output in step.outputs):
                self.todo.add(number)
                unfinished = [self.shards[output.shard] for output in step.outputs if output.shard in self.shards]
                damaged.update({shard.path.name for shard in unfinished if known and shard.begun})
        for file, pieces in damaged.items():
            say(f"{self.job.folder}: {units.format_count(pieces)} pieces of {file} are damaged, and are made again")

    def _is_finished(self, shard: Shard, progress: Progress, say: Callable[[str], None]) -> bool:
        """Whether a shard has its name and its bytes; one that was touched is hashed again, a wrong one is removed."""
        final = self.job.folder / shard.file
        if progress.sha256(final) is not None:
            return True
        sha256, _ = progress.shards.get(shard.file, (None, 0))
        if not final.is_file():
            if sha256 is not None and not (self.journal.partial / shard.file).is_file():
                say(f"{final} is gone, and is made again")
            return False
        if sha256 is not None and final.stat().st_size == shard.nbytes and file_sha256(final) == sha256:
            self.journal.shard_done(final, sha256)
            return True
        found = "not what was written" if sha256 is not None else "unknown to the journal"
        say(f"{final} is {found}, and is made again")
        with writing(final):
            final.unlink()
        return False

    def _holds(self, step: Step, piece: Piece, checksums: Sequence[int]) -> bool:
        """Whether the partial shards have what was written down for a piece."""
        for output, checksum in zip(step.outputs, checksums, strict=True):
            shard = self.shards.get(output.shard)
            if shard and not (shard.begun and shard.checksum(*step.output_range(output, piece)) == checksum):
                return False
        return True

    def _note(self, step: Step, piece: Piece) -> int:
        """Take down that a piece's bytes are in the partial shards; how many those are."""
        done = 0
        for output in step.outputs:
            if output.shard in self.shards:
                offset, nbytes = step.output_range(output, piece)
                self.shards[output.shard].note(offset, nbytes)
                done += nbytes
        return done

    def write(self, number: int, piece: Piece, made: Made, unverified: frozenset[str]) -> Written:
        """Write what a piece came to, and write that down, and what of the source is `unverified` before that."""
        step = self.job.plan.steps[piece.step]
        for output, view in zip(step.outputs, made.views, strict=True):
            offset, nbytes = step.output_range(output, piece)
            assert len(view) == nbytes, (step.parameter.path, len(view), nbytes)
            if output.shard in self.shards:
                self.shards[output.shard].write(offset, view)
        self.journal.unverified(unverified)
        self.journal.piece_done(number, made.checksums, made.error)
        return Written(self._note(step, piece), step.parameter.path)

    def hash_to(self, index: int, end: int) -> bool:
        """Hash a shard on; if it is complete, sync it, write that down and give it its name. Whether it was."""
        shard = self.shards[index]
        sha256 = shard.hash_to(end)
        if sha256 is None:
            return False
        shard.sync()
        shard.close()
        self.journal.shard_done(shard.path, sha256)
        with writing(self.job.folder / shard.path.name):
            shard.path.rename(self.job.folder / shard.path.name)
            sync_folder(self.job.folder)
        return True

    def stop(self) -> None:
        """Let the threads that work on the folder end soon."""
        for shard in self.shards.values():
            shard.stop()

    def close(self) -> None:
        """Close whatever is open."""
        for shard in self.shards.values():
            shard.close()
        self.journal.close()


class _Run:
    """One pass over the source for all folders."""

    def __init__(self, source: Source, folders: Sequence[_Folder], jobs: int, error_rows: int) -> None:
        self._source = source
        self._folders = folders
        self._jobs = jobs
        self._error_rows = error_rows
        self._plan = folders[0].job.plan
        self._local = threading.local()
        self._needs = self._shards_by_source_file()
        self._hashing: dict[Future[bool], tuple[_Folder, int]] = {}
        self._syncing: set[Future[None]] = set()

    def advance(self) -> Iterator[Written]:
        """Make every piece that is left: at most two a job are begun and not collected at any time."""
        self._source.prepare(list(self._needs))
        making: set[Future[Sequence[Written]]] = set()
        with (
            ThreadPoolExecutor(self._jobs, "hubtool-make") as makers,
            ThreadPoolExecutor(1, "hubtool-hash") as hasher,
            ThreadPoolExecutor(1, "hubtool-sync") as syncer,
        ):
            try:
                self._hash_on(hasher, syncer)
                for number, piece in enumerate(self._plan.pieces()):
                    wanted = [folder for folder in self._folders if number in folder.todo]
                    if wanted:
                        making.add(makers.submit(self._make, number, piece, wanted))
                    while len(making) >= 2 * self._jobs:
                        yield from self._collect(making, hasher, syncer)
                while making or self._hashing or self._syncing:
                    if not making:
                        yield Written(0, "hashing what was written")
                    yield from self._collect(making, hasher, syncer)
            except BaseException:
                # Or a thread that waits for the source, or hashes gigabytes, would hold up the shutdown.
                self._source.stop()
                for folder in self._folders:
                    folder.stop()
                raise
            finally:
                for pool in (makers, hasher, syncer):
                    pool.shutdown(cancel_futures=True)

    def _make(self, number: int, piece: Piece, folders: Sequence[_Folder]) -> Sequence[Written]:
        """Make one piece, and write it into each folder that lacks it."""
        if not hasattr(self._local, "maker"):
            self._local.maker = PieceMaker(self._source, self._error_rows)
        made = self._local.maker.make(piece, [folder.job.plan.steps[piece.step] for folder in folders])
        unverified = self._source.unverified
        return [folder.write(number, piece, each, unverified) for folder, each in zip(folders, made, strict=True)]

    def _collect(
        self, making: set[Future[Sequence[Written]]], hasher: ThreadPoolExecutor, syncer: ThreadPoolExecutor
    ) -> Iterator[Written]:
        """Wait until something is done; yield what was written, and go on with what that completed."""
        running: set[Future[Any]] = {*making, *self._hashing, *self._syncing}
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in [future for future in self._hashing if future in done]:
            folder, index = self._hashing.pop(future)
            if future.result():
                self._finish(folder, index)
        for synced in [future for future in self._syncing if future in done]:
            self._syncing.discard(synced)
            synced.result()
        for made in [future for future in making if future in done]:
            making.discard(made)
            yield from made.result()
        self._hash_on(hasher, syncer)

    def _hash_on(self, hasher: ThreadPoolExecutor, syncer: ThreadPoolExecutor) -> None:
        """Have the shards hashed and synced further of which enough is complete."""
        for folder in self._folders:
            for index, shard in folder.shards.items():
                if end := shard.take_due():
                    self._hashing[hasher.submit(folder.hash_to, index, end)] = (folder, index)
                    self._syncing.add(syncer.submit(shard.sync))

    def _shards_by_source_file(self) -> dict[str, set[tuple[int, int]]]:
        """For each file of the source, in the order of need, which unfinished shards of which folders wait for it."""
        needs: dict[str, set[tuple[int, int]]] = {}
        for number, piece in enumerate(self._plan.pieces()):
            shards = {
                (index, output.shard)
                for index, folder in enumerate(self._folders)
                if number in folder.todo
                for output in folder.job.plan.steps[piece.step].outputs
                if output.shard in folder.shards
            }
            parts = self._plan.steps[piece.step].parameter.parts if shards else ()
            for part in parts[piece.first_part : piece.first_part + piece.parts]:
                for name in (part.weight, part.scale):
                    if name is not None:
                        needs.setdefault(self._source.tensors[name].file, set()).update(shards)
        return needs

    def _finish(self, folder: _Folder, index: int) -> None:
        """A shard has its name: let go of the files of the source that nothing waits for any more."""
        del folder.shards[index]
        finished = (self._folders.index(folder), index)
        for file in [file for file, shards in self._needs.items() if finished in shards]:
            self._needs[file].discard(finished)
            if not self._needs[file]:
                del self._needs[file]
                self._source.release(file)
