"""A source and plans -> finished folders: shards, documents, record and card, each made once and found again."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hubtool import units
from hubtool.convert import ERROR_ROWS, Target, check_folder, convert
from hubtool.documents import write_documents_of
from hubtool.errors import UsageError
from hubtool.folder import source_metadata, write_documents
from hubtool.journal import STATE_DIR
from hubtool.plan import Plan, peak_nbytes
from hubtool.record import FileRecord, Record, read_record
from hubtool.recording import hashing, make_record
from hubtool.source import CARD_FILE, Source


class Watch(Protocol):
    """Who is told how a run goes; the terminal, a log, or nobody."""

    def stage(self, name: str, total_nbytes: int = 0) -> AbstractContextManager[Callable[[int, str], None]]:
        """A stage for the time of a `with`; it gives a function that takes bytes done and a label."""

    def say(self, text: str) -> None:
        """A fact that the person should read."""


@dataclass(frozen=True)
class Converted:
    """A finished folder."""

    folder: Path
    record: Record
    fresh: bool


@dataclass(frozen=True, slots=True)
class Effort:
    """How a conversion works.

    Attributes:
        jobs: Pieces that are made at once, at most.
        memory_limit: Most memory of the process in bytes: fewer jobs are taken, or none.
        error_rows: Every how many-th row's error is measured: 1 for all, 0 for none.
    """

    jobs: int = 2
    memory_limit: int | None = None
    error_rows: int = ERROR_ROWS

    def affordable_jobs(self, plans: Sequence[Plan]) -> int:
        """As many jobs as the memory limit allows.

        Raises:
            UsageError: It does not allow one.
        """
        if self.memory_limit is None:
            return self.jobs
        for jobs in range(self.jobs, 0, -1):
            if peak_nbytes(plans, jobs) <= self.memory_limit:
                return jobs
        raise UsageError(
            "too little memory for one job",
            where="--memory-limit",
            found=units.format_nbytes(self.memory_limit),
            expected=f"at least {units.format_nbytes(peak_nbytes(plans, 1))}",
            remedy="raise it, or convert fewer recipes at once",
        )


def convert_source(source: Source, plan: Plan, folder: Path, jobs: int, watch: Watch) -> Converted:
    """Make the finished folder of one plan: see `convert_sources`."""
    return convert_sources(source, [Target(plan, folder)], Effort(jobs), watch)[0]


def convert_sources(source: Source, targets: Sequence[Target], effort: Effort, watch: Watch) -> list[Converted]:
    """Make the finished folder of each target in one pass over the source, or find that it is there.

    Raises:
        HubtoolError: Any stage failed; what was done is kept, and the same call goes on.
    """
    source_metadata(source)  # one without a license is refused before it is converted
    there = {target.folder: finished(source, target.plan, target.folder) for target in targets}
    missing = [target for target in targets if there[target.folder] is None]
    if missing:
        files = _convert_missing(source, missing, effort, watch)
        with watch.stage("measure"):
            there |= {target.folder: finish_folder(source, target, files, effort.error_rows) for target in missing}
    converted = []
    for target in targets:
        record = there[target.folder]
        assert record is not None, target.folder
        fresh = target in missing
        if not fresh:
            watch.say(f"{target.folder} is finished: nothing to convert")
        converted.append(Converted(target.folder, record, fresh))
    return converted


def _convert_missing(source: Source, targets: Sequence[Target], effort: Effort, watch: Watch) -> tuple[FileRecord, ...]:
    """Write the shards of all targets, and meanwhile hash the source; the source's files."""
    jobs = effort.affordable_jobs([target.plan for target in targets])
    state = targets[0].folder / STATE_DIR
    total = sum(target.plan.nbytes for target in targets)
    with hashing(source, state) as begin, watch.stage("convert", total) as advance:
        files: Future[tuple[FileRecord, ...]] | None = None
        with closing(convert(source, targets, jobs, effort.error_rows)) as steps:
            for step in steps:
                files = files or begin()
                advance(step.nbytes, step.label)
        return (files or begin()).result()


def finish_folder(source: Source, target: Target, source_files: tuple[FileRecord, ...], error_rows: int) -> Record:
    """Add to the shards of a target all other files, the record last; what is then recorded.

    Raises:
        OutputError: What was measured is not what was planned.
    """
    plan, folder = target.plan, target.folder
    published = {*write_documents(source, plan, folder), *(shard.file for shard in plan.shards)}
    record = make_record(source, target, source_files, published, error_rows)
    write_documents_of(folder, record)
    return record


def finished(source: Source, plan: Plan, folder: Path) -> Record | None:
    """The record of a folder if it was made by this plan and every file is there at its size, else None.

    Raises:
        OutputError: The folder belongs to another plan or source.
    """
    check_folder(Target(plan, folder), source)
    record = read_record(folder) if folder.is_dir() else None
    if record is None or record.plan.digest != plan.digest:
        return None
    sizes = {file.name: file.nbytes for file in record.files}
    there = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
    return record if there and (folder / CARD_FILE).is_file() else None
