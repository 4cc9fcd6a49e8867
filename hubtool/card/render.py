"""The templates, and the card that they make of a record and the publisher's prose."""

import hashlib
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

import hubtool
from hubtool.card.measured import Unrecorded
from hubtool.card.prose import insert_prose
from hubtool.card.view import view_record, view_unrecorded
from hubtool.errors import UsageError
from hubtool.hubrules import split_card
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


def _tidy(card: str) -> str:
    """A card without the blank lines that sections leave which say nothing; in YAML each of them means something."""
    text = card.strip() + "\n"
    body = split_card(text)[1]
    return text[: len(text) - len(body)] + re.sub(r"\n{3,}", "\n\n", body)


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
    """SHA-256 over the templates that are used: name and text of each, in order of the names."""
    used: dict[str, Path] = {}
    for folder in folders:
        for path in folder.rglob("*.jinja"):
            used.setdefault(path.relative_to(folder).as_posix(), path)
    digest = hashlib.sha256()
    for name in sorted(used):
        digest.update(f"{name}\0".encode() + used[name].read_bytes() + b"\0")
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


def _render(folders: tuple[Path, ...], view: Mapping[str, Any]) -> str:
    try:
        return _environment(folders).get_template(TEMPLATE).render(view)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError("template cannot be read", where=f"{error.name}, line {error.lineno}", found=error) from error
    except jinja2.TemplateNotFound as error:
        raise UsageError("no such template", where=error.name, remedy="add it, or take the include out") from error
    except jinja2.UndefinedError as error:
        raise UsageError("template asks for what does not exist", where=TEMPLATE, found=error) from error
