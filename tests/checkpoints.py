"""Checkpoints of full size without weights, for tests that read headers only."""

import os
from pathlib import Path

from hubtool.sample import SHARD_METADATA, SampleShape, published_shards, write_documents
from hubtool.tensors import encode_header


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
