"""FP4 and FP8 are decoded exactly: every code at every scale."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from hubtool.checkpoint.open import open_source
from hubtool.plan.plan import plan_source
from tests.checkpoints import Tensor, copied, edit_tensors, read_tensors
from tests.fixtures import CommandLine, Refusal, Samples, convert_source
from tests.reference import Published

LOWEST, HIGHEST = 10, 246
"""E8M0 bytes with which every FP4 and FP8 value is a normal bfloat16: from 2**-9 * 2**-117 to 448 * 2**119."""

E4M3_CODES = bytes(byte for byte in range(256) if byte & 127 != 127)


@pytest.fixture
def convert(tmp_path: Path) -> Callable[[Path, str], Path]:
    """Converts a folder into a new one."""

    def run(folder: Path, recipe: str) -> Path:
        source = open_source(str(folder))
        (plan,) = plan_source(source, [recipe])
        return convert_source(source, plan, tmp_path / recipe).folder

    return run


def _cover(tensors: dict[str, Tensor]) -> None:
    """Let every code stand under every scale from LOWEST to HIGHEST."""
    scales = cycle(range(LOWEST, HIGHEST + 1))
    pairs = {scale: cycle(range(256)) for scale in range(LOWEST, HIGHEST + 1)}
    for name in [name for name in tensors if name.endswith(".scale")]:
        scale, weight_name = tensors[name], name.removesuffix("scale") + "weight"
        weight = tensors[weight_name]
        chosen = [next(scales) for _ in scale.data]
        tensors[name] = replace(scale, data=bytes(chosen))
        if weight.dtype == "I8":
            data = bytes(next(pairs[exponent]) for exponent in chosen for _ in range(16))
        else:
            data = (E4M3_CODES * (len(weight.data) // len(E4M3_CODES) + 1))[: len(weight.data)]
        tensors[weight_name] = replace(weight, data=data)


@pytest.mark.parametrize("name", ["mini", "base_like"])
def test_every_code_at_every_scale_is_decoded_exactly(
    name: str, sample: Samples, tmp_path: Path, convert: Callable[[Path, str], Path]
) -> None:
    source = edit_tensors(copied(sample(name), tmp_path / "source"), _cover)
    published = Published(source)
    covered = {
        (weight.dtype, scale)
        for name, weight in published.tensors.items()
        if weight.dtype in ("I8", "F8_E4M3")
        for scale in published.tensors[name.removesuffix("weight") + "scale"].data
    }
    everything = {("I8" if name == "mini" else "F8_E4M3", scale) for scale in range(LOWEST, HIGHEST + 1)}
    assert everything <= covered
    written = read_tensors(convert(source, "float32"))
    for path, tensor in written.items():
        if tensor.dtype == "F32":
            assert tensor.data == published.values(path).tobytes(), path


LINEAR = "layers.1.attn.wq_a"
EXPERT = "layers.1.ffn.experts.2.w1"


def _put(name: str, position: int, byte: int) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        data = bytearray(tensors[name].data)
        data[position] = byte
        tensors[name] = replace(tensors[name], data=bytes(data))

    return change


@pytest.mark.parametrize("recipe", ["mixed_3_6", "native", "bf16"])
@pytest.mark.parametrize(
    ("name", "position", "byte", "found"),
    [
        (f"{LINEAR}.scale", 1, 255, "E8M0 byte 255, which is NaN"),
        (f"{EXPERT}.scale", 1000, 255, "E8M0 byte 255, which is NaN"),
        (f"{LINEAR}.weight", 4321, 127, "E4M3 byte 127 or 255, which is NaN"),
        (f"{LINEAR}.weight", 4321, 255, "E4M3 byte 127 or 255, which is NaN"),
    ],
)
def test_nan_in_the_source_stops_the_conversion(
    recipe: str,
    name: str,
    position: int,
    byte: int,
    found: str,
    sample: Samples,
    tmp_path: Path,
    assert_refused: Refusal,
) -> None:
    source = edit_tensors(copied(sample("mini"), tmp_path / "source"), _put(name, position, byte))
    assert_refused(
        source,
        f"{name}: not finite: found {found}; fetch its shard again, or report the checkpoint",
        recipe=recipe,
        planned=True,
    )


def test_nan_in_what_is_dropped_is_no_matter(
    sample: Samples, tmp_path: Path, convert: Callable[[Path, str], Path]
) -> None:
    source = edit_tensors(copied(sample("mini"), tmp_path / "source"), _put("mtp.0.e_proj.scale", 0, 255))
    assert (convert(source, "mixed_3_6") / "README.md").is_file()


MODES = {
    "affine": "bits = 3\ngroup_size = 64",
    "mxfp4": "",
    "mxfp8": "",
    "nvfp4": "",
}


def _head_in(mode: str, folder: Path) -> Path:
    path = folder / f"{mode}.toml"
    head = f'[[rule]]\nmatch = "lm_head"\nmode = "{mode}"\n{MODES[mode]}\n'
    path.write_text(f'summary = "the head in {mode}"\n{head}[[rule]]\nmatch = "**"\nmode = "repack"\n')
    return path


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81], ids=["inf", "-inf", "nan", "another nan"])
def test_weight_that_is_not_finite_is_never_quantized(
    bits: int, mode: str, sample: Samples, tmp_path: Path, assert_refused: Refusal
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        _put("head.weight", 70_000, bits & 255)(tensors)
        _put("head.weight", 70_001, bits >> 8)(tensors)

    source = edit_tensors(copied(sample("mini"), tmp_path / "source"), change)
    found = "a value that is infinite or NaN"
    assert_refused(
        source,
        f"head.weight: not finite: found {found}; fetch its shard again, or report the checkpoint",
        recipe=_head_in(mode, tmp_path),
        planned=True,
    )


@pytest.mark.parametrize("recipe", ["mixed_3_6", "bf16"])
def test_encoded_weight_that_overflows_bfloat16_is_refused(
    recipe: str, sample: Samples, tmp_path: Path, assert_refused: Refusal
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        _put(f"{EXPERT}.scale", 64, 254)(tensors)
        _put(f"{EXPERT}.weight", 64 * 16, 0x77)(tensors)

    source = edit_tensors(copied(sample("mini"), tmp_path / "source"), change)
    found = "a weight that is infinite or NaN in bfloat16"
    assert_refused(
        source,
        f"{EXPERT}.weight: not finite: found {found}; fetch its shard again, or report the checkpoint",
        recipe=recipe,
        planned=True,
    )


def test_weight_that_is_too_large_to_be_squared_is_named_and_the_folder_is_not_spoilt(
    sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    source = edit_tensors(copied(sample("mini"), tmp_path / "source"), _put("head.weight", 1, 0x7E))
    arguments = ("convert", source, "--recipe", "mixed_3_6", "--out", tmp_path / "out")
    for _ in range(2):
        outcome = hubtool(*arguments)
        assert outcome.code == 1
        assert "head.weight: too large for its error to be measured" in outcome.stderr
    assert hubtool(*arguments, "--measure-error", "off").code == 0


def test_scale_by_which_a_weight_is_read_back_as_infinite_is_refused(
    sample: Samples, tmp_path: Path, assert_refused: Refusal
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        _put("head.weight", 200_000, 0x70)(tensors)
        _put("head.weight", 200_001, 0x7F)(tensors)

    source = edit_tensors(copied(sample("mini"), tmp_path / "source"), change)
    assert_refused(
        source,
        "head.weight: not finite: found a scale of its quantization is infinite or NaN; "
        "fetch its shard again, or report the checkpoint",
        recipe=_head_in("mxfp4", tmp_path),
        planned=True,
    )
