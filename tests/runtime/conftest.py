"""Models with random weights, and what the reference makes of the same weights."""

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

os.environ["MLX_ENABLE_TF32"] = "0"  # or a GPU's float32 products are too coarse for the comparisons

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from hubtool.runtime.deepseek_v4 import Model, ModelArgs
from tests.runtime.random_checkpoint import GOLDENS, SEED, SHAPES, Config, random_config, random_weights


class Golden(NamedTuple):
    """What `make_goldens.py` wrote: the prompt with its greedy continuation, and the logits of one forward pass."""

    tokens: mx.array  # [1, PROMPT + CONTINUATION]
    logits: NDArray[np.float32]  # [PROMPT + CONTINUATION, vocab_size]


Models = Callable[[str], Model]
Goldens = Callable[[str], Golden]


def load_random(config: Config, seed: int = SEED) -> Model:
    """A new model with random weights, given to it under their published names."""
    model = Model(ModelArgs.from_dict(config))
    weights = model.sanitize({name: mx.array(array) for name, array in random_weights(config, seed).items()})
    model.load_weights(list(weights.items()), strict=True)
    return model


@pytest.fixture(scope="session")
def models() -> Models:
    """Models by the names in SHAPES, made once: a test that changes one calls `load_random`."""
    return cache(lambda shape: load_random(random_config(shape)))


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    """The reference's results by the names in SHAPES."""
    arrays = np.load(GOLDENS)
    return cache(lambda shape: Golden(mx.array(arrays[f"{shape}.tokens"])[None], arrays[f"{shape}.logits"]))


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    """Each name in SHAPES."""
    return str(request.param)
