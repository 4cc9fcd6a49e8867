"""A model run layer by layer, held against the same model in memory and against other ways of running it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import numpy.typing as npt
import pytest

from hubtool.checkpoint.source import LocalSource
from hubtool.errors import SourceError
from hubtool.worker.forward import Forward, Lane
from hubtool.worker.keep import Budget
from hubtool.worker.layers import LayerRun, Reader, State
from hubtool.worker.open import open_finished, open_published
from tests.fixtures import Conversions

pytestmark = pytest.mark.slow

WINDOWS = np.random.default_rng(0).integers(0, 1536, (3, 48)).astype(np.int32)
PLENTY = 1 << 30


def _logits(forward: Forward, folder: Path, together: int = 3, budget: int = PLENTY) -> npt.NDArray[Any]:
    """Logits [windows, length, vocabulary]."""
    run = LayerRun([Reader(forward, (Lane("a", mx.float32),))], WINDOWS, together, State(folder, "", Budget(budget)))
    run.run(lambda layer, chosen: None)
    return _head(run)


def _head(run: LayerRun) -> npt.NDArray[Any]:
    (reader,) = run.readers
    forward, (lane,) = reader.forward, reader.lanes
    inputs = [forward.head_inputs(lane, i, tokens, run.room) for i, tokens in enumerate(run.batches)]
    forward.open_head(0, forward.vocabulary)
    logits = [forward.logits(x.flatten(0, 1), lane.dtype) for x in inputs]
    return np.concatenate([np.array(each) for each in logits]).reshape(*WINDOWS.shape, -1)


@pytest.mark.parametrize("recipe", ["native", "mixed_3_6"])
def test_streamed_equals_in_memory(converted: Conversions, tmp_path: Path, recipe: str) -> None:
    folder = converted("tiny", recipe).folder
    streamed = _logits(open_finished(LocalSource(folder)), tmp_path)
    model = mlx_lm.load(str(folder), trust_remote_code=True)[0]
    in_memory = np.array(model(mx.array(WINDOWS)).astype(mx.float32))
    assert abs(streamed - in_memory).max() < 1e-4 < in_memory.std()


def test_the_source_as_published_is_its_lossless_conversion(converted: Conversions, tmp_path: Path) -> None:
    conversion = converted("tiny", "native")
    native = _logits(open_finished(LocalSource(conversion.folder)), tmp_path / "native")
    assert np.array_equal(_logits(open_published(LocalSource(conversion.source)), tmp_path / "source"), native)


def test_batches_and_memory_change_nothing_and_weights_are_read_once(converted: Conversions, tmp_path: Path) -> None:
    source = LocalSource(converted("tiny", "native").source)
    whole = open_published(source)
    together = _logits(whole, tmp_path / "together")
    once = whole.tensors.read_nbytes
    in_files = open_published(source)
    assert abs(_logits(in_files, tmp_path / "files", together=1, budget=0) - together).max() < 1e-4
    assert in_files.tensors.read_nbytes == once
    assert once <= sum(header.data_nbytes for header in source.shards.values())


@pytest.mark.parametrize("when", [0, 3, 7])
def test_goes_on_where_it_was_ended(converted: Conversions, tmp_path: Path, when: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("hubtool.worker.layers.KEEP_SECONDS", -1.0)
    folder = converted("tiny", "mixed_3_6").folder
    whole = _logits(open_finished(LocalSource(folder)), tmp_path / "whole")

    def run(on_layer: Callable[[int, object], None]) -> LayerRun:
        readers = [Reader(open_finished(LocalSource(folder)), (Lane("a", mx.float32),))]
        made = LayerRun(readers, WINDOWS, 2, State(tmp_path / "ended", "the same", Budget(PLENTY)))
        made.run(on_layer)
        return made

    def end(layer: int, chosen: object) -> None:
        if layer == when:
            raise KeyboardInterrupt

    layers: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(end)
    again = run(lambda layer, chosen: layers.append(layer))
    assert layers == [*range(when, again.layers)]
    assert np.array_equal(_head(again), _logits(open_finished(LocalSource(folder)), tmp_path / "two", together=2))
    assert abs(_head(again) - whole).max() < 1e-4


def test_every_matrix_is_shown_each_of_its_inputs_once(converted: Conversions, tmp_path: Path) -> None:
    conversion = converted("tiny", "native")
    rows: dict[str, int] = {}

    def observe(path: str, expert: int | None, x: mx.array) -> None:
        rows[path] = rows.get(path, 0) + x.size // x.shape[-1] // (x.shape[2] if path.endswith("wo_a") else 1)

    forward = open_published(LocalSource(conversion.source), observe)
    LayerRun([Reader(forward, (Lane("a", mx.float32),))], WINDOWS, 2, State(tmp_path, "", Budget(PLENTY))).run(
        lambda layer, chosen: None
    )
    config = conversion.plan.model.config
    in_layers = {path: count for path, count in rows.items() if ".layers." in path}
    experts = {path: count for path, count in in_layers.items() if ".switch_mlp." in path}
    assert set(experts.values()) == {WINDOWS.size * config["num_experts_per_tok"]}
    assert {count for path, count in in_layers.items() if path not in experts} == {WINDOWS.size}
    matrices = {each.module for each in conversion.plan.model.parameters if each.quantizable and each.layer is not None}
    assert matrices == set(in_layers)


def test_a_parameter_without_a_tensor_is_noticed(converted: Conversions, tmp_path: Path) -> None:
    forward = open_finished(LocalSource(converted("tiny", "native").folder))
    del forward.tensors.specs["model.layers.1.attn_norm.weight"]  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match=r"model\.layers\.1\.attn_norm\.weight: parameter without a tensor"):
        _logits(forward, tmp_path)
