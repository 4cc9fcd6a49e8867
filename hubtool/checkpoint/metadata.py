"""License and language that a source declares in its card."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from hubtool.checkpoint.source import HUB_PREFIX, LocalSource, Source
from hubtool.errors import SourceError
from hubtool.hub.rules import check_metadata, read_metadata, split_card
from hubtool.record import CARD_FILE, CARRIED_KEYS

Carried = dict[str, str | list[str]]

_REMEDY = "ask the model's publisher; hubtool publishes nothing without a license"
OTHER = "other"
"""The license of the Hub's list that stands for all that are not on it."""


def source_metadata(source: Source) -> Carried:
    """License and language that the source's card declares, in a form that the Hub takes.

    What stands on the Hub its reader cannot correct: values that YAML reads as something else than text are taken as
    they are written, a license that the Hub does not know becomes `other` with its name, a language that is none is
    left out: see `repairs`. In a folder it can be corrected, and is refused.

    Raises:
        SourceError: There is no card, its front matter is not YAML, it names no license, or something else than text.
    """
    if CARD_FILE not in source.files:
        raise SourceError(
            "source without a license",
            where=source.name,
            found=f"no {CARD_FILE}",
            expected=f"a {CARD_FILE} whose front matter names the license",
            remedy=_REMEDY,
        )
    text = _card(source)
    try:
        data: Mapping[str, Any] = read_metadata(text)
    except SourceError as error:
        raise SourceError("front matter cannot be read", where=CARD_FILE, found=error.found, remedy=_REMEDY) from error
    if not data.get("license"):
        raise SourceError(
            "source without a license",
            where=CARD_FILE,
            found="front matter without `license`",
            expected="`license: ...`",
            remedy=_REMEDY,
        )
    carried = {key: data[key] for key in CARRIED_KEYS if data.get(key) not in (None, "", [])}
    link = carried.get("license_link")
    if isinstance(link, str) and "://" not in link and link.removeprefix("./") not in source.files:
        del carried["license_link"]
    if not isinstance(source, LocalSource):
        return _repaired(carried, text)
    for key, value in carried.items():
        wrong = [each for each in _listed(value) if not isinstance(each, str)]
        if wrong:
            raise SourceError(
                "front matter that is not text",
                where=f"{CARD_FILE}: {key}",
                found=repr(wrong[0]),
                expected="a string or a list of strings",
                remedy="YAML reads no, yes and numbers as something else: put it in quotes in the source's card",
            )
    return carried


def read_front_matter(source: Source) -> Mapping[str, object]:
    """The front matter of the source's card as it is; empty where there is none that can be read."""
    try:
        return read_metadata(_card(source)) if CARD_FILE in source.files else {}
    except SourceError:
        return {}


def repairs(source: Source) -> Iterator[str]:
    """What `source_metadata` makes of the front matter of a source on the Hub other than it says, as sentences."""
    said = read_front_matter(source)
    if isinstance(source, LocalSource) or not said.get("license"):
        return
    for key, value in source_metadata(source).items():
        if said.get(key) != value:
            found = f"{key}: {said[key]}" if key in said else f"no {key}"
            yield f"{HUB_PREFIX}{source.name}: its card has {found}; the new card says {key}: {value}"
    if said.get("language") and "language" not in source_metadata(source):
        found = f"language: {said['language']}"
        yield f"{HUB_PREFIX}{source.name}: its card has {found}, which the Hub does not take: left out"


def _card(source: Source) -> str:
    return source.read_file(CARD_FILE).decode("utf-8-sig", errors="replace")


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _repaired(carried: Mapping[str, Any], text: str) -> Carried:
    """Values that the Hub takes, in the words of the card."""
    written = _as_written(text)
    words: dict[str, Any] = {
        key: (
            [str(each) for each in written.get(key, value)]
            if isinstance(value, list)
            else value
            if isinstance(value, str)
            else str(written.get(key, value))
        )
        for key, value in carried.items()
    }
    if _is_refused("license", words["license"]):
        name = "-".join(str(each) for each in _listed(words["license"]))
        words = {"license": OTHER, "license_name": name, **{k: v for k, v in words.items() if k != "license"}}
    if "language" in words:
        kept = [each for each in _listed(words["language"]) if not _is_refused("language", each)]
        words["language"] = kept if isinstance(words["language"], list) else "".join(kept)
    return {key: value for key, value in words.items() if value and not _is_refused(key, value)}


def _is_refused(key: str, value: object) -> bool:
    front = yaml.safe_dump({key: value})
    return any(problem.fatal for problem in check_metadata(f"---\n{front}---\n"))


def _as_written(text: str) -> dict[str, Any]:
    """The scalars of front matter, and lists of them, as they are written rather than as YAML reads them."""
    node = yaml.compose(split_card(text)[0], Loader=yaml.SafeLoader)
    written: dict[str, Any] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(value, yaml.ScalarNode):
            written[str(key.value)] = value.value
        elif isinstance(value, yaml.SequenceNode):
            written[str(key.value)] = [each.value for each in value.value if isinstance(each, yaml.ScalarNode)]
    return written
