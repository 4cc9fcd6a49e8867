"""What people wrote into a card, separated from what hubtool wrote there.

Keys that hubtool writes follow hubtool; every other key stays. A line that hubtool wrote and somebody changed is
written as it should be; if words were added to it, those would be lost, and that is for somebody to allow.
"""

import codecs
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hubtool.card.check import MADE_BY, compare_cards
from hubtool.card.front import Entry, as_list, read_front
from hubtool.card.prose import read_prose, replace_prose
from hubtool.card.render import is_template_line
from hubtool.errors import OutputError
from hubtool.hub.rules import split_card

ADDED_TO = ("tags", "language")
"""Lists that hubtool writes, to which people may add what is theirs."""

_ANY_MARK = "<!-- hubtool:"
_WORDS = re.compile(r"[^\W\d_]+")
_ALIKE = 0.5
"""Share of a line's words from which on it is a changed line rather than a new one."""


@dataclass(frozen=True)
class Passage:
    """Lines that somebody wrote outside the blocks of prose, and after how many lines of the fresh body they stand."""

    after: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Own:
    """What somebody wrote into a card.

    Attributes:
        keys: Front matter that hubtool does not write, or writes with the same value in other words.
        items: What was added to lists that hubtool writes, by key.
        comments: Comments at the end of the front matter.
        prose: By section.
        passages: What stands outside the blocks of prose.
        restored: Lines and keys of hubtool's that were changed or deleted, as sentences: they are written as they were.
        lost: What was written and cannot be kept, as sentences.
    """

    keys: Mapping[str, Entry] = field(default_factory=dict)
    items: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    comments: str = ""
    prose: Mapping[str, str] = field(default_factory=dict)
    passages: tuple[Passage, ...] = ()
    restored: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """What hubtool would write, and what it wrote.

    Attributes:
        fresh: The card that is to be written, whose prose does not matter.
        before: What was generated when the card was written last, None if that is not known.
        older: Lines that cards of earlier releases may have instead: see `older_lines`.
    """

    fresh: str
    before: str | None = None
    older: Mapping[str, str] = field(default_factory=dict)


def decode_card(raw: bytes, where: str) -> str:
    """A card's text, with line feeds at its line ends and without a byte order mark.

    Raises:
        OutputError: It is not UTF-8.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise OutputError(
            "not UTF-8",
            where=f"{where}, line {line}",
            found=f"byte 0x{raw[error.start]:02x}",
            expected="text in UTF-8",
            remedy="save it as UTF-8; it was left as it is",
        ) from error


def is_handwritten(card: str) -> bool:
    """Whether a card has text, and none of the marks that hubtool leaves in one."""
    return _ANY_MARK not in card and bool(split_card(card)[1].strip())


def read_own(card: str, generated: Generated, where: str) -> Own:
    """What somebody wrote into a card.

    Args:
        card: The card: see `decode_card`; an empty one holds nothing of anybody's.
        generated: What hubtool wrote and would write.
        where: Whose card it is, for messages.

    Raises:
        HubtoolError: Its front matter or its blocks of prose cannot be read.
    """
    if not card.strip():
        return Own()
    prose = read_prose(card, where)
    own = replace(_read_keys(card, generated, where), prose=prose)
    if generated.before is not None and not (is_handwritten(card) and _ANY_MARK in generated.before):
        return _add(own, *_read_body(card, generated.before, generated.fresh))
    if is_handwritten(card):
        count = len([line for line in split_card(card)[1].split("\n") if line.strip()])
        return _add(own, (), (), (f"its text, of {count} lines, which hubtool did not write",))
    return _add(own, *_read_unknown(card, generated))


def _add(own: Own, passages: Sequence[Passage], restored: Sequence[str], lost: Sequence[str]) -> Own:
    return replace(
        own, passages=tuple(passages), restored=(*own.restored, *restored), lost=(*own.lost, *dict.fromkeys(lost))
    )


def _read_keys(card: str, generated: Generated, where: str) -> Own:
    found, fresh = read_front(card, where), read_front(generated.fresh, "the fresh card")
    before = fresh if generated.before is None else read_front(generated.before, "the card written last")
    keys: dict[str, Entry] = {}
    items: dict[str, tuple[object, ...]] = {}
    lost = []
    for name, entry in found.entries.items():
        ours, was = fresh.entries.get(name), before.entries.get(name)
        if ours is not None and entry.value == ours.value:
            if entry.text.strip() != ours.text.strip():
                keys[name] = entry
        elif was is not None and entry.value == was.value:
            continue
        elif ours is None:
            keys[name] = entry
        elif name in ADDED_TO:
            known = [*as_list(ours.value), *(as_list(was.value) if was else ())]
            items[name] = tuple(item for item in as_list(entry.value) if item not in known)
        else:
            lost.append(f"`{name}: {_shown(entry.value)}`, where hubtool writes `{_shown(ours.value)}`")
    own_comments = found.comments if found.comments.strip() != before.comments.strip() else ""
    restored = [
        f"front matter: `{name}` was deleted"
        for name in before.entries
        if name in fresh.entries and name not in found.entries
    ]
    return Own(keys, items, own_comments, restored=tuple(restored) if found.entries else (), lost=tuple(lost))


def _read_body(card: str, before: str, fresh: str) -> tuple[list[Passage], list[str], list[str]]:
    """Passages, restored lines and lost ones of a card of which is known what was generated."""
    theirs, ours, new = _body(card), _body(before), _body(fresh)
    gaps = _gaps(ours, new)
    passages, restored, lost = [], [], []
    for start, stop, first, last in _changes(ours, theirs):
        lines, gone = theirs[first:last], [line for line in ours[start:stop] if line.strip()]
        kept = []
        for line in lines:
            verdict = _judge(line, gone)
            kept += [line] if verdict == "new" else []
            restored += [f"changed: {line.strip()!r}"] if verdict == "changed" else []
            lost += [f"words in a line that hubtool writes: {line.strip()!r}"] if verdict == "words" else []
        if not any(line.strip() for line in lines):
            restored += [f"deleted: {line.strip()!r}" for line in gone]
        if any(line.strip() for line in kept):
            passages.append(Passage(gaps[stop], tuple(kept)))
    return passages, restored, lost


def _read_unknown(card: str, generated: Generated) -> tuple[list[Passage], list[str], list[str]]:
    """The same of a card of which is not known what was generated: what no card of this record says is somebody's."""
    lines = card.split("\n")
    said = [line for line in [*_body(generated.fresh), *generated.older] if line.strip()]
    start = card.count("\n") - split_card(card)[1].count("\n")
    restored, lost = [], []
    for finding in compare_cards(card, generated.fresh, generated.older).findings:
        line = lines[finding.line - 1].strip() if finding.found and start < finding.line <= len(lines) else ""
        if line and _judge(line, said) == "changed":
            restored.append(f"changed: {line!r}")
        elif line:
            lost.append(f"line {finding.line}: {line!r}")
    return [], restored, lost


def _judge(line: str, ours: Sequence[str]) -> str:
    """What a line is that stands where `ours` were: `changed` figures of one, added `words`, or a `new` line."""
    words = set(_WORDS.findall(line.lower()))
    shares = [len(words & set(_WORDS.findall(each.lower()))) / max(len(words), 1) for each in ours]
    if not ours:
        return "new"
    if is_template_line(line):
        return "changed"
    if not words:
        return "changed" if line.strip() else "new"
    return "changed" if max(shares) == 1 else "words" if max(shares) >= _ALIKE else "new"


def _body(card: str) -> list[str]:
    """The lines of a card's body, its blocks of prose emptied, and without what changes from release to release."""
    body = split_card(replace_prose(card, {}))[1]
    return [MADE_BY.sub("<!-- hubtool:card -->", line.rstrip()) for line in body.split("\n")]


def _changes(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of `ours` that stand otherwise in `theirs`, and the ranges that stand there instead."""
    at, pairs = 0, []
    for number, line in enumerate(theirs):
        if at < len(ours) and line == ours[at]:
            pairs.append((at, number))
            at += 1
    if at < len(ours):
        blocks = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
        pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    done, read = 0, 0
    for mine, other in [*pairs, (len(ours), len(theirs))]:
        if mine > done or other > read:
            yield done, mine, read, other
        done, read = mine + 1, other + 1


def _gaps(before: Sequence[str], fresh: Sequence[str]) -> list[int]:
    """For each number of lines of `before`, after how many lines of `fresh` that is."""
    gaps = [0]
    matched = {
        block.a + i: block.b + i
        for block in difflib.SequenceMatcher(None, before, fresh, autojunk=False).get_matching_blocks()
        for i in range(block.size)
    }
    for number in range(len(before)):
        gaps.append(matched[number] + 1 if number in matched else gaps[-1])
    return gaps


def _shown(value: object) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, list) else str(value)
