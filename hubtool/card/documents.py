"""The documents of a finished folder: its record, and what is made of the record around what people wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hubtool.card.check import made_by
from hubtool.card.consent import Replace, describe_change, never, require_kept
from hubtool.card.kept import find_templates, keep_generated, keep_templates, read_generated
from hubtool.card.merge import add_items, write_own
from hubtool.card.metadata import dump_metadata
from hubtool.card.old_wording import older_lines
from hubtool.card.own import Generated, Own, decode_card, read_own
from hubtool.card.provenance import make_statements, remove_stale
from hubtool.card.render import render_card, template_folders
from hubtool.errors import OutputError, UsageError
from hubtool.files.lock import locked
from hubtool.files.whole import write_beside
from hubtool.hub.rules import check_metadata
from hubtool.record import (
    CARD_FILE,
    RECORD_FILE,
    Evidence,
    Record,
    SiblingRecord,
    asset_names,
    encode_record,
    read_record,
    require_record,
)

NOTES = "notes"
"""The section of the card that is the publisher's alone."""


@dataclass(frozen=True)
class Wording:
    """How a card is worded.

    Attributes:
        templates: A folder of templates that go before hubtool's; those that the folder was made with last if None.
        notes: Where the publisher has written none.
        tags: The publisher's own, beside hubtool's.
        languages: Of the model, beside those that its source names.
        may_replace: Asks whether words of the card may be replaced that cannot be kept.
        keeps_page: Whether what people wrote on the page is kept; of another model's that was replaced, only who may
            read it is.
    """

    templates: Path | None = None
    notes: str = ""
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    may_replace: Replace = never
    keeps_page: bool = True

    def check(self, where: str) -> None:
        """Refuse now what the Hub would refuse later.

        Raises:
            UsageError: A tag or language is none, or there is no such folder of templates.
        """
        template_folders(self.templates)
        metadata = {"tags": list(self.tags), "language": list(self.languages)}
        problems = [problem.message for problem in check_metadata(f"---\n{dump_metadata(metadata)}---\n")]
        problems += [f"the tag {tag!r} is not one line of text" for tag in self.tags if not tag.strip() or "\n" in tag]
        if problems:
            raise UsageError("not what the Hub takes in a card", where=where, found="; ".join(problems))


PLAIN = Wording()


@dataclass(frozen=True)
class Made:
    """A regenerated card.

    Attributes:
        card: The card.
        generated: What of it is hubtool's alone.
        own: What people wrote in the card that was there.
    """

    card: str
    generated: str
    own: Own


def make_card(
    record: Record, card: str, assets: Sequence[str], wording: Wording = PLAIN, before: str | None = None
) -> Made:
    """A fresh card around what people wrote in the one that is there.

    Args:
        record: The record.
        card: The card as it is, empty if there is none.
        assets: Names of the pictures beside it.
        wording: How the card is worded.
        before: What was generated when it was written; None if that is not known.

    Raises:
        OutputError: Front matter or blocks of prose cannot be read.
        UsageError: A template cannot be used.
    """
    fresh = render_card(record, wording.templates, assets=assets)
    own = read_own(card, Generated(fresh, before, older_lines(record)), CARD_FILE)
    return Made(write_own(fresh, _worded(own, fresh, wording)), fresh, own)


def _worded(own: Own, fresh: str, wording: Wording) -> Own:
    """What people wrote with what the wording adds to it."""
    prose = dict(own.prose)
    if wording.notes and not prose.get(NOTES, "").strip():
        prose[NOTES] = wording.notes.rstrip("\n") + "\n"
    own = replace(own, prose=prose)
    for key, values in (("tags", wording.tags), ("language", wording.languages)):
        own = add_items(own, fresh, key, values)
    return own


def known_generated(
    record: Record | None, card: str, assets: Sequence[str], templates: Path | None = None
) -> str | None:
    """What was generated of a card of this very hubtool and these templates; None if another made it."""
    if record is None or made_by(card) is None:
        return None
    fresh = render_card(record, templates, assets=assets)
    return fresh if made_by(fresh) == made_by(card) else None


def read_card(folder: Path) -> str:
    """The text of a folder's card, empty if it has none.

    Raises:
        OutputError: It is not UTF-8.
    """
    path = folder / CARD_FILE
    return decode_card(path.read_bytes(), str(path)) if path.is_file() else ""


def make_folder_card(folder: Path, record: Record, wording: Wording = PLAIN) -> Made:
    """A fresh card of a folder's record around what people wrote in the card that is there; nothing is written.

    Raises:
        OutputError: The card cannot be read; see `make_card`.
    """
    card, assets = read_card(folder), asset_names(folder)
    worded = replace(wording, templates=find_templates(folder, wording.templates))
    before = read_generated(folder, card)
    if before is None:
        before = known_generated(read_record(folder), card, assets, worded.templates)
    return make_card(record, card, assets, worded, before)


def write_documents_of(folder: Path, record: Record, wording: Wording = PLAIN) -> tuple[str, ...]:
    """Write card, statements and record of a folder, the record last; the names of what changed.

    A statement about evidence that no longer counts is removed. If the card holds what somebody wrote and the new one
    would not keep, everything else is written, and the card is left as it is: what the record knows is not lost either.

    Raises:
        OutputError: The card cannot be read or kept; the disk is full.
    """
    made = make_folder_card(folder, record, wording)
    documents = {**make_statements(record), RECORD_FILE: encode_record(record)}
    try:
        require_kept(
            made.own, str(folder / CARD_FILE), wording.may_replace, describe_change(read_card(folder), made.card)
        )
    except OutputError:
        _write(folder, documents)
        raise
    keep_templates(folder, wording.templates)
    keep_generated(folder, made.generated)
    return _write(folder, {CARD_FILE: made.card.encode(), **documents})


def _write(folder: Path, documents: Mapping[str, bytes]) -> tuple[str, ...]:
    removed = remove_stale(folder, documents)
    changed = [name for name, content in documents.items() if _differs(folder / name, content)]
    for name in changed:
        write_beside(folder / name, documents[name])
    return (*changed, *removed)


def _differs(path: Path, content: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != content


def address(
    folder: Path,
    record: Record,
    repo: str,
    siblings: Sequence[SiblingRecord] | None = None,
    wording: Wording = PLAIN,
) -> Record:
    """The record of a folder that says as what it is published, and beside what; its documents say it too.

    Args:
        folder: The finished folder.
        record: Its record.
        repo: `org/name`.
        siblings: The other variants of its release; those that it has if they are not given.
        wording: How the card is worded.

    Raises:
        OutputError: See `write_documents_of`.
    """
    others = record.siblings if siblings is None else tuple(siblings)
    addressed = msgspec.structs.replace(record, repo=repo, siblings=others)
    write_documents_of(folder, addressed, wording)
    return addressed


def add_evidence(folder: Path, evidence: Sequence[Evidence], *, wait: bool = False) -> None:
    """Append evidence to the record of a folder, and regenerate what is made from the record.

    Each file is written whole or not at all. The weights may be damaged: they are not looked at.

    Args:
        folder: The folder.
        evidence: What is appended.
        wait: Until another process releases the folder: hours of work may be behind this evidence.

    Raises:
        RecordError: The folder has no record.
        OutputError: Another process holds the folder, and this one is not to wait; see `write_documents_of`.
    """
    with locked(folder, wait=wait):
        record = require_record(folder)
        write_documents_of(folder, msgspec.structs.replace(record, evidence=(*record.evidence, *evidence)))
