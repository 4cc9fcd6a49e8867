"""A finished folder -> the Hub: the one way there. Checked, uploaded in one commit, verified, tagged.

The destination is looked at freshly once, here: what is on its page is taken in, all checks are made against it, and
the commit is guarded by it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import HfApi

from hubtool.card.documents import PLAIN, Wording, address
from hubtool.convert.convert import Converted
from hubtool.errors import VerificationError
from hubtool.files.lock import locked
from hubtool.hub.destination import Destination, Place
from hubtool.hub.finish import finish
from hubtool.hub.patience import Patience, PatientHub
from hubtool.hub.standing import Standing
from hubtool.hub.state import Blob
from hubtool.hub.upload import Upload, Uploaded, UploadPlan, published_names
from hubtool.hub.verify import Verification, verify_commit
from hubtool.plan.plan import Plan
from hubtool.progress import Watch
from hubtool.record import CARD_FILE, Record, SiblingRecord
from hubtool.release.privacy import require_private
from hubtool.release.prose import adopt_prose, keep_base
from hubtool.release.stream import require_planned_headers

PATIENCE = Patience(unreadable=(0.5, 5, 15, 60, 180, 300))


@dataclass(frozen=True)
class Manner:
    """How something is published: the words of its card, and the patience with the Hub."""

    wording: Wording = PLAIN
    patience: Patience = PATIENCE


USUAL = Manner()


@dataclass(frozen=True)
class Published:
    """A variant, published and verified."""

    converted: Converted
    uploaded: Uploaded
    verification: Verification
    tag: str | None = None


@dataclass
class Ready:
    """A folder to publish.

    Attributes:
        converted: The folder, which is held; only what is in `sent` may be missing.
        to: Where to.
        found: The destination as it stood when the rights to it were checked, if they were.
        sent: Shards that the Hub has already, by file name.
        plan: What the shards were sent by.
        wording: How the card is worded.
    """

    converted: Converted
    to: Destination
    found: Place | None = None
    sent: Mapping[str, Blob] = field(default_factory=dict)
    plan: Plan | None = None
    wording: Wording = PLAIN


def publish_folder(
    api: HfApi, converted: Converted, to: Destination, watch: Watch, manner: Manner = USUAL
) -> Published:
    """Check, upload a finished folder in one commit, verify what the Hub then has, and tag it.

    Raises:
        OutputError: The folder is in use, is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
        VerificationError: The Hub has other bytes than the record says.
    """
    with locked(converted.folder):
        ready = Ready(addressed(converted, to.repo, None, manner.wording), to, wording=manner.wording)
        return publish_ready(PatientHub(api, manner.patience, watch.say), ready, watch)


def addressed(converted: Converted, repo: str, siblings: Sequence[SiblingRecord] | None, wording: Wording) -> Converted:
    """A finished folder whose documents say as what it is published, and beside what; nothing is written if they do.

    Raises:
        OutputError: The card cannot be kept as a person has changed it; the disk is full.
    """
    if siblings is None and wording == PLAIN and converted.record.repo == repo:
        return converted
    return replace(converted, record=address(converted.folder, converted.record, repo, siblings, wording))


def plan_folder(api: HfApi, converted: Converted, to: Destination, watch: Watch, manner: Manner = USUAL) -> UploadPlan:
    """What `publish_folder` would do, after all its checks; neither folder nor Hub are changed.

    Raises:
        OutputError: The folder is not as it was recorded, or must not be published.
        HubError: The Hub refused, or could not be reached.
    """
    return plan_ready(PatientHub(api, manner.patience, watch.say), Ready(converted, to, wording=manner.wording))


def publish_ready(hub: PatientHub, ready: Ready, watch: Watch) -> Published:
    """The one way in which a folder, which is held, gets to the Hub."""
    folder, record, to = ready.converted.folder, ready.converted.record, ready.to
    upload = Upload(hub, folder, record, to, ready.sent)
    with watch.stage("check"):
        place = upload.find(ready.found)
        standing = upload.require_standing(place)
        adopted = adopt_prose(hub, (folder, record), to, place, _worded(ready, standing))
        if adopted is not None:
            adopted.write(folder)
            watch.say(f"{folder / CARD_FILE}: took in what was written on the page of {to.repo}")
        require_private_folder(folder, record, to.repo, ready.sent)
        upload.plan(place)
    uploaded = upload.run(watch)
    keep_base(folder, hub.api.endpoint, to.key, (folder / CARD_FILE).read_bytes())
    if not uploaded.changed:
        watch.say(f"{to.repo} has every file already: nothing to upload")
    if uploaded.foreign:
        watch.say(f"{to.repo} has files that are not hubtool's; they stay: {', '.join(uploaded.foreign)}")
    with watch.stage("verify"):
        here = [name for name in published_names(record, folder) if name not in ready.sent]
        verification = verify_commit(hub, to.repo, uploaded.commit, folder=folder, names=here)
        require_verified(verification)
        if ready.plan is not None:
            require_planned_headers(hub.api, to.repo, uploaded.commit, ready.plan)
        tag = finish(hub, to, record, uploaded)
    return Published(ready.converted, uploaded, verification, tag)


def plan_ready(hub: PatientHub, ready: Ready) -> UploadPlan:
    """What `publish_ready` would do; neither folder nor Hub are changed."""
    folder, record, to = ready.converted.folder, ready.converted.record, ready.to
    upload = Upload(hub, folder, record, to)
    place = upload.find()
    standing = upload.require_standing(place)
    adopt_prose(hub, (folder, record), to, place, _worded(ready, standing))
    require_private_folder(folder, record, to.repo)
    return upload.plan(place)


def _worded(ready: Ready, standing: Standing) -> Wording:
    """How the card is worded: what was written on the page of another model is not taken over."""
    return ready.wording if standing.other is None else replace(ready.wording, keeps_page=False)


def require_private_folder(folder: Path, record: Record, repo: str, elsewhere: Collection[str] = ()) -> None:
    """Raise OutputError if a file of the folder tells of the publisher's machine; what lies elsewhere is not read."""
    public = [name for name in (repo, record.source.repo) if name]
    names = [name for name in published_names(record, folder) if name not in elsewhere]
    require_private(folder, names, public)


def require_verified(verification: Verification) -> None:
    """Raise VerificationError if anything on the Hub is not what it should be."""
    if verification.problems:
        raise VerificationError(
            "the Hub's files are not those of the record",
            where=f"{verification.repo} at {verification.commit}",
            found="; ".join(verification.problems),
            remedy="upload again; if it stays so, do not release this repo",
        )
