"""Strict readers of JSON, TOML and text, and the bounds that hold for every format: a value, or one error of hubtool's.

What is read here was written by others, and nobody has looked at it. Size, depth, number of values, length of numbers
and expansion of aliases are bounded before memory or time is spent on them; text is UTF-8 without lone surrogates,
numbers are finite, and no name stands twice. So whoever takes a value from here can print it, write it as JSON and
walk through it, and no other exception than the one that the caller names comes out.
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any, NoReturn, TypeVar

import msgspec

from hubtool.errors import HubtoolError, SourceError, UsageError
from hubtool.files.read import AGAIN
from hubtool.files.suggest import suggest
from hubtool.units import MIB

T = TypeVar("T")

MAX_DEPTH = 64
"""Objects and arrays within each other. A tokenizer.json, the deepest of a checkpoint's files, has about ten."""

MAX_DIGITS = 40
"""Characters of an integer. tokenizer_config.json has one of 31: `model_max_length` is int(1e30) for none."""

MAX_JSON_NBYTES = 64 * MIB
MAX_CONTAINERS = 1_000_000
MAX_VALUES = 2_000_000
"""Of one JSON document. The index of a checkpoint of 10**12 parameters has 15 MB and 200,000 values."""

MAX_TOML_NBYTES = 1 * MIB

EXACT_BITS = 63
"""Of an integer that becomes part of a typed value: what can be written again by any library."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a document's error is raised.

    Attributes:
        form: Its format, or what it should be.
        where: Its name.
        error: The class of the error.
        remedy: What to do about it.
        unusable: What is said of a document that can be read and does not hold what it should.
    """

    form: str
    where: object
    error: type[HubtoolError]
    remedy: str
    unusable: str = "cannot be used"

    def refuse(self, found: object, what: str | None = None, expected: object = None) -> NoReturn:
        """Raise the error."""
        raise self.error(
            what or f"not {self.form}",
            where=self.where,
            found=found,
            expected=expected or self.form,
            remedy=self.remedy,
        )


def parse_json(raw: bytes, name: object, *, error: type[HubtoolError] = SourceError, remedy: str = AGAIN) -> Any:
    """The value of a JSON document (RFC 8259), which has no NaN; a byte order mark before it is passed over.

    Args:
        raw: The document.
        name: The file or address that it comes from, for the message.
        error: The class of the error.
        remedy: What to do about it.

    Raises:
        HubtoolError: Of the class `error`. It is not JSON, or goes beyond a bound of this module; or a name stands
            twice in an object.
    """
    failure = Failure("JSON", name, error, remedy)
    text = decode_utf8(raw, failure, MAX_JSON_NBYTES)
    if raw.count(b"[") + raw.count(b"{") > MAX_CONTAINERS or raw.count(b",") > MAX_VALUES:
        failure.refuse("too many values", expected=f"at most {MAX_VALUES}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            failure.refuse(find_twice(key for key, _ in pairs), "a name stands twice", "each name once")
        return values

    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=parse_integer, object_pairs_hook=unique)
    except (ValueError, RecursionError) as reason:
        refuse_for(failure, reason)
    check_values(value, failure)
    return value


def parse_object(
    raw: bytes, name: object, *, error: type[HubtoolError] = SourceError, remedy: str = AGAIN
) -> dict[str, Any]:
    """The members of a JSON document that is an object: see `parse_json`.

    Raises:
        HubtoolError: Of the class `error`. It is not JSON, or something else than an object.
    """
    value = parse_json(raw, name, error=error, remedy=remedy)
    if not isinstance(value, dict):
        found = type(value).__name__
        raise error("not a JSON object", where=name, found=found, expected="an object", remedy=remedy)
    return value


def decode_json(
    raw: bytes, kind: type[T], name: object, *, error: type[HubtoolError] = SourceError, remedy: str = AGAIN
) -> T:
    """A JSON document as a value of a type: see `parse_json`.

    Raises:
        HubtoolError: Of the class `error`. It is not JSON, or something in it is not of the type.
    """
    value = parse_json(raw, name, error=error, remedy=remedy)
    return convert(value, kind, Failure("JSON", name, error, remedy))


def decode_line(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    """One line of hubtool's own state, of which there are many, None if it says nothing that hubtool writes."""
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError):
        return None


def parse_toml(
    raw: bytes, name: object, *, error: type[HubtoolError] = UsageError, remedy: str = "correct the file"
) -> dict[str, Any]:
    """The tables of a TOML document: see `parse_json`.

    Raises:
        HubtoolError: Of the class `error`. It is not TOML, or goes beyond a bound of this module.
    """
    failure = Failure("TOML", name, error, remedy)
    text = decode_utf8(raw, failure, MAX_TOML_NBYTES)
    if _LONG_KEY.search(text):
        # tomllib's time for a key grows with the square of the number of its parts.
        failure.refuse(f"a key of more than {MAX_DEPTH} parts")
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as reason:  # its own error is a ValueError, as that of an endless number
        refuse_for(failure, reason)
    check_values(tables, failure)
    return tables


def decode_toml(
    raw: bytes,
    kind: type[T],
    name: object,
    *,
    error: type[HubtoolError] = UsageError,
    remedy: str = "correct the file",
) -> T:
    """A TOML document as a value of a type: see `parse_toml`.

    Raises:
        HubtoolError: Of the class `error`. It is not TOML, or something in it is not of the type.
    """
    tables = parse_toml(raw, name, error=error, remedy=remedy)
    return convert(tables, kind, Failure("TOML", name, error, remedy))


_LONG_KEY = re.compile(rf"(?<![\w\"'-])(?:[\w\"'-]++[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")


def decode_utf8(raw: bytes, failure: Failure, max_nbytes: int) -> str:
    """The text of a file in UTF-8, without the byte order mark that some editors put before it.

    Raises:
        HubtoolError: Of the class of `failure`. It is too long, or not UTF-8.
    """
    if len(raw) > max_nbytes:
        failure.refuse(f"{len(raw)} bytes", f"too long for {failure.form}", f"at most {max_nbytes}")
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as reason:
        failure.refuse(spoken(reason), expected="UTF-8")


def parse_integer(text: str) -> int:
    """An integer from its digits; ValueError for one whose length alone would cost time."""
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def check_values(value: object, failure: Failure) -> None:
    """Raise the error if a value is nested too deep, or holds a number or text that cannot be written again."""
    left: list[tuple[object, int]] = [(value, 1)]
    while left:
        item, depth = left.pop()
        if depth > MAX_DEPTH:
            failure.refuse(f"nested deeper than {MAX_DEPTH}")
        inner: Iterable[object] = item if isinstance(item, list) else ()
        if isinstance(item, dict):
            inner = [*item, *item.values()]
        for each in inner or [item]:
            if isinstance(each, (dict, list)):
                if each is not item:
                    left.append((each, depth + 1))
            else:
                _check_scalar(each, failure)


def _check_scalar(value: object, failure: Failure) -> None:
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                failure.refuse(f"half a character in {value!a:.80}", expected="whole characters")
    elif isinstance(value, float):
        if not isfinite(value):
            failure.refuse(f"the number {value}", expected="finite numbers")
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        failure.refuse(f"a number of more than {MAX_DIGITS} digits")


def convert(value: object, kind: type[T], failure: Failure) -> T:
    """A value that was read as one of a type.

    Raises:
        HubtoolError: Of the class of `failure`. Something in it is not of the type.
    """
    try:
        _refuse_wide(value)
        return msgspec.convert(value, kind, str_keys=True)
    except (ValueError, RecursionError) as reason:
        remedy = f"{suggest(str(reason), kind)} {failure.remedy}".lstrip()
        raise failure.error(failure.unusable, where=failure.where, found=spoken(reason), remedy=remedy) from reason


def _refuse_wide(value: object) -> None:
    """Raise ValueError for an integer that other libraries could not read."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.values()
        elif isinstance(item, list):
            left += item
        elif isinstance(item, int) and item.bit_length() > EXACT_BITS:
            raise ValueError(f"integer {item} is out of range")


def refuse_for(failure: Failure, reason: Exception) -> NoReturn:
    """Raise the error for what a library says."""
    raise failure.error(
        f"not {failure.form}",
        where=failure.where,
        found=spoken(reason),
        expected=failure.form,
        remedy=failure.remedy,
    ) from reason


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def find_twice(keys: Iterable[str]) -> str:
    """The name that stands most often among these, as a terminal can show it."""
    return ascii(Counter(keys).most_common(1)[0][0])[1:-1]


def spoken(reason: Exception) -> str:
    """What a library says, with nothing that a terminal cannot show, and not for ever."""
    text = str(reason) or type(reason).__name__
    shown = text.encode(errors="backslashreplace").decode()
    return shown if len(shown) <= 300 else f"{shown[:300]}..."
