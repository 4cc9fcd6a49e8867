"""The GPU kernel computes what the plain path does: its body is C, so a C++ compiler can run it here."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from hubtool.runtime.deepseek_v4 import _MIX_SOURCE, _mix, _mix_kernel, _mix_plain

PROGRAM = """
#include <cmath>
#include <cstdint>
using std::exp;
constexpr int M = {m}, ITERATIONS = {iterations};
static void run(uint32_t token, const float* mixes, const int* mixes_shape, const float* scale, const float* base,
                const float* eps, float* pre, float* post, float* comb) {{
    {source}
}}
extern "C" void mix(int threads, const float* mixes, const int* mixes_shape, const float* scale, const float* base,
                    const float* eps, float* pre, float* post, float* comb) {{
    for (int token = 0; token < threads; ++token) {{
        run(token, mixes, mixes_shape, scale, base, eps, pre, post, comb);
    }}
}}
"""

Inputs = tuple[mx.array, mx.array, mx.array]


def random_inputs(m: int, batch: int, length: int) -> Inputs:
    """Mixes [batch, length, (2 + m) * m], scale [3] and base [(2 + m) * m]."""
    rows = (2 + m) * m
    mixes, base = (mx.random.normal(shape, key=mx.random.key(m)) for shape in ((batch, length, rows), (rows,)))
    return 3 * mixes, mx.array([0.5, 1.5, 0.8]), base


def run_kernel_as_c(folder: Path, inputs: Inputs, m: int, eps: float, iterations: int) -> list[np.ndarray]:
    """The kernel's three outputs, with more threads than tokens, as on a GPU."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler is not None, "MLX itself needs a C++ compiler on a processor"
    (folder / "mix.cpp").write_text(PROGRAM.format(m=m, iterations=iterations, source=_MIX_SOURCE))
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", folder / "mix.so", folder / "mix.cpp"], check=True)
    batch, length, rows = inputs[0].shape
    mixes, scale, base = (np.array(array) for array in inputs)
    shape, floor = np.array([batch * length, rows], np.int32), np.array([eps], np.float32)
    outputs = [np.zeros((batch, length, *sides), np.float32) for sides in ((m,), (m,), (m, m))]
    arrays = (mixes, shape, scale, base, floor, *outputs)
    ctypes.CDLL(str(folder / "mix.so")).mix(batch * length + 5, *(ctypes.c_void_p(a.ctypes.data) for a in arrays))
    return outputs


@pytest.mark.parametrize(("m", "iterations"), [(4, 20), (2, 20), (4, 1)])
def test_kernel_and_plain_path_agree(m: int, iterations: int, tmp_path: Path) -> None:
    inputs = random_inputs(m, 2, 5)
    expected = _mix_plain(*inputs, m, 1e-6, iterations)
    for found, wanted in zip(run_kernel_as_c(tmp_path, inputs, m, 1e-6, iterations), expected, strict=True):
        assert np.abs(found - np.array(wanted)).max() < 1e-6


def test_plain_path_is_taken_where_there_is_no_kernel() -> None:
    if _mix_kernel() is not None:
        pytest.skip("this machine has a GPU")
    inputs = random_inputs(4, 1, 3)
    for found, wanted in zip(_mix(*inputs, 4, 1e-6, 20), _mix_plain(*inputs, 4, 1e-6, 20), strict=True):
        assert mx.array_equal(found, wanted)
