"""What a finished folder really holds, from its headers and files alone, and where it contradicts itself."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from hubtool import units
from hubtool.errors import SourceError
from hubtool.record import RECORD_FILE, FileRecord, MeasuredRecord, Record, is_derived
from hubtool.source import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, file_sha256, parse_index, parse_json
from hubtool.tensors import Header, TensorSpec, read_header


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
    config = parse_json(read(CONFIG_FILE), CONFIG_FILE) if CONFIG_FILE in named else {}
    facts, problems = measure_headers(headers, config)
    if INDEX_FILE in named:
        problems += _compare_index(read(INDEX_FILE), headers, facts)
    elif list(headers) != [SINGLE_FILE]:
        problems.append(f"{INDEX_FILE}: missing, and there are {len(headers)} shards")
    if record is not None:
        problems += compare_record(record, facts, named)
    return Measurement(facts, tuple(files), tuple(problems))


def measure_headers(headers: Mapping[str, Header], config: Mapping[str, Any]) -> tuple[MeasuredRecord, list[str]]:
    """Totals over all shards, and where config.json's quantization contradicts the headers."""
    tensors = {tensor.spec.name: tensor.spec for header in headers.values() for tensor in header.tensors}
    nbytes = sum(header.data_nbytes for header in headers.values())
    dtypes: Counter[str] = Counter()
    for spec in tensors.values():
        dtypes[spec.dtype] += spec.nbytes
    problems: list[str] = []
    parameters = sum(
        _logical_size(spec, tensors, config.get("quantization") or {}, problems) for spec in tensors.values()
    )
    problems += _compare_config(tensors, config)
    facts = MeasuredRecord(
        nbytes=nbytes,
        parameters=parameters,
        effective_bits=units.effective_bits(nbytes, parameters),
        tensors=len(tensors),
        shards=len(headers),
        dtypes=dict(dtypes.most_common()),
    )
    return facts, problems


def _published_files(folder: Path) -> list[str]:
    """Names of the files that belong to the folder; hidden ones, hubtool's state among them, do not."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _logical_size(
    spec: TensorSpec, tensors: Mapping[str, TensorSpec], quantization: Mapping[str, Any], problems: list[str]
) -> int:
    """Logical parameters that a tensor stands for: 0 for scales and biases of a quantized weight."""
    module, _, name = spec.name.rpartition(".")
    weight = tensors.get(f"{module}.weight")
    quantized = weight is not None and weight.dtype == "U32" and f"{module}.scales" in tensors
    if not quantized:
        return spec.size
    if name in ("scales", "biases"):
        return 0
    if name != "weight":
        return spec.size
    entry = quantization.get(module)
    if not isinstance(entry, dict) or not entry.get("bits") or not entry.get("group_size"):
        problems.append(f"{CONFIG_FILE}: quantization: no entry for {module}, which is stored quantized")
        entry = quantization
        if not entry.get("bits") or not entry.get("group_size"):
            return spec.size
    columns = spec.shape[-1] * 32 // entry["bits"]
    scales = tensors[f"{module}.scales"]
    expected = (*spec.shape[:-1], columns // entry["group_size"])
    if scales.shape != expected or spec.shape[-1] * 32 % entry["bits"]:
        problems.append(
            f"{scales.name}: shape {list(scales.shape)}, but {CONFIG_FILE} says {entry['bits']} bits in groups of "
            f"{entry['group_size']}, which makes {list(expected)}"
        )
    mode, biases = entry.get("mode", "affine"), f"{module}.biases" in tensors
    if biases != (mode == "affine"):
        problems.append(f"{module}: {'has' if biases else 'lacks'} biases, but {CONFIG_FILE} says mode {mode}")
    return int(prod(spec.shape[:-1]) * columns)


def _compare_config(tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> Iterator[str]:
    quantization = config.get("quantization") or {}
    if quantization != (config.get("quantization_config") or {}):
        yield f"{CONFIG_FILE}: quantization and quantization_config differ"
    for module, entry in quantization.items():
        if isinstance(entry, dict) and f"{module}.scales" not in tensors:
            yield f"{CONFIG_FILE}: quantization: {module} is not stored quantized"


def _compare_index(raw: bytes, headers: Mapping[str, Header], facts: MeasuredRecord) -> Iterator[str]:
    weight_map = parse_index(raw)
    stored = {tensor.spec.name: tensor.file for header in headers.values() for tensor in header.tensors}
    for name in sorted({*weight_map, *stored}):
        if weight_map.get(name) != stored.get(name):
            yield (
                f"{INDEX_FILE}: {name}: says {weight_map.get(name, 'nothing')}, "
                f"the headers say {stored.get(name, 'nothing')}"
            )
    metadata = msgspec.json.decode(raw).get("metadata") or {}
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
