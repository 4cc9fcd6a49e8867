"""What a person wrote in a card: found wherever it stands, kept through every new card, or named before it is lost."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubtool.card import render_card
from hubtool.card.consent import always, never
from hubtool.card.merge import merge_own, write_own
from hubtool.card.own import Generated, Own, decode_card, read_own
from hubtool.errors import OutputError, SourceError
from hubtool.hub.rules import read_metadata, split_card
from hubtool.record import Record, WithdrawnRecord
from tests.card.records import LOAD, with_evidence

LINE = st.text(st.characters(categories=["L", "N", "P", "Zs"], exclude_characters="<>`~"), min_size=1, max_size=40)
KEYS = {
    "extra_gated_prompt": "extra_gated_prompt: |\n  You agree:\n\n  1. to nothing\n",
    "thumbnail": "thumbnail: https://example.org/a.png # the logo\n",
    "widget": "# what to ask first\nwidget:\n- text: Hello\n  example_title: 'One'\n",
    "model-index": "model-index:\n- name: x\n  results: []\n",
    "extra_gated_fields": "extra_gated_fields:\n  Company: text\n  I agree: checkbox\n",
    "datasets": "datasets: [a/b, 'c/d']\n",
}


def add_key(card: str, text: str, *, first: bool = False) -> str:
    """The card with lines of front matter, before all others or after them."""
    front, body = split_card(card)
    return f"---\n{text}{front}---\n{body}" if first else f"---\n{front}{text}---\n{body}"


def merged(card: str, before: str | None, fresh: str) -> tuple[str, Own]:
    own = read_own(card, Generated(fresh, before), "README.md")
    return write_own(fresh, own), own


@pytest.fixture
def later(flash: Record) -> Record:
    """The record after a validation, and withdrawn."""
    return msgspec.structs.replace(
        with_evidence(flash, LOAD), withdrawn=WithdrawnRecord("Wrong.", "2026-11-24T00:00:00+00:00", "a/b")
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_lines_and_keys_written_anywhere_are_kept_once(flash_once: Callable[[], Record], data: st.DataObject) -> None:
    before = render_card(flash_once(), prose={"notes": "Prose.\n"})
    fresh = render_card(with_evidence(flash_once(), LOAD))
    front, body = split_card(before)
    lines = body.split("\n")
    outside = [n for n in range(len(lines) + 1) if n == 0 or not lines[n - 1].startswith("<!-- hubtool:prose")]
    outside = [n for n in outside if n == len(lines) or lines[n] != "<!-- /hubtool:prose -->"]
    written = data.draw(st.lists(LINE.filter(str.strip), min_size=1, max_size=3))
    for line in written:
        at = data.draw(st.sampled_from(outside))
        lines.insert(at, line.strip())
        outside = [n + (n > at) for n in outside]
    keys = data.draw(st.lists(st.sampled_from(sorted(KEYS)), unique=True, max_size=3))
    card = f"---\n{front}---\n" + "\n".join(lines)
    for key in keys:
        card = add_key(card, KEYS[key], first=data.draw(st.booleans()))
    once, own = merged(card, before, fresh)
    for line in written:
        # A line that hubtool might have written itself is no loss.
        assert once.split("\n").count(line.strip()) >= 1 or any(line.strip() in each for each in own.lost)
    assert all(KEYS[key] in once for key in keys)
    assert "Prose.\n" in once
    again, _ = merged(once, fresh, fresh)
    assert again == once


def test_a_card_in_which_nobody_wrote_follows_the_record(flash: Record, later: Record) -> None:
    before, fresh = render_card(flash), render_card(later)
    assert merged(before, before, fresh) == (fresh, read_own(before, Generated(fresh, before), ""))
    assert merged(fresh, fresh, before)[0] == before


def test_keys_of_ours_follow_the_record_and_what_was_added_to_them_stays(flash: Record, later: Record) -> None:
    before, fresh = render_card(flash), render_card(later)
    card = before.replace("tags:\n", "tags:\n- chemistry\n").replace("---\n\n#", "language: [de, fr]\n---\n\n#", 1)
    once, own = merged(card, before, fresh)
    assert read_metadata(once)["tags"] == ["mlx", "conversational", "chemistry"]
    assert read_metadata(once)["language"] == ["de", "fr"]
    assert read_metadata(once)["new_version"] == "a/b"
    assert own.lost == ()
    assert "new_version" not in read_metadata(merged(once, fresh, before)[0]), "ours are taken back again"


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ("| Shards | 28 |", "| Shards | 82 |", "restored"),
        ("not generation-qualified", "generation-qualified", "restored"),
        ("- Quality was not measured", "- My tests say otherwise: quality was not measured", "lost"),
        ("## Limits", "## Limits of my conversion", "kept"),
        ("license: mit", "license: apache-2.0", "lost"),
        ("## Limits\n", "", "restored"),
        ("## Limits\n", "Fine for chess and nothing else.\n", "kept"),
    ],
)
def test_what_was_changed_of_ours_is_restored_or_named(flash: Record, ours: str, theirs: str, verdict: str) -> None:
    before = render_card(flash)
    assert ours in before
    once, own = merged(before.replace(ours, theirs), before, before)
    assert bool(own.restored) == (verdict == "restored")
    assert bool(own.lost) == (verdict == "lost")
    assert (theirs.strip() in once and ours.strip() in once) == (verdict == "kept" or not theirs or theirs in ours)


def test_a_card_by_hand_is_named_whole_and_its_keys_stay(flash: Record) -> None:
    fresh = render_card(flash)
    card = "---\nlicense: mit\ntags: [chess]\nextra_gated_prompt: Agree.\n---\n# Mine\n\n| Elo |\n| --- |\n| 2000 |\n"
    for before in (None, fresh):
        once, own = merged(card, before, fresh)
        assert own.lost == ("its text, of 4 lines, which hubtool did not write",)
        assert read_metadata(once)["extra_gated_prompt"] == "Agree."
        assert read_metadata(once)["tags"] == ["mlx", "conversational", "chess"]
    blank = "---\nlicense: mit\n---\n"
    assert merged(blank, None, fresh) == (fresh, read_own(blank, Generated(fresh), ""))


def test_a_card_of_another_version_loses_nothing_unnamed(flash: Record) -> None:
    fresh = render_card(flash)
    older = fresh.replace("<!-- hubtool:card hubtool 0", "<!-- hubtool:card hubtool 9")
    assert merged(older, None, fresh)[0] == fresh
    _, own = merged(older.replace("## Limits\n", "## Limits\n\nWritten by me.\n"), None, fresh)
    (found,) = own.lost
    assert "Written by me." in found


def side(card: str, fresh: str) -> Own:
    return read_own(card, Generated(fresh, fresh), "README.md")


def test_what_was_deleted_on_either_side_since_is_deleted(flash: Record) -> None:
    fresh = render_card(flash)
    full = add_key(fresh.replace("\n## Limits\n", "\nOutside.\n\n## Limits\n"), KEYS["thumbnail"])
    full = full.replace("tags:\n", "tags:\n- chess\n")
    base = side(full, fresh)
    for mine, theirs in ((full, fresh), (fresh, full)):
        kept = merge_own(side(mine, fresh), side(theirs, fresh), base, ("here", "there"), never)
        assert write_own(fresh, kept) == fresh
        both = merge_own(side(mine, fresh), side(theirs, fresh), None, ("here", "there"), never)
        assert write_own(fresh, both) == write_own(fresh, base)


def test_one_key_changed_on_both_sides_needs_consent(flash: Record) -> None:
    fresh = render_card(flash)
    mine, theirs = (side(add_key(fresh, f"thumbnail: {name}.png\n"), fresh) for name in "ab")
    with pytest.raises(OutputError, match=r"front matter thumbnail: found 'thumbnail: a.png' and 'thumbnail: b.png'"):
        merge_own(mine, theirs, None, ("here", "there"), never)
    kept = merge_own(mine, theirs, None, ("here", "there"), always)
    assert read_metadata(write_own(fresh, kept))["thumbnail"] == "a.png"


def test_line_ends_and_a_byte_order_mark_are_not_what_somebody_wrote(flash: Record) -> None:
    fresh = render_card(flash, prose={"notes": "One.\nTwo.\n"})
    raw = b"\xef\xbb\xbf" + fresh.replace("\n", "\r\n").encode()
    assert decode_card(raw, "README.md") == fresh
    with pytest.raises(OutputError, match=r"README.md, line 3: not UTF-8: found byte 0xfc"):
        decode_card(b"\xef\xbb\xbf---\n---\nf\xfcr\n", "README.md")


@pytest.mark.parametrize(
    ("front", "found"),
    [("a: [1\n", "line 3: not YAML"), ("a: 1\na: 2\n", "twice"), ("- a\n- b\n", "found list"), ("a: 'x\n", "line 3")],
)
def test_front_matter_that_cannot_be_read_is_named(flash: Record, front: str, found: str) -> None:
    fresh = render_card(flash)
    with pytest.raises(SourceError, match="README.md") as refused:
        merged(f"---\n{front}---\n# Mine\n", None, fresh)
    assert found in str(refused.value)


def test_front_matter_with_anchors_and_keys_in_one_line_keeps_its_values(flash: Record) -> None:
    fresh = render_card(flash)
    card = add_key(fresh, "thumbnail: &a https://example.org/a.png\nbanner: *a\n")
    assert read_metadata(merged(card, fresh, fresh)[0])["banner"] == "https://example.org/a.png"
    body = split_card(fresh)[1]
    once, _ = merged("---\n{license: mit, thumbnail: a.png}\n---\n" + body, fresh, fresh)
    assert read_metadata(once) == {**read_metadata(fresh), "thumbnail": "a.png"}
