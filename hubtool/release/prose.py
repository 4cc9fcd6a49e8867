"""The publisher's prose of a folder and that of its page on the Hub, where it may be edited too, brought together.

The card as this folder last published it is kept in `.hubtool/`, to tell which of the two was edited since.
"""

from pathlib import Path

from hubtool.card import read_prose
from hubtool.card.prose import replace_prose
from hubtool.errors import OutputError
from hubtool.files.whole import write_beside
from hubtool.hub.destination import Destination, find_place
from hubtool.hub.patience import PatientHub
from hubtool.hub.reader import read_hub_file
from hubtool.hub.state import State, destination_key, kept_path
from hubtool.hub.upload import release_title
from hubtool.record import CARD_FILE, Record

CARDS_DIR = "cards"


def merge_prose(mine: str, theirs: str, base: str, where: tuple[str, str]) -> dict[str, str]:
    """The prose of two cards by section, each as the one has it that differs from what was published last.

    Args:
        mine: The card of the folder.
        theirs: The card on the Hub.
        base: The card as it was published last, empty if that is not known.
        where: What the two are called.

    Raises:
        OutputError: Both have been edited in one section, or the prose of one cannot be told.
    """
    here, there, before = read_prose(mine, where[0]), read_prose(theirs, where[1]), read_prose(base)
    return {name: _merge_section(name, here, there, before, where) for name in {**there, **here}}


def _merge_section(
    name: str, here: dict[str, str], there: dict[str, str], before: dict[str, str], where: tuple[str, str]
) -> str:
    mine, theirs, base = (prose.get(name, "") for prose in (here, there, before))
    if theirs.strip() in (base.strip(), mine.strip()):
        return mine
    if mine.strip() == base.strip():
        return theirs
    raise OutputError(
        f"different prose in the section {name}",
        where=f"{where[0]} and {where[1]}",
        found=f"{_shown(mine)} and {_shown(theirs)}",
        remedy=f"make the section equal in both, or run `hubtool card {where[1]} --push`, which keeps the repo's",
    )


def _shown(prose: str) -> str:
    line = " ".join(prose.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")


def adopt_prose(hub: PatientHub, folder: Path, record: Record, to: Destination, *, write: bool) -> bool:
    """Take into the card of a folder what was written on its page since; whether that is anything.

    Args:
        hub: The Hub.
        folder: The finished folder.
        record: Its record.
        to: Where it is to be published.
        write: Whether to change the card, or only to look.

    Raises:
        OutputError: Both have been edited in one section.
        HubError: The Hub refused, or could not be reached.
    """
    state = State(folder, hub.api.endpoint, to.key)
    place = find_place(hub, to, state, release_title(record.recipe.name, record.plan.digest))
    if place.head is None or CARD_FILE not in place.files:
        return False
    theirs = (read_hub_file(hub, to.repo, place.head, CARD_FILE) or b"").decode("utf-8", errors="replace")
    path = folder / CARD_FILE
    mine = path.read_text("utf-8")
    base = read_base(folder, hub.api.endpoint, to.key)
    card = replace_prose(mine, merge_prose(mine, theirs, base, (str(folder), to.repo)))
    if write and card != mine:
        write_beside(path, card.encode())
    return card != mine


def read_base(folder: Path, endpoint: str, destination: str) -> str:
    """The card as it was last published from a folder to a destination of a Hub; empty if that is not known."""
    path = _base_path(folder, endpoint, destination)
    return path.read_text("utf-8") if path.is_file() else ""


def keep_base(folder: Path, endpoint: str, destination: str, card: bytes) -> None:
    """Keep a card as the one that was published last."""
    path = _base_path(folder, endpoint, destination)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, card)


def _base_path(folder: Path, endpoint: str, destination: str) -> Path:
    return kept_path(folder, CARDS_DIR, destination_key(endpoint, destination), ".md")
