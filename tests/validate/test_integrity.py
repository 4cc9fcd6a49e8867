import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hubtool.progress import uncounted
from hubtool.record import WeightErrorRecord, read_record
from hubtool.validate.integrity import Integrity, check_integrity
from hubtool.validate.stamps import find_touched, is_unchanged
from tests.checkpoints import (
    INDEX_FILE,
    Tensor,
    copied,
    edit_header,
    edit_json,
    edit_tensors,
    read_tensors,
    write_shard,
)
from tests.fixtures import Conversions

SHARD = "model-00001-of-00001.safetensors"
PACKED = "model.layers.1.ffn.switch_mlp.up_proj.weight"
SCALES = "model.layers.1.ffn.switch_mlp.up_proj.scales"


@pytest.fixture
def folder(converted: Conversions, tmp_path: Path) -> Path:
    return copied(converted("mini", "mixed_3_6").folder, tmp_path / "folder")


def check(folder: Path) -> Integrity:
    record = read_record(folder)
    assert record is not None
    return check_integrity(folder, record, uncounted)


def test_an_intact_folder_passes_and_is_known_until_a_file_is_touched(folder: Path) -> None:
    record = read_record(folder)
    assert record is not None
    assert not is_unchanged(folder, record)
    integrity = check(folder)
    assert integrity.finding.outcome == "passed"
    assert integrity.subject == record.subject
    assert integrity.finding.figures == {"tensors": record.measured.tensors, "files": len(record.files)}
    assert is_unchanged(folder, record)
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes())
    assert not is_unchanged(folder, record)


def test_times_that_are_set_back_hide_no_change(folder: Path) -> None:
    record = read_record(folder)
    assert record is not None
    check(folder)
    before = (folder / SHARD).stat()
    with (folder / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(folder / SHARD, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_unchanged(folder, record)
    assert find_touched(folder, record) == (SHARD,)


def test_a_file_that_changes_while_it_is_read_does_not_pass(folder: Path) -> None:
    record = read_record(folder)
    assert record is not None

    def touch(nbytes: int, label: str = "", *, found: bool = False) -> None:
        os.utime(folder / SHARD)

    finding = check_integrity(folder, record, touch).finding
    assert (finding.outcome, finding.detail) == ("failed", f"{SHARD}: touched while it was read")
    assert not is_unchanged(folder, record)


def test_every_byte_of_the_shards_is_counted_once(folder: Path) -> None:
    record = read_record(folder)
    assert record is not None
    read: dict[str, int] = {}

    def count(nbytes: int, label: str = "", *, found: bool = False) -> None:
        read[label] = read.get(label, 0) + nbytes

    check_integrity(folder, record, count)
    assert read == {SHARD: (folder / SHARD).stat().st_size}


def change_a_byte(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[-1] ^= 1
    (folder / SHARD).write_bytes(data)


def swap_two_of_a_shape(folder: Path) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        other = PACKED.replace("up_proj", "gate_proj")
        tensors[PACKED], tensors[other] = tensors[other], tensors[PACKED]

    edit_tensors(folder, swap)


def swap_two_of_different_shapes(folder: Path) -> None:
    def swap(header: dict[str, dict[str, object]]) -> None:
        other = "model.layers.1.attn.wq_a.scales"
        header[SCALES], header[other] = header[other], header[SCALES]

    edit_header(folder / SHARD, swap)


def drop_a_tensor(folder: Path) -> None:
    tensors = read_tensors(folder)
    del tensors["model.layers.1.attn_norm.weight"]
    write_shard(folder / SHARD, tensors)


def drop_scales_from_the_index_too(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(SCALES))


def make_a_scale_nan(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        data = bytearray(tensors[SCALES].data)
        data[2:4] = b"\xc0\x7f"  # the second value, a BF16 NaN
        tensors[SCALES] = replace(tensors[SCALES], data=bytes(data))

    edit_tensors(folder, change)


def change_bits(folder: Path) -> None:
    module = SCALES.removesuffix(".scales")
    edit_json(folder / "config.json", lambda config: config["quantization"][module].update(bits=6))


def truncate(folder: Path) -> None:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-8])


def remove_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"x")


def misplace_in_the_index(folder: Path) -> None:
    other = "model-00002-of-00002.safetensors"
    edit_json(folder / INDEX_FILE, lambda index: index["weight_map"].update({PACKED: other}))


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def change_quantization(value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        both = {"quantization": value, "quantization_config": value}
        edit_json(folder / "config.json", lambda config: config.update(both))

    return change


def change_entry(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        module = SCALES.removesuffix(".scales")
        edit_json(folder / "config.json", lambda config: config["quantization"][module].update(values))

    return change


def make_config_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def change_metadata(folder: Path) -> None:
    edit_json(folder / INDEX_FILE, lambda index: index.update(metadata=5))


def make_the_index_a_list(folder: Path) -> None:
    (folder / INDEX_FILE).write_text("[]")


def empty_the_shard(folder: Path) -> None:
    write_shard(folder / SHARD, {})


@pytest.mark.parametrize(
    ("corrupt", "named"),
    [
        (change_entry(bits="6"), [SCALES.removesuffix(".scales"), "Expected `int`, got `str` - at `$.bits`"]),
        (change_entry(group_size="64"), [SCALES.removesuffix(".scales"), "at `$.group_size`"]),
        (change_entry(bits=[3]), [SCALES.removesuffix(".scales"), "got `array` - at `$.bits`"]),
        (change_entry(bits=0), ["`int` >= 1 - at `$.bits`"]),
        (change_entry(mode=["affine"]), ["at `$.mode`"]),
        (change_quantization([1]), ["config.json: quantization: found list, expected an object"]),
        (change_quantization("3 bits"), ["config.json: quantization: found str, expected an object"]),
        (make_config_a_list, ["config.json: found list, expected an object"]),
        (change_metadata, ["metadata is 5, expected an object"]),
        (make_the_index_a_list, ["not a safetensors index", f"{INDEX_FILE}: sha256"]),
        (empty_the_shard, [SHARD, "no tensors"]),
        (change_a_byte, [SHARD, "sha256"]),
        (swap_two_of_a_shape, [SHARD, "sha256"]),
        (swap_two_of_different_shapes, [SCALES, "shape"]),
        (drop_a_tensor, ["model.layers.1.attn_norm.weight", "the headers say nothing"]),
        (drop_scales_from_the_index_too, [SCALES.removesuffix(".scales"), "not stored quantized"]),
        (make_a_scale_nan, [SCALES, "1 of 1,024 values not finite, the first at [0, 0, 1]"]),
        (change_bits, [SCALES, "6 bits in groups of 128"]),
        (truncate, [SHARD, "truncated"]),
        (remove_the_tokenizer, ["tokenizer.json", "missing"]),
        (add_a_file, ["extra.bin", "not in hubtool.json"]),
        (misplace_in_the_index, [PACKED, "model-00002-of-00002.safetensors"]),
        (break_config, ["config.json", "not JSON"]),
    ],
)
def test_a_corruption_is_caught_and_named(folder: Path, corrupt: Callable[[Path], None], named: list[str]) -> None:
    record = read_record(folder)
    assert record is not None
    check(folder)
    corrupt(folder)
    integrity = check(folder)
    assert integrity.finding.outcome == "failed"
    for each in named:
        assert each in integrity.finding.detail
    assert integrity.subject != record.subject
    assert not is_unchanged(folder, record)


def test_the_figures_of_a_failed_integrity_are_those_that_were_found(folder: Path) -> None:
    record = read_record(folder)
    assert record is not None
    drop_a_tensor(folder)
    add_a_file(folder)
    figures = {"tensors": record.measured.tensors - 1, "files": len(record.files) + 1}
    assert check(folder).finding.figures == figures


def test_a_nan_among_e8m0_scales_is_named(converted: Conversions, tmp_path: Path) -> None:
    folder = copied(converted("mini", "native").folder, tmp_path / "folder")

    def change(tensors: dict[str, Tensor]) -> None:
        data = bytearray(tensors[SCALES].data)
        data[-1] = 0xFF
        tensors[SCALES] = replace(tensors[SCALES], data=bytes(data))

    edit_tensors(folder, change)
    integrity = check(folder)
    assert integrity.finding.outcome == "failed"
    assert f"{SCALES}: 1 of " in integrity.finding.detail


def test_infinity_far_into_a_large_tensor_is_placed(converted: Conversions, tmp_path: Path) -> None:
    folder = copied(converted("mini", "float32").folder, tmp_path / "folder")
    name = "lm_head.weight"

    def change(tensors: dict[str, Tensor]) -> None:
        data = bytearray(tensors[name].data)
        data[-4:] = b"\x00\x00\x80\x7f"
        tensors[name] = replace(tensors[name], data=bytes(data))

    edit_tensors(folder, change)
    rows, columns = read_tensors(folder)[name].shape
    assert f"{name}: 1 of {rows * columns:,} values not finite, the first at [{rows - 1}, {columns - 1}]" in (
        check(folder).finding.detail
    )


def test_the_largest_weight_error_that_was_measured_is_told(folder: Path) -> None:
    record = read_record(folder)
    assert record is not None
    errors = WeightErrorRecord(every_row=1, tensors={"model.a.weight": 0.001, "model.b.weight": 0.0125})
    record = msgspec.structs.replace(record, weight_error=errors)
    detail = check_integrity(folder, record, uncounted).finding.detail
    assert detail.endswith("at most 0.0125, in model.b.weight")
