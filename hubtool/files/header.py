"""The JSON in a safetensors file's header, read strictly and fast: a checkpoint has a hundred thousand entries."""

import json
from collections.abc import Mapping
from typing import Annotated

import msgspec

from hubtool.errors import SourceError
from hubtool.files.formats import EXACT_BITS, Failure, find_twice, parse_integer, spoken
from hubtool.units import MB

MAX_HEADER_NBYTES = 100 * MB
"""The limit of the safetensors library itself (`MAX_HEADER_SIZE`)."""

MAX_TENSORS = 250_000
"""In one file. Checkpoints of 256 experts in 60 layers have about 100,000 in all of theirs."""

MAX_DIMENSIONS = 64
"""Of a tensor (numpy's limit)."""


_LARGEST = (1 << EXACT_BITS) - 1
_Side = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
_Offset = Annotated[int, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]


class HeaderEntry(msgspec.Struct, gc=False):
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: Annotated[tuple[_Side, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[_Offset, _Offset]


_ENTRY_DECODER = msgspec.json.Decoder(HeaderEntry)
_METADATA_DECODER = msgspec.json.Decoder(dict[str, str])


def parse_header_json(raw: bytes, name: str, remedy: str) -> tuple[Mapping[str, str], Mapping[str, HeaderEntry]]:
    """The `__metadata__` of a safetensors header, and its entries by tensor, in the order of the header.

    Args:
        raw: The JSON header, without the 8 length bytes.
        name: The file's name.
        remedy: What to do about an error.

    Raises:
        SourceError: It is not JSON, a name stands twice, there are too many tensors, or an entry is none.
    """
    failure = Failure("a JSON object", name, SourceError, remedy)
    what = "header is not a JSON object"
    if raw.count(b"{") > MAX_TENSORS + 2 or raw.count(b":") > 5 * MAX_TENSORS:
        failure.refuse("too many tensors", what, f"at most {MAX_TENSORS} in a file")
    try:
        raw.decode()
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as reason:
        raise SourceError(what, where=name, found=spoken(reason), remedy=remedy) from reason
    metadata = entries.pop("__metadata__", None)
    # To parse it twice costs time, and a name that stands twice, or is written with escapes, shows in the count.
    if raw.count(b'"data_offsets"') != len(entries) or raw.count(b'"__metadata__"') > 1 or b"\\" in raw:
        _refuse_duplicates(raw, failure)
    return _metadata(metadata, name, remedy), {key: _entry(key, entry, name, remedy) for key, entry in entries.items()}


def _refuse_duplicates(raw: bytes, failure: Failure) -> None:
    """Raise SourceError if a name stands twice in one object of the header."""

    def unique(pairs: list[tuple[str, object]]) -> None:
        if len(dict(pairs)) < len(pairs):
            failure.refuse(find_twice(key for key, _ in pairs), "duplicate name in the header", "each name once")

    try:
        json.loads(raw, object_pairs_hook=unique, parse_int=parse_integer)
    except (ValueError, RecursionError) as reason:
        failure.refuse(spoken(reason), "header is not a JSON object")


def _metadata(raw: msgspec.Raw | None, name: str, remedy: str) -> Mapping[str, str]:
    try:
        return {} if raw is None else _METADATA_DECODER.decode(raw)
    except (ValueError, RecursionError) as reason:
        raise SourceError(
            "not a map of strings", where=f"{name}: __metadata__", found=spoken(reason), remedy=remedy
        ) from reason


def _entry(key: str, raw: msgspec.Raw, name: str, remedy: str) -> HeaderEntry:
    try:
        return _ENTRY_DECODER.decode(raw)
    except (ValueError, RecursionError) as reason:
        raise SourceError(
            "header entry is not {dtype, shape, data_offsets}",
            where=f"{name}: {key}",
            found=spoken(reason),
            remedy=remedy,
        ) from reason
