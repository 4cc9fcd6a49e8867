"""Whether `check_card` finds what a card says and the record does not."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hubtool.card import check_card, render_card
from hubtool.card.check import compare_cards
from hubtool.record import Record
from tests.card.records import FAILED, SEED_EVIDENCE, SEED_NOTES, with_evidence

OLDER = (Path(__file__).parent / "older.md").read_text()
"""The card that hubtool's first templates made of the same record."""


@pytest.fixture(scope="module")
def record(flash: Record) -> Record:
    """The first conversion of Flash, with few of its source's files."""
    source = msgspec.structs.replace(flash.source, files=flash.source.files[:3])
    return with_evidence(msgspec.structs.replace(flash, source=source), *SEED_EVIDENCE)


@pytest.fixture(scope="module")
def card(record: Record) -> str:
    return render_card(record)


@pytest.fixture(scope="module")
def older_template(card: str) -> str:
    """The card as other templates have it: other headings, an other order, a list in place of a table's row."""
    changed = re.sub("templates [0-9a-f]+", "templates 000000000000", card)
    changed = changed.replace("| Shards | 28 |\n", "").replace("## Source\n", "## Origin\n\n- Shards: 28\n")
    assert changed.count("\n") == card.count("\n") + 1
    return changed


def one_digit_changed(card: str) -> Iterator[tuple[int, str]]:
    """The card with another last digit in each run of digits, and the line of it."""
    for match in re.finditer(r"\d+", card):
        at = match.end() - 1
        digit = (int(card[at]) + 1) % 10
        yield card.count("\n", 0, at) + 1, f"{card[:at]}{digit}{card[at + 1 :]}"


def missed(card: str, fresh: str) -> list[str]:
    """Lines in which a changed digit is not noticed."""
    return [
        changed.split("\n")[line - 1]
        for line, changed in one_digit_changed(card)
        if line not in {finding.line for finding in compare_cards(changed, fresh)}
    ]


def test_a_fresh_card_holds(card: str, record: Record) -> None:
    assert check_card(card, record) == ()


def test_a_card_with_other_line_ends_holds(card: str, record: Record) -> None:
    assert check_card(card.replace("\n", "\r\n"), record) == ()


def test_one_changed_digit_is_found_in_every_figure(card: str) -> None:
    assert missed(card, card) == []


def test_one_changed_digit_is_found_in_every_figure_of_a_card_of_other_templates(
    older_template: str, card: str
) -> None:
    assert [line for line in missed(older_template, card) if "hubtool:card" not in line] == []


def test_one_changed_digit_is_found_in_every_figure_of_a_card_of_the_first_templates(flash: Record) -> None:
    assert missed(OLDER, render_card(with_evidence(flash, *SEED_EVIDENCE))) == []


def test_cards_of_other_templates_hold_as_they_are(older_template: str, record: Record, flash: Record) -> None:
    assert check_card(older_template, record) == ()
    assert check_card(OLDER, with_evidence(flash, *SEED_EVIDENCE)) == ()


CLAIMS = {
    "a validation": (
        "| --- | --- | --- | --- | --- |\n| Conversion |",
        "| --- | --- | --- | --- | --- |\n| Quality | passed | As good as the source. |  |  |\n| Conversion |",
        "Quality",
    ),
    "license": ("license: mit", "license: apache-2.0", "apache-2.0"),
    "license of the body": ("| License | mit;", "| License | apache-2.0;", "apache-2.0"),
    "base_model": ("base_model: deepseek-ai/DeepSeek-V4-Flash", "base_model: someone/Other", "someone/Other"),
    "base model of the body": ("Base model | [deepseek-ai/Deep", "Base model | [someone/Deep", "someone/Deep"),
    "a new key": ("library_name: mlx", "library_name: mlx\nnew_version: someone/Other", "new_version"),
    "status": ("artifact as converted and load-validated", "artifact as generation-qualified", "generation-qualified"),
    "qualified": (", not generation-qualified.**", ", generation-qualified.**", "generation-qualified"),
    "outcome": ("| Load | passed, stated by the publisher |", "| Load | failed |", "failed"),
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("template", ["card", "older_template"])
def test_a_changed_claim_is_found(claim: str, template: str, record: Record, request: pytest.FixtureRequest) -> None:
    before, after, named = CLAIMS[claim]
    text: str = request.getfixturevalue(template)
    assert before in text
    findings = check_card(text.replace(before, after, 1), record)
    assert any(named in str(finding) for finding in findings), findings


def test_a_missing_validation_is_found(card: str, record: Record) -> None:
    line = next(line for line in card.split("\n") if line.startswith("| Load |"))
    (finding,) = check_card(card.replace(f"{line}\n", ""), record)
    assert "missing" in str(finding)
    assert "Load" in str(finding)


def test_evidence_that_the_card_does_not_have_yet_is_found(card: str, record: Record) -> None:
    later = msgspec.structs.replace(record, evidence=(*record.evidence, *with_evidence(record, FAILED).evidence))
    assert any("are not finite" in str(finding) for finding in check_card(card, later))


def test_prose_may_say_anything(record: Record) -> None:
    prose = {"notes": SEED_NOTES, "limits": "I measured 99.9 % and 12,345 tokens.\n"}
    assert check_card(render_card(record, prose=prose), record) == ()


def test_words_outside_the_prose_are_found_with_their_line(card: str, record: Record) -> None:
    lines = card.split("\n")
    at = lines.index("## Limits")
    lines.insert(at + 2, "It is better than the source.")
    (finding,) = check_card("\n".join(lines), record)
    assert (finding.line, finding.found, finding.expected) == (at + 3, "It is better than the source.", "")


def test_a_figure_is_shown_with_what_the_record_says(card: str, record: Record) -> None:
    findings = check_card(
        card.replace("| Effective bits per weight | 3.808 |", "| Effective bits per weight | 3.5 |"), record
    )
    assert [str(finding).partition(": ")[2] for finding in findings] == [
        "'Effective bits per weight: 3.5', the record says '3.808'"
    ]
