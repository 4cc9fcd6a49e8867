"""Random checkpoints in the published format, for demonstrations, tests and benchmarks."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from hubtool.checkpoint.tensors import TensorSpec, encode_header
from hubtool.errors import OutputError
from hubtool.files.whole import writing
from hubtool.sample.layout import published_config, published_layout, published_shards
from hubtool.sample.published import PUBLISHED
from hubtool.sample.shapes import (
    BASE_LIKE,
    FLASH,
    FLASH_0731,
    FLASH_BASE,
    OTHER,
    PRO,
    PRO_LIKE,
    R0731_LIKE,
    SMALL,
    TINY,
    SampleShape,
)
from hubtool.sample.tokenizer import tokenizer_files
from hubtool.sample.weights import RandomWeights
from hubtool.units import MB, format_size

__all__ = [
    "BASE_LIKE",
    "FLASH",
    "FLASH_0731",
    "FLASH_BASE",
    "OTHER",
    "PRO",
    "PRO_LIKE",
    "PUBLISHED",
    "R0731_LIKE",
    "SHARD_METADATA",
    "SIZES",
    "SMALL",
    "TINY",
    "SampleShape",
    "published_config",
    "published_layout",
    "published_shards",
    "tokenizer_files",
    "write_architecture",
    "write_documents",
    "write_sample",
]

SIZES: Mapping[str, SampleShape] = {"tiny": TINY, "small": SMALL}
"""The shapes that people choose by name."""

SHARD_METADATA: Mapping[str, str] = {"format": "pt"}
"""`__metadata__` of each shard."""

LICENSE = """\
MIT License

Copyright (c) 2026 hubtool contributors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

README = """\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
---

# A random {model} checkpoint

The weights in this folder are random: it has the format and every architectural element of a published {model}
checkpoint, and nothing to say. `hubtool sample` wrote it, to try a conversion on.
"""

GENERATION_CONFIG: Mapping[str, object] = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "transformers_version": "4.57.1",
}


def write_sample(folder: Path, shape: SampleShape = TINY, seed: int = 0) -> Path:
    """The folder, now a random checkpoint of this shape; the same shape and seed give the same bytes everywhere.

    The folder appears complete or not at all. Memory is a few megabytes, whatever the shape.

    Args:
        folder: Must not exist, or be empty.
        shape: One of this module's, or `dataclasses.replace(TINY, ...)`.
        seed: Decides the weights and nothing else.

    Raises:
        OutputError: The folder is not empty or not a folder, or its disk has no room.
    """
    folder = folder.absolute()
    layout = published_layout(shape)
    weights = RandomWeights({spec.name: spec for spec in layout}, shape.n_routed_experts, seed)
    with writing(folder):
        _check_room(folder, sum(spec.nbytes for spec in layout) + MB)
        _write_staged(folder, lambda staged: _write_shape(staged, shape, weights))
    return folder


def write_architecture(folder: Path, architecture: str, seed: int = 0) -> Path:
    """The folder, now a tiny random checkpoint of another architecture, in its published layout.

    Args:
        folder: Must not exist, or be empty.
        architecture: A key of `PUBLISHED`.
        seed: Decides the weights and nothing else.

    Raises:
        OutputError: The folder is not empty or not a folder, or its disk has no room.
    """
    folder = folder.absolute()
    published = PUBLISHED[architecture]()
    weights = RandomWeights({spec.name: spec for spec in published.tensors}, 1, seed)

    def write(staged: Path) -> None:
        _write_shard(staged / "model.safetensors", list(published.tensors), weights)
        for name, document in tokenizer_files(published.config["vocab_size"]).items():
            _write_json(staged / name, document)
        _write_json(staged / "config.json", published.config)
        _write_texts(staged, published.config["architectures"][0])

    with writing(folder):
        _check_room(folder, sum(spec.nbytes for spec in published.tensors) + MB)
        _write_staged(folder, write)
    return folder


def _write_shape(staged: Path, shape: SampleShape, weights: RandomWeights) -> None:
    for name, specs in published_shards(shape).items():
        _write_shard(staged / name, specs, weights)
    for name, document in tokenizer_files(shape.vocab_size).items():
        _write_json(staged / name, document)
    write_documents(staged, shape)


def _write_staged(folder: Path, write: Callable[[Path], None]) -> None:
    """Write the whole checkpoint beside its folder, then give it its name."""
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as workspace:
        staged = Path(workspace) / folder.name
        staged.mkdir()
        write(staged)
        staged.replace(folder)


def write_documents(folder: Path, shape: SampleShape) -> None:
    """Writes what stands beside the shards and the tokenizer: index, configs, LICENSE, README.md."""
    shards = published_shards(shape)
    total = sum(spec.nbytes for specs in shards.values() for spec in specs)
    weight_map = {spec.name: name for name, specs in shards.items() for spec in specs}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", published_config(shape))
    _write_json(folder / "generation_config.json", GENERATION_CONFIG)
    _write_texts(folder, "DeepSeek-V4")


def _write_texts(folder: Path, model: str) -> None:
    (folder / "LICENSE").write_bytes(LICENSE.encode())
    (folder / "README.md").write_bytes(README.format(model=model).encode())


def _check_room(folder: Path, nbytes: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            "the folder for the sample is not empty",
            where=folder,
            found="other files" if folder.is_dir() else "a file",
            expected="nothing, or an empty folder",
            remedy="name another folder, or remove this one",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < nbytes:
        raise OutputError(
            "the sample does not fit on the disk",
            where=folder.parent,
            found=f"{format_size(free)} free",
            expected=format_size(nbytes),
            remedy="free some space, or name a folder on another disk",
        )


def _write_shard(path: Path, specs: list[TensorSpec], weights: RandomWeights) -> None:
    with path.open("wb") as file:
        file.write(encode_header(specs, SHARD_METADATA))
        for spec in specs:
            file.writelines(chunk.data for chunk in weights.chunks(spec))


def _write_json(path: Path, document: object) -> None:
    # Bytes, not text: Windows would write other line ends.
    path.write_bytes((json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode())
