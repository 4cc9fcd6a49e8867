"""Every reader, given variants of good documents and the corpus of what once broke one: a value, or its one error."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubtool.card.check import compare_cards
from hubtool.card.prose import find_prose_fault, read_prose
from hubtool.checkpoint.source import parse_index
from hubtool.checkpoint.tensors import header_length, parse_header
from hubtool.errors import HubtoolError
from hubtool.files.formats import parse_json, parse_toml
from hubtool.files.yaml import parse_yaml
from hubtool.hub.page import chips, hub_tags
from hubtool.hub.rules import check_metadata, read_metadata
from hubtool.plan.recipe import parse_recipe
from hubtool.record import decode_record
from hubtool.release.privacy import read_strings, read_text, scan_warnings
from hubtool.resources import recipes_dir
from tests.fuzz.mutations import mutate

CORPUS = Path(__file__).parent / "corpus"

CARD = """---
license: mit
language: [en]
tags: [mlx, conversational]
base_model: org/base
model-index: [{name: a, results: []}]
---
# Title

<!-- hubtool:prose notes -->
Some *text* with ![a picture](a.png) and <b>HTML</b>.
<!-- /hubtool:prose -->

| a | b |
|---|--:|
| c | 1 |
"""


def _read_shard(raw: bytes) -> None:
    length = header_length(raw[:8], "a.safetensors", len(raw))
    parse_header(raw[8 : 8 + length], "a.safetensors", len(raw))


def _read_card(raw: bytes) -> None:
    text = raw.decode("utf-8", errors="replace")
    check_metadata(text)
    find_prose_fault(text)
    read_prose(text)
    compare_cards(text, CARD, {})
    metadata = read_metadata(text)
    json.dumps(metadata, allow_nan=False).encode()
    chips(metadata, hub_tags(metadata, {}, ()))


def _look_through(raw: bytes) -> None:
    read_text(raw)
    for name in ("a.json", "a.toml", "a.yaml", "a.md", "a"):
        read_strings(name, raw)
        list(scan_warnings([(name, raw)]))


def _read_recipe(raw: bytes) -> None:
    recipe = parse_recipe(raw.decode("utf-8", errors="replace"), "a.toml")
    for rule in recipe.rules:
        str(rule)


_HEADER = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "U8", "shape": [4], "data_offsets": [16, 20]},
    }
).encode()

READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "json": (lambda raw: json.dumps(parse_json(raw, "a"), allow_nan=False).encode(), b'{"a": [1, 2.5, "b", null]}'),
    "toml": (lambda raw: str(parse_toml(raw, "a")).encode(), b'a = 1\n[b]\nc = ["d", 2026-01-01]\n'),
    "yaml": (
        lambda raw: json.dumps(parse_yaml(raw, "a"), allow_nan=False).encode(),
        b"a: &x [1, b]\nc: *x\nd: 2026-01-01",
    ),
    "header": (_read_shard, struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(20)),
    "index": (parse_index, b'{"metadata": {"total_size": 1}, "weight_map": {"a": "m.safetensors"}}'),
    "record": (decode_record, b'{"schema": 1, "source": {"repo": null}, "files": []}'),
    "recipe": (_read_recipe, (recipes_dir() / "mixed_3_6.toml").read_bytes()),
    "card": (_read_card, CARD.encode()),
    "privacy": (_look_through, b'{"a": "\\u002fhome", "auto_map": {"b": "c/d--e.F"}}\n'),
}


@pytest.mark.parametrize("name", READERS)
@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_readers_give_a_value_or_their_error(name: str, seed: int) -> None:
    read, good = READERS[name]
    _gives_a_value_or_an_error(read, mutate(random.Random(seed), good))


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_readers_take_any_bytes(raw: bytes) -> None:
    for read, _ in READERS.values():
        _gives_a_value_or_an_error(read, raw)


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_once_broke_a_reader_does_no_more(path: Path) -> None:
    _gives_a_value_or_an_error(READERS[path.name.partition("-")[0]][0], path.read_bytes())


def _gives_a_value_or_an_error(read: Callable[[bytes], object], raw: bytes) -> None:
    try:
        read(raw)
    except HubtoolError as error:
        str(error).encode()
