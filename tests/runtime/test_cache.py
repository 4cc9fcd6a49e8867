"""The cache: what it holds, what it takes, and that it survives files, batches and long runs."""

import copy
import gc
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import (
    ArraysCache,
    LRUPromptCache,
    can_trim_prompt_cache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

from hubtool.runtime.deepseek_v4 import DeepseekV4Cache, Model
from tests.runtime.conftest import Models
from tests.runtime.random_checkpoint import random_config, random_tokens
from tests.runtime.test_exact import SAME, difference

pytestmark = pytest.mark.slow

LENGTHS = (150, 37, 281)
"""Of the sequences in a batch: each in another phase of every window, one shorter than a heavily compressed one."""

Caches = list[DeepseekV4Cache]


def prompts(shape: str) -> list[list[int]]:
    return [random_tokens(random_config(shape), length, seed) for seed, length in enumerate(LENGTHS)]


def single_runs(model: Model, sequences: list[list[int]]) -> list[mx.array]:
    """Logits [tokens, vocab_size] of each sequence by itself."""
    return [model(mx.array([tokens]))[0] for tokens in sequences]


def prefill(model: Model, tokens: mx.array, cache: Caches, chunk: int = 90) -> mx.array:
    logits = []
    for start in range(0, tokens.shape[1], chunk):
        logits.append(model(tokens[:, start : start + chunk], cache))
        mx.eval(logits[-1], [layer.state for layer in cache])
    return mx.concatenate(logits, axis=1)


def merged(model: Model, batch: int) -> Caches:
    caches = [model.make_cache() for _ in range(batch)]
    return [layer.merge([cache[i] for cache in caches]) for i, layer in enumerate(caches[0])]


def prefilled_batch(model: Model, sequences: list[list[int]]) -> Caches:
    """A cache of all sequences, which were padded on the right."""
    cache, longest = merged(model, len(sequences)), max(map(len, sequences))
    for layer in cache:
        layer.prepare(lengths=[len(s) for s in sequences], right_padding=[longest - len(s) for s in sequences])
    prefill(model, mx.array([s + [0] * (longest - len(s)) for s in sequences]), cache)
    for layer in cache:
        layer.finalize()
    return cache


@pytest.mark.slow
def test_sequences_padded_on_the_left_give_the_logits_of_single_runs(models: Models, shape: str) -> None:
    model, sequences = models(shape), prompts(shape)
    longest = max(LENGTHS)
    cache = model.make_cache()
    for layer in cache:
        layer.prepare(left_padding=[longest - length for length in LENGTHS])
    logits = prefill(model, mx.array([[3] * (longest - len(s)) + s for s in sequences]), cache)
    for row, alone in zip(logits, single_runs(model, sequences), strict=True):
        assert difference(row[longest - len(alone) :], alone) <= SAME


@pytest.mark.slow
def test_sequences_padded_on_the_right_decode_as_single_runs_do(models: Models, shape: str) -> None:
    model, sequences = models(shape), prompts(shape)
    cache = prefilled_batch(model, [s[:-20] for s in sequences])
    steps = [model(mx.array([[s[i - 20]] for s in sequences]), cache) for i in range(20)]
    for row, alone in zip(mx.concatenate(steps, axis=1), single_runs(model, sequences), strict=True):
        assert difference(row, alone[-20:]) <= SAME


def test_a_batch_without_padding_gives_the_logits_of_single_runs(models: Models, shape: str) -> None:
    model, sequences = models(shape), [s[:37] for s in prompts(shape)]
    alone = mx.stack(single_runs(model, sequences))
    assert difference(model(mx.array(sequences)), alone) <= SAME  # without a cache
    assert difference(prefill(model, mx.array(sequences), model.make_cache(), 10), alone) <= SAME


@pytest.mark.slow
def test_batches_grow_shrink_and_come_apart(models: Models, shape: str) -> None:
    model, sequences = models(shape), prompts(shape)
    alone = single_runs(model, sequences)
    cut = [len(s) - 8 for s in sequences]
    cache = prefilled_batch(model, [s[:n] for s, n in zip(sequences[:2], cut, strict=False)])
    for layer, other in zip(cache, prefilled_batch(model, [sequences[2][: cut[2]]]), strict=True):
        layer.extend(other)
    for layer in cache:
        layer.filter([2, 0])
    assert [layer.offset for layer in cache] == [[cut[2], cut[0]]] * len(cache)
    logits = model(mx.array([sequences[2][cut[2] :], sequences[0][cut[0] :]]), cache)
    assert difference(logits[0], alone[2][-8:]) <= SAME
    assert difference(logits[1], alone[0][-8:]) <= SAME

    extracted = [layer.extract(1) for layer in cache]
    fresh = model.make_cache()
    prefill(model, mx.array([sequences[0]]), fresh)
    token = mx.array([[5]])
    assert difference(model(token, extracted), model(token, fresh)) <= SAME
    assert sum(layer.nbytes for layer in extracted) <= sum(layer.nbytes for layer in fresh)


def test_empty_caches_join_a_batch(models: Models) -> None:
    model, sequence = models("mixed"), prompts("mixed")[0]
    alone = single_runs(model, [sequence])[0]
    used = model.make_cache()
    prefill(model, mx.array([sequence[:130]]), used)
    cache = [a.merge([b, a]) for a, b in zip(used, model.make_cache(), strict=True)]
    logits = model(mx.array([sequence[:20], sequence[130:]]), cache)
    assert difference(logits[0], alone[:20]) <= SAME
    assert difference(logits[1], alone[130:]) <= SAME
    assert all(layer.merge([layer, layer]).empty() for layer in model.make_cache())


@pytest.mark.slow
def test_batch_generation_gives_the_tokens_of_single_runs(models: Models, shape: str) -> None:
    model, sequences = models(shape), prompts(shape)
    alone = [[token for token, _ in generate_step(mx.array(s), model, max_tokens=24)] for s in sequences]
    # Two prompts at a time, so that the third joins while the others are decoding.
    generator = BatchGenerator(
        model, max_tokens=24, prefill_step_size=64, prefill_batch_size=2, completion_batch_size=3
    )
    uids = generator.insert(sequences)
    together: dict[int, list[int]] = {uid: [] for uid in uids}
    while any(len(tokens) < 24 for tokens in together.values()):
        for response in generator.next()[1]:
            together[response.uid].append(response.token)
    assert [together[uid] for uid in uids] == alone


def test_only_an_empty_cache_can_be_padded_on_the_left(models: Models) -> None:
    model = models("mixed")
    cache = model.make_cache()
    model(mx.array([[1, 2, 3]]), cache)
    with pytest.raises(ValueError, match="Only an empty cache"):
        cache[0].prepare(left_padding=[1])


def test_saved_prompt_cache_continues_as_if_it_never_left_memory(models: Models, shape: str, tmp_path: Path) -> None:
    model, sequence = models(shape), prompts(shape)[2]
    cache = make_prompt_cache(model)
    prefill(model, mx.array([sequence[:133]]), cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    loaded = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    assert all(type(layer) is ArraysCache for layer in loaded)  # mlx-lm's own: this file need not be imported yet
    rest = mx.array([sequence[133:]])
    assert difference(model(rest, loaded), model(rest, cache)) == 0
    assert all(type(layer) is DeepseekV4Cache for layer in loaded)


def test_loaded_prompt_caches_join_a_batch(models: Models, tmp_path: Path) -> None:
    model, sequences = models("mixed"), prompts("mixed")
    alone = [[token for token, _ in generate_step(mx.array(s), model, max_tokens=9)] for s in sequences]
    caches: list[Any] = []
    for i, sequence in enumerate(sequences):
        cache = make_prompt_cache(model)
        prefill(model, mx.array([sequence[:-5]]), cache)
        if i < 2:
            save_prompt_cache(str(tmp_path / f"{i}.safetensors"), cache)
            cache = model.own_cache(load_prompt_cache(str(tmp_path / f"{i}.safetensors")))
        caches.append(cache)
    generator = BatchGenerator(model, max_tokens=9)
    uids = generator.insert([s[-5:] for s in sequences], caches=caches)
    together: dict[int, list[int]] = {uid: [] for uid in uids}
    while any(len(tokens) < 9 for tokens in together.values()):
        for response in generator.next()[1]:
            together[response.uid].append(response.token)
    assert [together[uid] for uid in uids] == alone


def test_a_loaded_cache_merges_into_one_of_the_model(models: Models, tmp_path: Path) -> None:
    model, tokens = models("mixed"), mx.array([prompts("mixed")[0]])
    cache = make_prompt_cache(model)
    prefill(model, tokens, cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    loaded = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    batch = [mine.merge([mine, other]) for mine, other in zip(cache, loaded, strict=True)]
    logits = model(mx.array([[3], [3]]), batch)
    assert difference(logits[1], logits[0]) <= SAME


def test_state_restores_a_cache(models: Models) -> None:
    model, sequence = models("mixed"), prompts("mixed")[0]
    cache = model.make_cache()
    prefill(model, mx.array([sequence[:50]]), cache)
    restored = [DeepseekV4Cache.from_state(layer.state) for layer in copy.deepcopy(cache)]
    assert [layer.size() for layer in restored] == [50] * len(cache)
    rest = mx.array([sequence[50:]])
    assert difference(model(rest, restored), model(rest, cache)) == 0


def test_prompt_cache_of_the_server_finds_prefixes_and_trims_nothing(models: Models) -> None:
    model, sequence = models("mixed"), prompts("mixed")[0]
    cache = make_prompt_cache(model)
    prefill(model, mx.array([sequence[:60]]), cache)
    assert not can_trim_prompt_cache(cache)
    trimmed: Any = trim_prompt_cache(cache, 1)
    assert trimmed == 0
    kept = LRUPromptCache()
    kept.insert_cache("model", sequence[:60], cache)
    found, rest = kept.fetch_nearest_cache("model", sequence)
    assert rest == sequence[60:]
    assert difference(model(mx.array([rest]), found), model(mx.array([sequence]))[:, 60:]) <= SAME
    assert kept.fetch_nearest_cache("model", sequence[:30]) == (None, sequence[:30])


@pytest.mark.slow
def test_cache_grows_by_the_compressed_entries_only(
    models: Models, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeepseekV4Cache, "step", 1)  # no room in advance
    config, model = random_config(shape), models(shape)
    entry_dims = {0: 0, 4: (config["head_dim"] + config["index_head_dim"]) / 4, 128: config["head_dim"] / 128}
    per_token = 4 * sum(entry_dims[ratio] for ratio in config["compress_ratios"][: config["num_hidden_layers"]])
    cache = model.make_cache()
    prefill(model, mx.array([random_tokens(config, 256, 0)]), cache)
    before = sum(layer.nbytes for layer in cache)
    prefill(model, mx.array([random_tokens(config, 256, 1)]), cache)
    assert sum(layer.nbytes for layer in cache) - before == 256 * per_token


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_a_prefilled_cache_takes_the_memory_that_it_says(models: Models, shape: str, batch: int) -> None:
    model, config = models(shape), random_config(shape)
    tokens = mx.array([random_tokens(config, 600, row) for row in range(batch)])
    mx.eval(model(tokens[:, :1]))  # makes what is made once
    before = held_memory()
    cache = model.make_cache()
    model(tokens, cache)
    mx.eval([layer.state for layer in cache])
    nbytes = sum(layer.nbytes for layer in cache)
    # MLX rounds a buffer up to pages, and leaves one in place that is 16 KiB too long.
    slack = 32_768 * sum(array is not None for layer in cache for array in layer.arrays)
    assert held_memory() - before <= nbytes + slack


def held_memory() -> int:
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    return mx.get_active_memory()


def test_the_size_of_a_flash_cache_is_what_its_docstring_says() -> None:
    ratios = [0, 0, *[4, 128] * 20, 4]
    entries = sum({0: 0, 4: 2 * (512 + 128) // 4, 128: 2 * 512 // 128}[ratio] for ratio in ratios)
    window = 4 * 127 * 512
    open_rows = {0: 0, 4: 4 * 7 * 2 * (1024 + 256), 128: 4 * 127 * 2 * 512}
    fixed = sum(window + open_rows[ratio] for ratio in ratios)
    assert entries == 6880
    assert round(fixed / 1e6) == 23
    assert 2 * 512 * len(ratios) == 44032
    assert DeepseekV4Cache.__doc__ is not None
    for figure in ("23 MB", "6,880 bytes a token", "44,032 bytes"):
        assert figure in DeepseekV4Cache.__doc__


def test_decoding_leaves_no_graph_behind(models: Models, shape: str, tmp_path: Path) -> None:
    """What is never evaluated keeps every step alive; generation evaluates the logits only."""
    model, cache = models(shape), models(shape).make_cache()
    prefill(model, mx.array([random_tokens(random_config(shape), 200, 0)]), cache)
    for token in range(6):
        mx.eval(model(mx.array([[token]]), cache))
    held = [array for layer in cache for array in layer.arrays if array is not None]
    mx.export_to_dot(str(tmp_path / "cache.dot"), *held)
    assert "shape=rectangle" not in (tmp_path / "cache.dot").read_text()  # an operation yet to be run


@pytest.mark.slow
def test_long_generation_holds_nothing_but_the_cache(models: Models) -> None:
    model = models("pro")
    cache = model.make_cache()
    generated = generate_step(mx.array(prompts("pro")[0]), model, max_tokens=700, prompt_cache=cache)
    held = []
    for _ in islice(generated, 0, None, 300):
        mx.synchronize()
        mx.clear_cache()
        held.append(mx.get_active_memory() - sum(layer.nbytes for layer in cache))
    assert len(held) == 3
    assert held[2] - held[1] < 16_000, held
