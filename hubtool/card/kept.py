"""What a folder's state keeps of its card: what was generated when it was written last, and templates of one's own."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from hubtool.errors import UsageError
from hubtool.files.whole import STATE_DIR, write_beside

CARDS_DIR = "cards"
_GENERATED = "generated.md"
_EARLIER = "generated.earlier.md"
_TEMPLATES_DIR = "templates"


def read_generated(folder: Path, card: str) -> str | None:
    """What was generated when the folder's card was written last, without people's words; None if that is not known.

    A run that was cut off may have kept what it did not write any more: the one that is nearer to the card counts.
    """
    state = folder / STATE_DIR / CARDS_DIR
    known = [(state / name).read_text("utf-8") for name in (_GENERATED, _EARLIER) if (state / name).is_file()]
    return nearest(known, card)


def nearest(texts: Iterable[str], card: str) -> str | None:
    """The text of whose lines a card lacks the fewest, the first of several such; None if there is none."""
    lines = set(card.split("\n"))
    return min(filter(None, texts), key=lambda text: len(set(text.split("\n")) - lines), default=None)


def keep_generated(folder: Path, generated: str) -> None:
    """Keep what was generated, before the card is written that is made of it.

    Raises:
        OutputError: The disk is full, or the folder may not be written to.
    """
    path = folder / STATE_DIR / CARDS_DIR / _GENERATED
    earlier = path.read_bytes() if path.is_file() else None
    if earlier == generated.encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if earlier is not None:
        write_beside(path.with_name(_EARLIER), earlier)
    write_beside(path, generated.encode())


def find_templates(folder: Path | None, given: Path | None = None) -> Path | None:
    """The templates of a folder's card: those given, else those that it was made with last; None for hubtool's own."""
    if given is not None or folder is None:
        return given
    kept = folder / STATE_DIR / _TEMPLATES_DIR
    return kept if kept.is_dir() else None


def keep_templates(folder: Path, given: Path | None) -> None:
    """Copy templates into a folder's state, from where its card is made from now on; a folder without any ends that.

    Raises:
        UsageError: There is no such folder of templates.
    """
    kept = folder / STATE_DIR / _TEMPLATES_DIR
    if given is None or given.resolve() == kept.resolve():
        return
    if not given.is_dir():
        raise UsageError("no such folder", where=given, remedy="give a folder of templates")
    found = {path.relative_to(given): path.read_bytes() for path in sorted(given.rglob("*.jinja")) if path.is_file()}
    if kept.is_dir():
        shutil.rmtree(kept)
    for name, content in found.items():
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        write_beside(kept / name, content)
