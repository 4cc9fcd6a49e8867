"""A finished folder -> the Hub: checked, uploaded in one commit, verified, tagged."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub

from hubtool import hub
from hubtool.card import check_publishable
from hubtool.conversion import Converted, Watch, finished
from hubtool.convert import Target
from hubtool.documents import address
from hubtool.errors import VerificationError
from hubtool.folder import source_metadata
from hubtool.merging import adopt_prose, keep_base
from hubtool.plan import Plan
from hubtool.privacy import require_private, require_private_texts
from hubtool.record import CARD_FILE, Record
from hubtool.source import Source

PATIENCE = hub.Patience()


@dataclass(frozen=True)
class Release:
    """A finished folder, published and verified."""

    converted: Converted
    published: hub.Published
    verification: hub.Verification
    tag: str | None = None


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
    target = hub.PatientHub(api, patience, watch.say)
    converted = addressed(converted, to.repo)
    folder, record = converted.folder, converted.record
    with watch.stage("check"):
        if adopt_prose(target, folder, record, to, write=True):
            watch.say(f"{folder / CARD_FILE}: took in what was written on the page of {to.repo}")
        upload = hub.Upload(target, folder, record, to)
        require_private_folder(folder, record, to.repo)
        outlook = upload.look()
    with watch.stage("upload", outlook.nbytes) as advance:
        published = upload.run(lambda name, nbytes: advance(nbytes, name))
    keep_base(folder, api.endpoint, to.key, (folder / CARD_FILE).read_bytes())
    if not published.changed:
        watch.say(f"{to.repo} has every file already: nothing to upload")
    if published.foreign:
        watch.say(f"{to.repo} has files that are not hubtool's; they stay: {', '.join(published.foreign)}")
    with watch.stage("verify"):
        verification = hub.verify(target, to.repo, revision=published.commit, folder=folder)
        require_verified(verification)
        tag = hub.finish(target, to, record, published)
    return Release(Converted(folder, record, converted.fresh), published, verification, tag)


def addressed(converted: Converted, repo: str) -> Converted:
    """A finished folder whose documents say as what it is published; nothing is written if they do.

    Raises:
        OutputError: The prose of the card cannot be told from the rest; the disk is full.
    """
    if converted.record.repo == repo:
        return converted
    return replace(converted, record=address(converted.folder, converted.record, repo))


def check_before(source: Source, repo: str, watch: Watch) -> None:
    """Notice before hours of work that the Hub would refuse the name or the card's metadata.

    Raises:
        UsageError: The Hub allows no repo of this name.
        SourceError: The Hub would refuse the metadata, or the source tells no license.
    """
    for warning in check_publishable(source_metadata(source), source.identity.repo, repo):
        watch.say(f"{repo}: the Hub will warn: {warning}")


def look(
    api: huggingface_hub.HfApi, source: Source, target: Target, to: hub.Destination, watch: Watch
) -> tuple[bool, hub.Outlook]:
    """Whether a folder is finished, and what publishing it would do; neither folder nor Hub are changed.

    Raises:
        OutputError: The folder is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
    """
    record = finished(source, target.plan, target.folder)
    if record is None:
        return False, foresee(api, target.plan, target.folder, to, watch)
    return True, look_at_folder(api, Converted(target.folder, record, fresh=False), to, watch)


def look_at_folder(api: huggingface_hub.HfApi, converted: Converted, to: hub.Destination, watch: Watch) -> hub.Outlook:
    """What `publish_folder` would do, after all its checks; neither folder nor Hub are changed.

    Raises:
        OutputError: The folder is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
    """
    target = hub.PatientHub(api, PATIENCE, watch.say)
    adopt_prose(target, converted.folder, converted.record, to, write=False)
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
    api: huggingface_hub.HfApi | hub.PatientHub, record: Record, documents: Mapping[str, bytes], change: Change
) -> str:
    """The commit that gives a repo these small files and nothing else, after they were looked through.

    Raises:
        OutputError: A file tells of the publisher's machine.
        HubError: The Hub refused, someone else has committed meanwhile, or it could not be reached.
    """
    require_private_texts(change.repo, documents, [name for name in (change.repo, record.source.repo) if name])
    return hub.commit_documents(api, change.repo, documents, change.parent, change.message)


def require_verified(verification: hub.Verification) -> None:
    """Raise VerificationError if anything on the Hub is not what it should be."""
    if verification.problems:
        raise VerificationError(
            "the Hub's files are not those of the record",
            where=f"{verification.repo} at {verification.commit}",
            found="; ".join(verification.problems),
            remedy="upload again; if it stays so, do not release this repo",
        )
