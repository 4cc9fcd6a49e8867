"""The documents of a finished folder: its record, and what is made of the record around the publisher's prose."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from hubtool.card import read_prose, render_card
from hubtool.card.provenance import make_statements, remove_stale
from hubtool.errors import OutputError
from hubtool.files.lock import locked
from hubtool.files.whole import write_beside
from hubtool.record import (
    CARD_FILE,
    RECORD_FILE,
    Evidence,
    Record,
    SiblingRecord,
    asset_names,
    encode_record,
    require_record,
)

NOTES = "notes"
"""The section of the card that is the publisher's alone."""


class Wording(msgspec.Struct, frozen=True):
    """How a card is worded: templates that go before hubtool's, and notes where the publisher has written none."""

    templates: Path | None = None
    notes: str = ""


PLAIN = Wording()


def documents_of(record: Record, card: str, assets: Sequence[str], wording: Wording = PLAIN) -> dict[str, bytes]:
    """Card, statements and record by file name, the record last.

    Args:
        record: The record.
        card: The card as it was, whose prose is kept.
        assets: Names of the pictures beside it.
        wording: How the card is worded.

    Raises:
        OutputError: The prose cannot be told from the rest.
    """
    prose = read_prose(card)
    if wording.notes and not prose.get(NOTES, "").strip():
        prose[NOTES] = wording.notes.rstrip("\n") + "\n"
    return {
        CARD_FILE: render_card(record, wording.templates, prose=prose, assets=assets).encode(),
        **make_statements(record),
        RECORD_FILE: encode_record(record),
    }


def write_documents_of(folder: Path, record: Record, wording: Wording = PLAIN) -> None:
    """Write card, statements and record of a folder, the record last; what is as it should be is left alone.

    A statement about evidence that no longer counts is removed.

    Raises:
        OutputError: The prose of the card that is there cannot be told from the rest; the disk is full.
    """
    path = folder / CARD_FILE
    try:
        card = path.read_text("utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise OutputError(
            "the card is not text", where=path, found=str(error), expected="UTF-8", remedy="mend or remove it"
        ) from error
    documents = documents_of(record, card, asset_names(folder), wording)
    remove_stale(folder, documents)
    for name, content in documents.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            write_beside(folder / name, content)


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
    """Append evidence to the record of a folder, and make again what is made from the record.

    The weights may be damaged: they are not read.

    Args:
        folder: The folder.
        evidence: What is appended.
        wait: Until another process releases the folder: hours of work may stand behind this evidence.

    Raises:
        OutputError: Another process holds the folder, and this one is not to wait; see `write_documents_of`.
        RecordError: The folder has no record.
    """
    with locked(folder, wait=wait):
        record = require_record(folder)
        write_documents_of(folder, msgspec.structs.replace(record, evidence=(*record.evidence, *evidence)))
