"""Markdown and metadata to what the Hub shows for them: the card as HTML, the chips, the labels beside it.

A preview: near enough to judge a card by, with the same facts read off the same files. Raw HTML in a card is kept as
far as an allow-list goes; nothing in a card can run, load from elsewhere, or leave its place on the page.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
SCHEMES = {"href": ("http:", "https:", "mailto:"), "src": ("http:", "https:")}


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


Picture = Callable[[str], str | None]
"""Gives the address of a picture by its name in the repo, or by its whole address if it lies elsewhere."""


def preview(name: str, metadata: Mapping[str, object], markdown: str, picture: Picture = lambda name: None) -> str:
    """A page, complete in itself, with the title, chips and text of a card; nothing in it runs or loads anything.

    Args:
        name: `NAMESPACE/NAME` of the repo.
        metadata: The front matter.
        markdown: What comes after it.
        picture: Gives the `data:` address of a picture of the repo, None for one that is not shown.
    """
    card = card_html(markdown, name, picture=lambda source: None if _is_elsewhere(source) else picture(source))
    shown = {"name": name, "chips": chips(metadata, hub_tags(metadata, {}, ())), "card": card}
    return environment().get_template("preview.html.jinja").render(shown)


def card_html(markdown: str, repo: str, revision: str = "main", picture: Picture | None = None) -> str:
    """The text of a card as HTML that is safe to show.

    Sanitizing is the last step: whatever is put in place of an address is put there by the sanitizer itself, as the
    value of that attribute.

    Args:
        markdown: Without front matter; tables and strike-through as on the Hub.
        repo: `NAMESPACE/NAME`, which relative links are relative to.
        revision: The revision they lead to.
        picture: Gives the addresses of pictures; by default those of a Hub's page.
    """
    import nh3

    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    root, at = f"/{repo}", quote(revision, safe="")
    pictures = picture or (lambda source: source if _is_elsewhere(source) else f"{root}/resolve/{at}/{source}")

    def attribute(tag: str, name: str, value: str) -> str | None:
        if name == "style":
            return value if ALIGNMENT.fullmatch(value) else None
        if name not in ("href", "src"):
            return value
        # Browsers ignore control characters and spaces before and in a scheme.
        address = re.sub(r"[\x00-\x20]", "", value)
        scheme = SCHEME.match(address)
        if scheme and scheme[0].lower() not in SCHEMES[name]:
            return None
        address = address.removeprefix("./")
        if name == "src":
            return pictures(address)
        return address if _is_elsewhere(address) else f"{root}/blob/{at}/{address}"

    return nh3.clean(
        html,
        tags=set(TAGS),
        clean_content_tags=set(DROPPED),
        attributes={tag: set(names) for tag, names in TAGS.items()},
        attribute_filter=attribute,
        link_rel="nofollow noopener noreferrer",
        url_schemes={"http", "https", "mailto", "data"},  # what is in the card itself has passed `attribute`
    )


def _is_elsewhere(address: str) -> bool:
    """Whether an address is no path within the repo."""
    return SCHEME.match(address) is not None or address.startswith(("#", "/"))


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


def _texts(value: object) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item is not None]
