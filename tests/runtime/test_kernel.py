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
static void run(uint32_t token, const float* logits, const int* logits_shape, const float* eps,
                float* pre, float* post, float* comb) {{
    {source}
}}
extern "C" void mix(int threads, const float* logits, const int* logits_shape, const float* eps,
                    float* pre, float* post, float* comb) {{
    for (int token = 0; token < threads; ++token) run(token, logits, logits_shape, eps, pre, post, comb);
}}
"""

Arrays = tuple[mx.array, mx.array, mx.array]


def run_kernel_as_c(folder: Path, logits: mx.array, m: int, eps: float, iterations: int) -> list[np.ndarray]:
    """The kernel's three outputs, with more threads than tokens, as on a GPU."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler is not None, "MLX itself needs a C++ compiler on a processor"
    (folder / "mix.cpp").write_text(PROGRAM.format(m=m, iterations=iterations, source=_MIX_SOURCE))
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", folder / "mix.so", folder / "mix.cpp"], check=True)
    batch, length, width = logits.shape
    given = np.array(logits).reshape(-1, width)
    outputs = [np.zeros((batch, length, *sides), np.float32) for sides in ((m,), (m,), (m, m))]
    shape, floor = np.array(given.shape, np.int32), np.array([eps], np.float32)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (given, shape, floor, *outputs))
    ctypes.CDLL(str(folder / "mix.so")).mix(len(given) + 5, *pointers)
    return outputs


@pytest.mark.parametrize(("m", "iterations"), [(4, 20), (2, 20), (4, 1)])
def test_kernel_and_plain_path_agree(m: int, iterations: int, tmp_path: Path) -> None:
    logits = 3 * mx.random.normal((2, 5, (2 + m) * m), key=mx.random.key(0))
    expected = _mix_plain(logits, m, 1e-6, iterations)
    for found, wanted in zip(run_kernel_as_c(tmp_path, logits, m, 1e-6, iterations), expected, strict=True):
        assert np.abs(found - np.array(wanted)).max() < 1e-6


def test_plain_path_is_taken_where_there_is_no_kernel() -> None:
    if _mix_kernel() is not None:
        pytest.skip("this machine has a GPU")
    logits = mx.random.normal((1, 3, 24), key=mx.random.key(0))
    for found, wanted in zip(_mix(logits, 4, 1e-6, 20), _mix_plain(logits, 4, 1e-6, 20), strict=True):
        assert mx.array_equal(found, wanted)
