"""Several folders measured in one run, and the evidence of it in each of their records."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hubtool.card.documents import add_evidence
from hubtool.errors import VerificationError
from hubtool.guard.machine import this_machine, versions
from hubtool.progress import Watch
from hubtool.record import Evidence, Record, read_record
from hubtool.validate.child import LIBRARIES
from hubtool.validate.finding import without_paths
from hubtool.validate.ladder import Request, validate
from hubtool.validate.quality import Measure, Measured, found, measure_quality
from hubtool.validate.stamps import describe_touched, find_touched, is_unchanged

Add = Callable[[Path, Sequence[Evidence]], None]
"""Appends evidence to the record of a folder, and makes anew what is made from it."""


def wait_and_add(folder: Path, evidence: Sequence[Evidence]) -> None:
    """Append evidence to the record of a folder once no other process holds it: hours of work may stand behind it."""
    add_evidence(folder, evidence, wait=True)


def measure_folders(measure: Measure, watch: Watch, add: Add = wait_and_add) -> tuple[Measured, Sequence[Evidence]]:
    """What a run found, and the evidence that was added to the records of those folders that have one here.

    The files are held against their record first, where that was not done before, as for every rung.

    Args:
        measure: What is to be measured.
        watch: Told how it goes.
        add: How evidence is added to a folder.

    Raises:
        VerificationError: A folder's files are not those of its record.
        UsageError, SourceError, HubError: See `measure_quality`.
    """
    records = {folder: record for name in measure.folders if (record := read_record(folder := Path(name)))}
    for folder, record in records.items():
        _require_intact(folder, record, measure, watch, add)
    started, begun = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    measured = measure_quality(measure, watch)
    evidence = []
    for number, folder in enumerate(map(Path, measure.folders)):
        if (record := records.get(folder)) is None:
            continue
        if touched := find_touched(folder, record):
            watch.say(f"{folder}: not recorded: {describe_touched(touched)} while it ran")
            continue
        finding = found(measured, number)
        each = Evidence(
            check="quality",
            outcome=finding.outcome,
            detail=without_paths(finding.detail, str(folder)),
            figures=finding.figures,
            machine=this_machine(),
            versions=versions(LIBRARIES),
            command=measure.command,
            started=started,
            seconds=round(time.monotonic() - begun, 3),
            subject=record.subject,
            quality=finding.quality,
        )
        add(folder, [each])
        evidence.append(each)
    return measured, evidence


def _require_intact(folder: Path, record: Record, measure: Measure, watch: Watch, add: Add) -> None:
    """Hold a folder's files against its record, unless that was done and none was touched since."""
    if is_unchanged(folder, record):
        return
    for each in validate(folder, record, Request(measure.limits, frozenset(["integrity"])), watch):
        add(folder, [each])
        if each.outcome != "passed":
            raise VerificationError(
                "the files are not those of the record",
                where=folder,
                found=each.detail,
                remedy="convert again, or measure a folder whose files are whole",
            )
