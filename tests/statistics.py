"""Statistics for tests: random sums for every module that a recipe may quantize."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from hubtool.checkpoint.statistics import Sums, write_statistics
from hubtool.models import Model
from hubtool.record import Calibration, TextRecord

CALIBRATION = Calibration(
    repo="someone/DeepSeek-V4-sample",
    commit="1" * 40,
    model_type="deepseek_v4",
    texts=(TextRecord(name="text.txt", commit=None, sha256="2" * 64, tokens=4096),),
    tokens=4096,
    window=512,
    tokens_sha256="3" * 64,
    versions={"hubtool": "0", "mlx": "0"},
)


def random_statistics(
    path: Path,
    model: Model,
    *,
    seed: int = 0,
    without: Collection[str] = (),
    costs: Mapping[tuple[str, str], float] = {},
) -> Path:
    """A file of statistics for every linear of a model but some; gate and up projections share their input."""
    sums: dict[str, Sums] = {}
    for parameter in model.parameters:
        if not parameter.quantizable or parameter.module.endswith("embed_tokens") or parameter.module in without:
            continue
        blocks = parameter.shape[0] if len(parameter.shape) == 3 else 1
        shared = parameter.module.replace("up_proj", "gate_proj")
        if shared in sums:
            sums[parameter.module] = sums[shared]
            continue
        random = np.random.default_rng([seed, len(sums)])
        count = random.integers(0, 50, blocks) if blocks > 1 else np.array([4096])
        if blocks > 1:
            count[-1] = 0
        squares = np.exp(2 * random.standard_normal((blocks, parameter.shape[-1]))) * count[:, None]
        sums[parameter.module] = Sums(count.astype(np.int64), squares)
    write_statistics(path, CALIBRATION, sums, costs)
    return path
