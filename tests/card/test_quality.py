"""What a card says of quality: what was measured of these very files, beside what it can be compared with."""

import re
from collections.abc import Iterator

import msgspec
import pytest

from hubtool.card import render_card
from hubtool.card.check import compare_cards
from hubtool.card.old_wording import older_lines
from hubtool.record import Record
from tests.card.records import QUALITY_EVIDENCE, SEED_EVIDENCE, with_evidence


@pytest.fixture(scope="module")
def record(flash: Record) -> Record:
    source = msgspec.structs.replace(flash.source, files=flash.source.files[:3])
    return with_evidence(msgspec.structs.replace(flash, source=source), *SEED_EVIDENCE, QUALITY_EVIDENCE)


def _section(card: str) -> str:
    return card[card.index("## Quality\n") : card.index("<!-- hubtool:prose quality -->")]


def test_a_table_holds_the_variant_its_siblings_and_the_floor(record: Record) -> None:
    section = _section(render_card(record))
    assert "| this variant, `mixed_3_6` | 3.808 | 0.2513 ± 0.0081 | 3.016 | 87.4 % | 4.814 |" in section
    assert re.search(r"Thump604/DeepSeek-V4-Flash-MLX-Q2.*\| 2\.992 \| 0\.6137 ± 0\.02 \|", section)
    assert "| the source itself, in bfloat16 |  | 0.0163 ± 0.00053 | 0.1956 | 98.1 % | 4.547 |" in section
    assert "93.7 % were chosen as by the source (99.0 % by the floor)" in section
    assert all(each in section for each in ("8,160 tokens", "32 windows", "a1" * 32, "b2" * 32, "org/wikitext"))


def test_the_limits_are_stated(record: Record, flash: Record) -> None:
    assert "- Quality was measured on 8,160 tokens of one text: " in render_card(record)
    assert "Quality was not measured" not in render_card(record)
    assert "- Quality was not measured: " in render_card(flash)


def test_of_other_bytes_or_as_a_statement_nothing_is_said(record: Record) -> None:
    for change in ({"subject": "0" * 64}, {"kind": "stated"}, {"outcome": "aborted_by_guard"}):
        evidence = (*record.evidence[:-1], msgspec.structs.replace(record.evidence[-1], **change))
        card = render_card(msgspec.structs.replace(record, evidence=evidence))
        assert "## Quality\n" not in card
        assert "Quality was not measured" in card


def _changed(card: str) -> Iterator[tuple[int, str]]:
    """The card with another digit in each figure of the section, and the line of it."""
    begin = card.index("## Quality\n")
    for match in re.finditer(r"\d+", _section(card)):
        at = begin + match.end() - 1
        yield card.count("\n", 0, at) + 1, f"{card[:at]}{(int(card[at]) + 1) % 10}{card[at + 1 :]}"


@pytest.mark.parametrize("templates", ["ours", "others"])
def test_a_changed_figure_is_found(record: Record, templates: str) -> None:
    card, older = render_card(record), older_lines(record)
    written = card if templates == "ours" else re.sub("templates [0-9a-f]+", "templates 000000000000", card)
    written = written if templates == "ours" else written.replace("## Limits\n", "## What to mind\n")
    cases = list(_changed(written))
    assert len(cases) > 40
    for line, changed in cases:
        found = {finding.line for finding in compare_cards(changed, card, older).findings}
        assert line in found, changed.split("\n")[line - 1]


def test_a_row_that_is_left_out_is_missed(record: Record) -> None:
    card = render_card(record)
    lines = [line for line in card.split("\n") if "the source itself, in bfloat16" not in line]
    other = re.sub("templates [0-9a-f]+", "templates 000000000000", "\n".join(lines))
    findings = compare_cards(other, card, older_lines(record)).findings
    assert any("the source itself, in bfloat16" in finding.expected for finding in findings)
