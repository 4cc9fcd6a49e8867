"""Mistakes that implementations of this architecture have made: each moves the logits, so the goldens hold it off.

A mistake is made on purpose in a model with the goldens' weights; the comparison that passes without it must fail.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from hubtool.runtime import deepseek_v4
from hubtool.runtime.deepseek_v4 import Model, Rope, Ropes
from tests.runtime.conftest import Goldens, load_random
from tests.runtime.random_checkpoint import random_config
from tests.runtime.test_exact import EXACT, SAME, difference

pytestmark = pytest.mark.slow

Make = Callable[[Model, pytest.MonkeyPatch], None]
MISTAKES: dict[str, Make] = {}
TOKENS = 300
"""Of the golden: enough to leave the window, to make both indexers drop entries and to close two windows of 128."""


def mistake(make: Make) -> Make:
    MISTAKES[make.__name__] = make
    return make


def wrap(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, change: Callable[..., Any]) -> None:
    """Replace owner.name by `change`, which gets what it replaces as its first argument."""
    monkeypatch.setattr(owner, name, partial(change, getattr(owner, name)))


# 1. Two rotary embeddings.


@mistake
def layers_without_compressor_use_the_compressed_rope(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ropes = model.model._ropes
    model.model._ropes = Ropes(ropes.compressed, ropes.compressed)


@mistake
def layers_with_a_compressor_use_the_plain_rope(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ropes = model.model._ropes
    model.model._ropes = Ropes(ropes.plain, ropes.plain)


@mistake
def no_yarn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = Rope(model.args.qk_rope_head_dim, model.args.compress_rope_theta, None, 4096)
    model.model._ropes = Ropes(model.model._ropes.plain, rope)


@mistake
def yarn_for_every_layer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = Rope(model.args.qk_rope_head_dim, model.args.rope_theta, model.args.rope_scaling, 4096)
    model.model._ropes = Ropes(rope, model.model._ropes.compressed)


@mistake
def mscale_lengthens_what_is_rotated(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def lengthened(rope: Rope, positions: mx.array, width: int) -> mx.array:
        turns = Rope.__call__(rope, positions, width)
        rotated = mx.arange(width // 2) >= width // 2 - rope.inv_freq.size
        return turns * mx.where(rotated, 0.1 * np.log(16) + 1, 1)

    ropes = model.model._ropes
    model.model._ropes = Ropes(ropes.plain, cast(Rope, partial(lengthened, ropes.compressed)))


# 2. How rotation is applied.


@mistake
def halves_are_rotated_instead_of_neighbours(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(original: Callable[..., mx.array], x: mx.array, turns: mx.array) -> mx.array:
        rope_dims = model.args.qk_rope_head_dim
        order = np.arange(x.shape[-1])
        order[-rope_dims:] = order[-rope_dims:].reshape(2, -1).T.reshape(-1)
        return original(x[..., mx.array(order)], turns)[..., mx.array(np.argsort(order))]

    wrap(monkeypatch, deepseek_v4, "_rotate", halves)


@mistake
def leading_dims_are_rotated(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def leading(rope: Rope, positions: mx.array, width: int) -> mx.array:
        return mx.roll(Rope.__call__(rope, positions, width), rope.inv_freq.size, -1)

    model.model._ropes = Ropes(*(cast(Rope, partial(leading, rope)) for rope in model.model._ropes))


@mistake
def the_outputs_rotation_is_not_undone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(original: type, query: mx.array, key: mx.array, output: mx.array) -> Any:
        return original(query, key, mx.ones_like(output))

    wrap(monkeypatch, deepseek_v4, "Rotations", kept)


@mistake
def entries_stand_at_the_end_of_their_window(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_positions(monkeypatch, lambda index, ratio: index + (ratio - 1) / ratio)


@mistake
def entries_stand_at_their_index(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_positions(monkeypatch, lambda index, ratio: index / ratio)


def entry_positions(monkeypatch: pytest.MonkeyPatch, change: Callable[[mx.array, int], mx.array]) -> None:
    """Rotate entries as if they stood at change(index, ratio) * ratio."""

    class Moved(deepseek_v4.Step):
        def __init__(self, args: Any, ropes: Ropes, *rest: Any):
            super().__init__(args, ropes, *rest)
            for ratio, width in self.entry_rotations:
                position = change(self.windows[ratio].index, ratio) * ratio
                self.entry_rotations[ratio, width] = ropes.compressed(position, width)

    monkeypatch.setattr(deepseek_v4, "Step", Moved)


# 3. Hyper-connections.


@mistake
def streams_mix_the_other_way_round(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed(monkeypatch, lambda pre, post, comb: (pre, post, comb.swapaxes(-1, -2)))


@mistake
def post_is_not_doubled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed(monkeypatch, lambda pre, post, comb: (pre, post / 2, comb))


@mistake
def streams_are_not_balanced(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepseek_v4, "_balanced", lambda comb, eps, iterations: comb)


@mistake
def balancing_stops_after_two_rounds(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, deepseek_v4, "_balanced", lambda original, comb, eps, _: original(comb, eps, 2))


@mistake
def rows_are_normalised_last(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows_last(original: Callable[..., mx.array], comb: mx.array, eps: float, iterations: int) -> mx.array:
        return original(comb.swapaxes(-1, -2), eps, 2).swapaxes(-1, -2)

    # Twenty rounds leave little to see, so both orders get two.
    wrap(monkeypatch, deepseek_v4, "_balanced", rows_last)


def mixed(monkeypatch: pytest.MonkeyPatch, change: Callable[[mx.array, mx.array, mx.array], Any]) -> None:
    wrap(monkeypatch, deepseek_v4, "_mix", lambda original, *args: change(*original(*args)))


# 4. Both clamps.


@mistake
def routed_experts_are_not_clamped(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        layer.ffn.switch_mlp.activation = deepseek_v4.LimitedSwiGLU(1e9)


@mistake
def the_shared_expert_is_not_clamped(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        layer.ffn.shared_experts.activation = deepseek_v4.LimitedSwiGLU(1e9)


@mistake
def the_gate_is_clamped_from_below_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def both_sides(original: Callable[..., mx.array], gate: mx.array, up: mx.array, limit: mx.array) -> mx.array:
        return original(mx.maximum(gate, -limit), up, limit)

    wrap(monkeypatch, deepseek_v4, "_limited_swiglu", both_sides)


# 5. Routing.


@mistake
def experts_are_weighted_with_the_bias(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(original: Callable[..., Any], gate: Any, x: mx.array, inputs: mx.array) -> tuple[mx.array, mx.array]:
        experts, weights = original(gate, x, inputs)
        if "tid2eid" in gate:
            return experts, weights
        scores = mx.sqrt(nn.softplus(x @ gate.weight.T)) + gate.e_score_correction_bias
        weights = mx.take_along_axis(scores, experts, axis=-1)
        return experts, gate.scaling * weights / weights.sum(axis=-1, keepdims=True)

    gates(monkeypatch, biased)


@mistake
def experts_are_chosen_without_the_bias(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers[1:]:
        layer.ffn.gate.e_score_correction_bias = mx.zeros_like(layer.ffn.gate.e_score_correction_bias)


@mistake
def weights_are_not_normalised(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(original: Callable[..., Any], gate: Any, x: mx.array, inputs: mx.array) -> tuple[mx.array, mx.array]:
        experts, _ = original(gate, x, inputs)
        scores = mx.sqrt(nn.softplus(x @ gate.weight.T))
        return experts, gate.scaling * mx.take_along_axis(scores, experts, axis=-1)

    gates(monkeypatch, plain)


@mistake
def weights_are_not_scaled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        layer.ffn.gate.scaling = 1.0


@mistake
def scores_are_sigmoids(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        layer.ffn.gate.scoring_func = "sigmoid"


@mistake
def hash_layers_weigh_their_experts_equally(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(original: Callable[..., Any], gate: Any, x: mx.array, inputs: mx.array) -> tuple[mx.array, mx.array]:
        experts, weights = original(gate, x, inputs)
        return experts, mx.full(weights.shape, gate.scaling / gate.topk) if "tid2eid" in gate else weights

    gates(monkeypatch, equal)


@mistake
def hash_layers_choose_by_score(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = model.layers[0].ffn.gate
    gate.pop("tid2eid")
    gate.e_score_correction_bias = mx.zeros((gate.weight.shape[0],))


def gates(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    original = deepseek_v4.Gate.__call__
    monkeypatch.setattr(deepseek_v4.Gate, "__call__", lambda gate, x, inputs: change(original, gate, x, inputs))


# 6. When an entry becomes visible.


@mistake
def entries_are_visible_one_token_early(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    visibility(monkeypatch, 1)


@mistake
def entries_are_visible_one_token_late(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    visibility(monkeypatch, -1)


def visibility(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    class Shifted(deepseek_v4.Windows):
        def __init__(self, ratio: int, first: list[int], stop: list[int], positions: mx.array):
            super().__init__(ratio, first, stop, positions)
            self.visible = (positions + 1 + tokens) // ratio

    monkeypatch.setattr(deepseek_v4, "Windows", Shifted)


# 7. Overlapping windows.


@mistake
def halves_of_overlapping_windows_change_places(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(compressor: Any, rows: mx.array) -> mx.array:
        dims = compressor.head_dim
        return mx.concatenate([rows[:, :-1, :, dims:], rows[:, 1:, :, :dims]], axis=2)

    monkeypatch.setattr(deepseek_v4.Compressor, "_overlap", swapped)


@mistake
def the_window_before_the_first_has_a_say(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    original = deepseek_v4.Compressor._pool

    def unmasked(compressor: Any, kv: mx.array, gate: mx.array, windows: Any) -> mx.array:
        first, windows.first = windows.first, [-1]
        entries = original(compressor, kv, gate, windows)
        windows.first = first
        return entries

    monkeypatch.setattr(deepseek_v4.Compressor, "_pool", unmasked)


@mistake
def ape_is_left_out(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers[1:]:
        layer.attn.compressor.ape = mx.zeros_like(layer.attn.compressor.ape)


# 8. The compressor's precision.


@mistake
def compressors_work_in_bfloat16(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    original = deepseek_v4.Compressor._pool

    def rounded(compressor: Any, kv: mx.array, gate: mx.array, windows: Any) -> mx.array:
        kv, gate = (rows.astype(mx.bfloat16).astype(mx.float32) for rows in (kv, gate))
        return original(compressor, kv, gate, windows)

    monkeypatch.setattr(deepseek_v4.Compressor, "_pool", rounded)


# 9. The indexer. (Its scale is positive: it has no part in the choice.)


@mistake
def index_scores_keep_their_negative_part(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    choices(monkeypatch, lambda q, weights, entries: (q @ entries.swapaxes(-1, -2), weights))


@mistake
def index_weights_lose_their_sign(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    choices(monkeypatch, lambda q, w, entries: (mx.maximum(q @ entries.swapaxes(-1, -2), 0), mx.abs(w)))


@mistake
def index_heads_are_not_weighted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    choices(monkeypatch, lambda q, w, entries: (mx.maximum(q @ entries.swapaxes(-1, -2), 0), mx.ones_like(w)))


@mistake
def all_queries_get_the_choice_of_the_last(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    original = deepseek_v4.Indexer.select

    def last(indexer: Any, *args: mx.array) -> mx.array:
        index = original(indexer, *args)
        return mx.broadcast_to(index[:, -1:], index.shape)

    monkeypatch.setattr(deepseek_v4.Indexer, "select", last)


@mistake
def the_indexer_drops_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        if "indexer" in layer.attn:
            layer.attn.indexer.topk = 10_000


@mistake
def index_queries_are_not_rotated(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    original = deepseek_v4.Indexer.queries

    def unrotated(indexer: Any, x: mx.array, q_lora: mx.array, step: Any) -> tuple[mx.array, mx.array]:
        step.index_rotations, kept = mx.ones_like(step.index_rotations), step.index_rotations
        queries = original(indexer, x, q_lora, step)
        step.index_rotations = kept
        return queries

    monkeypatch.setattr(deepseek_v4.Indexer, "queries", unrotated)


def choices(monkeypatch: pytest.MonkeyPatch, score: Callable[..., tuple[mx.array, mx.array]]) -> None:
    """Choose by score(queries, weights, entries): products [B, S, heads, T] and weights of the heads."""

    def select(indexer: Any, q: mx.array, weights: mx.array, entries: mx.array, visible: mx.array) -> mx.array:
        products, weights = score(q, weights, entries[:, None])
        scores = (weights @ products).squeeze(2)
        scores = mx.where(mx.arange(entries.shape[1]) < visible[..., None], scores, -mx.inf)
        return mx.argsort(-scores, axis=-1)[..., : indexer.topk]

    monkeypatch.setattr(deepseek_v4.Indexer, "select", select)


# 10. Attention.


@mistake
def sinks_take_no_weight(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        layer.attn.attn_sink = mx.full(layer.attn.attn_sink.shape, -1e9)


@mistake
def attention_takes_bfloat16(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(original: Callable[..., mx.array], q: mx.array, *rest: Any) -> mx.array:
        return original(q.astype(mx.bfloat16).astype(mx.float32), *rest)

    wrap(monkeypatch, deepseek_v4, "_attend", rounded)


@mistake
def queries_are_not_normalised(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in model.layers:
        layer.attn.eps = 1e3


@mistake
def output_groups_change_places(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, deepseek_v4, "_grouped_linear", lambda original, linear, x: original(linear, x[:, :, ::-1]))


@mistake
def the_window_is_one_token_longer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.args.sliding_window += 1
    for layer in model.layers:
        layer.attn.window += 1


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_fails_the_comparison(name: str, goldens: Goldens, monkeypatch: pytest.MonkeyPatch) -> None:
    model, golden = load_random(random_config("mixed")), goldens("mixed")
    tokens, expected = golden.tokens[:, :TOKENS], golden.logits[:TOKENS]
    MISTAKES[name](model, monkeypatch)
    assert difference(model(tokens)[0], expected) > 3 * EXACT


def test_without_a_mistake_the_comparison_passes(goldens: Goldens) -> None:
    golden = goldens("mixed")
    logits = load_random(random_config("mixed"))(golden.tokens[:, :TOKENS])
    assert difference(logits[0], golden.logits[:TOKENS]) <= EXACT


@pytest.mark.parametrize("slot", ["WINDOW", "KV", "GATE", "INDEX_KV", "INDEX_GATE"])
def test_rows_that_are_lost_between_calls_change_the_logits(
    slot: str, goldens: Goldens, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = deepseek_v4.DeepseekV4Cache.push

    def forgetful(cache: Any, number: int, rows: mx.array, keep: int) -> mx.array:
        if number == getattr(cache, slot):
            cache.arrays[number] = None
        return original(cache, number, rows, keep)

    model, tokens = load_random(random_config("mixed")), goldens("mixed").tokens[:, :TOKENS]
    expected = model(tokens)
    monkeypatch.setattr(deepseek_v4.DeepseekV4Cache, "push", forgetful)
    cache = model.make_cache()
    chunks = [model(tokens[:, start : start + 30], cache) for start in range(0, TOKENS, 30)]
    assert difference(mx.concatenate(chunks, axis=1), expected) > 10 * SAME


def test_router_scores_are_stable_far_from_zero() -> None:
    gate = load_random(random_config("mixed", n_routed_experts=4, num_experts_per_tok=4)).layers[1].ffn.gate
    logits = np.array([-60.0, -1.0, 30.0, 300.0])
    expected = np.sqrt(np.logaddexp(logits, 0))
    gate.scaling = expected.sum()  # undoes the normalisation
    gate.weight = mx.array(logits)[:, None] * mx.ones((1, 64)) / 64
    experts, weights = gate(mx.ones((1, 1, 64)), mx.zeros((1, 1), mx.int32))
    found = np.zeros(4)
    found[np.array(experts).ravel()] = np.array(weights).ravel()
    assert np.allclose(found, expected, rtol=1e-5)


def test_attention_is_exact_where_half_precision_is_not() -> None:
    """Head dims of the published model: scores near 20 whose differences bfloat16 does not see."""
    random = np.random.RandomState(0)
    q, keys = random.standard_normal((1, 3, 4, 512)), random.standard_normal((1, 1, 40, 512))
    sinks, scores = random.standard_normal(4), q @ keys.swapaxes(-1, -2)
    total = np.logaddexp(np.logaddexp.reduce(scores, axis=-1), sinks)[..., None]
    expected = np.exp(scores - total) @ keys
    out = deepseek_v4._attend(mx.array(q), [(mx.array(keys), None)], mx.array(sinks))
    assert np.abs(np.array(out) - expected).max() < 1e-4
