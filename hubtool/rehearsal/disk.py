"""Small JSON files that are whole or absent: written beside, then renamed."""

import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

from hubtool.errors import HubError
from hubtool.files.formats import decode_json

Document = TypeVar("Document")


def read(path: Path, kind: type[Document]) -> Document:
    """The document in a file, checked against its type.

    Raises:
        FileNotFoundError: There is no such file.
        HubError: The file holds something else.
    """
    remedy = "it was written by another version or changed by hand: choose another folder"
    return decode_json(path.read_bytes(), kind, path, error=HubError, remedy=remedy)


def write(path: Path, document: object, mode: int = 0o644) -> None:
    """Replaces a file by the JSON of a document; readers see the old file or the new one."""
    replace(path, msgspec.json.format(msgspec.json.encode(document), indent=1), mode)


def replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replaces a file's bytes; readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    beside.touch(mode, exist_ok=False)
    beside.write_bytes(content)
    beside.replace(path)
