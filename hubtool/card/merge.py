"""What people wrote into two cards, merged three ways, and put into a fresh one.

card, generated card  -> own.read_own   -> keys, items of lists, prose, passages; and what cannot be kept
folder's, page's, and what was published last -> merge_own -> all of them, without what was deleted on either side
fresh card, own       -> write_own      -> the card
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hubtool.card.consent import Replace
from hubtool.card.front import Entry, as_list, read_front, write_front
from hubtool.card.metadata import dump_metadata
from hubtool.card.own import Own, Passage
from hubtool.card.prose import insert_prose, replace_prose
from hubtool.errors import OutputError
from hubtool.hub.rules import split_card


def merge_own(mine: Own, theirs: Own, base: Own | None, where: tuple[str, str], may_replace: Replace) -> Own:
    """What two cards have of people's, as the one has it that differs from what was published last.

    Args:
        mine: Of the card here.
        theirs: Of the card there.
        base: Of the card as it was published last; None if that is not known, and then nothing counts as deleted.
        where: What the two are called.
        may_replace: Asks whether `mine` may be taken where both were changed.

    Raises:
        OutputError: Both have been changed in one section or key, and nobody allows to take `mine`.
    """
    known = base or Own()

    def pick(kind: str, name: str, parts: tuple[str, str, str]) -> str:
        return _mine_or_theirs(f"{kind} {name}", parts, where, may_replace)

    names = dict.fromkeys([*theirs.prose, *mine.prose])
    prose = {name: pick("section", name, _texts(name, mine.prose, theirs.prose, known.prose)) for name in names}
    entries = {**theirs.keys, **mine.keys}
    keys = {}
    for name in entries:
        texts = [own.keys[name].text if name in own.keys else "" for own in (mine, theirs, known)]
        text = pick("front matter", name, (texts[0], texts[1], texts[2]))
        if text:
            keys[name] = next(
                own.keys[name] for own in (mine, theirs) if name in own.keys and own.keys[name].text == text
            )
    return Own(
        keys=keys,
        items={name: _union(name, mine, theirs, known) for name in {**theirs.items, **mine.items}},
        comments=pick("comments", "", (mine.comments, theirs.comments, known.comments)),
        prose=prose,
        passages=_merge_passages(mine.passages, theirs.passages, known.passages),
        restored=theirs.restored,
        lost=(*mine.lost, *(each for each in theirs.lost if each not in mine.lost)),
    )


def _mine_or_theirs(what: str, parts: tuple[str, str, str], where: tuple[str, str], may_replace: Replace) -> str:
    """The one of two texts that differs from what was published last.

    Args:
        what: What the texts are.
        parts: Mine, theirs, and what was published last.
        where: What the two are called.
        may_replace: Asks whether mine may be taken where both differ.

    Raises:
        OutputError: Both differ, and from each other, and nobody allows to take mine.
    """
    mine, theirs, base = parts
    if theirs.strip() in (base.strip(), mine.strip()):
        return mine
    if mine.strip() == base.strip():
        return theirs
    clash = OutputError(
        f"different prose in the {what}" if what.startswith("section") else f"different {what}",
        where=f"{where[0]} and {where[1]}",
        found=f"{_quoted(mine)} and {_quoted(theirs)}",
        remedy=f"make them equal, or allow with --replace-card that what {where[0]} has is taken",
    )
    if may_replace(str(clash)):
        return mine
    raise clash


def _texts(name: str, *sides: Mapping[str, str]) -> tuple[str, str, str]:
    mine, theirs, base = (side.get(name, "") for side in sides)
    return mine, theirs, base


def _union(name: str, mine: Own, theirs: Own, base: Own) -> tuple[object, ...]:
    here, there, before = (own.items.get(name, ()) for own in (mine, theirs, base))
    both = [*there, *(item for item in here if item not in there)]
    return tuple(item for item in both if not (item in before and (item not in here or item not in there)))


def _merge_passages(mine: Sequence[Passage], theirs: Sequence[Passage], base: Sequence[Passage]) -> tuple[Passage, ...]:
    before = {each.lines for each in base}
    here, there = {each.lines for each in mine}, {each.lines for each in theirs}
    kept = [each for each in theirs if each.lines in here or each.lines not in before]
    kept += [each for each in mine if each.lines not in there and each.lines not in before]
    return tuple(sorted(kept, key=lambda passage: passage.after))


def write_own(fresh: str, own: Own) -> str:
    """A fresh card with what people wrote in it; read again, it gives the same."""
    front = read_front(fresh, "the fresh card")
    empty = replace_prose(fresh, {})
    yaml, body = split_card(empty)
    if own.keys or own.items or own.comments:
        yaml = write_front(front, own.keys, {name: items for name, items in own.items.items() if items}, own.comments)
    head = empty[: len(empty) - len(body)] if yaml == split_card(empty)[0] else f"---\n{yaml}---\n"
    lines, written, done = body.split("\n"), [], 0
    for passage in own.passages:
        written += [*lines[done : passage.after], *passage.lines]
        done = max(done, passage.after)
    text = head + "\n".join([*written, *lines[done:]])
    return insert_prose(text if text.endswith("\n") else f"{text}\n", own.prose)


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")


def add_items(own: Own, fresh: str, key: str, values: Sequence[str]) -> Own:
    """What people wrote, and besides these items of a list in the front matter.

    Args:
        own: What people wrote.
        fresh: The fresh card.
        key: The list's.
        values: The items.
    """
    ours = read_front(fresh, "the fresh card").entries.get(key)
    if ours is not None:
        known = [*as_list(ours.value), *own.items.get(key, ())]
        added = tuple(value for value in dict.fromkeys(values) if value not in known)
        return replace(own, items={**own.items, key: (*own.items.get(key, ()), *added)}) if added else own
    there = as_list(own.keys[key].value) if key in own.keys else []
    merged = [*there, *(value for value in dict.fromkeys(values) if value not in there)]
    if merged == there:
        return own
    return replace(own, keys={**own.keys, key: Entry(merged, dump_metadata({key: merged}))})
