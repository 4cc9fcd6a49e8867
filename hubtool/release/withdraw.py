"""Withdraws a published repo: its card and record say that it should no longer be used, and nothing is deleted."""

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from huggingface_hub import HfApi

import hubtool
from hubtool.card import render_card
from hubtool.card.front import Entry, Front, read_front, write_front
from hubtool.card.merge import write_own
from hubtool.card.metadata import dump_metadata
from hubtool.card.provenance import make_statements
from hubtool.card.render import render_withdrawn
from hubtool.errors import HubError, UsageError
from hubtool.hub.destination import Destination, Place, check_rights
from hubtool.hub.patience import NOT_SHOWN, PatientHub, refused_status
from hubtool.hub.reader import read_hub_record
from hubtool.hub.rules import split_card
from hubtool.progress import Watch
from hubtool.record import CARD_FILE, RECORD_FILE, Record, WithdrawnRecord, decode_record, encode_record
from hubtool.release.commit import Change, commit_documents
from hubtool.release.folder import PATIENCE
from hubtool.release.prose import Base, Page, find_page, read_page


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
    if withdrawn.new_version is not None:
        _require_repo(hub, withdrawn.new_version, repo)
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
    names = hub.attempt(repo, lambda: api.list_repo_files(repo, revision=head))
    page = find_page(hub, repo, head, names)
    documents = {
        CARD_FILE: withdrawn_card(page, marked).encode(),
        **make_statements(marked),
        RECORD_FILE: encode_record(marked),
    }
    assert decode_record(documents[RECORD_FILE]) == marked
    message = f"Withdraw with hubtool {hubtool.__version__}"
    commit = head if dry_run else commit_documents(hub, marked, documents, Change(repo, head, message))
    return Withdrawal(commit, tuple(documents))


def _require_repo(hub: PatientHub, new_version: str, repo: str) -> None:
    """Raise HubError if what is to take a repo's place is not there, or UsageError if it is the repo itself."""
    if new_version == repo:
        raise UsageError("a repo cannot take its own place", where="--new-version", found=new_version)
    try:
        hub.attempt(new_version, lambda: hub.api.model_info(new_version))
    except HubError as error:
        if refused_status(error) in NOT_SHOWN:
            raise HubError(
                "no such repo, or the token may not see it",
                where="--new-version",
                found=new_version,
                expected="a repo that readers can go to",
                remedy="check the name, or publish it first",
            ) from error
        raise


def withdrawn_card(page: Page, marked: Record) -> str:
    """The card of a repo that says that it should no longer be used, and keeps all that people wrote there.

    Where hubtool did not write the card, or another version of it with other templates, only that is added.
    """
    fresh = render_card(marked, assets=page.assets)
    own = read_page(page, fresh, Base())
    return write_own(fresh, own) if page.card and not own.lost else _add_mark(page.card, marked)


def _add_mark(card: str, marked: Record) -> str:
    """A card of anybody's with the mark before its text, and the new version in its front matter."""
    assert marked.withdrawn is not None
    front, body = read_front(card, CARD_FILE), split_card(card)[1]
    new_version = marked.withdrawn.new_version
    entries = dict(front.entries)
    if new_version is not None:
        entries["new_version"] = Entry(new_version, dump_metadata({"new_version": new_version}))
    yaml = write_front(Front(), entries, {}, front.comments)
    head = f"---\n{yaml}---\n" if yaml else ""
    return f"{head}\n{render_withdrawn(marked)}\n\n{body.lstrip()}"
