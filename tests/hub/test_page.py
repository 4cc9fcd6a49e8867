"""What the Hub shows for a card: safe HTML, chips, counted parameters."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubtool.hub.page import DROPPED, TAGS, VOID, Chip, bits_label, card_html, chips, hub_tags, preview
from hubtool.hub.rules import count_parameters

METADATA = {
    "license": "mit",
    "library_name": "mlx",
    "pipeline_tag": "text-generation",
    "tags": ["mlx", "conversational"],
    "language": ["en"],
    "base_model": "org/base",
    "base_model_relation": "quantized",
}


def test_markdown_as_on_the_hub() -> None:
    html = card_html("# Title\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n~~no~~ `code` **bold**\n", "org/model")
    assert "<h1>Title</h1>" in html
    assert '<th style="text-align:right">b</th>' in html and "<td>1</td>" in html
    assert "<s>no</s> <code>code</code> <strong>bold</strong>" in html


def test_relative_links_lead_into_the_repo() -> None:
    html = card_html(
        "[log](logs/run.txt) ![plot](./plot.png) [top](#top) [out](https://example.org/a?b=1&c=2)", "o/m", "v1"
    )
    assert 'href="/o/m/blob/v1/logs/run.txt"' in html
    assert 'src="/o/m/resolve/v1/plot.png"' in html
    assert 'href="#top"' in html
    assert 'href="https://example.org/a?b=1&amp;c=2" rel="nofollow noopener noreferrer"' in html


def test_allowed_html_is_kept_and_closed() -> None:
    html = card_html('<details><summary>More</summary>\n\n*text*\n\n</div></details>\n\n<p align="center">end', "o/m")
    assert html.startswith("<details><summary>More</summary>") and "<em>text</em>" in html
    assert "</div>" not in html
    assert html.rstrip().endswith("</p>")


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<a href='javascript:alert(1)'>x</a>",
        "<a href='java\tscript:alert(1)'>x</a>",
        "<a href='&#106;avascript:alert(1)'>x</a>",
        "[x](javascript:alert(1))",
        "<iframe src='https://example.org'></iframe>",
        "<style>body{display:none}</style>",
        "<svg><script>alert(1)</script></svg>",
        "<div style='position:fixed'>x</div>",
        "<form action='https://example.org'><input name=a></form>",
        "<!--><script>alert(1)</script-->",
        "<td style='text-align:left;background:url(x)'>",
        "<img src='data:text/html,x'>",
        "</main></body><base href='https://example.org'>",
        "<object data=x><embed src=y></object>",
        "![x](x%22%20onerror=alert(1)%20y=%22.png)",
        "<img src='x%22%20onerror=alert(1)'>",
        "<math><mtext></p><style><img src=x onerror=alert(1)></style></mtext></math>",
    ],
)
def test_nothing_in_a_card_runs_or_leaves_its_place(attack: str) -> None:
    assert_harmless(card_html(attack, "o/m"))


@given(st.text(alphabet="<>/=\"'!-& \n`[]()#*|abdhimnoprstvx:;", max_size=200))
def test_no_text_makes_more_than_allowed_html(text: str) -> None:
    assert_harmless(card_html(text, "o/m"))


def assert_harmless(html: str) -> None:
    """Only allowed elements and attributes, all of them closed, no address of another scheme."""
    parser = Reader()
    parser.feed(html)
    parser.close()
    assert parser.open == []


class Reader(HTMLParser):
    """Checks each element as a browser would meet it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS and tag not in DROPPED
        for name, value in attrs:
            assert name in TAGS[tag] | {"rel"}
            if name in ("href", "src"):
                assert re.match(r"https?:|mailto:|[/#]", value or ""), value
            if name == "style":
                assert re.fullmatch(r"text-align:\w+", value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def test_chips_come_in_the_hubs_order() -> None:
    config = {"model_type": "deepseek_v4", "quantization_config": {"bits": 4}, "auto_map": {}}
    tags = hub_tags(METADATA, config, ["a.safetensors"])
    assert tags == [
        *("mlx", "safetensors", "deepseek_v4", "conversational", "base_model:org/base"),
        *("base_model:quantized:org/base", "license:mit", "en", "4-bit", "custom_code"),
    ]
    assert chips(METADATA, tags) == [
        Chip("task", "Text generation"),
        Chip("library", "mlx"),
        Chip("library", "safetensors"),
        Chip("tag", "deepseek_v4"),
        Chip("tag", "conversational"),
        Chip("language", "en"),
        Chip("tag", "4-bit"),
        Chip("tag", "custom_code"),
        Chip("base", "base model: org/base"),
        Chip("license", "license: mit"),
    ]


def test_bits_label_follows_the_top_of_the_block() -> None:
    assert bits_label({"quantization": {"bits": 3, "a": {"bits": 6}}}) == "3-bit"
    assert bits_label({}) is None


def test_preview_loads_nothing_and_holds_its_pictures() -> None:
    markdown = (
        "![in](a.png) ![out](https://example.org/b.png) ![there](//example.org/c.png) ![gone](d.png) "
        "![x](x%22%20onerror=alert(1)%20y=%22.png) ![up](../e.png)"
    )
    asked: list[str] = []

    def picture(name: str) -> str | None:
        asked.append(name)
        return 'data:image/png;base64,AA==" onload="alert(1)' if name == "a.png" else None

    html = preview("o/m", METADATA, markdown, picture)
    assert "default-src 'none'" in html and "example.org" not in html
    assert asked == ["a.png", "d.png", "x%22%20onerror=alert(1)%20y=%22.png", "../e.png"]
    # Whatever takes an address's place is the value of that attribute, and nothing more.
    assert 'src="data:image/png;base64,AA==&quot; onload=&quot;alert(1)"' in html and html.count(" src=") == 1


def test_preview_is_one_page_with_title_chips_and_text() -> None:
    html = preview("org/model", METADATA, "# Title\n\n<script>x</script>")
    assert html.startswith("<!doctype html>") and "<h1>Title</h1>" in html and "<script" not in html
    assert '<li class="license">license: mit</li>' in html
    assert "<title>org/model</title>" in html


TENSORS = [
    ("a.weight", "U32", (10, 6)),
    ("a.scales", "BF16", (10, 1)),
    ("a.biases", "BF16", (10, 1)),
    ("b.weight", "U32", (10, 4)),
    ("b.scales", "U8", (10, 1)),
    ("norm.weight", "BF16", (7,)),
]


def test_parameters_are_counted_unpacked_with_each_modules_own_bits() -> None:
    block = {"bits": 4, "group_size": 32, "a": {"bits": 6}, "b": {"bits": 4, "mode": "mxfp4"}}
    assert count_parameters(TENSORS, {"quantization": block}) == {"U32": 10 * 32 + 10 * 32, "BF16": 7}
    assert count_parameters(TENSORS, {"quantization_config": block}) == {"U32": 640, "BF16": 7}


@pytest.mark.parametrize("config", [{}, {"quantization": {"quant_method": "own", "bits": 4}}])
def test_parameters_are_counted_as_stored_without_a_block_the_hub_knows(config: dict[str, object]) -> None:
    assert count_parameters(TENSORS, config) == {"U32": 100, "BF16": 27, "U8": 10}
