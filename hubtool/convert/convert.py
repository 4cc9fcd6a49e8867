"""A source and plans -> finished folders: shards, documents, record and card, each made once and found again."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hubtool.card import check_publishable
from hubtool.card.documents import write_documents_of
from hubtool.card.provenance import make_statements
from hubtool.checkpoint.identity import Identity
from hubtool.checkpoint.metadata import source_metadata
from hubtool.checkpoint.source import Source
from hubtool.convert.config import write_documents
from hubtool.convert.engine import convert
from hubtool.convert.folder import begun_error_rows, check_disks, check_folder
from hubtool.convert.job import Effort, Job
from hubtool.convert.journal import Journal, Progress
from hubtool.convert.record import hashing, make_record
from hubtool.files.lock import locked
from hubtool.files.read import file_sha256
from hubtool.files.whole import STATE_DIR
from hubtool.plan.plan import Plan
from hubtool.progress import Watch
from hubtool.record import CARD_FILE, FileRecord, Record, read_record


@dataclass(frozen=True)
class Converted:
    """A finished folder."""

    folder: Path
    record: Record
    fresh: bool


def convert_sources(source: Source, work: Sequence[Job], effort: Effort, watch: Watch) -> list[Converted]:
    """Make the finished folder of each job in one pass over the source, or find that it is there.

    Raises:
        HubtoolError: Any stage failed; what was done is kept, and the same call goes on.
    """
    # What the Hub would refuse is noticed before the work, not after it.
    check_publishable(source_metadata(source), source.identity.repo)
    there = {job.folder: finished(source, job.plan, job.folder) for job in work}
    missing = [job for job in work if there[job.folder] is None]
    if missing:
        there |= _make_missing(source, missing, effort, watch)
    converted = []
    for job in work:
        record = there[job.folder]
        assert record is not None, job.folder
        fresh = job in missing
        if not fresh:
            watch.say(f"{job.folder} is finished: nothing to convert")
            record = _identify(job.folder, record, source.identity, watch)
        converted.append(Converted(job.folder, record, fresh))
    return converted


def _make_missing(source: Source, work: Sequence[Job], effort: Effort, watch: Watch) -> Mapping[Path, Record]:
    """Convert and finish all work, whose folders are held from the first byte to the record."""
    jobs = effort.affordable_jobs([job.plan for job in work])
    if jobs < effort.jobs:
        watch.say(f"--memory-limit leaves room for {jobs} of {effort.jobs} jobs")
    check_disks(source, work)
    with ExitStack() as stack:
        for job in work:
            stack.enter_context(locked(job.folder))
        error_rows = begun_error_rows(work, effort.error_rows)
        if error_rows != effort.error_rows:
            watch.say(f"the error is measured as the run did that began here: {_spoken_sample(error_rows)}")
        files = _convert_missing(source, work, Effort(jobs, None, error_rows), watch)
        with watch.stage("measure"):
            return {job.folder: finish_folder(source, job, files, error_rows, watch) for job in work}


def _spoken_sample(error_rows: int) -> str:
    return {0: "not at all", 1: "on every row"}.get(error_rows, f"on one row in {error_rows}")


def _identify(folder: Path, record: Record, identity: Identity, watch: Watch) -> Record:
    """The record of a finished folder, which says by now also what its source is, where it did not."""
    known = record.source
    repo, commit = known.repo or identity.repo, known.commit or identity.commit
    if (repo, commit) == (known.repo, known.commit):
        return record
    source = msgspec.structs.replace(
        known,
        repo=repo,
        repo_known=known.repo_known or identity.repo_known,
        commit=commit,
        commit_known=known.commit_known or identity.commit_known,
    )
    identified = msgspec.structs.replace(record, source=source)
    with locked(folder):
        write_documents_of(folder, identified)
    watch.say(f"{folder}: record and card say now that the source is {repo}" + (f" at {commit}" if commit else ""))
    return identified


def _convert_missing(source: Source, work: Sequence[Job], effort: Effort, watch: Watch) -> tuple[FileRecord, ...]:
    """Write the shards of all work, and meanwhile hash the source; the source's files."""
    state = work[0].folder / STATE_DIR
    total = sum(job.plan.nbytes for job in work)
    with hashing(source, state) as begin, watch.stage("convert", total) as advance:
        files: Future[tuple[FileRecord, ...]] | None = None
        with closing(convert(source, work, effort.jobs, effort.error_rows, watch.say)) as steps:
            for step in steps:
                files = files or begin()
                advance(step.nbytes, step.label, found=step.found)
        return (files or begin()).result()


def finish_folder(
    source: Source, job: Job, source_files: tuple[FileRecord, ...], error_rows: int, watch: Watch
) -> Record:
    """Add to the shards of a job all other files, the record last; what is then recorded.

    Raises:
        OutputError: What was measured is not what was planned; the source has changed since the folder was begun.
    """
    check_folder(job, source)
    plan, folder = job.plan, job.folder
    published = {*write_documents(source, plan, folder), *(shard.file for shard in plan.shards)}
    record = _keep_evidence(read_record(folder), make_record(source, job, source_files, published, error_rows))
    if record.source.unverified:
        watch.say(
            f"{folder}: parts of {len(record.source.unverified)} source files were read straight from the Hub for want "
            "of room: of their hashes only the Hub's word is recorded; a larger --disk-limit lets them be checked"
        )
    write_documents_of(folder, record)
    return record


def _keep_evidence(earlier: Record | None, record: Record) -> Record:
    """The record with what an earlier one knew beside the conversion, if that was of the same files."""
    if earlier is None or earlier.files != record.files:
        return record
    return msgspec.structs.replace(
        record,
        versions=earlier.versions,
        evidence=earlier.evidence,
        repo=earlier.repo,
        siblings=earlier.siblings,
        withdrawn=earlier.withdrawn,
    )


def finished(source: Source, plan: Plan, folder: Path) -> Record | None:
    """The record of a folder if it was made by this plan and recipe and every file is there and unchanged, else None.

    Shards are believed by the time of their last change, which the journal knows; a run hashes those that it does not.

    Raises:
        OutputError: The folder belongs to another plan or source.
    """
    check_folder(Job(plan, folder), source)
    record = read_record(folder) if folder.is_dir() else None
    if record is None or record.plan.digest != plan.digest:
        return None
    if (record.recipe.name, record.recipe.sha256) != (plan.recipe.name, plan.recipe.sha256):
        return None
    progress = Journal(folder).load()
    unchanged = all(_is_unchanged(folder / file.name, file, progress) for file in record.files)
    derived = (CARD_FILE, *make_statements(record))
    return record if unchanged and all((folder / name).is_file() for name in derived) else None


def _is_unchanged(path: Path, file: FileRecord, progress: Progress) -> bool:
    if not path.is_file() or path.stat().st_size != file.nbytes:
        return False
    sha256 = progress.sha256(path) if path.suffix == ".safetensors" else file_sha256(path)
    return sha256 == file.sha256
