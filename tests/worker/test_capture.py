"""Statistics of a text: the sums of what stock code multiplies, whatever the batches, and costs that fall with bits."""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.statistics import Sums
from hubtool.models import Component, read_model
from hubtool.plan.parts import parts_of
from hubtool.worker.capture import Capture, load_sums, save_sums
from hubtool.worker.forward import Lane
from hubtool.worker.keep import Budget
from hubtool.worker.layers import LayerRun, Reader, State
from hubtool.worker.open import open_published
from hubtool.worker.sensitivity import Probe
from tests.fixtures import Samples

LANE = Lane("source", mx.float32)


def test_sums_are_those_of_each_block_in_one_order() -> None:
    random = np.random.default_rng(0)
    capture = Capture(lambda path: 3, lambda path: path == "grouped")
    plain, grouped = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 700, 5), (2, 7, 4, 5)))
    capture("plain", None, mx.array(plain))
    capture("plain", None, mx.array(plain[:1]))
    capture("grouped", None, mx.array(grouped))
    capture("other", None, mx.array(grouped))
    shared = mx.array(plain[0])
    capture("gate", 2, shared)
    capture("up", 2, shared)
    capture("up", 0, mx.array(plain[1, :4]))
    sums = capture.take()
    expected: Mapping[str, tuple[list[int], NDArray[np.float64]]] = {
        "plain": ([2100], (np.concatenate([plain.reshape(-1, 5), plain[0]]).astype(np.float64) ** 2).sum(axis=0)[None]),
        "grouped": ([14] * 4, (grouped.astype(np.float64) ** 2).sum(axis=(0, 1))),
        "other": ([56], (grouped.astype(np.float64) ** 2).sum(axis=(0, 1, 2))[None]),
    }
    for path, (count, squares) in expected.items():
        assert sums[path].count.tolist() == count
        assert sums[path].squares == pytest.approx(squares, rel=1e-12)
    assert sums["gate"].count.tolist() == [0, 0, 700]
    assert sums["up"].count.tolist() == [4, 0, 700]
    assert (sums["up"].squares[2] == sums["gate"].squares[2]).all()
    assert (sums["gate"].squares[:2] == 0).all()
    assert capture.take() == {}


def test_sums_survive_a_file(tmp_path: Path) -> None:
    sums = {"a.b": Sums(np.array([1, 0]), np.array([[0.1, 1e300], [0, 2]])), "c": Sums(np.array([7]), np.ones((1, 3)))}
    save_sums(tmp_path / "sums", sums)
    for module, each in load_sums(tmp_path / "sums").items():
        assert (each.count == sums[module].count).all()
        assert (each.squares == sums[module].squares).all()


@pytest.mark.slow
def test_costs_of_a_layer_fall_with_its_bits_and_leave_no_trace(sample: Samples, tmp_path: Path) -> None:
    source = open_source(str(sample("mini")))
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    capture = Capture(lambda path: 4, lambda path: path.endswith("wo_a"))
    forward = open_published(source, capture)
    tokens = np.random.default_rng(0).integers(0, 1000, (2, 24)).astype(np.int32)
    run = LayerRun([Reader(forward, (LANE,))], tokens, 1, State(tmp_path / "state", "x", Budget(1 << 30)))
    chosen = {Component.ROUTED_EXPERTS, Component.SHARED_EXPERTS}
    costs = {}

    def kept(layer: int) -> list[NDArray[np.float32]]:
        return [np.array(array) for batch in range(2) for array in run.room.keep.get(LANE.key(layer, batch))]

    def on_layer(layer: int, _: object) -> None:
        sums, parts = capture.take(), [part for part in parts_of(model) if part.layer == layer]
        for parameter in (parameter for part in parts for parameter in part.parameters):
            tokens_seen = 48 * (source.config["num_experts_per_tok"] if parameter.stacked else 1)
            groups = source.config["o_groups"] if parameter.module.endswith("wo_a") else 1
            assert sums[parameter.module].count.sum() == tokens_seen * groups, parameter.module
        before = kept(layer)
        probe = Probe(forward, LANE, run.batches[:1], run.room)
        costs.update(probe.costs(layer, [part for part in parts if layer == 1 and part.component in chosen], sums))
        assert all((x == y).all() for x, y in zip(before, kept(layer), strict=True))
        assert not capture.sums

    run.run(on_layer)
    for part in (part for part in parts_of(model) if part.layer == 1 and part.component in chosen):
        found = {each.name: costs.get((part.name, each.name)) for each in part.candidates(last_resort=True)}
        if part.component is Component.ROUTED_EXPERTS:
            assert found.pop("mxfp4") is None  # which keeps FP4
        measured = [found[name] for name in sorted(found, key=lambda name: int(name.split("-")[1]))]
        assert all(cost is not None and 0 < cost < 2 for cost in measured), part.name
        assert (measured[-1] or 2) < (measured[0] or 0) / 1.5
