"""License and language that a source declares in its card."""

from collections.abc import Mapping
from typing import Any

from hubtool.checkpoint.source import Source
from hubtool.errors import SourceError
from hubtool.hub.rules import read_metadata
from hubtool.record import CARD_FILE, CARRIED_KEYS


def source_metadata(source: Source) -> dict[str, str | list[str]]:
    """License and language that the source's card declares.

    Raises:
        SourceError: There is no card, its front matter is not YAML, it names no license, or something else than text.
    """
    remedy = "ask the model's publisher; hubtool publishes nothing without a license"
    if CARD_FILE not in source.files:
        raise SourceError(
            "source without a license",
            where=source.name,
            found=f"no {CARD_FILE}",
            expected=f"a {CARD_FILE} whose front matter names the license",
            remedy=remedy,
        )
    text = source.read_file(CARD_FILE).decode("utf-8", errors="replace")
    try:
        data: Mapping[str, Any] = read_metadata(text)
    except SourceError as error:
        raise SourceError("front matter cannot be read", where=CARD_FILE, found=error.found, remedy=remedy) from error
    if not data.get("license"):
        raise SourceError(
            "source without a license",
            where=CARD_FILE,
            found="front matter without `license`",
            expected="`license: ...`",
            remedy=remedy,
        )
    carried = {key: data[key] for key in CARRIED_KEYS if data.get(key) not in (None, "", [])}
    for key, value in carried.items():
        wrong = [each for each in (value if isinstance(value, list) else [value]) if not isinstance(each, str)]
        if wrong:
            raise SourceError(
                "front matter that is not text",
                where=f"{CARD_FILE}: {key}",
                found=repr(wrong[0]),
                expected="a string or a list of strings",
                remedy="YAML reads no, yes and numbers as something else: put it in quotes in the source's card",
            )
    return carried
