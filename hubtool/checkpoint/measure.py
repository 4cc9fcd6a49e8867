"""What a finished folder really holds, from its headers and files alone, and where it contradicts itself."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any

import msgspec

from hubtool import units
from hubtool.checkpoint.source import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, parse_index
from hubtool.checkpoint.tensors import Header, TensorSpec, read_header
from hubtool.errors import SourceError
from hubtool.files.formats import Failure, convert, parse_json
from hubtool.files.read import AGAIN, file_sha256
from hubtool.record import RECORD_FILE, FileRecord, MeasuredRecord, Record, is_derived


@dataclass(frozen=True)
class Measurement:
    """A folder as it is.

    Attributes:
        facts: Totals by the plan's names.
        files: Every file with its SHA-256, the card and the record too; sorted by name.
        disagreements: Where files contradict each other, as sentences that name file and tensor.
    """

    facts: MeasuredRecord
    files: tuple[FileRecord, ...]
    disagreements: tuple[str, ...]


def measure(folder: Path, record: Record | None, known: Mapping[str, str] | None = None) -> Measurement:
    """Read back what a folder holds.

    Args:
        folder: The folder.
        record: What it should hold, if it has a record.
        known: SHA-256 of files whose bytes this process has just hashed, by name.

    Raises:
        SourceError: A header cannot be read, or there are no shards.
    """
    files = _published_files(folder)
    shards = [name for name in files if name.endswith(".safetensors")]
    if not shards:
        raise SourceError("no safetensors files", where=folder, remedy="check the path")
    headers = {name: read_header(folder / name) for name in shards}
    hashes = {name: (known or {}).get(name) or file_sha256(folder / name) for name in files}
    records = tuple(FileRecord(name=name, sha256=hashes[name], nbytes=(folder / name).stat().st_size) for name in files)
    return measure_files(headers, records, lambda name: (folder / name).read_bytes(), record)


def measure_files(
    headers: Mapping[str, Header],
    files: Sequence[FileRecord],
    read: Callable[[str], bytes],
    record: Record | None,
) -> Measurement:
    """What files hold that lie anywhere.

    Args:
        headers: Of every shard, by file name.
        files: Every file, the shards too; sorted by name.
        read: Gives the bytes of a file that is not a shard.
        record: What the files should hold, if they have a record.
    """
    named = {file.name: file for file in files}
    problems: list[str] = []
    packings = read_packings(read(CONFIG_FILE) if CONFIG_FILE in named else b"{}", problems)
    facts = measure_headers(headers, packings, problems)
    if record is not None or packings.usual is None:
        problems += _unlisted(headers, packings)
    if INDEX_FILE in named:
        problems += _compare_index(read(INDEX_FILE), headers, facts)
    elif list(headers) != [SINGLE_FILE]:
        problems.append(f"{INDEX_FILE}: missing, and there are {len(headers)} shards")
    if record is not None:
        problems += compare_record(record, facts, named)
    return Measurement(facts, tuple(files), tuple(problems))


class Packing(msgspec.Struct, frozen=True):
    """How a quantized weight is stored, as config.json says; what else it says does not matter."""

    bits: Annotated[int, msgspec.Meta(ge=1, le=32)]
    group_size: Annotated[int, msgspec.Meta(ge=1)]
    mode: str = "affine"


@dataclass(frozen=True)
class Packings:
    """What config.json says of every quantized weight.

    Attributes:
        usual: Of modules without an entry of their own, None if it does not say.
        modules: By module; None where the entry says nothing that can be meant.
    """

    usual: Packing | None = None
    modules: Mapping[str, Packing | None] = field(default_factory=dict)


def read_packings(raw: bytes, problems: list[str]) -> Packings:
    """The `quantization` of a config.json; whatever is invalid in it is added to `problems`."""
    try:
        config = parse_json(raw, CONFIG_FILE)
    except SourceError as error:
        problems.append(str(error))
        return Packings()
    if not isinstance(config, dict):
        problems.append(f"{CONFIG_FILE}: found {type(config).__name__}, expected an object")
        return Packings()
    block, beside = config.get("quantization") or {}, config.get("quantization_config") or {}
    published = not block and isinstance(beside, dict) and "quant_method" in beside  # which is not MLX's
    if block != beside and not published:
        problems.append(f"{CONFIG_FILE}: quantization and quantization_config differ")
    if not isinstance(block, dict):
        problems.append(f"{CONFIG_FILE}: quantization: found {type(block).__name__}, expected an object")
        return Packings()
    entries = {module: entry for module, entry in block.items() if isinstance(entry, dict)}
    modules = {module: _read_packing(entry, f"{module}: ", problems) for module, entry in entries.items()}
    return Packings(_read_packing(block, "", problems) if "bits" in block else None, modules)


def _read_packing(entry: Mapping[str, Any], where: str, problems: list[str]) -> Packing | None:
    try:
        return convert(entry, Packing, Failure("a packing", CONFIG_FILE, SourceError, AGAIN))
    except SourceError as error:
        problems.append(f"{CONFIG_FILE}: quantization: {where}{error.found}")
        return None


def measure_headers(headers: Mapping[str, Header], packings: Packings, problems: list[str]) -> MeasuredRecord:
    """Totals over all shards; where config.json's quantization contradicts the headers is added to `problems`.

    Raises:
        SourceError: There are no tensors.
    """
    tensors = {tensor.spec.name: tensor.spec for header in headers.values() for tensor in header.tensors}
    if not tensors:
        raise SourceError("no tensors", where=", ".join(headers), remedy="fetch the files again, or convert again")
    nbytes = sum(header.data_nbytes for header in headers.values())
    dtypes: Counter[str] = Counter()
    for spec in tensors.values():
        dtypes[spec.dtype] += spec.nbytes
    parameters = sum(_logical_size(spec, tensors, packings, problems) for spec in tensors.values())
    for module in packings.modules:
        if f"{module}.scales" not in tensors:
            problems.append(f"{CONFIG_FILE}: quantization: {module} is not stored quantized")
    return MeasuredRecord(
        nbytes=nbytes,
        parameters=parameters,
        effective_bits=units.effective_bits(nbytes, parameters) if parameters else 0.0,
        tensors=len(tensors),
        shards=len(headers),
        dtypes=dict(dtypes.most_common()),
    )


def _unlisted(headers: Mapping[str, Header], packings: Packings) -> Iterator[str]:
    """Quantized modules that config.json does not name.

    MLX takes the top of `quantization` for them; hubtool names each, for readers that do not.
    """
    stored = {tensor.spec.name: tensor.spec for header in headers.values() for tensor in header.tensors}
    for name, spec in stored.items():
        module = name.removesuffix(".weight")
        is_quantized = name != module and spec.dtype == "U32" and bool(spec.shape) and f"{module}.scales" in stored
        if is_quantized and module not in packings.modules:
            yield f"{CONFIG_FILE}: quantization: no entry for {module}, which is stored quantized"


def _published_files(folder: Path) -> list[str]:
    """Names of the files that belong to the folder; hidden ones, hubtool's state among them, do not."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _logical_size(spec: TensorSpec, tensors: Mapping[str, TensorSpec], packings: Packings, problems: list[str]) -> int:
    """Logical parameters that a tensor stands for: 0 for scales and biases of a quantized weight."""
    module, _, name = spec.name.rpartition(".")
    weight = tensors.get(f"{module}.weight")
    scale = tensors.get(f"{module}.scale")
    if weight is not None and scale is not None and scale.dtype == "F8_E8M0":
        return 0 if name == "scale" else spec.size * (2 if is_packed_fp4(weight, scale) else 1)
    quantized = weight is not None and weight.dtype == "U32" and weight.shape and f"{module}.scales" in tensors
    if not quantized:
        return spec.size
    if name in ("scales", "biases"):
        return 0
    if name != "weight":
        return spec.size
    packing = packings.modules.get(module) or packings.usual
    if packing is None:
        return spec.size
    columns = spec.shape[-1] * 32 // packing.bits
    scales = tensors[f"{module}.scales"]
    expected = (*spec.shape[:-1], columns // packing.group_size)
    if scales.shape != expected or spec.shape[-1] * 32 % packing.bits:
        problems.append(
            f"{scales.name}: shape {list(scales.shape)}, but {CONFIG_FILE} says {packing.bits} bits in groups of "
            f"{packing.group_size}, which makes {list(expected)}"
        )
    has_biases = f"{module}.biases" in tensors
    if has_biases != (packing.mode == "affine"):
        verb = "has" if has_biases else "lacks"
        problems.append(f"{module}: {verb} biases, but {CONFIG_FILE} says mode {packing.mode}")
    return int(prod(spec.shape[:-1]) * columns)


FP4_GROUP = 32
"""Weights that share one E8M0 scale where two of them are packed into a byte (OCP Microscaling)."""


def is_packed_fp4(weight: TensorSpec, scale: TensorSpec) -> bool:
    """Whether a published weight with E8M0 scales holds two FP4 values in each byte."""
    return weight.dtype in ("I8", "U8") and scale.shape[-1:] == (weight.shape[-1] * 2 // FP4_GROUP,)


def _compare_index(raw: bytes, headers: Mapping[str, Header], facts: MeasuredRecord) -> Iterator[str]:
    try:
        weight_map = parse_index(raw)
    except SourceError as error:
        yield str(error)
        return
    stored = {tensor.spec.name: tensor.file for header in headers.values() for tensor in header.tensors}
    for name in sorted({*weight_map, *stored}):
        if weight_map.get(name) != stored.get(name):
            yield (
                f"{INDEX_FILE}: {name}: says {weight_map.get(name, 'nothing')}, "
                f"the headers say {stored.get(name, 'nothing')}"
            )
    metadata = parse_json(raw, INDEX_FILE).get("metadata") or {}
    if not isinstance(metadata, dict):
        yield f"{INDEX_FILE}: metadata is {metadata!r}, expected an object"
        return
    for key, value in (("total_size", facts.nbytes), ("total_parameters", facts.parameters)):
        if key in metadata and metadata[key] != value:
            yield f"{INDEX_FILE}: {key} is {metadata[key]}, the headers say {value}"


def compare_record(record: Record, facts: MeasuredRecord, files: Mapping[str, FileRecord]) -> Iterator[str]:
    """Every figure and file of the record that is not what was measured."""
    for key in MeasuredRecord.__struct_fields__:
        if getattr(record.measured, key) != getattr(facts, key):
            yield f"{RECORD_FILE}: {key} is {getattr(record.measured, key)}, measured {getattr(facts, key)}"
    for recorded in record.files:
        found = files.get(recorded.name)
        if found is None:
            yield f"{recorded.name}: missing, but in {RECORD_FILE}"
        elif found != recorded:
            yield f"{recorded.name}: sha256 {found.sha256}, {RECORD_FILE} says {recorded.sha256}"
    for name in sorted(files.keys() - {recorded.name for recorded in record.files}):
        if not is_derived(name):
            yield f"{name}: not in {RECORD_FILE}"
