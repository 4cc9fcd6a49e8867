"""Small JSON files that are whole or absent: written beside, then renamed."""

import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

Document = TypeVar("Document")


def read(path: Path, kind: type[Document]) -> Document:
    """The document in a file, checked against its type.

    Raises:
        FileNotFoundError: There is no such file.
        msgspec.ValidationError: The file holds something else.
    """
    return msgspec.json.decode(path.read_bytes(), type=kind)


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
