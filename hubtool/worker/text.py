"""A text file -> windows of tokens, as the field's tools cut them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hubtool.errors import SourceError

LETTERS_PER_TOKEN = 16
"""So many letters of a long text are read for each token that is wanted, and more if that was not enough."""


@dataclass(frozen=True)
class Windows:
    """Tokens of a text.

    Attributes:
        tokens: [windows, length]; where the model wants it, each begins with the token for a beginning.
        sha256: Of the tokens as little-endian int32, one window after the other.
    """

    tokens: npt.NDArray[np.int32]

    @property
    def sha256(self) -> str:
        """See above."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).hexdigest()


def read_windows(path: Path, tokenizer: Any, tokens: int, context: int) -> Windows:
    """The first `tokens // context` windows of a text, fewer if it is shorter.

    The text is one stream of tokens, cut every `context` tokens. Where the tokenizer puts a token before a text, that
    takes the place of each window's first (llama.cpp's perplexity does the same).

    Args:
        path: A .txt, which is one text; or a .jsonl, a JSON object a line with `text`, or with `messages`, which the
            tokenizer's chat template renders.
        tokenizer: As transformers loads it.
        tokens: How many to read.
        context: Length of a window.

    Raises:
        SourceError: The file is not such a text, or shorter than a window.
    """
    stream: list[int] = []
    bos = _beginning(tokenizer)
    if bos is not None:
        stream.append(bos)
    for text in _texts(path, tokenizer):
        stream += _encode(text, tokenizer, tokens - len(stream))
        if len(stream) >= tokens:
            break
    windows = min(tokens, len(stream)) // context
    if not windows:
        raise SourceError(
            "too short for a window",
            where=path.name,
            found=f"{len(stream)} tokens",
            expected=f"at least {context}",
            remedy="take a longer text, or a smaller --context",
        )
    cut = np.array(stream[: windows * context], np.int32).reshape(windows, context)
    if bos is not None:
        cut[:, 0] = bos
    return Windows(cut)


def _beginning(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before a text, None if it puts none."""
    with_it, without = (tokenizer.encode("a", add_special_tokens=special) for special in (True, False))
    return int(with_it[0]) if len(with_it) > len(without) and with_it[0] == tokenizer.bos_token_id else None


def _encode(text: str, tokenizer: Any, wanted: int) -> list[int]:
    """At least the wanted tokens of a text, if it has as many."""
    letters = max(wanted, 1) * LETTERS_PER_TOKEN
    while letters < len(text):
        end = text.rfind("\n", 0, letters) + 1
        found: list[int] = tokenizer.encode(text[:end], add_special_tokens=False) if end else []
        if len(found) >= wanted:
            return found
        letters *= 2
    return list(tokenizer.encode(text, add_special_tokens=False))


def _texts(path: Path, tokenizer: Any) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SourceError("not a text", where=path.name, found=str(error), expected="UTF-8") from error
    if path.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _text_of(line, f"{path.name}, line {number}", tokenizer)


def _text_of(line: str, where: str, tokenizer: Any) -> str:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise SourceError("not JSON", where=where, found=str(error), expected="an object a line") from error
    fields = document if isinstance(document, dict) else {}
    if isinstance(fields.get("text"), str):
        return str(fields["text"])
    if isinstance(fields.get("messages"), list):
        if not tokenizer.chat_template:
            raise SourceError(
                "messages, but the tokenizer has no chat template",
                where=where,
                remedy="take a file of texts, or add chat_template.jinja to the source",
            )
        return str(tokenizer.apply_chat_template(fields["messages"], tokenize=False))
    found = ", ".join(fields) or type(document).__name__
    raise SourceError("neither a text nor messages", where=where, found=found, expected="`text` or `messages`")
