"""Merges what people wrote in a folder's card with what they wrote on its page.

The card as this folder last published it is kept in `.hubtool/`, with what of it was generated: so it is known which of
the two was edited since, and what of the page's card is a person's.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from hubtool.card.consent import describe_change, require_kept
from hubtool.card.documents import PLAIN, Made, Wording, known_generated, make_folder_card
from hubtool.card.front import read_front
from hubtool.card.kept import find_templates, keep_generated, nearest, read_generated
from hubtool.card.merge import merge_own, write_own
from hubtool.card.old_wording import older_lines
from hubtool.card.own import Generated, Own, decode_card, read_own
from hubtool.card.prose import read_prose
from hubtool.files.whole import write_beside
from hubtool.hub.client import git_sha1
from hubtool.hub.destination import Destination, Place
from hubtool.hub.patience import PatientHub
from hubtool.hub.reader import read_hub_file
from hubtool.hub.state import destination_key, kept_path
from hubtool.record import ASSETS_PREFIX, CARD_FILE, RECORD_FILE, Record, decode_record

CARDS_DIR = "cards"

GATING = "extra_gated_"
"""How the keys begin by which readers have to be let in: that is the repo's, whatever model it holds."""


@dataclass(frozen=True)
class Page:
    """The card of a repo as it stands, and what is known of how it came about.

    Attributes:
        name: The repo, for messages.
        card: Its README.md, empty if it has none.
        record: Its record, None if it has none.
        assets: Names of its pictures.
    """

    name: str
    card: str
    record: Record | None
    assets: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """A card as it was published last, and what of it was generated; both empty if that is not known."""

    card: str = ""
    generated: str = ""

    def read(self, fresh: str) -> Own | None:
        """What people had written in it, None if that is not known."""
        if not self.card:
            return None
        if not self.generated:
            return Own(prose=read_prose(self.card))
        return read_own(self.card, Generated(fresh, self.generated), "the card published last")


def read_page(page: Page, fresh: str, base: Base, templates: Path | None = None) -> Own:
    """What people wrote in the card of a page.

    Args:
        page: The page.
        fresh: The card that is to be written there, as it is generated.
        base: What was published there last.
        templates: Templates that its card may have been made with, beside hubtool's own.

    Raises:
        OutputError: Its card cannot be read.
    """
    made = [known_generated(page.record, page.card, page.assets, each) for each in dict.fromkeys((templates, None))]
    before = nearest([base.generated, *(each or "" for each in made)], page.card)
    older = older_lines(page.record) if page.record is not None else {}
    return read_own(page.card, Generated(fresh, before, older), page.name)


def merge_page(made: Made, page: Page, base: Base, where: str, wording: Wording) -> str:
    """The card for a page: generated, with what people wrote here and there.

    Args:
        made: The card of the folder.
        page: The page.
        base: What was published there last.
        where: What the folder is called.
        wording: How the card is worded; it says who may allow that something is replaced.

    Raises:
        OutputError: One section was edited in both, or the page's card cannot be kept, and nobody allows that.
    """
    if not wording.keeps_page:
        gate = {key: entry for key, entry in read_front(page.card, page.name).entries.items() if key.startswith(GATING)}
        return write_own(made.generated, replace(made.own, keys={**gate, **made.own.keys}))
    theirs = read_page(page, made.generated, base, wording.templates)
    mine = replace(made.own, lost=())  # nothing of it is lost that nobody has allowed
    merged = merge_own(mine, theirs, base.read(made.generated), (where, page.name), wording.may_replace)
    card = write_own(made.generated, merged)
    require_kept(theirs, f"{page.name}: {CARD_FILE}", wording.may_replace, describe_change(page.card, card))
    return card


@dataclass(frozen=True)
class Adopted:
    """The card of a folder with what was written on its page since, and what of it is generated."""

    card: str
    generated: str

    def write(self, folder: Path) -> None:
        """Make it the card of the folder."""
        keep_generated(folder, self.generated)
        write_beside(folder / CARD_FILE, self.card.encode())


def adopt_prose(
    hub: PatientHub, made: tuple[Path, Record], to: Destination, place: Place, wording: Wording = PLAIN
) -> Adopted | None:
    """The card of a folder with what was written on its page since, None if that is nothing.

    Args:
        hub: The Hub.
        made: The finished folder and its record.
        to: Where it is to be published.
        place: The destination as it stands.
        wording: How the card is worded.

    Raises:
        OutputError: One section was edited in both, or the page's card cannot be kept, and nobody allows that.
        HubError: The Hub refused, or could not be reached.
    """
    folder, record = made
    path, there = folder / CARD_FILE, place.files.get(CARD_FILE)
    if place.head is None or there is None:
        return None
    mine = path.read_bytes() if path.is_file() else b""
    if there.etag == git_sha1(mine):
        return None
    page = find_page(hub, to.repo, place.head, place.files)
    worded = replace(wording, templates=find_templates(folder, wording.templates))
    fresh = make_folder_card(folder, record, worded)
    require_kept(fresh.own, str(path), wording.may_replace)
    card = merge_page(fresh, page, read_base(folder, hub.api.endpoint, to.key), str(folder), worded)
    return None if mine == card.encode() else Adopted(card, fresh.generated)


def find_page(hub: PatientHub, repo: str, commit: str, names: Collection[str]) -> Page:
    """The card of a repo at a commit, and its record if that can be read.

    Args:
        hub: The Hub.
        repo: `org/name`.
        commit: The commit.
        names: The files there.

    Raises:
        OutputError: The card is not UTF-8.
        RecordError: There is a record that cannot be read.
        HubError: The Hub refused, or could not be reached.
    """

    def read(name: str) -> bytes:
        return (read_hub_file(hub, repo, commit, name) or b"") if name in names else b""

    card, record = decode_card(read(CARD_FILE), f"{repo}: {CARD_FILE}"), read(RECORD_FILE)
    assets = tuple(sorted(name for name in names if name.startswith(ASSETS_PREFIX)))
    return Page(repo, card, decode_record(record) if record else None, assets)


def read_base(folder: Path, endpoint: str, destination: str) -> Base:
    """The card as it was last published from a folder to a destination of a Hub."""
    texts = [
        path.read_text("utf-8") if (path := _base_path(folder, endpoint, destination, suffix)).is_file() else ""
        for suffix in (".md", ".generated.md")
    ]
    return Base(*texts)


def keep_base(folder: Path, endpoint: str, destination: str, card: bytes, generated: str | None = None) -> None:
    """Keep a card as the one that was published last, and what of it was generated: what the folder's is by default."""
    text = read_generated(folder, card.decode()) if generated is None else generated
    for suffix, content in ((".generated.md", (text or "").encode()), (".md", card)):
        path = _base_path(folder, endpoint, destination, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, content)


def _base_path(folder: Path, endpoint: str, destination: str, suffix: str) -> Path:
    return kept_path(folder, CARDS_DIR, destination_key(endpoint, destination), suffix)
