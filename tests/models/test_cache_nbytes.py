"""What the record says of the cache's memory is what the runtime's cache takes."""

import json

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from hubtool.models.deepseek_v4 import cache_nbytes
from tests.fixtures import Conversions


@pytest.mark.parametrize(
    ("name", "recipe", "activation_nbytes"),
    [("mini", "mixed_3_6", 2), ("other", "native", 2), ("mini", "float32", 4)],
)
def test_the_runtimes_cache_takes_what_is_foretold(
    converted: Conversions, name: str, recipe: str, activation_nbytes: int
) -> None:
    if mx.default_device() == mx.cpu:
        activation_nbytes = 4  # there the runtime computes in float32, whatever is stored
    folder = converted(name, recipe).folder
    model, _ = load_model(folder, trust_remote_code=True)
    config = json.loads((folder / "config.json").read_bytes())
    cache = model.make_cache()
    seen = 0
    for tokens in (1, 9, 140, 1100):
        model(mx.zeros((1, tokens - seen), mx.int32), cache)
        seen = tokens
        assert sum(layer.nbytes for layer in cache) == cache_nbytes(config, tokens, activation_nbytes)


def test_the_record_holds_the_cache_of_three_lengths(converted: Conversions) -> None:
    made = converted("mini", "mixed_3_6")
    assert {each.tokens: each.nbytes for each in made.record.plan.cache} == {
        tokens: cache_nbytes(made.plan.model.config, tokens, 2) for tokens in (4096, 32768, 131072)
    }
