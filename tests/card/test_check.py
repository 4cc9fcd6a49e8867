"""Whether `check_card` finds what a card says and the record does not."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hubtool.card import check_card, render_card
from hubtool.card.check import Finding, compare_cards
from hubtool.card.old_wording import older_lines
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
    """The card as other templates have it: another order, a list in place of a table's row."""
    changed = re.sub("templates [0-9a-f]+", "templates 000000000000", card)
    changed = changed.replace("| Shards | 28 |\n", "").replace("## Source\n", "## Source\n\n- Shards: 28\n")
    assert changed.count("\n") == card.count("\n") + 1
    return changed


def one_digit_changed(card: str) -> Iterator[tuple[int, str]]:
    """The card with another last digit in each run of digits, and the line of it."""
    for match in re.finditer(r"\d+", card):
        at = match.end() - 1
        digit = (int(card[at]) + 1) % 10
        yield card.count("\n", 0, at) + 1, f"{card[:at]}{digit}{card[at + 1 :]}"


def findings(card: str, record: Record) -> tuple[Finding, ...]:
    return check_card(card, record).findings


def missed(card: str, record: Record) -> list[str]:
    """Lines in which a changed digit is not noticed."""
    fresh, older = render_card(record), older_lines(record)
    return [
        changed.split("\n")[line - 1]
        for line, changed in one_digit_changed(card)
        if line not in {finding.line for finding in compare_cards(changed, fresh, older).findings}
    ]


def test_a_fresh_card_holds(card: str, record: Record) -> None:
    assert findings(card, record) == ()


def test_a_card_with_other_line_ends_holds(card: str, record: Record) -> None:
    assert findings(card.replace("\n", "\r\n"), record) == ()


def test_one_changed_digit_is_found_in_every_figure(card: str, record: Record) -> None:
    assert missed(card, record) == []


@pytest.mark.slow
def test_one_changed_digit_is_found_in_every_figure_of_a_card_of_other_templates(
    older_template: str, record: Record
) -> None:
    assert [line for line in missed(older_template, record) if "hubtool:card" not in line] == []


def test_one_changed_digit_is_found_in_every_figure_of_a_card_of_the_first_templates(flash: Record) -> None:
    assert missed(OLDER, with_evidence(flash, *SEED_EVIDENCE)) == []


def test_cards_of_other_templates_hold_as_they_are(older_template: str, record: Record, flash: Record) -> None:
    assert findings(older_template, record) == ()
    assert findings(OLDER, with_evidence(flash, *SEED_EVIDENCE)) == ()


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
    found = findings(text.replace(before, after, 1), record)
    assert any(named in str(finding) for finding in found), found


FORGED = {
    "lossless": ("\n## Limits\n", "\nLossless.\n\n## Limits\n", "Lossless"),
    "a claim with a known figure": (
        "\n## Limits\n",
        "\nIt runs well on a Mac with 128 GB.\n\n## Limits\n",
        "runs well",
    ),
    "a heading": ("## Limits\n", "## Lossless\n", "Lossless"),
    "a row of one cell": ("| Architecture |", "| Lossless |\n| Architecture |", "Lossless"),
    "a row too many": ("| Model type |", "| Lossless | yes | it is |\n| Model type |", "Lossless"),
    "a row outside a table": ("\n## Limits\n", "\n| Lossless | yes |\n\n## Limits\n", "Lossless"),
    "a comment with text after it": ("<!-- hubtool:card ", "<!-- hubtool:card x --> Lossless <!-- ", "Lossless"),
    "license of the body": ("| License | mit;", "| License | openrail;", "openrail"),
    "a value left out": ("| Architecture | DeepseekV4ForCausalLM |", "| Architecture |  |", "Architecture"),
    "a part of a value": ("| Quantization mode | affine |", "| Quantization mode | a |", "Quantization mode: a"),
    "not": ("Quality was not measured", "Quality was measured", "Quality was measured"),
    "stated": ("| passed, stated by the publisher |", "| passed |", "stated by the publisher"),
    "stated in the status": ("load-validated (stated by the publisher)", "load-validated", "load-validated,"),
    "a link's target": (
        "[deepseek-ai/DeepSeek-V4-Flash](https://huggingface.co/",
        "[deepseek-ai/DeepSeek-V4-Flash](https://evil.example/",
        "evil.example",
    ),
    "a struck word": (", not generation-qualified.\n", ", <s>not</s> generation-qualified.\n", "<s>not</s>"),
    "an option of a command": ("mlx_lm.chat --model", "mlx_lm.chat --trust-nobody --model", "--trust-nobody"),
}
DELETED = (
    "| Effective bits",
    "| Base model",
    "| Load |",
    "| Generation, resident |",
    "- Not converted:",
    "- Quality was",
    "| routed experts",
    "Treat this",
    "base_model:",
)


@pytest.mark.parametrize("made_by", ["", "<!-- hubtool:card hubtool 9.0.0, templates 000000000000 -->\n"])
@pytest.mark.parametrize("claim", FORGED)
def test_a_claim_is_found_whatever_the_card_says_made_it(claim: str, made_by: str, card: str, record: Record) -> None:
    before, after, named = FORGED[claim]
    assert before in card
    forged = re.sub(r"<!-- hubtool:card hubtool 0.* -->\n", made_by, card.replace(before, after, 1))
    found = findings(forged, record)
    assert any(named in str(finding) for finding in found), found


@pytest.mark.parametrize("start", DELETED)
def test_a_fact_left_out_of_a_card_of_other_templates_is_found(start: str, older_template: str, record: Record) -> None:
    line = next(line for line in older_template.split("\n") if line.startswith(start))
    found = findings(older_template.replace(f"{line}\n", "", 1), record)
    assert any("missing" in str(finding) for finding in found), found


@pytest.mark.parametrize("line", ["</details>", "```"])
def test_lines_that_are_folded_away_or_made_code_are_found(line: str, older_template: str, record: Record) -> None:
    lines = older_template.split("\n")
    lines.pop(len(lines) - 1 - lines[::-1].index(line))
    assert any(
        "closed" in finding.found or "without" in finding.found for finding in findings("\n".join(lines), record)
    )


def test_a_card_of_nothing_but_metadata_and_a_boast_is_found(card: str, record: Record) -> None:
    front = card[: card.index("\n---\n") + len("\n---\n")]
    boast = "Lossless. Generation-qualified on every Mac."
    found = findings(f"{front}\n{boast}\n", record)
    assert any(finding.found == boast for finding in found)
    assert any("Treat this artifact" in finding.expected for finding in found)


def test_an_older_card_lacks_newer_evidence(flash: Record) -> None:
    later = with_evidence(flash, *SEED_EVIDENCE, FAILED)
    assert any("are not finite" in str(finding) for finding in findings(OLDER, later))


def test_it_is_said_how_a_card_was_compared(card: str, older_template: str, record: Record) -> None:
    assert check_card(card, record).how == "line by line"
    assert check_card(older_template, record).how == "fact by fact"


def test_a_space_at_the_end_of_a_line_says_nothing(card: str, record: Record) -> None:
    assert (
        findings(
            card.replace("| Architecture | DeepseekV4ForCausalLM |", "| Architecture | DeepseekV4ForCausalLM | "),
            record,
        )
        == ()
    )


def test_a_row_made_code_by_spaces_before_it_is_found(card: str, record: Record) -> None:
    row = "| Architecture | DeepseekV4ForCausalLM |"
    (found,) = findings(card.replace(row, f"    {row}"), record)
    assert (found.found, found.expected) == (f"    {row}", row)


def test_a_missing_validation_is_found(card: str, record: Record) -> None:
    line = next(line for line in card.split("\n") if line.startswith("| Load |"))
    (finding,) = findings(card.replace(f"{line}\n", ""), record)
    assert "missing" in str(finding)
    assert "Load" in str(finding)


def test_evidence_that_the_card_does_not_have_yet_is_found(card: str, record: Record) -> None:
    later = msgspec.structs.replace(record, evidence=(*record.evidence, *with_evidence(record, FAILED).evidence))
    assert any("are not finite" in str(finding) for finding in findings(card, later))


def test_prose_may_say_anything(record: Record) -> None:
    prose = {"notes": SEED_NOTES, "limits": "I measured 99.9 % and 12,345 tokens.\n"}
    assert findings(render_card(record, prose=prose), record) == ()


def test_words_outside_the_prose_are_found_with_their_line(card: str, record: Record) -> None:
    lines = card.split("\n")
    at = lines.index("## Limits")
    lines.insert(at + 2, "It is better than the source.")
    (finding,) = findings("\n".join(lines), record)
    assert (finding.line, finding.found, finding.expected) == (at + 3, "It is better than the source.", "")


def test_a_figure_is_shown_with_what_the_record_says(card: str, record: Record) -> None:
    found = findings(
        card.replace("| Effective bits per weight | 3.808 |", "| Effective bits per weight | 3.5 |"), record
    )
    assert [str(finding).partition(": ")[2] for finding in found] == [
        "'Effective bits per weight: 3.5', the record says '3.808'"
    ]
