"""A source and plans -> finished folders: shards, documents, record and card, each made once and found again."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hubtool.card import check_publishable
from hubtool.card.documents import write_documents_of
from hubtool.checkpoint.identity import Identity
from hubtool.checkpoint.metadata import source_metadata
from hubtool.checkpoint.source import Source
from hubtool.checkpoint.usable import require_usable
from hubtool.convert.config import write_documents
from hubtool.convert.folder import write_shards
from hubtool.convert.job import Effort, Job
from hubtool.convert.opened import OpenFolders, open_folders
from hubtool.convert.origin import check_folder
from hubtool.convert.record import hashing, make_record
from hubtool.files.whole import STATE_DIR
from hubtool.progress import Watch
from hubtool.record import FileRecord, Record, read_record


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
    for remark in require_usable(source):
        watch.say(remark)
    with open_folders(source, work, effort, watch) as opened:
        return convert_folders(opened, watch)


def convert_folders(opened: OpenFolders, watch: Watch, executor: Executor | None = None) -> list[Converted]:
    """The folders that are held, all of them finished: see `convert_sources`.

    Args:
        opened: The folders.
        watch: Told how it goes.
        executor: Makes the pieces elsewhere: see `Makers`.
    """
    made = _make_missing(opened, watch, executor) if opened.missing else {}
    converted = []
    for job in opened.jobs:
        folder = job.folder
        if folder in made:
            converted.append(Converted(folder, made[folder], fresh=True))
        else:
            watch.say(f"{folder} is finished: nothing to convert")
            record = identified(folder, opened.finished[folder], opened.source.identity, watch)
            converted.append(Converted(folder, record, fresh=False))
    return converted


def _make_missing(opened: OpenFolders, watch: Watch, executor: Executor | None) -> Mapping[Path, Record]:
    """Write the shards of all folders that lack them, and meanwhile hash the source; then finish them."""
    source, missing = opened.source, opened.missing
    total = sum(job.plan.nbytes for job in missing)
    with hashing(source, missing[0].folder / STATE_DIR) as begin, watch.stage("convert", total) as advance:
        files: Future[tuple[FileRecord, ...]] | None = None
        with closing(write_shards(opened, watch.say, executor)) as steps:
            for step in steps:
                files = files or begin()
                advance(step.nbytes, step.label, found=step.found)
        source_files = (files or begin()).result()
    with watch.stage("measure"):
        return {
            job.folder: finish_folder(source, job, source_files, opened.effort.error_rows, watch) for job in missing
        }


def identified(folder: Path, record: Record, identity: Identity, watch: Watch) -> Record:
    """The record of a finished folder, which is held, and says by now also what its source is, where it did not."""
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
    write_documents_of(folder, identified)
    watch.say(f"{folder}: record and card say now that the source is {repo}" + (f" at {commit}" if commit else ""))
    return identified


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
