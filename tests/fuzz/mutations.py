"""Hostile variants of good documents: bytes damaged anyhow, and values replaced by what a reader may not expect."""

import json
import random
import struct
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, -(10**18), 1e308, -0.0, 0.5),
    *(
        "",
        "a",
        "../../etc/passwd",
        "/etc/passwd",
        "a/b",
        ".",
        "..",
        "x" * 5000,
        "a\x00b",
        "\x1b[2J",
        "\u202e",
        "\ud800",
    ),
    *("NaN", "1e999", "*" * 300, "**a" * 60, "hf_" + "a" * 34, "2026-13-45", "<script>", "org/repo--file.Class"),
    *([], {}, [[]], {"": {}}, [None] * 50, {"a": {"a": {"a": {}}}}, [1, "a", {}], {"bits": 10**18}, {"bits": 0}),
)
"""What takes the place of a value."""

TOKENS = tuple(
    token.encode()
    for token in (
        *("\ufeff", "\x00", "{", "}", "[", "]", ",", ":", '"', "\\", "\\ud800", "\\u0000", "NaN", "Infinity", "1e999"),
        *("9" * 60, "9" * 5000, "[" * 500, '{"a":' * 300, "---\n", "&a ", "*a", "<<: *a\n", "!!python/name:os.system "),
        *("!!binary x", "? ", "- ", "\t", "\r", "\u2028", ".inf", "2026-13-45", "0x" + "f" * 80, "a." * 300, "[[a]]\n"),
        *("<!-- hubtool:prose notes -->\n", "<!-- /hubtool:prose -->\n", "<script>", "![x](x%22%20onerror=a)", "```\n"),
    )
) + (b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc0\x80")
"""What is put between bytes."""


def mutate(chance: random.Random, raw: bytes) -> bytes:
    """A hostile variant of a document."""
    ways = [_flip, _cut, _insert, _repeat, _swap_lines]
    if raw.lstrip()[:1] in (b"{", b"["):
        ways += [_replace_value] * 5
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        raw = chance.choice(ways)(chance, raw)
    return raw


def mutate_shard(chance: random.Random, raw: bytes) -> bytes:
    """A hostile variant of a safetensors file, mostly with a header of the right length."""
    if chance.random() < 0.1:
        return struct.pack("<Q", chance.choice((0, 1, 2**40, 2**63, 2**64 - 1, len(raw)))) + raw[8:]
    length = struct.unpack("<Q", raw[:8])[0]
    header = mutate(chance, raw[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def _flip(chance: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw or b"x")
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _cut(chance: random.Random, raw: bytes) -> bytes:
    begin, end = sorted(chance.randint(0, len(raw)) for _ in range(2))
    return raw[:begin] + raw[end:] if chance.random() < 0.7 else raw[:begin]


def _insert(chance: random.Random, raw: bytes) -> bytes:
    at = chance.randint(0, len(raw))
    return raw[:at] + chance.choice(TOKENS) + raw[at:]


def _repeat(chance: random.Random, raw: bytes) -> bytes:
    begin = chance.randint(0, len(raw))
    return raw[:begin] + raw[begin : begin + chance.randint(1, 80)] * chance.choice((2, 3, 50)) + raw[begin:]


def _swap_lines(chance: random.Random, raw: bytes) -> bytes:
    lines = raw.split(b"\n")
    first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"\n".join(lines)


def _replace_value(chance: random.Random, raw: bytes) -> bytes:
    """The document with one value anywhere in it replaced, removed, doubled or moved to another name."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return _flip(chance, raw)
    holders = [item for item in _walk(document) if item]
    if not holders:
        return json.dumps(chance.choice(VALUES)).encode()
    # A document has many alike: of each size one is as likely as all others.
    holder = chance.choice([chance.choice(holders), max(holders, key=len), holders[0]])
    key: Any = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    way = chance.random()
    if way < 0.7:
        holder[key] = chance.choice(VALUES)
    elif way < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        name = chance.choice([value for value in VALUES if isinstance(value, str)])
        holder[name] = holder.pop(key)
    else:
        holder.append(holder[key])
    return json.dumps(document).encode()


def _walk(document: Any) -> list[Any]:
    found: list[Any] = []
    left = [document]
    while left and len(found) < 5000:
        item = left.pop()
        if isinstance(item, (dict, list)):
            found.append(item)
            left += item.values() if isinstance(item, dict) else item
    return found
