"""Which chat template goes with a checkpoint, and why: the source's own, or one of hubtool's.

A source's own is kept, unless it cannot be one of this model. Where it has none, hubtool's is chosen by what the
source's own encoder says: the same model has come with more than one format.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """A chat format: how it is called, and its template."""

    name: str
    template: bytes


@dataclass(frozen=True)
class ChatFormat:
    """What is known of an architecture's chat formats.

    Attributes:
        encoder_file: The file of the source that defines its format.
        marks: What every prompt of the model has in it, and so every template.
        choose: The format that a source has, by its config.json and its encoder (None without one), and how that is
            known.
        forms: Every format that hubtool has a template of.
    """

    encoder_file: str
    marks: tuple[str, ...]
    choose: Callable[[Config, str | None], tuple[Form, str]]
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Choice:
    """The template that is shipped: hubtool's, or None if the source's own is kept or there is none; and why."""

    template: bytes | None
    reason: str


def choose_template(chat: ChatFormat | None, config: Config, own: str | None, encoder: str | None) -> Choice:
    """The chat template that goes with a checkpoint.

    Args:
        chat: What is known of its architecture's formats.
        config: config.json.
        own: The source's own template, None if it has none.
        encoder: The text of the source's own encoder, None if it has none.
    """
    if own is not None and (fault := find_fault(chat, config, own, encoder)) is None:
        return Choice(None, "the source's own")
    if chat is None:
        return Choice(None, f"the source's own, which {fault}" if own is not None else "none: the source has none")
    form, known = chat.choose(config, encoder)
    why = "the source has none" if own is None else f"the source's own {fault}"
    return Choice(form.template, f"hubtool's, of {form.name}: {why}, and {known}")


def find_fault(chat: ChatFormat | None, config: Config, own: str, encoder: str | None) -> str | None:
    """What is known to be wrong with a source's own template, as a clause, None if nothing is."""
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _GenerationTag]).parse(own)
    except jinja2.TemplateSyntaxError as error:
        return f"is not a template (line {error.lineno}: {error.message})"
    if chat is None:
        return None
    missing = [mark for mark in chat.marks if mark not in own]
    if missing:
        return f"is another model's: it has no {missing[0]}"
    chosen, _ = chat.choose(config, encoder)
    other = next((form for form in chat.forms if form.template == own.encode() and form != chosen), None)
    return f"is of {other.name}, which is not its format" if other is not None else None


class _GenerationTag(Extension):
    """The block `generation` of transformers' templates, which marks the assistant's turns."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def constants(source: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """The names that Python source assigns, and its string constants; None if it is not Python. It is never run."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = list(ast.walk(tree))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return frozenset(names), frozenset(texts)
