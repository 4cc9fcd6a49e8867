"""The publisher's prose: kept through every regeneration, and refused where it would break what follows it."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubtool.card import read_prose, render_card
from hubtool.card.prose import block, find_prose_fault, insert_prose, without_prose
from hubtool.card.view import SECTIONS
from hubtool.errors import OutputError
from hubtool.record import Record

ABSENT = {"siblings", "quality"}
"""Sections that a record without siblings, and without a measured quality, has no place for."""

PLAIN = st.text(st.characters(exclude_characters="\r<>`~", exclude_categories=["Cs"]), max_size=80)
PROSE = st.lists(PLAIN, max_size=6).map(lambda lines: "".join(f"{line}\n" for line in lines))


def test_every_section_has_a_place_for_prose(flash: Record) -> None:
    places = set(read_prose(render_card(flash)))
    assert places == set(SECTIONS) - ABSENT


@given(st.dictionaries(st.sampled_from([name for name in SECTIONS if name not in ABSENT]), PROSE))
def test_prose_is_kept_to_the_byte(flash_once: Callable[[], Record], prose: dict[str, str]) -> None:
    card = render_card(flash_once(), prose=prose)
    read = read_prose(card)
    assert {name: text for name, text in read.items() if text} == {name: text for name, text in prose.items() if text}
    assert render_card(flash_once(), prose=read) == card
    assert without_prose(card).replace("\n", "") == without_prose(render_card(flash_once())).replace("\n", "")


def test_prose_that_looks_like_a_template_is_kept_as_it_is(flash: Record) -> None:
    prose = {"notes": "{{ recipe }} {% include 'x' %} \\1 \\g<0>\n\n\n\nEnd.\n"}
    assert read_prose(render_card(flash, prose=prose))["notes"] == prose["notes"]


def test_prose_edited_with_other_line_ends_is_read_alike() -> None:
    card = block("notes", "One.\nTwo.\n") + "\n"
    assert read_prose(card.replace("\n", "\r\n")) == {"notes": "One.\nTwo.\n"}


def test_prose_of_a_section_that_is_gone_moves_to_the_notes(flash: Record) -> None:
    card = render_card(flash, prose={"gone": "Still said.\n", "notes": "Noted.\n"})
    assert read_prose(card)["notes"] == "Noted.\n\nStill said.\n"
    assert render_card(flash, prose=read_prose(card)) == card


def test_prose_of_a_card_without_notes_stays_at_its_end() -> None:
    card = insert_prose("# Short\n", {"gone": "Still said.\n"})
    assert read_prose(card) == {"gone": "Still said.\n"}


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("<!-- hubtool:prose notes -->", "line 1: found prose notes without its end"),
        ("\n<!-- /hubtool:prose -->\n", "line 2: found the end of prose that has not begun"),
        (block("notes") + "\n" + block("notes"), "line 3: found prose notes a second time"),
        ("<!-- hubtool:prose a -->\n<!-- hubtool:prose b -->\n", "line 2: found prose b begins within prose a"),
        (block("notes", "```\nopen\n"), "line 2: found a block of code that is not closed in prose notes"),
        (block("notes", "````\n```\n"), "line 2: found a block of code that is not closed"),
        (block("notes", "a <!-- b\n"), "line 2: found a comment that is not closed"),
        (block("notes", "x\n\n<!-- b\n"), "line 4: found a comment that is not closed"),
        (block("notes", "x\n<script>alert(1)</script>\n"), "line 3: found HTML that the Hub removes, <script>"),
        (block("notes", '<img src="x" onerror="y">\n'), "line 2: found HTML that the Hub removes, onerror="),
        (block("notes", "<link rel=x>\n"), "line 2: found HTML that the Hub removes, <link>"),
        (block("notes", "<textarea>\n"), "line 2: found HTML that the Hub removes, <textarea>"),
        (block("notes", "x\n\n<pre>\n"), "line 4: found <pre> without </pre>"),
        (block("notes", "<details>\n<summary>x</summary>\n"), "line 2: found <details> without </details>"),
        (block("notes", "a <b>c\n"), "line 2: found <b> without </b>"),
        (block("notes", "a</details>\n"), "line 2: found </details> without <details>"),
        (block("notes", "<?php x\n"), "line 2: found HTML, <?..., that is not closed"),
        (block("notes", "<![CDATA[ x\n"), "line 2: found HTML, <!..., that is not closed"),
        (block("notes", "<div\nclass=x\n"), "line 2: found HTML, <d..., that is not closed"),
    ],
)
def test_prose_that_would_break_the_card_is_refused_with_its_line(card: str, found: str) -> None:
    with pytest.raises(OutputError) as refused:
        read_prose(card)
    assert found in str(refused.value).replace("cannot separate your text from the generated card: ", "")


@pytest.mark.parametrize(
    "prose",
    [
        "```html\n<script>\n```\n",
        "    <script>\n",
        "Use `<script>`, ``a ` <!-- b`` and `<link>`.\n",
        "Call it with once=True, one = 1.\n",
        "- ```\n  code in a list\n  ```\n",
        "<details>\n<summary>More</summary>\n\n| a |\n| - |\n| b |\n\n</details>\n",
        "<!-- a note -->\nA <b>word</b>, H<sub>2</sub>O<br>a < b and <you@example.org>.\n",
        "Name <model> yourself.\n",
    ],
)
def test_prose_that_is_harmless_is_kept(prose: str) -> None:
    assert read_prose(block("notes", prose)) == {"notes": prose}


@pytest.mark.parametrize(
    "text",
    [
        "![x](x%22%20onerror=alert(1)%20y=%22.png)",
        "[x](https://example.org/%3Cscript%3E)",
        '<img src="x%22 onerror=alert(1)">',
        '<a href="java&#10;script:alert(1)">x</a>',
        '<img src="data:text/html,x">',
    ],
)
def test_prose_whose_addresses_are_html_is_refused(text: str) -> None:
    fault = find_prose_fault(f"Fine.\n\n{text}\n")
    assert fault is not None and fault.line == 3


def test_prose_with_plain_addresses_is_fine() -> None:
    assert find_prose_fault('![a](a%20b.png) [b](https://example.org/L%27Or?q=1&r=2#x) <img src="c.png">\n') is None
