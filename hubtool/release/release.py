"""A release: a source and the variants that are published from it, whether options or a file say so."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubtool.card import find_prose_fault
from hubtool.card.documents import PLAIN, Wording
from hubtool.errors import UsageError
from hubtool.hub.destination import Destination
from hubtool.plan.budget import Request
from hubtool.record import Rung


@dataclass(frozen=True)
class Variant:
    """One conversion of the source.

    Attributes:
        recipe: A name, or a file; None if it is made for a budget.
        destination: Where it is published.
        folder: Where it is made.
        notes: Into the card's notes, where those are empty.
    """

    recipe: str | None
    destination: Destination
    folder: Path
    notes: str = ""


@dataclass(frozen=True)
class Collection:
    """A collection by its slug, or one that is made by its title."""

    slug: str | None = None
    title: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class QualityOf:
    """What predictions are measured on: a text, as `open_text` takes it, and how much of it."""

    text: str
    tokens: int
    context: int


@dataclass(frozen=True)
class Release:
    """What is published, and how.

    Attributes:
        source: A folder, or `org/name[@revision]`.
        variants: In their order.
        out: Where shards of a source on the Hub are fetched to, and a rehearsal beside it.
        base_model: What the publisher says the source is.
        disk_limit: Most bytes of a source on the Hub that lie on the disk at once.
        keep_source: Whether what was fetched of it stays.
        whole: Whether these are all variants there are: then each card names exactly the others.
        validate: Rungs that have to be passed before anything is published; None for all that the machine's memory
            allows, of which none may fail (of a streamed release none is run).
        allow_failed: Whether what did not pass is published all the same; its card says so.
        quality: What the variants' predictions are measured on, None if they are not.
        collection: Where to collect the repos.
        wording: How the cards are worded, but for their notes.
        statistics: A file of what calibration measured, for recipes that fit to it.
        fit: What the recipe of its only variant has to fit, where that has none.
        stream: Whether shards are sent while they are made, and never lie on this disk.
        sign_key: A private key (PEM) to sign the files with.

    Raises:
        UsageError: What is wanted contradicts itself.
    """

    source: str
    variants: tuple[Variant, ...]
    out: Path
    base_model: str | None = None
    disk_limit: int | None = None
    keep_source: bool = False
    whole: bool = True
    validate: tuple[Rung, ...] | None = None
    allow_failed: bool = False
    quality: QualityOf | None = None
    collection: Collection = Collection()
    wording: Wording = PLAIN
    statistics: Path | None = None
    fit: Request | None = None
    stream: bool = False
    sign_key: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be done to shards that never lie here."""
        if self.stream and self.sign_key:
            raise UsageError("a streamed folder cannot be signed: its shards never lie here", where="--sign")
        if self.stream and self.quality:
            raise UsageError("quality cannot be measured of a streamed folder: its shards never lie here")
        if self.stream and self.validate:
            raise UsageError(
                "a streamed folder cannot be validated: its shards never lie here",
                where="--validate",
                found=", ".join(self.validate),
                remedy="leave --stream out, or --validate",
            )

    def proposed(self) -> "Release":
        """The same as a pull request to each repo."""
        return self.sent(pull_request=True)

    def sent(self, **how: Any) -> "Release":
        """The same with these attributes of every destination."""
        variants = (replace(each, destination=replace(each.destination, **how)) for each in self.variants)
        return replace(self, variants=tuple(variants))


def require_notes(notes: str, where: str) -> None:
    """Raise UsageError if notes would break the card that they stand in."""
    if fault := find_prose_fault(notes):
        raise UsageError(
            "not allowed in a card",
            where=f"{where}, line {fault.line}",
            found=fault.found,
            remedy="close it, or leave it out",
        )
