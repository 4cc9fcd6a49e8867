"""Tensors as a safetensors header describes them: names, dtypes, shapes and byte ranges, read strictly.

The format is https://github.com/huggingface/safetensors: 8 bytes little-endian header length, a JSON header
`{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {...}}`, then the tensors, without holes.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

import msgspec

from hubtool.errors import SourceError
from hubtool.files.formats import EXACT_BITS
from hubtool.files.header import MAX_HEADER_NBYTES, HeaderEntry, parse_header_json

DTYPE_NBYTES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of one element of each safetensors dtype that is a whole number of bytes."""

HEADER_ALIGNMENT = 8
"""safetensors pads its header with spaces so that tensors start at a multiple of 8 bytes."""


class TensorSpec(msgspec.Struct, frozen=True, gc=False):
    """A tensor's name, safetensors dtype and shape.

    A Struct, as `StoredTensor`: a checkpoint has a hundred thousand of them, and they are made in a tenth of the time
    that a dataclass takes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Stored elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.size * DTYPE_NBYTES[self.dtype]


class StoredTensor(msgspec.Struct, frozen=True, gc=False):
    """A tensor in a safetensors file: `nbytes` bytes, `offset` bytes from the beginning of the file."""

    spec: TensorSpec
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The parsed header of one safetensors file.

    Attributes:
        tensors: In the order of their bytes in the file.
        metadata: The `__metadata__` strings.
        nbytes: Bytes before the first tensor, the 8 length bytes included.
        data_nbytes: Bytes of tensors.
    """

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    nbytes: int
    data_nbytes: int


def read_header(path: Path) -> Header:
    """The header of a local safetensors file, checked against the file's size.

    Raises:
        SourceError: Not a safetensors file, or one whose header lies: see `parse_header`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        return read_header_from(file, path.name, size)


def read_header_from(file: BinaryIO, name: str, file_nbytes: int) -> Header:
    """The header of an open safetensors file of `file_nbytes` bytes, positioned at its beginning."""
    length = header_length(file.read(8), name, file_nbytes)
    return parse_header(file.read(length), name, file_nbytes)


def header_length(first: bytes, name: str, file_nbytes: int) -> int:
    """Bytes of the JSON header that the file's first 8 bytes announce.

    Raises:
        SourceError: The file is shorter than 8 bytes, or the header is longer than the file or than 100 MB.
    """
    if len(first) < 8:
        raise SourceError(
            "not a safetensors file", where=name, found=f"{file_nbytes} bytes", expected="at least 8", remedy=FETCH
        )
    length: int = struct.unpack("<Q", first)[0]
    if length > MAX_HEADER_NBYTES:
        raise SourceError(
            "header is too long",
            where=name,
            found=f"{length} bytes",
            expected=f"at most {MAX_HEADER_NBYTES}",
            remedy=FETCH,
        )
    if 8 + length > file_nbytes:
        raise SourceError(
            "header is longer than the file",
            where=name,
            found=f"a header of {length} bytes",
            expected=f"at most {file_nbytes - 8}",
            remedy=FETCH,
        )
    return length


FETCH = "fetch this file again"


def parse_header(raw: bytes, name: str, file_nbytes: int) -> Header:
    """The header of a file from its JSON bytes.

    Args:
        raw: The JSON header, without the 8 length bytes.
        name: The file's name, for messages and for `StoredTensor.file`.
        file_nbytes: Size of the whole file in bytes.

    Raises:
        SourceError: The JSON is damaged; a name stands twice; a dtype is unknown; a shape is not one; a byte range is
            not the size of its tensor, overlaps another, leaves a hole, or lies outside the file; the file is
            truncated or has bytes after its last tensor.
    """
    metadata, entries = parse_header_json(raw, name, FETCH)
    start = 8 + len(raw)
    tensors = sorted((_stored(key, entry, name, start) for key, entry in entries.items()), key=_POSITION)
    _check_ranges(tensors, name, start, file_nbytes)
    return Header(
        tensors=tuple(tensors),
        metadata=metadata,
        nbytes=start,
        data_nbytes=file_nbytes - start,
    )


_POSITION = attrgetter("offset", "nbytes")


def _stored(key: str, entry: HeaderEntry, file: str, start: int) -> StoredTensor:
    if entry.dtype not in DTYPE_NBYTES:
        raise SourceError(
            "unknown dtype",
            where=f"{file}: {key}",
            found=entry.dtype,
            expected=f"one of {', '.join(DTYPE_NBYTES)}",
            remedy="update hubtool, or fetch this file again",
        )
    if math.prod(side or 1 for side in entry.shape).bit_length() > EXACT_BITS:
        raise SourceError(
            "too many elements",
            where=f"{file}: {key}",
            found=list(entry.shape),
            expected=f"fewer than 2**{EXACT_BITS}",
            remedy=FETCH,
        )
    begin, end = entry.data_offsets
    nbytes = math.prod(entry.shape) * DTYPE_NBYTES[entry.dtype]
    if begin < 0 or end - begin != nbytes:
        raise SourceError(
            "byte range does not fit the tensor",
            where=f"{file}: {key}",
            found=f"[{begin}, {end}]",
            expected=f"{nbytes} bytes for {entry.dtype} {list(entry.shape)}",
            remedy=FETCH,
        )
    return StoredTensor(TensorSpec(key, entry.dtype, entry.shape), file, start + begin, nbytes)


def _check_ranges(tensors: Sequence[StoredTensor], name: str, start: int, file_nbytes: int) -> None:
    position, before = start, "the header"
    for tensor in tensors:
        if tensor.offset != position:
            problem = "overlaps" if tensor.offset < position else "leaves a hole after"
            raise SourceError(
                f"byte range {problem} {before}",
                where=f"{name}: {tensor.spec.name}",
                found=f"begins at {tensor.offset}",
                expected=position,
                remedy=FETCH,
            )
        position, before = position + tensor.nbytes, tensor.spec.name
    if position != file_nbytes:
        problem = "file is truncated" if position > file_nbytes else "file has bytes after its last tensor"
        raise SourceError(problem, where=name, found=f"{file_nbytes} bytes", expected=f"{position} bytes", remedy=FETCH)


def encode_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a safetensors file that holds `specs` one after the other, in the order given.

    The length bytes and the padding are included: tensors begin at `len(encode_header(...))`, a multiple of 8.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in specs:
        end = position + spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-(8 + len(raw)) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(raw)) + raw
