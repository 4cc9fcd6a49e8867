"""Markdown and metadata to what the Hub shows for them: the card as HTML, the chips, the labels beside it.

A preview: near enough to judge a card by, with the same facts read off the same files. Raw HTML in a card is kept as
far as an allow-list goes; nothing in a card can run, load from elsewhere, or leave its place on the page.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from urllib.parse import quote

import jinja2
from markdown_it import MarkdownIt

from hubtool.resources import templates_dir

TAGS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("b", "blockquote", "br", "code", "dd", "del", "details", "dl", "dt", "em", "figcaption"), frozenset()
    ),
    **dict.fromkeys(
        ("figure", "hr", "i", "ins", "kbd", "li", "mark", "pre", "s", "samp", "small", "strong"), frozenset()
    ),
    **dict.fromkeys(("sub", "summary", "sup", "table", "tbody", "thead", "tr", "tt", "u", "ul", "var"), frozenset()),
    **dict.fromkeys(("div", "h1", "h2", "h3", "h4", "h5", "h6", "p", "span"), frozenset({"align"})),
    "a": frozenset({"href", "title"}),
    "img": frozenset({"src", "alt", "title", "width", "height"}),
    "ol": frozenset({"start"}),
    **dict.fromkeys(("td", "th"), frozenset({"align", "colspan", "rowspan", "style"})),
}
"""Elements that a card may have, and their attributes."""

VOID = frozenset({"br", "hr", "img"})
DROPPED = frozenset(
    {"applet", "iframe", "math", "noembed", "noframes", "noscript", "object", "script", "select", "style"}
    | {"svg", "template", "textarea", "title", "xmp"}
)
"""Elements of which the content goes too."""

ALIGNMENT = re.compile(r"text-align:(?:left|right|center)")
"""The one style that is kept: that of Markdown's table columns."""

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True)
class Chip:
    """One label under the title: `task`, `library`, `license`, `language`, `base` or plain `tag`."""

    kind: str
    text: str


def environment() -> jinja2.Environment:
    """Where the templates of pages come from; what they show is escaped."""
    loader = jinja2.FileSystemLoader(templates_dir() / "page")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def preview(name: str, metadata: Mapping[str, object], markdown: str) -> str:
    """A page, complete in itself, with the title, chips and text of a card.

    Args:
        name: `NAMESPACE/NAME` of the repo.
        metadata: The front matter.
        markdown: What comes after it.
    """
    shown = {"name": name, "chips": chips(metadata, hub_tags(metadata, {}, ())), "card": card_html(markdown, name)}
    return environment().get_template("preview.html.jinja").render(shown)


def card_html(markdown: str, repo: str, revision: str = "main") -> str:
    """The text of a card as HTML that is safe to show.

    Args:
        markdown: Without front matter; tables and strike-through as on the Hub.
        repo: `NAMESPACE/NAME`, which relative links are relative to.
        revision: The revision they lead to.
    """
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    cleaner = _Cleaner(f"/{repo}", quote(revision, safe=""))
    cleaner.feed(html)
    cleaner.close()
    return cleaner.finish()


def hub_tags(metadata: Mapping[str, object], config: Mapping[str, object], paths: Iterable[str]) -> list[str]:
    """The tags that the Hub derives from a repo: its library, formats, what the card says, model type and bits."""
    tags = [*_texts(metadata.get("library_name"))]
    if any(path.endswith(".safetensors") for path in paths):
        tags.append("safetensors")
    tags += [*_texts(config.get("model_type")), *_texts(metadata.get("tags"))]
    relation = metadata.get("base_model_relation")
    for base in _texts(metadata.get("base_model")):
        tags.append(f"base_model:{base}")
        if isinstance(relation, str):
            tags.append(f"base_model:{relation}:{base}")
    tags += [f"license:{name}" for name in _texts(metadata.get("license"))]
    tags += _texts(metadata.get("language"))
    bits = bits_label(config)
    return list(dict.fromkeys([*tags, *([bits] if bits else []), *(["custom_code"] if "auto_map" in config else [])]))


def bits_label(config: Mapping[str, object]) -> str | None:
    """`4-bit`, which follows the top of the quantization block whatever its modules have."""
    block = config.get("quantization_config") or config.get("quantization")
    bits = block.get("bits") if isinstance(block, Mapping) else None
    return f"{bits}-bit" if isinstance(bits, int) else None


def chips(metadata: Mapping[str, object], tags: Iterable[str]) -> list[Chip]:
    """The labels under the title, in the Hub's order: task, library, tags, languages, base model, license."""
    languages = set(_texts(metadata.get("language")))
    shown = [Chip("task", text.replace("-", " ").capitalize()) for text in _texts(metadata.get("pipeline_tag"))]
    for tag in tags:
        if tag.startswith(("base_model:", "license:")):
            continue
        kind = "library" if tag in (metadata.get("library_name"), "safetensors") else "tag"
        shown.append(Chip("language" if tag in languages else kind, tag))
    shown += [Chip("base", f"base model: {base}") for base in _texts(metadata.get("base_model"))]
    return shown + [Chip("license", f"license: {name}") for name in _texts(metadata.get("license"))]


class _Cleaner(HTMLParser):
    """Writes anew what the allow-list has of some HTML, every element closed."""

    def __init__(self, root: str, revision: str) -> None:
        super().__init__(convert_charrefs=True)
        self._root, self._revision = root, revision
        self._out: list[str] = []
        self._open: list[str] = []
        self._dropped: list[str] = []

    def finish(self) -> str:
        """The HTML."""
        return "".join([*self._out, *(f"</{tag}>" for tag in reversed(self._open))])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in DROPPED:
            self._dropped.append(tag)
        if self._dropped or tag not in TAGS:
            return
        kept = [
            (name, value) for name, given in attrs if (value := self._attribute(tag, name, given or "")) is not None
        ]
        if tag == "a":
            kept.append(("rel", "nofollow noopener noreferrer"))
        attributes = "".join(f' {name}="{escape(value)}"' for name, value in kept)
        self._out.append(f"<{tag}{attributes}>")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # In HTML the slash of <b/> means nothing: the element is open.
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._dropped:
            if tag in self._dropped:
                del self._dropped[self._dropped.index(tag) :]
        elif tag in self._open:
            while (closed := self._open.pop()) != tag:
                self._out.append(f"</{closed}>")
            self._out.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            self._out.append(escape(data, quote=False))

    def _attribute(self, tag: str, name: str, value: str) -> str | None:
        """The attribute's value if it is kept."""
        if name not in TAGS[tag]:
            return None
        if name == "href":
            return self._address(value, "blob", ("http:", "https:", "mailto:"))
        if name == "src":
            return self._address(value, "resolve", ("http:", "https:"))
        if name == "style":
            return value if ALIGNMENT.fullmatch(value) else None
        return value

    def _address(self, value: str, view: str, schemes: tuple[str, ...]) -> str | None:
        """An address of an allowed scheme; a relative one made one within the repo."""
        # Browsers ignore control characters and spaces before and in a scheme.
        text = re.sub(r"[\x00-\x20]", "", value)
        scheme = SCHEME.match(text)
        if scheme:
            return text if scheme[0].lower() in schemes else None
        if text.startswith(("#", "//", "/")):
            return text
        return f"{self._root}/{view}/{self._revision}/{text.removeprefix('./')}"


def _texts(value: object) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item is not None]
