"""A card as a page to look at, before it is anywhere."""

import base64
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from hubtool.errors import UsageError
from hubtool.hub.rules import read_metadata, split_card

_SOURCE = re.compile(r'(<img[^>]* src=")/[^"]*?/resolve/main/([^"]*)(")')


def write_preview(name: str, card: str, address: Callable[[str], str]) -> Path:
    """The file of a page, complete in itself, with a card as the Hub would show it.

    Args:
        name: Of the repo or folder.
        card: The README.md.
        address: Gives the address of a picture by its name beside the card.

    Raises:
        UsageError: The extra that renders pages is not installed.
    """
    try:
        from hubtool.hub import page
    except ImportError as error:
        raise UsageError("cannot render a page", found=error, remedy="pip install 'hubtool[rehearse]'") from error
    html = page.preview(name, read_metadata(card), split_card(card)[1])
    html = _SOURCE.sub(lambda match: f"{match[1]}{address(unquote(match[2]))}{match[3]}", html)
    with tempfile.NamedTemporaryFile("w", prefix="hubtool-card-", suffix=".html", delete=False) as file:
        file.write(html)
    return Path(file.name)


def inline(folder: Path) -> Callable[[str], str]:
    """Addresses of a folder's pictures that hold the pictures themselves."""

    def address(name: str) -> str:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    return address
