"""What quantizing lost: measured in little memory, and the figure that follows from the files alone."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from hubtool.checkpoint.open import open_source
from hubtool.convert.piece import PieceMaker
from hubtool.plan.plan import TILE_NBYTES, plan_source
from tests.checkpoints import Tensor, read_tensors
from tests.fixtures import CommandLine, Samples
from tests.reference import Published, plain


def bfloat16(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded to the eight significant bits that the runtime computes with, half to even."""
    fraction, exponent = np.frexp(values)
    rounded: NDArray[np.float64] = np.ldexp(np.rint(fraction * 256) / 256, exponent)
    return rounded


def dequantized(tensors: dict[str, Tensor], module: str, bits: int, group_size: int) -> NDArray[np.float64]:
    """The bfloat16 of an affine module, from the definition: little-endian codes, times scale, plus bias."""
    packed = tensors[f"{module}.weight"]
    stream = np.unpackbits(np.frombuffer(packed.data, np.uint8), bitorder="little").reshape(-1, bits)
    codes = (stream * (1 << np.arange(bits))).sum(axis=1).reshape(-1, group_size)
    scales, biases = (plain(tensors[f"{module}.{part}"]).reshape(-1, 1) for part in ("scales", "biases"))
    return bfloat16(bfloat16(codes * scales) + biases).reshape(-1, packed.shape[-1] * 32 // bits)


def expected_errors(source: Path, folder: Path, every_row: int) -> dict[str, float]:
    """Relative mean squared error of every affine weight on every so-manieth row."""
    published, written = Published(source), read_tensors(folder)
    quantization: dict[str, Any] = json.loads((folder / "config.json").read_bytes())["quantization"]
    errors = {}
    for module, entry in quantization.items():
        if isinstance(entry, dict) and entry["mode"] == "affine":
            made = dequantized(written, module, entry["bits"], entry["group_size"])
            true = published.values(f"{module}.weight").astype(np.float64).reshape(made.shape)
            lost = np.square(made - true)[::every_row].sum()
            errors[f"{module}.weight"] = float(lost / np.square(true[::every_row]).sum())
    return errors


@pytest.mark.parametrize(("choice", "every_row"), [("sample", 64), ("full", 1)])
def test_recorded_error_is_that_of_the_written_weights(
    choice: str, every_row: int, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = hubtool(
        "convert", sample("mini"), "--recipe", "mixed_3_6", "--out", out, "--measure-error", choice, "--jobs", 1
    )
    assert outcome.code == 0, outcome.stderr
    recorded = json.loads((out / "hubtool.json").read_bytes())["weight_error"]
    assert recorded["every_row"] == every_row
    assert recorded["tensors"] == pytest.approx(expected_errors(sample("mini"), out, every_row), rel=1e-3)


def test_error_is_not_recorded_if_it_was_not_measured(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    arguments = ("convert", sample("mini"), "--recipe", "mixed_3_6", "--out", tmp_path / "out")
    assert hubtool(*arguments, "--measure-error", "off").code == 0
    assert json.loads((tmp_path / "out" / "hubtool.json").read_bytes())["weight_error"] is None


@pytest.mark.parametrize("every_row", [0, 1, 64])
@pytest.mark.parametrize("module", ["ffn.switch_mlp.gate_proj", "attn.wq_b"])
def test_measuring_the_error_stays_within_the_memory_of_a_tile(module: str, every_row: int, published: Samples) -> None:
    source = open_source(str(published("flash")))
    (plan,) = plan_source(source, ["mixed_3_6"])
    index = next(n for n, step in enumerate(plan.steps) if step.parameter.module.endswith(module))
    maker = PieceMaker(source, every_row)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    maker.make(next(plan.steps[index].pieces(index)), [plan.steps[index]])
    assert mx.get_peak_memory() - before <= TILE_NBYTES
    source.close()


def test_memory_limit_takes_fewer_jobs_or_refuses(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    arguments = ("convert", sample("mini"), "--recipe", "mixed_3_6", "--measure-error", "full", "--out")
    (plan,) = plan_source(open_source(str(sample("mini"))), ["mixed_3_6"])
    one = plan.peak_nbytes(1)
    refused = hubtool(*arguments, tmp_path / "refused", "--memory-limit", f"{one - 1}")
    assert refused.code == 2
    assert "--memory-limit: too little memory for one job" in refused.stderr
    assert not (tmp_path / "refused").exists()
    lowered = hubtool(*arguments, tmp_path / "out", "--jobs", 8, "--memory-limit", f"{one}")
    assert lowered.code == 0
    assert "--memory-limit leaves room for 1 of 8 jobs" in lowered.stderr
