"""The templates, and the card that they make of a record and the publisher's prose."""

import hashlib
import re
import traceback
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

import hubtool
from hubtool.card.prose import insert_prose
from hubtool.card.unrecorded import Unrecorded
from hubtool.card.view import view_record, view_unrecorded
from hubtool.errors import UsageError
from hubtool.hub.rules import split_card
from hubtool.record import Record
from hubtool.resources import templates_dir

TEMPLATE = "card.md.jinja"


def render_card(
    record: Record | Unrecorded,
    templates: Path | None = None,
    *,
    prose: Mapping[str, str] | None = None,
    assets: Collection[str] = (),
) -> str:
    """The card: the same text for the same record, templates, prose and pictures.

    Args:
        record: All that is known.
        templates: A folder whose files go before hubtool's own of the same name.
        prose: The publisher's, by section: see `read_prose`.
        assets: Names of the pictures that lie beside the card.

    Raises:
        UsageError: A template cannot be read, or asks for what does not exist.
    """
    folders = template_folders(templates)
    view = view_record(record, assets) if isinstance(record, Record) else view_unrecorded(record)
    view["made_by"] = f"hubtool {hubtool.__version__}, templates {templates_digest(folders)[:12]}"
    return insert_prose(_tidy(_render(folders, view)), prose or {})


def render_withdrawn(record: Record) -> str:
    """The lines of a card that say that its release should no longer be used."""
    return _render(template_folders(None), view_record(record, ()), "withdrawn.md.jinja").strip()


def _tidy(card: str) -> str:
    """A card without the blank lines that sections leave which say nothing; in YAML each of them means something."""
    text = card.strip() + "\n"
    body = split_card(text)[1]
    return text[: len(text) - len(body)] + re.sub(r"\n{3,}", "\n\n", body)


_VARIABLE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}")
_SENTENCE_LENGTH = 20
"""Characters of a template's line from which on it is a sentence that nobody writes by chance."""


def is_template_line(line: str) -> bool:
    """Whether a line is a sentence of hubtool's own templates, whatever record it was filled from."""
    return _sentences().fullmatch(line.strip()) is not None


@cache
def _sentences() -> re.Pattern[str]:
    texts = [path.read_text("utf-8") for path in sorted((templates_dir() / "card").glob("*.jinja"))]
    lines = [line.strip() for text in texts for line in text.split("\n")]
    long = [line for line in lines if len(_VARIABLE.sub("", line)) >= _SENTENCE_LENGTH]
    return re.compile("|".join(".*".join(map(re.escape, _VARIABLE.split(line))) for line in sorted(long)))


def template_folders(templates: Path | None) -> tuple[Path, ...]:
    """Where templates are looked for, in order.

    Raises:
        UsageError: There is no such folder.
    """
    if templates is None:
        return (templates_dir() / "card",)
    if not templates.is_dir():
        raise UsageError("no such folder", where=templates, remedy="give a folder of templates")
    return templates, templates_dir() / "card"


def templates_digest(folders: Collection[Path]) -> str:
    """SHA-256 over the templates that are used: name and text of each, in order of the names.

    Raises:
        UsageError: One is not UTF-8.
    """
    used: dict[str, Path] = {}
    for folder in folders:
        for path in folder.rglob("*.jinja"):
            used.setdefault(path.relative_to(folder).as_posix(), path)
    digest = hashlib.sha256()
    for name in sorted(used):
        content = used[name].read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            raise UsageError("not UTF-8", where=used[name], found=error.reason, remedy="save it as UTF-8") from error
        digest.update(f"{name}\0".encode() + content + b"\0")
    return digest.hexdigest()


@cache
def _environment(folders: tuple[Path, ...]) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: the view escapes what it shows
    )


def _render(folders: tuple[Path, ...], view: Mapping[str, Any], template: str = TEMPLATE) -> str:
    try:
        return _environment(folders).get_template(template).render(view)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError("template cannot be read", where=f"{error.name}, line {error.lineno}", found=error) from error
    except jinja2.TemplateNotFound as error:
        raise UsageError("no such template", where=error.name, remedy="add it, or take the include out") from error
    except jinja2.UndefinedError as error:
        where = _place(error, folders)
        raise UsageError("template asks for what does not exist", where=where, found=error) from error
    except (jinja2.TemplateError, TypeError, ArithmeticError) as error:
        # Templates are programs: what fails within one is for whoever wrote it to correct.
        raise UsageError("template fails", where=_place(error, folders), found=error, remedy="correct it") from error


def _place(error: Exception, folders: Collection[Path]) -> str:
    """The innermost template in which an error came up, and the line."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    inside = [
        f"{path.relative_to(folder).as_posix()}, line {line}"
        for path, line in frames
        for folder in folders
        if path.is_relative_to(folder)
    ]
    return inside[-1] if inside else TEMPLATE
