"""What of a source's files goes into the folder, and whether a reader of it has everything that loading takes.

All of it is known from the small files, so it is found while planning.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hubtool.checkpoint.metadata import read_front_matter, repairs
from hubtool.checkpoint.source import CONFIG_FILE, Source
from hubtool.errors import SourceError
from hubtool.files.formats import parse_object
from hubtool.files.read import AGAIN
from hubtool.record import CARD_FILE

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
OLD_CHAT_TEMPLATE_FILE = "chat_template.json"

_CARRIED = re.compile(
    r"tokenizer[\w.-]*\.(?:json|model)|special_tokens_map\.json|added_tokens\.json|generation_config\.json"
    r"|vocab[\w.-]*\.(?:json|txt|bpe)|merges\.txt|[\w.-]+\.tiktoken|tiktoken\.model|tekken\.json"
    r"|spiece\.model|sentencepiece[\w.-]*\.model|chat_template\.(?:jinja|json)"
)
"""Files of the source that travel unchanged, beside licenses and the code of a tokenizer."""

_LICENSES = re.compile(
    r"(?:model[-_.])?(?:licen[sc]e|copying|notice|copyright|use_policy)s?(?:[-_.][\w.-]*)?", re.IGNORECASE
)
_BACKUPS = re.compile(r".*(?:~|[-_.](?:bak|backup|orig|old|save|tmp|swp|rej|copy)\d*(?:\.\w+)?)", re.IGNORECASE)
"""What editors and people leave beside a file that they change."""

_VOCABULARIES = re.compile(
    r"tokenizer\.(?:json|model)|vocab\.txt|tekken\.json|[\w.-]+\.tiktoken|tiktoken\.model|spiece\.model"
    r"|sentencepiece[\w.-]*\.model"
)
"""Files of which a tokenizer needs one; others come in pairs, or with code of their own."""

_LOCATIONS = frozenset(
    {"_name_or_path", "name_or_path", "tokenizer_name_or_path", "base_model_name_or_path", "cache_dir"}
    | {"tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "save_dir", "output_dir"}
)
"""Keys that say where files lay on the machine that wrote them, which tells a reader nothing."""

_LOCAL = re.compile(r"(?:/|~|\.{1,2}[/\\]|[A-Za-z]:[\\/]|\\\\|file:)")
_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\s", re.MULTILINE)


def is_license(name: str) -> bool:
    """Whether a file holds license terms, by its name."""
    return _LICENSES.fullmatch(name) is not None and _BACKUPS.fullmatch(name) is None


def carried_files(source: Source) -> tuple[str, ...]:
    """Names of the source's files that go into the folder.

    Raises:
        SourceError: A file that another one names is not there: see `find_code`.
    """
    named = {link} if (link := license_file(source)) else set()
    code = set(find_code(source))
    return tuple(
        name
        for name in source.files
        if name in named | code
        or is_license(name)
        or (_CARRIED.fullmatch(name) is not None and _BACKUPS.fullmatch(name) is None)
    )


def license_file(source: Source) -> str | None:
    """The file of the source that its card's `license_link` names, None if it names none."""
    link = _license_link(source)
    return link if link in source.files else None


def _license_link(source: Source) -> str | None:
    link = read_front_matter(source).get("license_link")
    return link.removeprefix("./") if isinstance(link, str) and "://" not in link else None


def read_carried(source: Source, name: str) -> bytes:
    """A file of the source as it goes into the folder: unchanged, but that a JSON object names no place on a disk."""
    raw = source.read_file(name)
    if not name.endswith("_config.json"):
        return raw
    value = parse_object(raw, name)
    cleaned = without_locations(value)
    return raw if cleaned == value else (json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n").encode()


def without_locations(value: Any) -> Any:
    """A JSON value without the keys that say where files lay on somebody's disk."""
    if isinstance(value, list):
        return [without_locations(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_locations(each)
        for key, each in value.items()
        if not (key in _LOCATIONS and isinstance(each, str) and _LOCAL.match(each))
    }


def tidy_config(source: Source, config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without places on a disk, and without classes of PyTorch code that does not travel."""
    cleaned: dict[str, Any] = without_locations(dict(config))
    classes = cleaned.get("auto_map")
    if isinstance(classes, dict):
        own = {key: each for key, each in classes.items() if key == "AutoConfig"}
        kept = {key: each for key, each in own.items() if set(_modules(each)) <= {*source.files}}
        cleaned["auto_map"] = kept
        if not kept:
            del cleaned["auto_map"]
    return cleaned


def find_code(source: Source) -> tuple[str, ...]:
    """Names of the files with code that the tokenizer, or the config, needs.

    Raises:
        SourceError: One is not there.
    """
    found: dict[str, None] = {}
    waiting = [(name, TOKENIZER_CONFIG_FILE) for name in _auto_map(source, TOKENIZER_CONFIG_FILE)]
    waiting += [(name, CONFIG_FILE) for name in _auto_map(source, CONFIG_FILE, "AutoConfig") if name in source.files]
    while waiting:
        name, wanted_by = waiting.pop()
        if name not in source.files:
            raise SourceError(
                "names code that is not there",
                where=wanted_by,
                found=f"no {name}",
                expected="every file that `auto_map` and its code name, in the top folder",
                remedy="fetch the whole repo again, or report the checkpoint to its publisher",
            )
        if name not in found:
            found[name] = None
            text = source.read_file(name).decode("utf-8", errors="replace")
            waiting += [(f"{module}.py", name) for module in _IMPORT.findall(text)]
    return tuple(found)


def _auto_map(source: Source, file: str, only: str | None = None) -> list[str]:
    if file not in source.files:
        return []
    classes = parse_object(source.read_file(file), file).get("auto_map")
    if isinstance(classes, list | str):  # as tokenizers had it once
        classes = {"AutoTokenizer": classes}
    if not isinstance(classes, dict):
        return []
    return [name for key, each in classes.items() if only in (None, key) for name in _modules(each)]


def _modules(value: object) -> Iterator[str]:
    """The files that an entry of `auto_map` names; those of another repo, which are fetched from there, are not."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str) and "--" not in each and "." in each:
            yield f"{PurePosixPath(*each.split('.')[:-1])}.py"


def require_usable(source: Source) -> tuple[str, ...]:
    """What a publisher should know of the source's files, as sentences.

    Raises:
        SourceError: There is no tokenizer, a link leads nowhere, or a file is named that is not there.
    """
    files, broken = set(source.files), source.broken_links
    named = {license_file(source), _license_link(source)}
    needed = [name for name in broken if _CARRIED.fullmatch(name) or is_license(name) or name in named]
    if needed:
        raise SourceError(
            "link to a file that is not there",
            where=", ".join(needed),
            found="a symbolic link that leads nowhere, as a pruned cache of downloads has it",
            expected="a file",
            remedy=AGAIN,
        )
    code = find_code(source)
    pair = {"vocab.json", "merges.txt"} <= files
    if not pair and not any(_VOCABULARIES.fullmatch(name) for name in files) and not code:
        raise SourceError(
            "checkpoint without a tokenizer",
            where=source.name,
            found="none of tokenizer.json, tokenizer.model, vocab.json with merges.txt, tekken.json",
            expected="the tokenizer beside the weights: without it nobody can load the model",
            remedy="fetch the tokenizer's files from where the checkpoint was published",
        )
    return tuple(_remarks(source, code))


def _remarks(source: Source, code: Sequence[str]) -> Iterator[str]:
    for name in code:
        yield f"{name}: code of the source's own travels, because {TOKENIZER_CONFIG_FILE} or {CONFIG_FILE} names it"
    for name in (CONFIG_FILE, *(name for name in carried_files(source) if name.endswith("_config.json"))):
        if name in source.files:
            value = parse_object(source.read_file(name), name)
            if without_locations(value) != value:
                yield f"{name}: a place on a disk that it names is left out"
    link = _license_link(source)
    yield from repairs(source)
    if link is not None and link not in source.files:
        yield f"{CARD_FILE}: license_link names {link}, which the source does not have: it is left out"
