"""Markdown that is not hubtool's own, checked before it goes into a card: it must not hide what follows it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from hubtool.hub.page import DROPPED, TAGS, VOID

_MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

_REFUSED = DROPPED | set("base body embed form frame frameset head html input link listing meta plaintext".split())
"""Elements that the Hub removes, with what they hold, or that change how the rest is read."""

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TAG = re.compile(r"<(/?)([A-Za-z][\w-]*)((?:[^>\"']|\"[^\"]*\"|'[^']*')*)>")
_HANDLER = re.compile(r"[\s/\"'](on\w+)\s*=", re.IGNORECASE)
_SCRIPTED = re.compile(r"(?:javascript|vbscript|data):", re.IGNORECASE)
_BLANK = re.compile(r"[\x00-\x20]")
_OPENED = re.compile(r"<[A-Za-z/?!]")

_AFTER = "\n<!-- after -->\n\n# After\n"


@dataclass(frozen=True)
class Fault:
    """Why a text not allowed in a card: where in it, from 1, and what is there."""

    line: int
    found: str


def find_fault(text: str) -> Fault | None:
    """The first thing in a text that would hide or script what follows it, None if it may stand in a card."""
    return next(_faults(text), None)


def _faults(text: str) -> Iterator[Fault]:
    opened: list[tuple[str, int]] = []
    tokens = _MARKDOWN.parse(text)
    yield from _address_faults(tokens)
    for line, html in _html(tokens):
        yield from _tag_faults(line, html, opened)
    for name, line in opened:
        yield Fault(line, f"<{name}> without </{name}>")
    *_, last = (token for token in _MARKDOWN.parse(f"{text}{_AFTER}") if token.map and token.level == 0)
    if last.type != "heading_open":
        what = "a block of code" if last.type == "fence" else "HTML"
        yield Fault((last.map or [0])[0] + 1, f"{what} that is not closed")


def _address_faults(tokens: list[Token]) -> Iterator[Fault]:
    """Addresses of links and pictures that would be more than one where they are put into HTML as they are."""
    for token in tokens:
        for child in token.children or ():
            address = str(child.attrs.get("src") or child.attrs.get("href") or "")
            if _BREAKING.search(unquote(address)):
                yield Fault((token.map or [0])[0] + 1, f"an address that is HTML, {address[:60]}")


_BREAKING = re.compile(r"[\"<>\x00-\x1f]")


def _html(tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """What is read as HTML, and not as code or text, with its line."""
    for token in tokens:
        line = (token.map or [0])[0] + 1
        if token.type == "html_block":
            yield line, token.content
        for child in token.children or ():
            if child.type == "html_inline" or (child.type == "text" and "<!--" in child.content):
                yield line, child.content
            line += child.type in ("softbreak", "hardbreak")


def _tag_faults(line: int, html: str, opened: list[tuple[str, int]]) -> Iterator[Fault]:
    """What is wrong with tags; those that are not closed yet are added to `opened`."""
    plain = _COMMENT.sub("", html)
    for match in _TAG.finditer(plain):
        at = line + plain.count("\n", 0, match.start())
        closing, name, attributes = match[1], match[2].lower(), match[3]
        handler = _HANDLER.search(unquote(unescape(attributes)))
        if scheme := _SCRIPTED.search(_BLANK.sub("", unquote(unescape(attributes)))):
            yield Fault(at, f"HTML that the Hub removes, {scheme[0]}")
        elif name in _REFUSED or handler:
            shown = f"{handler[1]}=" if handler else f"<{name}>"
            yield Fault(at, f"HTML that the Hub removes, {shown}")
        elif name in TAGS and not closing and name not in VOID:
            opened.append((name, at))
        elif name in TAGS and closing and (not opened or opened.pop()[0] != name):
            yield Fault(at, f"</{name}> without <{name}>")
    if left := _OPENED.search(_TAG.sub("", plain)):
        what = "a comment" if "<!--" in plain else f"HTML, {left[0]}...,"
        yield Fault(line, f"{what} that is not closed")
