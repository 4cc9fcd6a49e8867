"""The finished folder: every file of it that is not a shard, and which files they are."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml

from hubtool.errors import SourceError
from hubtool.journal import write_beside
from hubtool.plan import Plan
from hubtool.source import CARD_FILE, CONFIG_FILE, INDEX_FILE, Source

RUNTIME_FILES = {
    "deepseek_v4": ("deepseek_v4.py", "chat_template.jinja"),
}
"""Files of hubtool/runtime that are shipped for a model_type; the first is the `model_file` of config.json."""

CARRIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
"""Files of the source that are carried over unchanged."""

LICENSE_KEYS = ("license", "license_name", "license_link")
CARRIED_KEYS = (*LICENSE_KEYS, "language")
"""Keys of the source's card that the new card may carry on."""

_RUNTIME_DIR = Path(__file__).parent / "runtime"


def carried_files(source: Source) -> tuple[str, ...]:
    """Names of the source's files that go into the folder unchanged."""
    return tuple(name for name in source.files if any(fnmatchcase(name, pattern) for pattern in CARRIED))


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
        data: dict[str, Any] = vars(huggingface_hub.RepoCard(text, ignore_metadata_errors=False).data)
    except (ValueError, yaml.YAMLError) as error:
        raise SourceError("front matter cannot be read", where=CARD_FILE, found=str(error), remedy=remedy) from error
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


def output_config(plan: Plan) -> dict[str, Any]:
    """config.json of the folder: the source's, with MLX's quantization in place of the source's own."""
    config = {key: value for key, value in plan.model.config.items() if key not in ("quantization_config",)}
    if plan.model.model_type in RUNTIME_FILES:
        config["model_file"] = RUNTIME_FILES[plan.model.model_type][0]
    if (quantization := plan.quantization()) is not None:
        config["quantization"] = quantization
        config["quantization_config"] = quantization
    return config


def output_index(plan: Plan) -> dict[str, Any]:
    """model.safetensors.index.json of the folder."""
    return {
        "metadata": {"total_size": plan.nbytes, "total_parameters": plan.parameters},
        "weight_map": {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors},
    }


def documents(source: Source, plan: Plan) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file but shards, record and card."""
    yield CONFIG_FILE, _json(output_config(plan))
    yield INDEX_FILE, _json(output_index(plan))
    for name in carried_files(source):
        yield name, source.read_file(name)
    for name in RUNTIME_FILES.get(plan.model.model_type, ()):
        yield name, (_RUNTIME_DIR / name).read_bytes()


def write_documents(source: Source, plan: Plan, folder: Path) -> tuple[str, ...]:
    """Write every file but shards, record and card; their names."""
    names = []
    for name, content in documents(source, plan):
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_beside(path, content)
        names.append(name)
    return tuple(names)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
