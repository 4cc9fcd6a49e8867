"""The stages in their order: source, plan, convert, measure, record, card, upload, verify."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import huggingface_hub

from hubtool import hub, units
from hubtool.card import check_publishable
from hubtool.convert import ERROR_ROWS, Target, check_folder, convert
from hubtool.documents import address, write_documents_of
from hubtool.errors import UsageError, VerificationError
from hubtool.folder import source_metadata, write_documents
from hubtool.journal import STATE_DIR
from hubtool.plan import Plan, peak_nbytes
from hubtool.planning import inspect_source, open_source, plan_source
from hubtool.privacy import require_private
from hubtool.record import FileRecord, Record, read_record
from hubtool.recording import hash_source, make_record, plan_record
from hubtool.source import CARD_FILE, Source

PATIENCE = hub.Patience()

__all__ = [
    "Converted",
    "Effort",
    "Release",
    "Watch",
    "convert_source",
    "convert_sources",
    "finished",
    "inspect_source",
    "look_at_folder",
    "open_source",
    "plan_record",
    "plan_source",
    "publish_folder",
    "require_verified",
]


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


@dataclass(frozen=True)
class Release:
    """A finished folder, published and verified."""

    converted: Converted
    published: hub.Published
    verification: hub.Verification
    tag: str | None = None


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
    with ThreadPoolExecutor(1, "hubtool-source") as pool, watch.stage("convert", total) as advance:
        files: Future[tuple[FileRecord, ...]] | None = None
        with closing(convert(source, targets, jobs, effort.error_rows)) as steps:
            for step in steps:
                if files is None:
                    files = pool.submit(hash_source, source, state)
                advance(step.nbytes, step.label)
        return files.result() if files else hash_source(source, state)


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


def publish_folder(
    api: huggingface_hub.HfApi,
    converted: Converted,
    to: hub.Destination,
    watch: Watch,
    patience: hub.Patience = PATIENCE,
) -> Release:
    """Check, upload a finished folder in one commit, verify what the Hub then has, and tag it.

    Raises:
        OutputError: The folder is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
        VerificationError: The Hub has other bytes than the record says.
    """
    target, folder = hub.PatientHub(api, patience, watch.say), converted.folder
    record = converted.record
    if record.repo != to.repo:
        record = address(folder, record, to.repo)
    upload = hub.Upload(target, folder, record, to)
    with watch.stage("check"):
        require_private_folder(folder, record, to.repo)
        outlook = upload.look()
    with watch.stage("upload", outlook.nbytes) as advance:
        published = upload.run(lambda name, nbytes: advance(nbytes, name))
    if not published.changed:
        watch.say(f"{to.repo} has every file already: nothing to upload")
    if published.foreign:
        watch.say(f"{to.repo} has files that are not hubtool's; they stay: {', '.join(published.foreign)}")
    with watch.stage("verify"):
        verification = hub.verify(target, to.repo, revision=published.commit, folder=folder)
        require_verified(verification)
        tag = hub.finish(target, to, record, published)
    return Release(Converted(folder, record, converted.fresh), published, verification, tag)


def check_before(source: Source, repo: str, watch: Watch) -> None:
    """Notice before hours of work that the Hub would refuse the name or the card's metadata.

    Raises:
        UsageError: The Hub allows no repo of this name.
        SourceError: The Hub would refuse the metadata, or the source tells no license.
    """
    for warning in check_publishable(source_metadata(source), source.identity.repo, repo):
        watch.say(f"{repo}: the Hub will warn: {warning}")


def look_at_folder(api: huggingface_hub.HfApi, converted: Converted, to: hub.Destination, watch: Watch) -> hub.Outlook:
    """What `publish_folder` would do, after all its checks; neither folder nor Hub are changed.

    Raises:
        OutputError: The folder is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
    """
    target = hub.PatientHub(api, PATIENCE, watch.say)
    require_private_folder(converted.folder, converted.record, to.repo)
    return hub.Upload(target, converted.folder, converted.record, to).look()


def foresee(api: huggingface_hub.HfApi, plan: Plan, folder: Path, to: hub.Destination, watch: Watch) -> hub.Outlook:
    """What publishing would do that has not converted yet: its weights only, since the rest is not made.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    sizes = {shard.file: shard.nbytes for shard in plan.shards}
    return hub.foresee(hub.PatientHub(api, PATIENCE, watch.say), folder, to, sizes)


def require_private_folder(folder: Path, record: Record, repo: str, elsewhere: Collection[str] = ()) -> None:
    """Raise OutputError if a file of the folder tells of the publisher's machine; what lies elsewhere is not read."""
    public = [name for name in (repo, record.source.repo) if name]
    names = [name for name in hub.published_names(record, folder) if name not in elsewhere]
    require_private(folder, names, public)


def require_verified(verification: hub.Verification) -> None:
    """Raise VerificationError if anything on the Hub is not what it should be."""
    if verification.problems:
        raise VerificationError(
            "the Hub's files are not those of the record",
            where=f"{verification.repo} at {verification.commit}",
            found="; ".join(verification.problems),
            remedy="upload again; if it stays so, do not release this repo",
        )
