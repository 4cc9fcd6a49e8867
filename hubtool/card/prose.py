"""The publisher's prose: the text between marked comments of a card, kept through every regeneration."""

import re
from collections.abc import Mapping

from hubtool.card.html_faults import Fault, find_fault
from hubtool.errors import OutputError

_BEGIN = re.compile(r"^<!-- hubtool:prose ([a-z][a-z0-9-]*) -->$", re.MULTILINE)
_END = "<!-- /hubtool:prose -->"
_REMEDY = "correct the card: each section's prose belongs between its own two comments"

LEFT_OVER = "notes"
"""The section at whose end prose is kept whose own section a template no longer has."""


def block(name: str, prose: str = "") -> str:
    """The prose of a section between its comments."""
    return f"<!-- hubtool:prose {name} -->\n{prose}{_END}"


def read_prose(card: str, where: str = "") -> dict[str, str]:
    """The prose of a card by section, each ending in a line break, or empty.

    Args:
        card: The card.
        where: Whose it is, for messages.

    Raises:
        OutputError: A comment is missing, or a section stands twice; or the prose would change what follows it.
    """
    try:
        return _read(card)
    except OutputError as error:
        if where:
            error.where = f"{where}: {error.where}"
        raise


def _read(card: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name: str | None = None
    lines: list[str] = []
    for number, line in enumerate(card.replace("\r\n", "\n").split("\n"), start=1):
        begin = _BEGIN.fullmatch(line.rstrip())
        if begin:
            if name is not None:
                raise _broken(number, f"prose {begin[1]} begins within prose {name}")
            if begin[1] in found:
                raise _broken(number, f"prose {begin[1]} a second time")
            name, lines = begin[1], []
        elif line.rstrip() == _END:
            if name is None:
                raise _broken(number, "the end of prose that has not begun")
            found[name] = "".join(f"{each}\n" for each in lines)
            if fault := find_fault(found[name]):
                raise _broken(number - len(lines) + fault.line - 1, f"{fault.found} in prose {name}")
            name = None
        elif name is not None:
            lines.append(line)
    if name is not None:
        raise _broken(number, f"prose {name} without its end {_END}")
    return found


def find_prose_fault(text: str) -> Fault | None:
    """The first thing in a text for which it cannot be prose, None if it can."""
    marked = (number for number, line in enumerate(text.split("\n"), start=1) if is_marker(line))
    return next((Fault(number, "a comment that marks where prose stands") for number in marked), find_fault(text))


def is_marker(line: str) -> bool:
    """Whether a line is one of the comments between which prose stands."""
    return line.rstrip() == _END or _BEGIN.fullmatch(line.rstrip()) is not None


def insert_prose(card: str, prose: Mapping[str, str]) -> str:
    """A fresh card with the prose of an older one in its blocks."""
    kept = dict(prose)
    names = _BEGIN.findall(card)
    homeless = [name for name in kept if name not in names and kept[name].strip()]
    if homeless and LEFT_OVER in names:
        kept[LEFT_OVER] = "\n".join([kept.get(LEFT_OVER, ""), *(kept[name] for name in homeless)]).lstrip("\n")
    elif homeless:
        card = card.rstrip("\n") + "".join(f"\n\n{block(name)}" for name in homeless) + "\n"
    return _BEGIN.sub(lambda match: f"{match[0]}\n{kept.get(match[1], '')}".removesuffix("\n"), card)


def replace_prose(card: str, prose: Mapping[str, str]) -> str:
    """A card with other prose in its blocks."""
    kept, inside = [], False
    for line in card.replace("\r\n", "\n").split("\n"):
        inside = inside and line.rstrip() != _END
        kept += [] if inside else [line]
        inside = inside or _BEGIN.fullmatch(line.rstrip()) is not None
    return insert_prose("\n".join(kept), prose)


def without_prose(card: str) -> str:
    """The card with every block of prose emptied, its lines kept as empty ones so that line numbers stay."""
    inside = False
    lines = []
    for line in card.replace("\r\n", "\n").split("\n"):
        inside = inside and line.rstrip() != _END
        lines.append("" if inside else line)
        inside = inside or _BEGIN.fullmatch(line.rstrip()) is not None
    return "\n".join(lines)


def _broken(line: int, found: str) -> OutputError:
    where = f"README.md, line {line}"
    return OutputError("cannot separate your text from the generated card", where=where, found=found, remedy=_REMEDY)
