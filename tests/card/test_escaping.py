"""Any text in the record: the front matter parses back to it, and the body shows it and does nothing else."""

import re
from collections.abc import Callable
from html import unescape
from itertools import cycle
from typing import Any

import msgspec
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hubtool.card import card_metadata, check_card, read_prose, render_card
from hubtool.card.markdown import code, escape, one_line
from hubtool.hub.rules import read_metadata, split_card
from hubtool.record import Record
from tests.card.records import OUTCOMES, with_evidence

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
HOSTILE = st.sampled_from(
    [
        "---\nlicense: apache-2.0\n---",
        "blank\n\n\n\nlines\n\n\n",
        "a\n---\n# b",
        "{{ 7 * 7 }}{% raw %}",
        "<script>alert(1)</script>",
        "<!-- hubtool:prose notes -->",
        "<!-- /hubtool:prose -->",
        "| a | b |\n| - | - |",
        "`` ` ``",
        "```\n",
        "](javascript:alert(1))",
        "![x](https://example.org/x.png)",
        "no",
        "\u2028x\x85y",
        "<details>",
        "</details>",
        "1. x",
        "[a]: b",
    ]
)
ANY = TEXT | HOSTILE
TEXTS = st.lists(ANY, min_size=1, max_size=24)

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
TAGS = set("h1 h2 p a strong table thead tbody tr th td code pre ul li blockquote em details summary".split())
"""What the templates themselves make."""


def hostile(record: Record, texts: list[str]) -> Record:
    """The record with these texts in every field that holds free text."""
    fresh = cycle(texts).__next__
    replace = msgspec.structs.replace
    source = replace(
        record.source,
        repo=fresh(),
        commit=fresh(),
        architecture=fresh(),
        model_type=fresh(),
        metadata={"license": fresh(), "license_name": fresh(), "language": [fresh(), fresh()]},
        files=tuple(replace(file, name=fresh()) for file in record.source.files[:1]),
        dropped=tuple(replace(item, names=fresh(), reason=fresh()) for item in record.source.dropped),
        encodings={fresh(): 5},
    )
    recipe = replace(record.recipe, name=fresh(), summary=fresh(), description=fresh(), text=fresh())
    component = replace(record.plan.components[0], name=fresh(), formats=(fresh(),))
    plan = replace(record.plan, mode=fresh(), components=(component,))
    changed = replace(
        record,
        repo=fresh(),
        source=source,
        recipe=recipe,
        plan=plan,
        versions={fresh(): fresh(), "mlx": fresh()},
        measured=replace(record.measured, dtypes={fresh(): 8}),
    )
    item = OUTCOMES["aborted"][-1]
    machine = replace(item.machine, model=fresh(), chip=fresh(), system=fresh())
    other = replace(
        item,
        check=fresh(),
        detail=fresh(),
        figures={fresh(): fresh()},
        machine=machine,
        versions={"mlx-lm": fresh()},
        started=fresh(),
        outcome="failed",
    )
    known = tuple(replace(other, check=check, outcome="passed") for check in ("load", "smoke", "smoke-streamed"))
    return with_evidence(changed, other, *known)


@settings(max_examples=50)
@given(TEXTS)
@example(["blank\n\n\n\nlines\n\n\n"])
def test_any_text_gives_a_card_whose_front_matter_parses_back_to_it(
    flash_once: Callable[[], Record], texts: list[str]
) -> None:
    record = hostile(flash_once(), texts)
    card = render_card(record)
    expected: dict[str, Any] = card_metadata(record)
    assert read_metadata(card) == expected
    assert ModelCard(card, ignore_metadata_errors=False).data.to_dict() == expected  # type: ignore[no-untyped-call]
    assert expected["base_model"] == record.source.repo
    assert check_card(card, record).findings == ()
    assert not any(read_prose(card).values())


@settings(max_examples=50)
@given(TEXTS)
def test_any_text_stays_in_its_place_on_the_page(flash_once: Callable[[], Record], texts: list[str]) -> None:
    card = render_card(hostile(flash_once(), texts))
    html = MARKDOWN.render(split_card(card)[1])
    assert headings(html) == headings(MARKDOWN.render(split_card(render_card(flash_once()))[1]))
    assert set(re.findall(r"<(\w+)", html)) <= TAGS
    assert not re.search(r'="\s*javascript:', html)


def headings(html: str) -> list[str]:
    """The headings of a card's page but the first, which is the repo's name."""
    return [text for text in re.findall(r"<h[1-6]>(.*?)</h[1-6]>", html, re.DOTALL)][1:]


@given(ANY)
@example("*a* _b_ `c` [d](e) <f> &amp; {{ g }}")
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    shown = MarkdownIt("commonmark", {"html": True}).enable("strikethrough").render(f"x {escape(text)}")
    assert plain(shown) == f"x {one_line(text)}".strip()


@given(ANY)
def test_code_shows_text_as_it_is(text: str) -> None:
    table = f"| a |\n| - |\n| {code(text)} |\n"
    shown = MarkdownIt("commonmark").enable("table").render(table)
    assert plain(re.search(r"<td>(.*?)</td>", shown, re.DOTALL)[1]).strip() == one_line(text)  # type: ignore[index]


def plain(html: str) -> str:
    """The text of HTML."""
    return unescape(re.sub(r"<[^>]*>", "", html)).strip()
