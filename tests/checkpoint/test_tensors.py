"""safetensors headers: ours are those of the library, and a damaged one is refused with what is wrong with it."""

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubtool.checkpoint.tensors import DTYPE_NBYTES, TensorSpec, encode_header, read_header
from hubtool.errors import SourceError
from tests.checkpoints import copied, deserialize, edit_header, split_shard, write_raw
from tests.fixtures import Refusal, Samples

SHARD = "model-00003-of-00006.safetensors"

READABLE_DTYPES = sorted(DTYPE_NBYTES)

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
specs = st.dictionaries(
    st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(READABLE_DTYPES), shapes), max_size=6
)


@given(specs, st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2))
def test_written_headers_are_read_by_the_library_and_by_us(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    tensors.pop("__metadata__", None)
    written = [TensorSpec(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    header = encode_header(written, metadata)
    data = os.urandom(sum(spec.nbytes for spec in written))
    by_library = {name: (t["dtype"], tuple(t["shape"]), t["data"]) for name, t in deserialize(header + data)}
    assert {name: found[:2] for name, found in by_library.items()} == tensors
    assert len(header) % 8 == 0
    position = 0
    for spec in written:
        assert by_library[spec.name][2] == data[position : position + spec.nbytes]
        position += spec.nbytes


def test_read_headers_are_those_of_the_library(sample: Samples) -> None:
    path = sample("mini") / SHARD
    header = read_header(path)
    raw = path.read_bytes()
    assert header.metadata == {"format": "pt"}
    assert header.nbytes + header.data_nbytes == len(raw)
    by_library = {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in deserialize(raw)}
    assert {
        tensor.spec.name: (
            tensor.spec.dtype,
            tensor.spec.shape,
            raw[tensor.offset : tensor.offset + tensor.nbytes],
        )
        for tensor in header.tensors
    } == by_library


@pytest.fixture
def source(sample: Samples, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return copied(sample("mini"), tmp_path / "source")


def test_truncated_shard_is_refused(source: Path, assert_refused: Refusal) -> None:
    nbytes = (source / SHARD).stat().st_size
    os.truncate(source / SHARD, nbytes - 100)
    assert_refused(
        source,
        f"{SHARD}: file is truncated: found {nbytes - 100} bytes, expected {nbytes} bytes; fetch this file again",
    )


def test_shard_with_bytes_after_its_tensors_is_refused(source: Path, assert_refused: Refusal) -> None:
    nbytes = (source / SHARD).stat().st_size
    os.truncate(source / SHARD, nbytes + 1)
    assert_refused(
        source,
        f"{SHARD}: file has bytes after its last tensor: found {nbytes + 1} bytes, expected {nbytes} bytes; "
        "fetch this file again",
    )


def test_empty_shard_is_refused(source: Path, assert_refused: Refusal) -> None:
    (source / SHARD).write_bytes(b"")
    assert_refused(
        source, f"{SHARD}: not a safetensors file: found 0 bytes, expected at least 8; fetch this file again"
    )


def test_header_longer_than_the_file_is_refused(source: Path, assert_refused: Refusal) -> None:
    nbytes = (source / SHARD).stat().st_size
    _announce(source / SHARD, nbytes)
    assert_refused(
        source,
        f"{SHARD}: header is longer than the file: found a header of {nbytes} bytes, expected at most {nbytes - 8}; "
        "fetch this file again",
    )


def test_header_over_100_mb_is_refused_unread(source: Path, assert_refused: Refusal) -> None:
    _announce(source / SHARD, 100_000_001)
    os.truncate(source / SHARD, 200_000_000)
    assert_refused(
        source,
        f"{SHARD}: header is too long: found 100000001 bytes, expected at most 100000000; fetch this file again",
    )


def _announce(path: Path, nbytes: int) -> None:
    """Overwrite the length of the header."""
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", nbytes))


@pytest.mark.parametrize("escaped", [False, True])
def test_duplicate_names_are_refused(escaped: bool, source: Path, assert_refused: Refusal) -> None:
    header, data = split_shard(source / SHARD)
    name, entry = next(item for item in json.loads(header).items() if item[0] != "__metadata__")
    again = json.dumps(entry).replace("data_offsets", r"data\u005foffsets") if escaped else json.dumps(entry)
    doubled = header.rstrip()[:-1] + f", {json.dumps(name)}: {again}}}".encode()
    write_raw(source / SHARD, doubled, data)
    assert_refused(
        source, f"{SHARD}: duplicate name in the header: found {name}, expected each name once; fetch this file again"
    )


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": \xff}', b'{"a":' * 100_000], ids=["list", "cut", "utf-8", "deep"]
)
def test_header_that_is_no_json_object_is_refused(header: bytes, source: Path, assert_refused: Refusal) -> None:
    write_raw(source / SHARD, header, b"")
    assert_refused(
        source,
        re.compile(rf"{re.escape(SHARD)}: header is not a JSON object: found .+; fetch this file again", re.DOTALL),
    )


NORM = "layers.1.attn_norm.weight"
"""512 bytes, as BF16 [256]."""


def _shift(nbytes: int) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[NORM]["data_offsets"] = [offset + nbytes for offset in header[NORM]["data_offsets"]]

    return change


def test_overlapping_ranges_are_refused(source: Path, assert_refused: Refusal) -> None:
    begin, before = _place_of(NORM, source)
    edit_header(source / SHARD, _shift(-2))
    start = 8 + len(split_shard(source / SHARD)[0])
    assert_refused(
        source,
        f"{SHARD}: {NORM}: byte range overlaps {before}: found begins at {start + begin - 2}, "
        f"expected {start + begin}; fetch this file again",
    )


def test_hole_between_ranges_is_refused(source: Path, assert_refused: Refusal) -> None:
    begin, before = _place_of(NORM, source)

    def move_the_rest(header: dict[str, Any]) -> None:
        for name, entry in header.items():
            if name != "__metadata__" and entry["data_offsets"][0] >= begin:
                entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]

    edit_header(source / SHARD, move_the_rest)
    start = 8 + len(split_shard(source / SHARD)[0])
    assert_refused(
        source,
        f"{SHARD}: {NORM}: byte range leaves a hole after {before}: found begins at {start + begin + 8}, "
        f"expected {start + begin}; fetch this file again",
    )


def _place_of(name: str, source: Path) -> tuple[int, str]:
    """Where a tensor's bytes begin after the header, and which tensor lies before it."""
    header = json.loads(split_shard(source / SHARD)[0])
    begin = header[name]["data_offsets"][0]
    before = next(key for key, entry in header.items() if "data_offsets" in entry and entry["data_offsets"][1] == begin)
    return begin, before


@pytest.mark.parametrize(
    ("offsets", "found"),
    [([-512, 0], "[-512, 0]"), ([0, 511], "[0, 511]"), ([512, 0], "[512, 0]")],
    ids=["negative", "short", "backwards"],
)
def test_range_that_does_not_fit_is_refused(
    offsets: list[int], found: str, source: Path, assert_refused: Refusal
) -> None:
    edit_header(source / SHARD, lambda header: header[NORM].update(data_offsets=offsets))
    assert_refused(
        source,
        f"{SHARD}: {NORM}: byte range does not fit the tensor: found {found}, expected 512 bytes for BF16 [256]; "
        "fetch this file again",
    )


def test_range_beyond_the_file_is_refused(source: Path, assert_refused: Refusal) -> None:
    header, data = split_shard(source / SHARD)
    last = max(json.loads(header).items(), key=lambda item: item[1].get("data_offsets", [0, 0])[1])[0]

    def lengthen(header: dict[str, Any]) -> None:
        rows, columns = header[last]["shape"]
        begin = header[last]["data_offsets"][0]
        header[last] |= {"shape": [2 * rows, columns], "data_offsets": [begin, begin + 2 * rows * columns]}

    edit_header(source / SHARD, lengthen)
    header = split_shard(source / SHARD)[0]
    end = json.loads(header)[last]["data_offsets"][1]
    start = 8 + len(header)
    assert_refused(
        source,
        f"{SHARD}: file is truncated: found {start + len(data)} bytes, expected {start + end} bytes; "
        "fetch this file again",
    )


def test_unknown_dtype_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_header(source / SHARD, lambda header: header[NORM].update(dtype="F6_E3M2"))
    assert_refused(
        source,
        f"{SHARD}: {NORM}: unknown dtype: found F6_E3M2, expected one of {', '.join(DTYPE_NBYTES)}; "
        "update hubtool, or fetch this file again",
    )


@pytest.mark.parametrize(
    "entry",
    [{}, {"dtype": "F32"}, {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": 4}, []],
    ids=["empty", "no shape", "negative side", "no list", "a list"],
)
def test_entry_that_is_none_is_refused(entry: object, source: Path) -> None:
    edit_header(source / SHARD, lambda header: header.update({NORM: entry}))
    with pytest.raises(SourceError) as caught:
        read_header(source / SHARD)
    assert caught.value.where == f"{SHARD}: {NORM}"
    assert caught.value.what == "header entry is not {dtype, shape, data_offsets}"
    assert caught.value.remedy == "fetch this file again"


def test_metadata_that_is_no_map_of_strings_is_refused(source: Path) -> None:
    edit_header(source / SHARD, lambda header: header.update(__metadata__={"format": 1}))
    with pytest.raises(SourceError, match=f"{SHARD}: __metadata__: not a map of strings: found "):
        read_header(source / SHARD)
