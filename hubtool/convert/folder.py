"""The sink that is a folder: pieces are written at their offsets, journaled, hashed and synced, and shards get names.

The thread that makes a piece also writes it, so that one thread's I/O overlaps with the other's arithmetic. One more
thread hashes what is complete from a shard's beginning on, and gives a whole shard its name; one more brings to the
disk what is written.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from hubtool import units
from hubtool.convert.engine import MadePiece, Makers
from hubtool.convert.job import Job
from hubtool.convert.journal import Journal, Progress
from hubtool.convert.opened import OpenFolders
from hubtool.convert.origin import begin_folder
from hubtool.convert.piece import Made
from hubtool.convert.shard import PartialShard
from hubtool.files.read import file_sha256
from hubtool.files.whole import sync_folder, writing
from hubtool.plan.plan import Piece, Shard, Step


@dataclass(frozen=True, slots=True)
class Written:
    """One step forward: bytes of output that were written, or `found` done, and of what."""

    nbytes: int
    label: str
    found: bool = False


def write_shards(
    opened: OpenFolders, say: Callable[[str], None], executor: Executor | None = None
) -> Generator[Written, None, None]:
    """Write the shards that the open folders lack, yielding every step forward; the caller's loop is the progress bar.

    A job that was begun goes on where it stopped. Afterwards `Journal(folder).load()` has every shard's SHA-256 and
    the sums of every piece's error. Peak memory is about `jobs` pieces: see `Plan.peak_nbytes`.

    Args:
        opened: The folders, and how hard to work.
        say: Told what of an earlier run's work is damaged, and made again.
        executor: Makes the pieces elsewhere: see `Makers`.

    Raises:
        OutputError: A disk is full or fails.
        SourceError: The source cannot be read, or holds a NaN.
    """
    effort = opened.effort
    if not opened.missing:
        return
    with ExitStack() as stack:
        folders = [stack.enter_context(_begun(job, opened)) for job in opened.missing]
        for folder in folders:
            yield from folder.resume(say)
        with Makers(opened.source, effort.jobs, effort.error_rows, executor) as makers:
            yield from _Pass(makers, folders).advance()
        for folder in folders:
            # Whatever else lies there by now, a file manager's notes say, nothing is left to go on with.
            shutil.rmtree(folder.journal.partial, ignore_errors=True)


@contextmanager
def _begun(job: Job, opened: OpenFolders) -> Iterator["_Folder"]:
    """The state of a job's folder, which is held."""
    begin_folder(job, opened.source, opened.effort.error_rows)
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
        """Mark a piece's bytes as written in the partial shards; returns their number."""
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


class _Pass:
    """One pass over the source for all folders."""

    def __init__(self, makers: Makers, folders: Sequence[_Folder]) -> None:
        self._makers = makers
        self._folders = folders
        self._plan = folders[0].job.plan
        self._hashing: dict[Future[bool], tuple[int, int]] = {}
        self._syncing: set[Future[None]] = set()

    def advance(self) -> Iterator[Written]:
        """Make every piece that is left."""
        self._makers.expect(self._wanted())
        making: set[Future[Sequence[Written]]] = set()
        with ThreadPoolExecutor(1, "hubtool-hash") as hasher, ThreadPoolExecutor(1, "hubtool-sync") as syncer:
            try:
                self._hash_on(hasher, syncer)
                for number, piece in enumerate(self._plan.pieces()):
                    lacking = [folder for folder in self._folders if number in folder.todo]
                    if lacking:
                        making.add(self._make(number, piece, lacking))
                    while len(making) >= self._makers.window:
                        yield from self._collect(making, hasher, syncer)
                while making or self._hashing or self._syncing:
                    if not making:
                        yield Written(0, "hashing what was written")
                    yield from self._collect(making, hasher, syncer)
            except BaseException:
                # Or a thread that hashes gigabytes would hold up the shutdown.
                for folder in self._folders:
                    folder.stop()
                raise
            finally:
                for pool in (hasher, syncer):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, number: int, piece: Piece, lacking: Sequence[_Folder]) -> Future[Sequence[Written]]:
        """Make one piece, and write it into each folder that lacks it."""

        def deliver(made: MadePiece) -> Sequence[Written]:
            written = zip(lacking, made.steps, strict=True)
            return [folder.write(number, piece, each, made.unverified) for folder, each in written]

        return self._makers.submit(piece, [folder.job.plan.steps[piece.step] for folder in lacking], deliver)

    def _collect(
        self, making: set[Future[Sequence[Written]]], hasher: ThreadPoolExecutor, syncer: ThreadPoolExecutor
    ) -> Iterator[Written]:
        """Wait until something is done; yield what was written, and go on with what that completed."""
        running: set[Future[Any]] = {*making, *self._hashing, *self._syncing}
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in [future for future in self._hashing if future in done]:
            folder, shard = self._hashing.pop(future)
            if future.result():
                del self._folders[folder].shards[shard]
                self._makers.finish((folder, shard))
        for synced in [future for future in self._syncing if future in done]:
            self._syncing.discard(synced)
            synced.result()
        for made in [future for future in making if future in done]:
            making.discard(made)
            yield from made.result()
        self._hash_on(hasher, syncer)

    def _hash_on(self, hasher: ThreadPoolExecutor, syncer: ThreadPoolExecutor) -> None:
        """Have the shards hashed and synced further of which enough is complete."""
        for number, folder in enumerate(self._folders):
            for index, shard in folder.shards.items():
                if end := shard.take_due():
                    self._hashing[hasher.submit(folder.hash_to, index, end)] = (number, index)
                    self._syncing.add(syncer.submit(shard.sync))

    def _wanted(self) -> Iterator[tuple[Piece, Step, Iterable[tuple[int, int]]]]:
        """The pieces that are left, and which unfinished shards of which folders wait for each."""
        for number, piece in enumerate(self._plan.pieces()):
            shards = {
                (index, output.shard)
                for index, folder in enumerate(self._folders)
                if number in folder.todo
                for output in folder.job.plan.steps[piece.step].outputs
                if output.shard in folder.shards
            }
            if shards:
                yield piece, self._plan.steps[piece.step], shards
