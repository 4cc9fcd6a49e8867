"""The one seam to MLX's device: which it is, that it is there, and what is done differently for it."""

import importlib.metadata
import os
import platform
import sys
from functools import cache
from typing import Literal

from hubtool.errors import BackendError

Backend = Literal["metal", "cuda", "cpu"]

LINUX_BACKENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
"""Distributions that each bring MLX's library on Linux; two of them overwrite each other's files."""


@cache
def require_backend() -> Backend:
    """Which backend MLX runs on here.

    Raises:
        BackendError: MLX has no backend installed, more than one on Linux, or does not load.
    """
    if sys.platform == "linux":
        installed = [name for name in LINUX_BACKENDS if _is_installed(name)]
        if len(installed) != 1:
            raise BackendError(
                "MLX needs exactly one backend on Linux",
                where=f"{platform.system()} {platform.machine()}",
                found=", ".join(installed) or "none",
                expected="one of mlx-cpu, mlx-cuda-12, mlx-cuda-13",
                remedy="install hubtool with one of the extras cpu, cuda12, cuda13"
                + (", in a fresh environment" if installed else ""),
            )
    try:
        import mlx.core as mx
    except ImportError as error:
        raise BackendError(
            "MLX does not load", where=platform.platform(), found=str(error), remedy="install mlx again"
        ) from error
    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.default_device().type == mx.DeviceType.gpu else "cpu"


MOST_JOBS = 8
"""Jobs by default at most: each takes some 50 MB, and by then the disk is what is waited for."""

GPU_JOBS = 2
"""Jobs by default on a GPU: one reads and writes while the other computes."""


def default_jobs() -> int:
    """Pieces that are made at once if nobody says: on a CPU one a core, as far as that is modest. MLX is not loaded."""
    on_gpu = sys.platform == "darwin" or any(_is_installed(name) for name in LINUX_BACKENDS if "cuda" in name)
    return GPU_JOBS if on_gpu else min(MOST_JOBS, usable_cores())


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decodes_on_device() -> bool:
    """Whether encoded weights are decoded by MLX's kernels; on a CPU a lookup table is 8 times faster."""
    return require_backend() != "cpu"


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
