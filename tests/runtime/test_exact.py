"""The model computes what the reference does, in one pass or in any chunks, greedily or not."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from hubtool.runtime import deepseek_v4
from tests.runtime.conftest import Goldens, Models, load_random
from tests.runtime.random_checkpoint import CONTINUATION, PROMPT, SHAPES, random_config, random_tokens

ROOT = Path(__file__).parents[2]

EXACT = 5e-4
"""Largest difference of a logit, at a standard deviation of 3."""
SAME = 1e-4
"""The same for two ways through this model."""

BETAS = ("beta_fast", "beta_slow")
YARN = {
    "rope_type": "yarn",
    "factor": 16,
    "original_max_position_embeddings": 256,
    **dict(zip(BETAS, (32, 1), strict=True)),
}
TYPES = [
    {0: "sliding", 4: "compressed_sparse", 128: "heavily_compressed"}[ratio] + "_attention"
    for ratio in SHAPES["mixed"]["compress_ratios"][:5]
]
OLDER = ("compress_ratios", "num_hash_layers", "rope_scaling", "qk_rope_head_dim")
"""Keys that transformers 5 does not write."""


def difference(logits: mx.array, expected: mx.array | np.ndarray) -> float:
    """The largest between two logits."""
    return float(np.abs(np.array(logits) - np.array(expected)).max())


@pytest.mark.slow
def test_forward_gives_the_references_logits(models: Models, goldens: Goldens, shape: str) -> None:
    golden = goldens(shape)
    assert 2.5 < golden.logits.std() < 3.5
    assert difference(models(shape)(golden.tokens)[0], golden.logits) <= EXACT


@pytest.mark.slow
def test_greedy_continuation_is_the_references(models: Models, goldens: Goldens, shape: str) -> None:
    prompt, expected = goldens(shape).tokens[0, :PROMPT], goldens(shape).tokens[0, PROMPT:]
    generated = generate_step(prompt, models(shape), max_tokens=CONTINUATION, prefill_step_size=64)
    assert mx.array_equal(mx.array([token for token, _ in generated]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_give_the_logits_of_one_forward(models: Models, goldens: Goldens, shape: str, chunk: int) -> None:
    model, tokens = models(shape), goldens(shape).tokens
    cache = model.make_cache()
    logits = []
    for start in range(0, tokens.shape[1], chunk):
        logits.append(model(tokens[:, start : start + chunk], cache))
        mx.eval(logits[-1])
    assert difference(mx.concatenate(logits, axis=1), model(tokens)) <= SAME


@pytest.mark.slow
def test_queries_in_slices_give_the_same_logits(
    models: Models, goldens: Goldens, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = models(shape)(goldens(shape).tokens)
    for scores in (1, 300_000):  # a query at a time; some windows, then what is left
        monkeypatch.setattr(deepseek_v4, "_MAX_SCORES", scores)
        assert difference(models(shape)(goldens(shape).tokens), expected) <= SAME


def test_sigmoids_can_be_the_scores() -> None:
    gate = load_random(random_config("mixed", scoring_func="sigmoid")).layers[2].ffn.gate
    x = mx.random.normal((1, 5, 64), key=mx.random.key(0))
    experts, weights = gate(x, mx.zeros((1, 5), mx.int32))
    logits = np.array(x[0] @ gate.weight.T, np.float64)
    chosen = np.take_along_axis(1 / (1 + np.exp(-logits)), np.array(experts[0]), axis=-1)
    assert np.allclose(np.array(weights[0]), 1.5 * chosen / chosen.sum(axis=-1, keepdims=True), atol=1e-5)


def test_weights_are_normalised_whatever_norm_topk_prob_says(models: Models, goldens: Goldens) -> None:
    tokens = goldens("mixed").tokens[:, :20]
    told_not_to = load_random(random_config("mixed", norm_topk_prob=False))
    assert difference(told_not_to(tokens), models("mixed")(tokens)) == 0


def test_untied_and_tied_heads(goldens: Goldens) -> None:
    model = load_random(random_config("mixed"))
    tied = deepseek_v4.Model(deepseek_v4.ModelArgs.from_dict(random_config("mixed", tie_word_embeddings=True)))
    tied.update({"model": model.parameters()["model"]})
    model.lm_head.weight = model.model.embed_tokens.weight
    tokens = goldens("mixed").tokens[:, :40]
    assert difference(tied(tokens), model(tokens)) == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"compress_ratios": [0, 4, 128]}, "compress_ratios has 3 entries for 5 layers"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax', expected one of sqrtsoftplus, sigmoid"),
        ({"swiglu_limit": None}, "swiglu_limit is null"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "expected yarn"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn with a factor"),
        ({"rope_scaling": {**YARN, "attention_factor": 1.3}}, "attention_factor 1"),
        ({"rope_scaling": {**YARN, "rope_theta": 5000}}, "theta 5000"),
        ({"rope_scaling": {"main": {}, "compress": YARN}}, "a theta for compress"),
        ({"rope_scaling": {"main": {}, "compress": {**YARN, "rope_theta": 9}}}, "attention_factor 1"),
        ({"rope_scaling": {"main": YARN, "compress": {"rope_theta": 9}}}, "default for main"),
        (
            {"partial_rotary_factor": 0.5, "rope_scaling": {**YARN, "partial_rotary_factor": 0.25}},
            "the same everywhere",
        ),
        ({"layer_types": ["sliding_attention"] * 5}, "contradict each other"),
        ({"layer_types": ["full_attention"] * 5, "compress_ratios": []}, "layer_types has {'full_attention'}"),
        ({"layer_types": TYPES, "compress_rates": {"heavily_compressed_attention": 4}}, "only there"),
        ({"mlp_layer_types": ["moe", "hash_moe"]}, "some hash_moe, then moe"),
    ],
)
def test_what_the_model_would_get_wrong_is_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        deepseek_v4.Model(deepseek_v4.ModelArgs.from_dict(random_config("mixed", **change)))


def test_config_as_transformers_5_writes_it_means_the_same() -> None:
    published = deepseek_v4.ModelArgs.from_dict(random_config("mixed"))
    expected = deepseek_v4.Model(published)
    nested = {
        "main": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5},
        "compress": {**YARN, "rope_theta": 160000, "partial_rotary_factor": 0.5, "attention_factor": 1.0},
    }
    newer = {key: value for key, value in random_config("mixed").items() if key not in OLDER}
    newer |= {"layer_types": TYPES, "mlp_layer_types": ["hash_moe", *["moe"] * 4]}
    for changes in (
        {"rope_parameters": nested, "rope_theta": 1, "compress_rope_theta": 1},
        {"rope_parameters": {**YARN, "rope_theta": 10000}, "partial_rotary_factor": 0.5},
    ):
        args = deepseek_v4.ModelArgs.from_dict(newer | changes)
        assert args.compress_ratios == published.compress_ratios[:5]
        assert args.num_hash_layers == 1
        assert args.qk_rope_head_dim == 32
        for found, wanted in zip(deepseek_v4.Model(args).model._ropes, expected.model._ropes, strict=True):
            assert mx.array_equal(found.inv_freq, wanted.inv_freq)


def test_index_heads_may_be_narrower_than_what_is_rotated_where_there_is_no_indexer() -> None:
    ratios = {"compress_ratios": [0, 128, 0, 128, 0], "index_head_dim": 16}
    assert load_random(random_config("mixed", **ratios))(mx.array([[1, 2, 3] * 50])).shape == (1, 150, 160)


def test_null_betas_are_the_defaults() -> None:
    ropes = [deepseek_v4.Rope(32, 160000, scaling, 4096) for scaling in (YARN, YARN | dict.fromkeys(BETAS))]
    assert mx.array_equal(ropes[0].inv_freq, ropes[1].inv_freq)


def test_of_entries_with_equal_scores_the_first_are_chosen(models: Models) -> None:
    indexer = models("mixed").layers[1].attn.indexer
    q, weights = -mx.ones((1, 2, 16, 64)), mx.ones((1, 2, 1, 16))
    entries = mx.ones((1, 500, 64))  # every score is 0
    entries[:, 300] = -1
    index = indexer.select(q, weights, entries, mx.array([[400, 20]]))
    assert index.tolist() == [[[300, *range(11)], [*range(12)]]]


def test_a_prompt_of_one_token_and_short_ones_work(models: Models, shape: str) -> None:
    model, tokens = models(shape), mx.array([random_tokens(random_config(shape), 9, 1)])
    full = model(tokens)
    for length in range(1, 10):
        assert difference(model(tokens[:, :length]), full[:, :length]) <= SAME


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"hc_mult": 1}, {"num_experts_per_tok": 1}])
def test_one_stream_and_one_expert_run(change: dict[str, int]) -> None:
    """In a process of its own: MLX used to crash on them."""
    code = f"""
import mlx.core as mx
from tests.runtime.conftest import load_random
from tests.runtime.random_checkpoint import random_config
model = load_random(random_config("mixed", **{change}))
ids = mx.array([[3, 1, 4, 1, 5, 9]])
full, cache = model(ids), model.make_cache()
steps = mx.concatenate([model(ids[:, i : i + 1], cache) for i in range(6)], axis=1)
assert mx.abs(full - steps).max() < {SAME}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_one_stream_is_balanced_as_several_are() -> None:
    comb = mx.array([[[[0.3]], [[2.0]]]])
    expected = np.array(comb)
    for _ in range(5):
        expected = expected / (expected + 0.1)
    assert difference(deepseek_v4._balanced(comb, 0.1, 3), expected) < 1e-6


def test_shapes_reach_every_part() -> None:
    for shape in SHAPES.values():
        entries = PROMPT // 4
        assert entries > shape["index_topk"], "the indexer drops nothing"
        assert shape["sliding_window"] < PROMPT
        assert PROMPT // 128 >= 2, "several heavily compressed windows close in the prompt"
        assert (PROMPT + CONTINUATION) // 128 > PROMPT // 128, "none closes while decoding"
