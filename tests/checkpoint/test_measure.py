"""A folder is measured from its bytes, and every disagreement is named."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import get_local_safetensors_metadata

from hubtool.plan.recipe import recipe_names
from tests.checkpoints import copied, edit_header, edit_json, file_bytes, read_tensors
from tests.fixtures import CommandLine, Conversions, Samples

SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
MODULE = "model.layers.1.attn.wq_a"


@pytest.mark.parametrize("recipe", recipe_names())
def test_measured_figures_are_counted_from_the_bytes(recipe: str, converted: Conversions, hubtool: CommandLine) -> None:
    made = converted("tiny", recipe)
    document = hubtool("inspect", made.folder, "--json").document
    tensors = read_tensors(made.folder)
    assert document["nbytes"] == sum(len(tensor.data) for tensor in tensors.values())
    assert document["tensors"] == len(tensors)
    assert document["effective_bits"] == 8 * document["nbytes"] / document["parameters"]
    assert document["dtypes"] == {
        dtype: sum(len(tensor.data) for tensor in tensors.values() if tensor.dtype == dtype)
        for dtype in {tensor.dtype for tensor in tensors.values()}
    }
    assert {file["name"]: file["sha256"] for file in document["files"]} == file_bytes(made.folder)
    assert document["disagreements"] == []


def test_header_totals_are_those_of_the_stock_client(converted: Conversions, hubtool: CommandLine) -> None:
    made = converted("tiny", "mixed_3_6")
    stock = get_local_safetensors_metadata(made.folder)
    dtypes = hubtool("inspect", made.folder, "--json").document["dtypes"]
    sizes = {"U32": 4, "BF16": 2, "F32": 4, "I64": 8}
    assert {dtype: count * sizes[dtype] for dtype, count in stock.parameter_count.items()} == dtypes


def test_text_names_the_figures(converted: Conversions, hubtool: CommandLine) -> None:
    made = converted("tiny", "mixed_3_6")
    outcome = hubtool("inspect", made.folder)
    assert outcome.code == 0
    assert f"{made.plan.nbytes:,} bytes" in outcome.stdout
    assert hashlib.sha256((made.folder / SHARD).read_bytes()).hexdigest() in outcome.stdout
    assert outcome.stdout.endswith("no disagreements\n")


def test_published_source_is_measured_too(sample: Samples, hubtool: CommandLine) -> None:
    outcome = hubtool("inspect", sample("mini"), "--json")
    document, tensors = outcome.document, read_tensors(sample("mini")).values()
    assert outcome.code == 0, "what is published agrees with itself"
    assert document["nbytes"] == sum(len(tensor.data) for tensor in tensors)
    assert document["shards"] == 6
    per_value = {"I8": 2, "F8_E8M0": 0}  # two FP4 values a byte; scales are no parameters
    assert document["parameters"] == sum(per_value.get(each.dtype, 1) * math.prod(each.shape) for each in tensors)


Change = Callable[[Path], object]


def _edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda folder: edit_json(folder / name, change)


def _rename_a_tensor(folder: Path) -> None:
    edit_header(folder / SHARD, lambda header: header.update({"model.extra": header.pop("model.norm.weight")}))


def _flip_a_byte(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


DISAGREEMENTS: dict[str, tuple[Change, str]] = {
    "index names another file": (
        _edit(INDEX, lambda index: index["weight_map"].update({f"{MODULE}.weight": "other.safetensors"})),
        f"{INDEX}: {MODULE}.weight: says other.safetensors, the headers say {SHARD}",
    ),
    "index lacks a tensor": (
        _edit(INDEX, lambda index: index["weight_map"].pop(f"{MODULE}.weight")),
        f"{INDEX}: {MODULE}.weight: says nothing, the headers say {SHARD}",
    ),
    "index has another size": (
        _edit(INDEX, lambda index: index["metadata"].update(total_size=1)),
        f"{INDEX}: total_size is 1, the headers say ",
    ),
    "index has another count": (
        _edit(INDEX, lambda index: index["metadata"].update(total_parameters=1)),
        f"{INDEX}: total_parameters is 1, the headers say ",
    ),
    "tensor under another name": (_rename_a_tensor, f"{INDEX}: model.extra: says nothing, the headers say {SHARD}"),
    "module without an entry": (
        _edit("config.json", lambda config: config["quantization"].pop(MODULE)),
        f"config.json: quantization: no entry for {MODULE}, which is stored quantized",
    ),
    "entry with other bits": (
        _edit("config.json", lambda config: config["quantization"][MODULE].update(bits=3)),
        f"{MODULE}.scales: shape [128, 2], but config.json says 3 bits in groups of 128, which makes [128, 4]",
    ),
    "entry with another group": (
        _edit("config.json", lambda config: config["quantization"][MODULE].update(group_size=64)),
        f"{MODULE}.scales: shape [128, 2], but config.json says 6 bits in groups of 64, which makes [128, 4]",
    ),
    "entry with another mode": (
        _edit("config.json", lambda config: config["quantization"][MODULE].update(mode="mxfp8")),
        f"{MODULE}: has biases, but config.json says mode mxfp8",
    ),
    "entry for what is not quantized": (
        _edit("config.json", lambda config: config["quantization"].update({"model.norm": {"bits": 4}})),
        "config.json: quantization: model.norm is not stored quantized",
    ),
    "two quantizations": (
        _edit("config.json", lambda config: config.pop("quantization_config")),
        "config.json: quantization and quantization_config differ",
    ),
    "changed weights": (_flip_a_byte, f"{SHARD}: sha256 "),
    "missing file": (lambda folder: (folder / "LICENSE").unlink(), "LICENSE: missing, but in hubtool.json"),
    "another file": (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt: not in hubtool.json"),
    "record with another size": (
        _edit("hubtool.json", lambda record: record["measured"].update(nbytes=1)),
        "hubtool.json: nbytes is 1, measured ",
    ),
    "record with other bits": (
        _edit("hubtool.json", lambda record: record["measured"].update(effective_bits=3.0)),
        "hubtool.json: effective_bits is 3.0, measured ",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), DISAGREEMENTS.values(), ids=DISAGREEMENTS)
def test_disagreement_is_named(
    change: Change, sentence: str, converted: Conversions, hubtool: CommandLine, tmp_path: Path
) -> None:
    folder = copied(converted("tiny", "mixed_3_6").folder, tmp_path / "folder")
    change(folder)
    outcome = hubtool("inspect", folder, "--json")
    assert outcome.code == 1
    assert any(found.startswith(sentence) for found in outcome.document["disagreements"]), outcome.stdout
    assert sentence in hubtool("inspect", folder).stdout


def test_folder_without_shards_is_refused(tmp_path: Path, hubtool: CommandLine) -> None:
    outcome = hubtool("inspect", tmp_path)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == f"Error: {tmp_path}: no safetensors files; check the path\n"


def test_absent_folder_is_refused(tmp_path: Path, hubtool: CommandLine) -> None:
    outcome = hubtool("inspect", tmp_path / "absent")
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"Error: {tmp_path / 'absent'}: no such folder: found nothing, expected ")


def test_stray_file_is_never_recorded(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    arguments = ("convert", sample("mini"), "--recipe", "native", "--out", tmp_path / "out")
    assert hubtool(*arguments).code == 0
    (tmp_path / "out" / "hubtool.json").unlink()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert hubtool(*arguments).code == 0
    record = json.loads((tmp_path / "out" / "hubtool.json").read_bytes())
    assert "notes.txt" not in {file["name"] for file in record["files"]}
