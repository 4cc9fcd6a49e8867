"""Withdraws a published repo: its card and record say that it should no longer be used, and nothing is deleted."""

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from huggingface_hub import HfApi

import hubtool
from hubtool.card.documents import documents_of
from hubtool.hub.destination import Destination, Place, check_rights
from hubtool.hub.patience import PatientHub
from hubtool.hub.reader import read_hub_file, read_hub_record
from hubtool.progress import Watch
from hubtool.record import ASSETS_PREFIX, CARD_FILE, RECORD_FILE, WithdrawnRecord, decode_record
from hubtool.release.publish import PATIENCE, Change, commit_documents


@dataclass(frozen=True)
class Withdrawal:
    """A repo that is marked: the commit that says so, and the files that it changed."""

    commit: str
    changed: tuple[str, ...]


def mark(reason: str, new_version: str | None) -> WithdrawnRecord:
    """The mark that a release should no longer be used from now on, and what takes its place."""
    return WithdrawnRecord(reason=reason, date=datetime.now(UTC).isoformat(timespec="seconds"), new_version=new_version)


def withdraw(api: HfApi, repo: str, withdrawn: WithdrawnRecord, watch: Watch, *, dry_run: bool = False) -> Withdrawal:
    """Let card and record of a repo say that it should no longer be used; nothing is deleted.

    Args:
        api: The Hub.
        repo: `org/name`.
        withdrawn: Why, and since when. If the repo says so already, it is left as it is.
        watch: Told of waits.
        dry_run: Whether only to make all checks; the commit is then the one that is there.

    Raises:
        VerificationError: It is not hubtool's.
        HubError: The Hub refused, or could not be reached.
    """
    hub = PatientHub(api, PATIENCE, watch.say)
    info = hub.attempt(repo, lambda: api.model_info(repo))
    head = info.sha
    assert head is not None
    record = read_hub_record(hub, repo, head)
    known = record.withdrawn
    if known is not None and (known.reason, known.new_version) == (withdrawn.reason, withdrawn.new_version):
        return Withdrawal(head, ())
    to = Destination(repo)
    check_rights(hub, to, Place(True, bool(info.private), to.revision, head, True, {}), 0)
    marked = msgspec.structs.replace(record, withdrawn=withdrawn)
    card = (read_hub_file(hub, repo, head, CARD_FILE) or b"").decode()
    names = hub.attempt(repo, lambda: api.list_repo_files(repo))
    pictures = [name for name in names if name.startswith(ASSETS_PREFIX)]
    documents = documents_of(marked, card, pictures)
    assert decode_record(documents[RECORD_FILE]) == marked
    message = f"Withdraw with hubtool {hubtool.__version__}"
    commit = head if dry_run else commit_documents(hub, marked, documents, Change(repo, head, message))
    return Withdrawal(commit, tuple(documents))
