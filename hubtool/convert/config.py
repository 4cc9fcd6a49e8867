"""The finished folder: every file of it that is not a shard, and which files they are."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hubtool.checkpoint.source import CONFIG_FILE, INDEX_FILE, Source
from hubtool.files.whole import write_beside
from hubtool.models import architecture_of
from hubtool.plan.mlx import output_config, output_index
from hubtool.plan.plan import Plan

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

_RUNTIME_DIR = Path(__file__).parent.parent / "runtime"


def carried_files(source: Source) -> tuple[str, ...]:
    """Names of the source's files that go into the folder unchanged."""
    return tuple(name for name in source.files if any(fnmatchcase(name, pattern) for pattern in CARRIED))


def documents(source: Source, plan: Plan) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file but shards, record and card."""
    architecture = architecture_of(plan.model.config)
    shipped, published = architecture.runtime_files, architecture.tidy(plan.model.config)
    yield CONFIG_FILE, _json(output_config(published, plan.quantization(), next(iter(shipped), None)))
    weight_map = {tensor.spec.name: shard.file for shard in plan.shards for tensor in shard.tensors}
    yield INDEX_FILE, _json(output_index(weight_map, plan.nbytes, plan.parameters))
    for name in carried_files(source):
        yield name, source.read_file(name)
    for name in shipped:
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
