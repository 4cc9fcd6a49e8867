"""How far predictions are from the source's, held against the same worked out in memory by other means."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import numpy.typing as npt
import pytest
from transformers import AutoTokenizer

from hubtool.record import read_record
from tests.fixtures import CommandLine, Conversions

CONTEXT = 32
TOKENS = 96
FIGURES = (
    "kl_mean kl_stderr kl_median kl_p99 kl_p999 kl_max top1 delta_p_mean delta_p_rms ppl ppl_source ln_ppl_ratio"
).split()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 4)) for _ in range(400)]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words))
    return path


def _windows(folder: Path, text: Path) -> npt.NDArray[np.int32]:
    stream = AutoTokenizer.from_pretrained(folder).encode(text.read_text(), add_special_tokens=False)
    return np.array(stream[:TOKENS], np.int32).reshape(-1, CONTEXT)


def _log_probabilities(folder: Path, windows: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Of the scored positions, [windows, scored, vocabulary], by stock mlx-lm with all weights in memory."""
    model = mlx_lm.load(str(folder), trust_remote_code=True)[0]
    logits = np.array(model(mx.array(windows)).astype(mx.float32), np.float64)[:, CONTEXT // 2 : -1]
    logits -= logits.max(axis=-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


@pytest.mark.slow
def test_distances_are_those_worked_out_in_memory(
    converted: Conversions, hubtool: CommandLine, text: Path, tmp_path: Path
) -> None:
    native, mixed = (converted("tiny", recipe) for recipe in ("native", "mixed_3_6"))
    folders = [shutil.copytree(each.folder, tmp_path / each.folder.name) for each in (native, mixed)]
    reference = tmp_path / "reference.kld"
    options = ("--text", text, "--tokens", TOKENS, "--context", CONTEXT, "--memory-limit", "2GB", "--json")
    outcome = hubtool("quality", *folders, "--against", native.source, *options, "--save-reference", reference)
    assert outcome.code == 0, outcome.stderr
    document = outcome.document
    windows = _windows(native.source, text)
    p, q = (_log_probabilities(folder, windows) for folder in folders)
    exact, lossy = document["variants"]

    # native holds the source's own values: nothing may differ, not by rounding either.
    assert [exact[name] for name in ("kl_mean", "kl_max", "delta_p_rms", "ln_ppl_ratio")] == [0.0] * 4
    assert exact["top1"] == 1.0
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    following = windows[:, CONTEXT // 2 + 1 :, None]
    p_next, q_next = (np.take_along_axis(each, following, axis=-1)[..., 0] for each in (p, q))
    gain = np.exp(q_next) - np.exp(p_next)
    expected = {
        "kl_mean": kl.mean(),
        "kl_stderr": kl.mean(axis=1).std(ddof=1) / np.sqrt(len(kl)),
        "kl_median": np.quantile(kl, 0.5),
        "kl_p99": np.quantile(kl, 0.99),
        "kl_p999": np.quantile(kl, 0.999),
        "kl_max": kl.max(),
        "top1": (p.argmax(axis=-1) == q.argmax(axis=-1)).mean(),
        "delta_p_mean": gain.mean(),
        "delta_p_rms": np.sqrt((gain**2).mean()),
        "ppl": np.exp(-q_next.mean()),
        "ppl_source": np.exp(-p_next.mean()),
        "ln_ppl_ratio": p_next.mean() - q_next.mean(),
    }
    assert {name: lossy[name] for name in FIGURES} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert document["tokens"] == kl.size
    assert document["text"]["tokens"] == TOKENS
    assert 0 < document["floor"]["kl_mean"] < lossy["kl_mean"]
    assert {layer for layer, _ in exact["experts"]} == set(range(native.plan.model.num_layers))
    assert {share for _, share in exact["experts"]} == {1.0}
    assert all(0 < share <= 1 for _, share in lossy["experts"])
    _assert_llama_cpp(reference, windows, p)

    # What was found is in both records, each with the other beside it.
    for folder, distance, other in zip(folders, document["variants"], ("mixed_3_6", "native"), strict=True):
        record = read_record(folder)
        assert record is not None
        quality: Any = record.evidence[-1].quality
        assert quality.distance.kl_mean == distance["kl_mean"]
        assert [each.recipe for each in quality.others] == [other]


def _assert_llama_cpp(path: Path, windows: npt.NDArray[np.int32], p: npt.NDArray[np.float64]) -> None:
    """A base file says the same distributions, but for what is 16 nats below the top."""
    raw = path.read_bytes()
    assert raw[:8] == b"_logits_"
    context, vocabulary, count = struct.unpack_from("<iii", raw, 8)
    assert (context, vocabulary, count) == (CONTEXT, p.shape[-1], len(windows))
    tokens = np.frombuffer(raw, "<i4", windows.size, 20)
    assert np.array_equal(tokens.reshape(windows.shape), windows)
    rows = np.frombuffer(raw, "<u2", offset=20 + 4 * windows.size).reshape(p.shape[0] * p.shape[1], -1)
    assert rows.shape[1] == 2 * ((vocabulary + 1) // 2) + 4
    scale, least = np.ascontiguousarray(rows[:, :4]).view("<f4").T
    stored = rows[:, 4 : 4 + vocabulary] * scale[:, None] + least[:, None]
    expected = p.reshape(len(rows), -1)
    near = expected > expected.max(axis=-1, keepdims=True) - 15.9
    assert abs(stored - expected)[near].max() < 16 / 65535 + 1e-4


def test_what_cannot_be_measured_is_refused(converted: Conversions, hubtool: CommandLine, text: Path) -> None:
    folder, source = converted("tiny", "native").folder, converted("tiny", "native").source
    short = hubtool("quality", folder, "--against", source, "--text", text, "--tokens", 100, "--context", 200)
    assert (short.code, "fewer tokens than a window has" in short.stderr) == (2, True)
    small = hubtool("quality", folder, "--against", source, "--text", text, "--memory-limit", "100MB")
    assert (small.code, "too little memory for a layer and a window" in small.stderr) == (2, True)
    missing = hubtool("quality", folder, "--against", source, "--text", "nothing.txt")
    assert (missing.code, "no such file" in missing.stderr) == (2, True)
    other = hubtool("quality", folder, "--against", source, "--text", source / "config.json")
    assert (other.code, "not a text" in other.stderr) == (2, True)


def test_messages_are_rendered_by_the_chat_template(tmp_path: Path) -> None:
    from hubtool.errors import SourceError
    from hubtool.worker.text import read_windows

    class Tokenizer:
        """The least of transformers' interface: a letter is a token, and 0 comes first."""

        bos_token_id = 0
        chat_template = "there is one"

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [*([0] if add_special_tokens else []), *map(ord, text)]

        def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool) -> str:
            return "".join(f"<{each['role'][0]}>{each['content']}" for each in messages)

    path = tmp_path / "chats.jsonl"
    lines = [{"text": "abcd"}, {"messages": [{"role": "user", "content": "hi"}]}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    windows = read_windows(path, Tokenizer(), tokens=8, context=4).tokens
    # One stream, cut every four tokens; the token for a beginning takes the place of each window's first.
    assert windows.tolist() == [[0, *map(ord, "abc")], [0, *map(ord, "<u>")]]
    path.write_text('{"prompt": "x"}')
    with pytest.raises(SourceError, match="line 1: neither a text nor messages: found prompt"):
        read_windows(path, Tokenizer(), tokens=8, context=4)
