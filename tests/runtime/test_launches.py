"""A decoded token starts few kernels: the number is counted in the graph, so it holds on any machine."""

import pytest

from benchmarks.kernels import KINDS, POSITIONS, count_layers, launches, quantized_model

MOST = 60


@pytest.mark.parametrize("where", POSITIONS)
def test_a_layer_launches_little_for_a_token(where: str) -> None:
    counts = [launches(each) for each in count_layers(quantized_model(), POSITIONS[where])]
    assert len(counts) == len(KINDS)
    assert min(counts) > 20, "nothing was counted"
    assert max(counts) <= MOST, dict(zip(KINDS, counts, strict=True))
