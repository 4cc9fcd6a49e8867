"""A card as a page to look at, before it is anywhere."""

import base64
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from hubtool.errors import UsageError
from hubtool.files.read import is_file, is_inner_path, read_small
from hubtool.hub.rules import read_metadata, split_card

PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
"""Pictures that a preview shows, by the end of their names."""

MAX_PICTURE_NBYTES = 10 << 20

Read = Callable[[str], bytes | None]
"""Gives the bytes of a picture by its name beside the card."""


def write_preview(name: str, card: str, read: Read) -> Path:
    """The file of a page, complete in itself, with a card as the Hub would show it; it loads nothing.

    Args:
        name: Of the repo or folder.
        card: The README.md.
        read: Gives the pictures, which become part of the page.

    Raises:
        UsageError: The extra that renders pages is not installed.
    """
    try:
        from hubtool.hub import page
    except ImportError as error:
        raise UsageError("cannot render a page", found=error, remedy="pip install 'hubtool[rehearse]'") from error

    def picture(address: str) -> str | None:
        path = unquote(address)
        kind = PICTURES.get(Path(path).suffix.lower())
        content = read(path) if kind and is_inner_path(path) else None
        if content is None or len(content) > MAX_PICTURE_NBYTES:
            return None
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    html = page.preview(name, read_metadata(card), split_card(card)[1], picture)
    with tempfile.NamedTemporaryFile(prefix="hubtool-card-", suffix=".html", delete=False) as file:
        file.write(html.encode(errors="backslashreplace"))
    return Path(file.name)


def beside(folder: Path) -> Read:
    """The pictures of a folder; one that is a link out of it is none."""

    def read(name: str) -> bytes | None:
        path = folder / name
        inside = is_file(path) and path.resolve().is_relative_to(folder.resolve())
        return read_small(path) if inside else None

    return read
