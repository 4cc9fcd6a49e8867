"""A finished folder -> the Hub: checked, uploaded in one commit, verified, tagged."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi

from hubtool.card import check_publishable, current_evidence
from hubtool.card.documents import PLAIN, Wording, address
from hubtool.checkpoint.metadata import source_metadata
from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import CONFIG_FILE, Source
from hubtool.checkpoint.usable import carried_files, read_carried, require_usable, tidy_config
from hubtool.convert.convert import Converted, convert_sources
from hubtool.convert.job import Effort, Job
from hubtool.convert.opened import finished
from hubtool.errors import VerificationError
from hubtool.hub.destination import Destination
from hubtool.hub.finish import commit_documents as hub_commit_documents
from hubtool.hub.finish import finish
from hubtool.hub.patience import Patience, PatientHub
from hubtool.hub.upload import Outlook, Published, Upload, published_names
from hubtool.hub.upload import foresee as hub_foresee
from hubtool.hub.verify import Verification, verify
from hubtool.plan.plan import Plan, plan_source
from hubtool.progress import Named, Watch
from hubtool.record import CARD_FILE, Evidence, Record, Rung, SiblingRecord, require_record
from hubtool.release.collection import _collect
from hubtool.release.file import Planned, ReleaseFile
from hubtool.release.privacy import require_private, require_private_texts
from hubtool.release.prose import adopt_prose, keep_base

PATIENCE = Patience(unreadable=(0.5, 5, 15, 60, 180, 300))


@dataclass(frozen=True)
class Manner:
    """How something is published: the words of its card, and the patience with the Hub."""

    wording: Wording = PLAIN
    patience: Patience = PATIENCE


USUAL = Manner()


@dataclass(frozen=True)
class Release:
    """A finished folder, published and verified."""

    converted: Converted
    published: Published
    verification: Verification
    tag: str | None = None


def publish_folder(
    api: huggingface_hub.HfApi,
    converted: Converted,
    to: Destination,
    watch: Watch,
    manner: Manner = USUAL,
) -> Release:
    """Check, upload a finished folder in one commit, verify what the Hub then has, and tag it.

    Raises:
        OutputError: The folder is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
        VerificationError: The Hub has other bytes than the record says.
    """
    hub = PatientHub(api, manner.patience, watch.say)
    converted = addressed(converted, to.repo, manner.wording)
    folder, record = converted.folder, converted.record
    with watch.stage("check"):
        if adopt_prose(hub, (folder, record), to, write=True, wording=manner.wording):
            watch.say(f"{folder / CARD_FILE}: took in what was written on the page of {to.repo}")
        upload = Upload(hub, folder, record, to)
        require_private_folder(folder, record, to.repo)
        upload.look()
    published = upload.run(watch)
    keep_base(folder, api.endpoint, to.key, (folder / CARD_FILE).read_bytes())
    if not published.changed:
        watch.say(f"{to.repo} has every file already: nothing to upload")
    if published.foreign:
        watch.say(f"{to.repo} has files that are not hubtool's; they stay: {', '.join(published.foreign)}")
    with watch.stage("verify"):
        verification = verify(hub, to.repo, revision=published.commit, folder=folder)
        require_verified(verification)
        tag = finish(hub, to, record, published)
    return Release(Converted(folder, record, converted.fresh), published, verification, tag)


def addressed(converted: Converted, repo: str, wording: Wording = PLAIN) -> Converted:
    """A finished folder whose documents say as what it is published; nothing is written if they do.

    Raises:
        OutputError: The prose of the card cannot be told from the rest; the disk is full.
    """
    if converted.record.repo == repo and wording == PLAIN:
        return converted
    return replace(converted, record=address(converted.folder, converted.record, repo, wording=wording))


def check_before(source: Source, repo: str, watch: Watch) -> None:
    """Notice before hours of work what would be refused after it.

    Raises:
        UsageError: The Hub allows no repo of this name.
        SourceError: The Hub would refuse the metadata, the source tells no license, or nobody could load the model.
        OutputError: Private information in a file of the source that would be published.
    """
    for remark in require_usable(source):
        watch.say(remark)
    carried = {name: read_carried(source, name) for name in carried_files(source)}
    carried[CONFIG_FILE] = json.dumps(tidy_config(source, source.config), indent=2, ensure_ascii=False).encode()
    require_private_texts(f"source {source.name}", carried, [name for name in (repo, source.identity.repo) if name])
    for warning in check_publishable(source_metadata(source), source.identity.repo, repo):
        watch.say(f"{repo}: the Hub will warn: {warning}")


def look(api: huggingface_hub.HfApi, source: Source, job: Job, to: Destination, watch: Watch) -> tuple[bool, Outlook]:
    """Whether a folder is finished, and what publishing it would do; neither folder nor Hub are changed.

    Raises:
        OutputError: The folder is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
    """
    record = finished(source, job.plan, job.folder)
    if record is None:
        return False, foresee(api, job.plan, job.folder, to, watch)
    return True, look_at_folder(api, Converted(job.folder, record, fresh=False), to, watch)


def look_at_folder(
    api: huggingface_hub.HfApi, converted: Converted, to: Destination, watch: Watch, manner: Manner = USUAL
) -> Outlook:
    """What `publish_folder` would do, after all its checks; neither folder nor Hub are changed.

    Raises:
        OutputError: The folder is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
    """
    hub = PatientHub(api, manner.patience, watch.say)
    adopt_prose(hub, (converted.folder, converted.record), to, write=False, wording=manner.wording)
    require_private_folder(converted.folder, converted.record, to.repo)
    return Upload(hub, converted.folder, converted.record, to).look()


def foresee(api: huggingface_hub.HfApi, plan: Plan, folder: Path, to: Destination, watch: Watch) -> Outlook:
    """What publishing would do that has not converted yet: its weights only, since the rest is not made.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    sizes = {shard.file: shard.nbytes for shard in plan.shards}
    return hub_foresee(PatientHub(api, PATIENCE, watch.say), folder, to, sizes)


def require_private_folder(folder: Path, record: Record, repo: str, elsewhere: Collection[str] = ()) -> None:
    """Raise OutputError if a file of the folder tells of the publisher's machine; what lies elsewhere is not read."""
    public = [name for name in (repo, record.source.repo) if name]
    names = [name for name in published_names(record, folder) if name not in elsewhere]
    require_private(folder, names, public)


@dataclass(frozen=True)
class Change:
    """A commit of small files.

    Attributes:
        repo: `org/name`.
        parent: The commit that it follows.
        message: Its title.
    """

    repo: str
    parent: str
    message: str


def commit_documents(
    api: huggingface_hub.HfApi | PatientHub, record: Record, documents: Mapping[str, bytes], change: Change
) -> str:
    """The commit that gives a repo these small files and nothing else, after they were looked through.

    Raises:
        OutputError: A file tells of the publisher's machine.
        HubError: The Hub refused, someone else has committed meanwhile, or it could not be reached.
    """
    require_private_texts(change.repo, documents, [name for name in (change.repo, record.source.repo) if name])
    return hub_commit_documents(api, change.repo, documents, change.parent, change.message)


def require_verified(verification: Verification) -> None:
    """Raise VerificationError if anything on the Hub is not what it should be."""
    if verification.problems:
        raise VerificationError(
            "the Hub's files are not those of the record",
            where=f"{verification.repo} at {verification.commit}",
            found="; ".join(verification.problems),
            remedy="upload again; if it stays so, do not release this repo",
        )


Validate = Callable[[Path, Sequence[Rung]], Sequence[Evidence]]
"""Climbs rungs for a folder, writes the evidence into its record, and gives it."""


def publish_release(
    api: HfApi, release: ReleaseFile, effort: Effort, watch: Watch, validate: Validate | None = None
) -> list[Release]:
    """Convert all variants in one pass over the source, then publish each; what is done already is not done again.

    Args:
        api: The Hub.
        release: What is wanted.
        effort: How the conversion works.
        watch: Told how it goes.
        validate: Climbs the rungs that the release asks for.

    Raises:
        VerificationError: A rung that has to be passed was not.
        HubtoolError: Any stage failed; what was done is kept, and the same call goes on.
    """
    converted = _convert(api, release, effort, watch)
    for each in converted:
        missing = _missing_rungs(each.folder, release.validate)
        if missing and validate is not None:
            _require_passed(each.folder, validate(each.folder, missing))
    variants = [_sibling(planned, each.record) for planned, each in zip(release.variants, converted, strict=True)]
    published = []
    for planned, each in zip(release.variants, converted, strict=True):
        repo = planned.destination.repo
        others = [variant for variant in variants if variant.repo != repo]
        wording = Wording(release.templates, planned.notes)
        record = address(each.folder, require_record(each.folder), repo, others, wording)
        named = Named(watch, record.recipe.name)
        published.append(publish_folder(api, Converted(each.folder, record, each.fresh), planned.destination, named))
    _collect(PatientHub(api, PATIENCE, watch.say), release)
    return published


@dataclass(frozen=True)
class Foreseen:
    """What publishing a variant would do, and whether its folder is finished."""

    converted: bool
    to: Destination
    outlook: Outlook


def look_at_release(api: HfApi, release: ReleaseFile, watch: Watch) -> list[Foreseen]:
    """What `publish_release` would do, after all its checks; nothing is written.

    Raises:
        HubtoolError: A check failed.
    """
    with closing(_open_source(release)) as source:
        return [
            Foreseen(converted, to, outlook)
            for job, to in _jobs(source, release, watch)
            for converted, outlook in [look(api, source, job, to, watch)]
        ]


def _convert(api: HfApi, release: ReleaseFile, effort: Effort, watch: Watch) -> list[Converted]:
    with closing(_open_source(release)) as source:
        work = _jobs(source, release, watch)
        for job, to in work:
            foresee(api, job.plan, job.folder, to, watch)
        return convert_sources(source, [job for job, _ in work], effort, watch)


def _jobs(source: Source, release: ReleaseFile, watch: Watch) -> list[tuple[Job, Destination]]:
    for each in release.variants:
        check_before(source, each.destination.repo, watch)
    plans = plan_source(source, [each.recipe for each in release.variants])
    return [(Job(plan, each.folder), each.destination) for plan, each in zip(plans, release.variants, strict=True)]


def _open_source(release: ReleaseFile) -> Source:
    return open_source(
        release.source,
        release.base_model,
        out=release.out,
        disk_limit=release.disk_limit,
        keep_source=release.keep_source,
    )


def _sibling(planned: Planned, record: Record) -> SiblingRecord:
    return SiblingRecord(
        repo=planned.destination.repo,
        recipe=record.recipe.name,
        nbytes=record.measured.nbytes,
        effective_bits=record.measured.effective_bits,
    )


def _missing_rungs(folder: Path, wanted: Sequence[Rung]) -> Sequence[Rung]:
    """The rungs of which nobody measured that these very files pass them."""
    evidence = current_evidence(require_record(folder))
    passed = {each.check for each in evidence if (each.kind, each.outcome) == ("measured", "passed")}
    return [rung for rung in wanted if rung not in passed]


def _require_passed(folder: Path, evidence: Sequence[Evidence]) -> None:
    failed = [each for each in evidence if each.outcome != "passed"]
    if failed:
        raise VerificationError(
            "a validation that the release asks for was not passed",
            where=folder,
            found="; ".join(f"{each.check}: {each.outcome}, {each.detail}" for each in failed),
            remedy="see why, or take the rung out of `validate`",
        )
