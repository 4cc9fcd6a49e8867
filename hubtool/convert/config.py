"""The finished folder: every file of it that is not a shard, and which files they are."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubtool.checkpoint.source import CONFIG_FILE, INDEX_FILE, Source
from hubtool.checkpoint.usable import (
    CHAT_TEMPLATE_FILE,
    OLD_CHAT_TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    carried_files,
    read_carried,
    tidy_config,
)
from hubtool.files.formats import parse_object
from hubtool.files.whole import write_beside
from hubtool.models import architecture_of
from hubtool.models.chat import Choice, choose_template
from hubtool.plan.mlx import output_config, output_index
from hubtool.plan.plan import Plan

_RUNTIME_DIR = Path(__file__).parent.parent / "runtime"


def chat_template(source: Source, config: Mapping[str, Any]) -> Choice:
    """The chat template that goes with a source, and why."""
    chat = architecture_of(config).chat
    encoder = None if chat is None else source.read_optional(chat.encoder_file)
    return choose_template(chat, config, _own_template(source), _text(encoder))


def _own_template(source: Source) -> str | None:
    """The chat template that a reader would take of the source's own, as transformers looks for it."""
    if CHAT_TEMPLATE_FILE in source.files:
        return _text(source.read_file(CHAT_TEMPLATE_FILE))
    for name in (OLD_CHAT_TEMPLATE_FILE, TOKENIZER_CONFIG_FILE):
        if name in source.files:
            value = parse_object(source.read_file(name), name).get("chat_template")
            if isinstance(value, list):  # several by name
                named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
                value = named.get("default")
            if isinstance(value, str) and value.strip():
                return value
    return None


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", errors="replace")


def documents(source: Source, plan: Plan) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file but shards, record and card."""
    config = plan.model.config
    architecture = architecture_of(config)
    shipped, published = architecture.runtime_files, architecture.tidy(tidy_config(source, config))
    yield CONFIG_FILE, _json(output_config(published, plan.quantization(), next(iter(shipped), None)))
    weight_map = {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors}
    yield INDEX_FILE, _json(output_index(weight_map, plan.nbytes, plan.parameters))
    template = chat_template(source, config).template
    for name in carried_files(source):
        if name not in shipped and not (template is not None and name == CHAT_TEMPLATE_FILE):
            yield name, read_carried(source, name)
    for name in shipped:
        yield name, (_RUNTIME_DIR / name).read_bytes()
    if template is not None:
        yield CHAT_TEMPLATE_FILE, template


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
