"""Front matter as it was written: each key with its lines and the comments before it, so that none of it is lost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from hubtool.card.metadata import dump_metadata
from hubtool.errors import SourceError
from hubtool.hub.rules import read_metadata, split_card


@dataclass(frozen=True)
class Entry:
    """A key's value, and its lines with the comments before them, which end in a line break."""

    value: object
    text: str


@dataclass(frozen=True)
class Front:
    """Front matter by key, in its order, and the comments after the last key."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    comments: str = ""


def read_front(card: str, where: str) -> Front:
    """The front matter of a card; a card without any has no entries.

    Args:
        card: The card, with line feeds at its line ends.
        where: Whose it is, for messages.

    Raises:
        SourceError: It is not YAML, no mapping, or names a key twice.
    """
    text = split_card(card)[0]
    try:
        values = read_metadata(card, where)
    except SourceError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        if mark is not None:
            error.where = f"{where}, line {mark.line + 2}"
        raise
    node = yaml.compose(text, Loader=yaml.SafeLoader)  # the lines of what was just read strictly
    if not isinstance(node, yaml.MappingNode):
        return Front(comments=text if text.strip() else "")
    return _read_lines(text, node, values)


def _read_lines(text: str, node: yaml.MappingNode, values: Mapping[str, object]) -> Front:
    """The entries with their lines; where several keys share a line, or one is merged in, as YAML writes their values.

    Args:
        text: The front matter.
        node: What it is parsed to.
        values: By key, in the order of the node.
    """
    starts = [key.start_mark.line for key, _ in node.value]
    plain = len(set(starts)) == len(values) == len(starts) and not node.flow_style
    if not plain:
        return Front({name: Entry(value, dump_metadata({name: value})) for name, value in values.items()})
    lines = text.splitlines(keepends=True)
    entries: dict[str, Entry] = {}
    waiting = lines[: starts[0]]
    for (name, value), start, stop in zip(values.items(), starts, [*starts[1:], len(lines)], strict=True):
        own = lines[start:stop]
        after = _count_comments(own)
        entries[name] = Entry(value, "".join([*waiting, *own[: len(own) - after]]))
        waiting = own[len(own) - after :]
    return Front(entries, "".join(waiting))


def _count_comments(lines: list[str]) -> int:
    """How many lines at the end are comments or empty."""
    count = 0
    while count < len(lines) - 1 and (not lines[-1 - count].strip() or lines[-1 - count].startswith("#")):
        count += 1
    return count


def write_front(fresh: Front, entries: Mapping[str, Entry], items: Mapping[str, tuple[object, ...]], rest: str) -> str:
    """Front matter of fresh entries with somebody's own among them, as YAML without its dashes.

    Args:
        fresh: What is generated.
        entries: Somebody's own, which stand instead of those of the same name, or after all of them.
        items: What is added to lists of the generated entries.
        rest: Comments for the end.
    """
    merged: dict[str, Entry] = {}
    for name, entry in fresh.entries.items():
        added = items.get(name, ())
        value = [*as_list(entry.value), *added] if added else entry.value
        merged[name] = Entry(value, dump_metadata({name: value})) if added else entries.get(name, entry)
    merged |= {name: entry for name, entry in entries.items() if name not in merged}
    if not merged:
        return rest
    text = "".join(_ended([*(entry.text for entry in merged.values()), fresh.comments, rest]))
    values = {name: entry.value for name, entry in merged.items()}
    # An anchor that is used elsewhere, say, does not survive that its lines are moved.
    return text if _means(text, values) else dump_metadata(values) + rest


def _ended(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield text if not text or text.endswith("\n") else f"{text}\n"


def _means(text: str, values: Mapping[str, object]) -> bool:
    try:
        return read_metadata(f"---\n{text}---\n") == values
    except SourceError:
        return False


def as_list(value: object) -> list[object]:
    """What a key of one or several values holds."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
