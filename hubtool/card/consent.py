"""Whether what a person wrote may be replaced: asked, allowed beforehand, or refused."""

import difflib
from collections.abc import Callable

from hubtool.card.own import Own
from hubtool.errors import OutputError
from hubtool.record import CARD_FILE


def describe_change(before: str, after: str) -> str:
    """The change from one card to another, as `diff -u` writes it; empty if there is none."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), CARD_FILE, f"{CARD_FILE} (new)"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


Replace = Callable[[str], bool]
"""Asks whether what a person wrote may be replaced, given what that is; whether it may."""


def never(_question: str) -> bool:
    """Nobody is there to be asked."""
    return False


def always(_question: str) -> bool:
    """It was allowed beforehand."""
    return True


def require_kept(own: Own, where: str, may_replace: Replace, change: str = "") -> None:
    """Raise OutputError if something of a card cannot be kept, and nobody allows that.

    Args:
        own: What was found in the card.
        where: Whose card it is.
        may_replace: Asks.
        change: The change to the card, as `diff -u` writes it, which is shown to whoever is asked.
    """
    if not own.lost:
        return
    found = "; ".join(own.lost)
    if not may_replace(f"{where}: would be replaced: {found}\n{change}".rstrip("\n")):
        raise OutputError(
            "the card holds what somebody wrote and the new one would not keep",
            where=where,
            found=found,
            remedy="move it between the comments of a section's prose, or allow it with --replace-card",
        )
