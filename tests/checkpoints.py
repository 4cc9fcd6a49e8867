"""Checkpoints for tests: of full size without weights, and small ones to damage."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors

from hubtool.checkpoint.tensors import encode_header
from hubtool.sample import SHARD_METADATA, TINY, SampleShape, published_shards, write_documents

INDEX_FILE = "model.safetensors.index.json"

MINI = replace(
    TINY, num_hidden_layers=3, compress_ratios=(0, 4, 128, 0), num_hash_layers=1, n_routed_experts=4, vocab_size=1280
)
"""One layer of each kind: what recipes treat differently, and little else."""

NARROW = replace(MINI, num_attention_heads=6, o_groups=2)
"""`MINI` with rows of 192 in `wo_a`, which a group of 128 does not divide."""


def write_sparse_checkpoint(folder: Path, shape: SampleShape) -> Path:
    """The folder, now a checkpoint whose headers and file sizes are real and whose weights are a hole of zeros.

    A published model's hundreds of gigabytes take only their headers' megabytes of disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, specs in published_shards(shape).items():
        header = encode_header(specs, SHARD_METADATA)
        (folder / name).write_bytes(header)
        os.truncate(folder / name, len(header) + sum(spec.nbytes for spec in specs))
    write_documents(folder, shape)
    return folder


def copied(folder: Path, to: Path) -> Path:
    """A copy of a folder, for a test to change."""
    return Path(shutil.copytree(folder, to))


def file_bytes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder by name, hidden ones left out."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    }


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The folder of a JSON file that `change` has changed in place."""
    document = json.loads(path.read_bytes())
    change(document)
    beside = path.with_name(f".{path.name}.edited")  # a thread that reads it finds the old one or the new
    beside.write_text(json.dumps(document))
    beside.replace(path)
    return path.parent


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a safetensors file, with its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    file: str


def deserialize(raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Name, and dtype, shape and data, of every tensor of a safetensors file, by the safetensors library."""
    tensors: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(raw)  # type: ignore[no-untyped-call]
    return tensors


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's shards by name, read by the safetensors library."""
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]), path.name)
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in deserialize(path.read_bytes())
    }


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """The folder, its shards and their index written anew from the tensors that `change` has changed in place."""
    tensors = read_tensors(folder)
    change(tensors)
    for path in sorted(folder.glob("*.safetensors")):
        write_shard(path, {name: tensor for name, tensor in tensors.items() if tensor.file == path.name})
    return edit_json(
        folder / INDEX_FILE,
        lambda index: index.update(weight_map={name: tensor.file for name, tensor in tensors.items()}),
    )


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file by the format's definition."""
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + len(tensor.data)]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        data += tensor.data
    write_raw(path, json.dumps(header).encode(), data)


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    """Write the length of a header, the header, and data."""
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The folder of a safetensors file whose header `change` has changed in place, and whose data is untouched."""
    header, data = split_shard(path)
    entries = json.loads(header)
    change(entries)
    write_raw(path, json.dumps(entries).encode(), data)
    return path.parent


def split_shard(path: Path) -> tuple[bytes, bytes]:
    """The header of a safetensors file, and its data."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 : 8 + length], raw[8 + length :]
