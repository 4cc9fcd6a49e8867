"""Whether a card says what the record says: every figure and claim that does not, by line."""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from hubtool.card.measured import Unrecorded
from hubtool.card.prose import read_prose, without_prose
from hubtool.card.render import render_card
from hubtool.card.validation import CHECKS
from hubtool.hubrules import read_metadata, split_card
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
            return f"line {self.line}: {self.found!r} is not in the record"
        if not self.found:
            return f"line {self.line}: missing: {self.expected!r}"
        return f"line {self.line}: {self.found!r}, the record says {self.expected!r}"


_MADE_BY = re.compile(r"^<!-- hubtool:card (.*) -->$", re.MULTILINE)
_DIGITS = re.compile(r"\d+")


def check_card(
    card: str, record: Record | Unrecorded, templates: Path | None = None, assets: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Every figure and claim of a card that is not what the record says, outside the publisher's prose.

    A card of these templates must be the one that they make of the record, to the byte. One of an older hubtool or
    of other templates is compared fact by fact.

    Raises:
        OutputError: The prose of the card cannot be told from the rest.
        UsageError: A template cannot be used.
    """
    return compare_cards(card, render_card(record, templates, prose=read_prose(card), assets=assets))


def compare_cards(card: str, fresh: str) -> tuple[Finding, ...]:
    """Where a card says something else than a fresh one, which is made around the same prose: see `check_card`."""
    if card.replace("\r\n", "\n") == fresh:
        return ()
    found, expected = without_prose(card), without_prose(fresh)
    if _made_by(found) == _made_by(expected) or _masked(found) == _masked(expected):
        return tuple(_compare_lines(found.split("\n"), expected.split("\n")))
    return tuple(sorted(_compare_facts(found, expected), key=lambda finding: finding.line))


def _masked(text: str) -> str:
    return _DIGITS.sub("0", text)


def _made_by(card: str) -> str | None:
    match = _MADE_BY.search(card)
    return match[1] if match else None


def _compare_lines(found: list[str], expected: list[str]) -> Iterator[Finding]:
    matcher = difflib.SequenceMatcher(None, found, expected, autojunk=False)
    for kind, start, stop, first, last in matcher.get_opcodes():
        if kind == "equal":
            continue
        pairs = max(stop - start, last - first)
        for index in range(pairs):
            said = found[start + index] if start + index < stop else ""
            true = expected[first + index] if first + index < last else ""
            if said.strip() or true.strip():
                yield Finding(min(start + index, stop) + 1, *_differing(said.strip(), true.strip()))


def _differing(found: str, expected: str) -> tuple[str, str]:
    """The differing cells of two rows of a table, or else both lines whole."""
    cells, others = found.split(" | "), expected.split(" | ")
    if len(cells) == len(others) > 1:
        differ = [(a, b) for a, b in zip(cells, others, strict=True) if a != b]
        if len(differ) < len(cells):
            name = cells[0].strip("| ")
            changed, true = (" | ".join(parts) for parts in zip(*differ, strict=True))
            return f"{name}: {changed}".strip(" |"), true.strip(" |")
    return found, expected


@dataclass(frozen=True)
class _Fact:
    """Something that a card says: under which heading, of what, and what. `text` is the whole of it."""

    line: int
    section: str
    label: str
    value: str
    text: str


_MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)|[`*\\]|</?[a-z]+>")
_TOKEN = re.compile(r"[\w.,/@+-]*\d[\w.,/@+%-]*")
_WORD = re.compile(r"\W*([A-Za-z%]+)")
_STATUS = re.compile(r"(not )?(?:generation-qualified|load-validated)(, streamed)?")
_REPO = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)")
_RULE = re.compile(r"\|[-: |]+\|?")


def _compare_facts(found: str, expected: str) -> Iterator[Finding]:
    yield from _compare_metadata(found, expected)
    truth = _read_truth(expected)
    lines = found.split("\n")
    for fact in _facts(found):
        line = lines[fact.line - 1]
        if same := truth.lines.get(_masked(line)):
            # The templates agree on this line, so its figures must stand where they stand.
            if line not in same:
                yield Finding(fact.line, *_differing(line, same[0]))
        else:
            yield from _compare_fact(fact, truth)
    yield from _compare_claims(lines, expected)


@dataclass(frozen=True)
class _Truth:
    """What a fresh card says, looked up in every way that an older one may say it.

    Attributes:
        lines: Its lines by what is left of them without digits.
        values: By label.
        outcomes: Of its validations, by their label.
        figures: By what is left of them without digits, with the word after each.
    """

    lines: Mapping[str, list[str]]
    values: Mapping[str, list[str]]
    outcomes: Mapping[str, set[str]]
    figures: Mapping[str, set[tuple[str, str]]]

    def knows(self, figure: tuple[str, str]) -> bool:
        """Whether a figure stands in the card, with the same word after it if figures of its kind have that word."""
        alike = self.figures.get(_masked(figure[0]), set())
        with_word = {name for name, word in alike if word == figure[1]}
        return figure[0] in (with_word or {name for name, _ in alike})


@lru_cache(maxsize=1)
def _read_truth(card: str) -> _Truth:
    lines: dict[str, list[str]] = defaultdict(list)
    values: dict[str, list[str]] = defaultdict(list)
    outcomes: dict[str, set[str]] = defaultdict(set)
    figures: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for line in card.split("\n"):
        lines[_masked(line)].append(line)
    for fact in _facts(card):
        values[fact.label].append(fact.value)
        if fact.label.endswith(" outcome"):
            outcomes[fact.label.removesuffix(" outcome")].add(_outcome(fact.value))
    for figure in _figures(_plain(card)):
        figures[_masked(figure[0])].add(figure)
    return _Truth(lines, values, outcomes, figures)


def _compare_fact(fact: _Fact, truth: _Truth) -> Iterator[Finding]:
    values = truth.values.get(fact.label) if fact.label else None
    check = _CHECK_LABELS.get(fact.label, fact.label)
    if values is not None and not any(_agree(fact.value, value) for value in values):
        yield Finding(fact.line, fact.text, " or ".join(dict.fromkeys(values)))
    elif values is None and fact.section.startswith("validation") and fact.label:
        if _outcome(fact.value) not in truth.outcomes.get(check, ()):
            yield Finding(fact.line, fact.text, "")
    elif values is None:
        for figure in sorted(_figures(fact.text)):
            if not truth.knows(figure):
                yield Finding(fact.line, " ".join(figure).strip(), "")


_OUTCOME_WORDS = {"passed": "passed", "fail": "failed", "refused": "refused", "not run": "not run"} | dict.fromkeys(
    ("aborted", "stopped"), "stopped"
)


def _outcome(text: str) -> str:
    """The outcome that a text begins with, under any of the names that it has had."""
    places = [(text.lower().find(word), outcome) for word, outcome in _OUTCOME_WORDS.items() if word in text.lower()]
    return min(places)[1] if places else ""


def _compare_claims(lines: list[str], expected: str) -> Iterator[Finding]:
    claims = {match[0] for match in _STATUS.finditer(_plain(expected))}
    repos = set(_REPO.findall(expected))
    for number, line in enumerate(lines, start=1):
        for claim in sorted({match[0] for match in _STATUS.finditer(_plain(line))} - claims):
            yield Finding(number, claim, " or ".join(sorted(claims)))
        for repo in sorted(set(_REPO.findall(line)) - repos):
            yield Finding(number, repo, "")


def _compare_metadata(found: str, expected: str) -> Iterator[Finding]:
    try:
        said = read_metadata(found)
    except yaml.YAMLError:
        yield Finding(1, "metadata that is not YAML", "")
        return
    true = read_metadata(expected)
    lines = split_card(found)[0].split("\n")
    for key in {**said, **true}:
        if said.get(key) != true.get(key):
            number = next((n for n, line in enumerate(lines, start=2) if line.startswith(f"{key}:")), 1)
            shown = f"{key}: {said[key]}" if key in said else ""
            yield Finding(number, shown, f"{key}: {true[key]}" if key in true else "")


def _facts(card: str) -> Iterator[_Fact]:
    """What the body of a card says, by the label that it has in a table or list."""
    body = split_card(card)[1]
    lines = body.split("\n")
    offset = card.count("\n") - body.count("\n")
    section, head = "", [""]
    for number, line in enumerate(lines, start=offset + 1):
        following = lines[number - offset] if number - offset < len(lines) else ""
        if line.startswith("#"):
            section, head = _label(line.lstrip("#")), [""]
        if not line.strip() or line.startswith("<!--") or _RULE.fullmatch(line):
            continue
        if line.startswith("|") and not _RULE.fullmatch(following):
            yield from _row_facts(number, section, head, _cells(line))
            continue
        if line.startswith("|"):
            head = _cells(line)
        bullet = re.match(r"[-*•] ([^:.]{1,60}): (.+)", line.strip())
        label, value = (_label(bullet[1]), _plain(bullet[2])) if bullet else ("", _plain(line))
        yield _Fact(number, section, label, value, _plain(line).strip())


def _row_facts(number: int, section: str, head: list[str], cells: list[str]) -> Iterator[_Fact]:
    columns = head if len(cells) > 2 else ["", ""]
    for name, cell in zip(columns[1:], cells[1:], strict=False):
        text = f"{cells[0]}: {cell}" if cell else cells[0]
        yield _Fact(number, section, _label(f"{cells[0]} {name}"), cell, text)


def _cells(line: str) -> list[str]:
    return [_plain(cell).strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _label(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", _plain(text).lower()))


def _plain(text: str) -> str:
    return _MARKUP.sub(lambda match: match[1] or "", text)


def _figures(text: str) -> set[tuple[str, str]]:
    """Every word with a digit, with the word after it if there is one."""
    found = set()
    for match in _TOKEN.finditer(text):
        word = _WORD.match(text, match.end())
        found.add((match[0].strip(".,-/"), word[1].lower() if word else ""))
    return found


def _agree(value: str, true: str) -> bool:
    """Whether two values of one label have the same figures, or where they have none the same words."""
    figures = {figure for figure, _ in _figures(value)}
    if figures:
        return figures <= {figure for figure, _ in _figures(true)}
    return _label(value) in _label(true)


_CHECK_LABELS = {key.replace("-", " "): _label(name) for key, name in CHECKS.items()}
"""The rungs' own names, which older cards show, by what this one calls them."""
