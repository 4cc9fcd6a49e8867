"""Whether a card says what the record says: every figure and claim that does not, by line."""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from hubtool.card.html_faults import find_fault
from hubtool.card.old_wording import older_lines
from hubtool.card.prose import is_marker, read_prose, without_prose
from hubtool.card.render import render_card
from hubtool.card.unrecorded import Unrecorded
from hubtool.errors import SourceError
from hubtool.hub.rules import read_metadata, split_card
from hubtool.record import Record


@dataclass(frozen=True)
class Finding:
    """Something that a card says and the record does not.

    Attributes:
        line: In the card, from 1; of the line after which something is missing, if it is.
        found: What the card says.
        expected: What the record says; empty if it says nothing of it.
    """

    line: int
    found: str
    expected: str

    def __str__(self) -> str:
        if not self.expected:
            return f"line {self.line}: {self.found!r} is not what hubtool writes of this record"
        if not self.found:
            return f"line {self.line}: missing: {self.expected!r}"
        return f"line {self.line}: {self.found!r}, the record says {self.expected!r}"


MADE_BY = re.compile(r"^<!-- hubtool:card ((?:(?!-->).)*) -->$", re.MULTILINE)
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Comparison:
    """How a card compares with the record.

    Attributes:
        findings: Every figure and claim that is not what the record says.
        how: `line by line`, or `fact by fact` if other templates made the card.
    """

    findings: tuple[Finding, ...]
    how: str


def check_card(
    card: str, record: Record | Unrecorded, templates: Path | None = None, assets: Collection[str] = ()
) -> Comparison:
    """Every figure and claim of a card that is not what the record says, outside the publisher's prose.

    A card of these templates must be the one that they make of the record, to the byte. One of an older hubtool or
    of other templates is compared fact by fact: it may leave out what earlier ones did not say, and have their words,
    but no others.

    Raises:
        OutputError: The publisher's text cannot be separated from the generated card.
        UsageError: A template cannot be used.
    """
    older = older_lines(record) if isinstance(record, Record) else {}
    return compare_cards(card, render_card(record, templates, prose=read_prose(card), assets=assets), older)


def compare_cards(card: str, fresh: str, older: Mapping[str, str]) -> Comparison:
    """Where a card says something else than a fresh one, which is made around the same prose: see `check_card`.

    Args:
        card: The card.
        fresh: The card as it should be.
        older: Lines that it may have too, with the label of what they say.
    """
    found, expected = without_prose(card), without_prose(fresh)
    metadata = list(_compare_metadata(found, expected))
    if made_by(found) == made_by(expected) or _masked(found) == _masked(expected):
        return Comparison((*metadata, *_compare_bodies(found, expected)), "line by line")
    truth = _read_truth(expected, tuple(older.items()))
    findings = [*metadata, *_compare_facts(found, truth)]
    return Comparison(tuple(sorted(findings, key=lambda finding: finding.line)), "fact by fact")


def _masked(text: str) -> str:
    return _DIGITS.sub("0", text)


def made_by(card: str) -> str | None:
    """Which hubtool and templates a card says it was made by, None if it does not say."""
    match = MADE_BY.search(card)
    return match[1] if match else None


def _compare_bodies(found: str, expected: str) -> Iterator[Finding]:
    body = split_card(found)[1]
    offset = found.count("\n") - body.count("\n")
    for finding in _compare_lines(body.split("\n"), split_card(expected)[1].split("\n")):
        yield replace(finding, line=finding.line + offset)


def _compare_lines(found: list[str], expected: list[str]) -> Iterator[Finding]:
    # Spaces at the end of a line show nothing; those at its beginning make it code.
    found, expected = [line.rstrip() for line in found], [line.rstrip() for line in expected]
    matcher = difflib.SequenceMatcher(None, found, expected, autojunk=False)
    for kind, start, stop, first, last in matcher.get_opcodes():
        if kind == "equal":
            continue
        pairs = max(stop - start, last - first)
        for index in range(pairs):
            said = found[start + index] if start + index < stop else ""
            true = expected[first + index] if first + index < last else ""
            if said or true:
                yield Finding(min(start + index, stop) + 1, *_differing(said, true))


def _differing(found: str, expected: str) -> tuple[str, str]:
    """The differing cells of two rows of a table, or else both lines whole."""
    cells, others = found.split(" | "), expected.split(" | ")
    if len(cells) == len(others) > 1:
        differ = [(a, b) for a, b in zip(cells, others, strict=True) if a != b]
        if 0 < len(differ) < len(cells):
            name = cells[0].strip("| ")
            changed, true = (" | ".join(parts) for parts in zip(*differ, strict=True))
            return f"{name}: {changed}".strip(" |"), true.strip(" |")
    return found, expected


@dataclass(frozen=True)
class _Fact:
    """Something that a card says: of what, and what; `line` is where.

    Attributes:
        line: From 1.
        label: The first cell of a row, after the name of its column if there are more than two; or what stands before
            the colon of a list's item; else empty.
        value: The other cells with the names of their columns, or the rest; in small letters.
        text: The line as it stands.
    """

    line: int
    label: str
    value: str
    text: str


_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)]*)\)")
_SHOWN_AS_IT_IS = re.compile(r"[`*\\]")
_RULE = re.compile(r"\|(?=.*-)[-: |]+\|?")
_ITEM = re.compile(r"[-*•] ([^:.]{1,60}): (.+)")
_LEADING = ("Treat this artifact as", "Withdrawn on")
"""How the sentences begin that every card has to have where a fresh one has them."""

_ALWAYS = frozenset(
    {
        *("base model", "source revision", "architecture", "model type", "license", "recipe", "quantization mode"),
        *("group size", "effective bits per weight", "parameters", "shards", "indexed mlx tensor size", "made with"),
        *("not converted", "quality was not measured"),
        *(leading.lower() for leading in _LEADING),
    }
)
"""What every card says that any hubtool made."""

_ALWAYS_TABLES = ("check ", "component ", "predictions of ")
"""The first column of the tables of which every card has every row."""


@dataclass(frozen=True)
class _Truth:
    """What a card may say, and what it must.

    Attributes:
        facts: Labels and values of the fresh card, and of the lines that an older one may have.
        required: The facts of the fresh card that no card may lack.
        older: By label and value of an older line, the label of the required fact that it states.
        links: Text and target of every link.
        lines: Lines of the fresh card by what is left of them without digits.
    """

    facts: frozenset[tuple[str, str]]
    required: tuple[_Fact, ...]
    older: Mapping[tuple[str, str], str]
    links: frozenset[tuple[str, str]]
    lines: Mapping[str, list[str]]


@lru_cache(maxsize=1)
def _read_truth(card: str, older: tuple[tuple[str, str], ...]) -> _Truth:
    facts = tuple(_facts(card))
    restated = {(fact.label, fact.value): _label(label) for line, label in older for fact in _facts(line)}
    lines: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        lines[_masked(fact.text)].append(fact.text)
    return _Truth(
        facts=frozenset({*((fact.label, fact.value) for fact in facts), *restated}),
        required=tuple(fact for fact in facts if fact.label in _ALWAYS or fact.label.startswith(_ALWAYS_TABLES)),
        older=restated,
        links=frozenset(_LINK.findall("\n".join([card, *(line for line, _ in older)]))),
        lines=lines,
    )


def _compare_facts(found: str, truth: _Truth) -> Iterator[Finding]:
    facts = tuple(_facts(found))
    for fact in facts:
        links = set(_LINK.findall(fact.text))
        if (fact.label, fact.value) not in truth.facts or not links <= truth.links:
            yield _false(fact, truth)
    body = split_card(found)[1]
    if fault := find_fault(body):
        # Each line may be true, and yet not be seen: within a block of code, or folded away.
        yield Finding(found.count("\n") - body.count("\n") + fault.line, fault.found, "")
    yield from _missing(facts, truth, found.rstrip("\n").count("\n") + 1)


def _missing(facts: Collection[_Fact], truth: _Truth, last: int) -> Iterator[Finding]:
    """The facts of which a card says nothing; a line in older words stands for one fact of its label."""
    said = {(fact.label, fact.value) for fact in facts}
    restated = Counter(truth.older[fact] for fact in said & truth.older.keys())
    for fact in truth.required:
        if (fact.label, fact.value) in said:
            continue
        restated[fact.label] -= 1
        if restated[fact.label] < 0:
            yield Finding(last, "", fact.text)


def _false(fact: _Fact, truth: _Truth) -> Finding:
    """What a line says that is not true, with what it should say where that is plain."""
    alike = truth.lines.get(_masked(fact.text)) or [each.text for each in truth.required if each.label == fact.label]
    return Finding(fact.line, *_differing(fact.text, alike[0])) if alike else Finding(fact.line, fact.text, "")


_CLAIMS = frozenset({"license", "license_name", "license_link", "library_name", "pipeline_tag", "new_version"}) | {
    "base_model",
    "base_model_relation",
}
"""Keys that say what a record knows; any other is the publisher's, where hubtool writes none."""

_ADDED_TO = ("tags", "language")
"""Lists to which the publisher may add."""


def _compare_metadata(found: str, expected: str) -> Iterator[Finding]:
    try:
        said = read_metadata(found)
    except SourceError:
        yield Finding(1, "metadata that is not YAML", "")
        return
    true = read_metadata(expected)
    lines = split_card(found)[0].split("\n")
    for key in {**said, **true}:
        if not _holds(key, said.get(key), true.get(key)):
            number = next((n for n, line in enumerate(lines, start=2) if line.startswith(f"{key}:")), 1)
            shown = f"{key}: {said[key]}" if key in said else ""
            yield Finding(number, shown, f"{key}: {true[key]}" if key in true else "")


def _holds(key: str, said: object, true: object) -> bool:
    """Whether a key says what the record says, or only what is the publisher's to say."""
    if true is None and key not in _CLAIMS:
        return True
    if key in _ADDED_TO and isinstance(said, list):
        return set(map(str, true if isinstance(true, list) else [true])) <= set(map(str, said))
    return said == true


def _facts(card: str) -> Iterator[_Fact]:
    """What each line of the body of a card says."""
    body = split_card(card)[1]
    lines = body.split("\n")
    offset = card.count("\n") - body.count("\n")
    head: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            head = []
        if not line.strip() or is_marker(line) or MADE_BY.fullmatch(line) or _RULE.fullmatch(line):
            continue
        is_head = number < len(lines) and _RULE.fullmatch(lines[number]) is not None
        cells = _cells(line) if line.startswith("|") else []
        head = cells if is_head else head
        label, value = _row(head, cells) if cells and cells != head else _sentence(line)
        if label or value:
            yield _Fact(number + offset, label, value, line.rstrip())


def _row(head: list[str], cells: list[str]) -> tuple[str, str]:
    """The label and the value of a row; what is no row of its table has no label."""
    if len(head) != len(cells) or len(cells) < 2:
        return "", " | ".join(cells)
    if len(cells) == 2:
        return _label(cells[0]), cells[1]
    label = _label(f"{head[0]} {cells[0]}")
    return label, "; ".join(f"{name}: {cell}" for name, cell in zip(head[1:], cells[1:], strict=True))


def _sentence(line: str) -> tuple[str, str]:
    shown = _plain(line)
    leading = next((each for each in _LEADING if shown.startswith(each.lower())), "")
    item = _ITEM.match(line.strip())
    return (_label(item[1]), _plain(item[2])) if item else (leading.lower(), shown)


def _cells(line: str) -> list[str]:
    return [_plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))]


def _label(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", _plain(text)))


def _plain(text: str) -> str:
    """What a line shows, in small letters: links as their text, emphasis and code as what they mark."""
    return " ".join(_SHOWN_AS_IT_IS.sub("", _LINK.sub(r"\1", text)).lower().split())
