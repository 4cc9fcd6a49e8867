"""The folders of jobs, opened once: checked, held by this process, and what is left to do in them decided."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hubtool import units
from hubtool.card.provenance import make_statements
from hubtool.checkpoint.source import Source
from hubtool.convert.device import require_backend
from hubtool.convert.job import Effort, Job
from hubtool.convert.journal import Journal, Progress
from hubtool.convert.origin import begun_error_rows, check_folder
from hubtool.errors import OutputError
from hubtool.files.lock import locked
from hubtool.files.read import file_sha256
from hubtool.plan.plan import Plan
from hubtool.progress import Watch
from hubtool.record import CARD_FILE, FileRecord, Record, read_record, require_record


@dataclass(frozen=True)
class OpenFolders:
    """Folders that this process holds.

    Attributes:
        source: The checkpoint.
        jobs: All of them.
        finished: The records of those folders that are finished.
        effort: How to work on the others: jobs within the memory limit, and the sample of rows that all of them have.
    """

    source: Source
    jobs: tuple[Job, ...]
    finished: Mapping[Path, Record]
    effort: Effort

    @property
    def missing(self) -> tuple[Job, ...]:
        """The jobs whose folders are not finished."""
        return tuple(job for job in self.jobs if job.folder not in self.finished)


@contextmanager
def open_folders(
    source: Source, jobs: Sequence[Job], effort: Effort, watch: Watch, *, streamed: bool = False
) -> Iterator[OpenFolders]:
    """The folders of all jobs for the time of a `with`: whoever works in them does it here, and checks nothing again.

    Args:
        source: The checkpoint.
        jobs: Plans of one model over this source, and a folder for each.
        effort: How the conversion is to work.
        watch: Told where it works otherwise.
        streamed: Whether the shards are sent while they are made, and need no room on the disk.

    Raises:
        OutputError: A folder is in use, or was begun with something else; a disk has too little room.
        UsageError: The memory limit allows no job.
        BackendError: MLX has no backend.
    """
    require_backend()
    found = {job.folder: finished(source, job.plan, job.folder) for job in jobs}
    missing = tuple(job for job in jobs if found[job.folder] is None)
    if missing:
        affordable = effort.affordable_jobs([job.plan for job in missing])
        if affordable < effort.jobs:
            watch.say(f"--memory-limit leaves room for {affordable} of {effort.jobs} jobs")
        if not streamed:
            check_disks(source, missing)
        effort = replace(effort, jobs=affordable)
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(locked(job.folder))
        for job in missing:
            check_folder(job, source)  # another process may have begun it until it was held
        error_rows = begun_error_rows(missing, effort.error_rows)
        if error_rows != effort.error_rows:
            watch.say(f"the error is measured as the run did that began here: {_spoken_sample(error_rows)}")
        # Read under the lock: what another process has added since is kept.
        records = {job.folder: require_record(job.folder) for job in jobs if job not in missing}
        yield OpenFolders(source, tuple(jobs), records, replace(effort, error_rows=error_rows))


def _spoken_sample(error_rows: int) -> str:
    return {0: "not at all", 1: "on every row"}.get(error_rows, f"on one row in {error_rows}")


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


def check_disks(source: Source, work: Sequence[Job]) -> None:
    """Raise OutputError if a disk has too little room for what is left to write on it.

    What is fetched of the source is counted where the first job lies.
    """
    needed: dict[int, int] = {}
    for number, job in enumerate(work):
        folder = job.folder
        shards = [*folder.glob("*.safetensors"), *Journal(folder).partial.glob("*.safetensors")]
        there = sum(path.stat().st_blocks * 512 for path in shards) - (0 if number else source.disk_nbytes)
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        device = place.stat().st_dev
        needed[device] = needed.get(device, 0) + job.plan.disk_nbytes - there
        free = shutil.disk_usage(place).free
        if needed[device] > free:
            raise OutputError(
                "the disk is too full",
                where=folder,
                found=f"{units.format_nbytes(free)} free",
                expected=units.format_nbytes(needed[device]),
                remedy="free some space, or give an --out on another disk",
            )
