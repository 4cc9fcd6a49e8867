"""The strict readers: what they read is what other readers read, and nothing else than one error comes out of them."""

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubtool.checkpoint.tensors import parse_header
from hubtool.errors import OutputError, RecipeError, SourceError
from hubtool.files.formats import MAX_DEPTH, decode_json, parse_json, parse_object, parse_toml
from hubtool.files.read import is_inner_path, is_plain_name
from hubtool.files.yaml import parse_yaml

text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | text, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12
)


@given(values)
def test_json_that_is_allowed_is_read_as_the_standard_library_reads_it(value: Any) -> None:
    raw = json.dumps(value).encode()
    assert parse_json(raw, "f") == json.loads(raw) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode(), "f") == value


words = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="\u2028\u2029"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | words,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
        max_leaves=12,
    )
)
def test_json_is_read_as_yaml_too(value: Any) -> None:
    assert parse_yaml(json.dumps([value], ensure_ascii=False), "f") == [value]


REFUSED_JSON = {
    "nothing": b"",
    "not JSON": b"{",
    "NaN": b'{"a": NaN}',
    "infinity": b"[1e999]",
    "infinity in words": b"[-Infinity]",
    "endless integer": b"[" + b"9" * 5000 + b"]",
    "long integer": b"[" + b"9" * 41 + b"]",
    "deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "deep objects": b'{"a":' * 100_000,
    "a name twice": b'{"a": 1, "a": 1}',
    "a name twice inside": b'[{"\\u0061": 1, "a": 1}]',
    "half a character": b'["\\ud800"]',
    "half a character as a name": b'{"\\udfff": 1}',
    "surrogates in UTF-8": b'["\xed\xa0\x80"]',
    "not UTF-8": b'["\xff"]',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "very many values": b"[" + b"0," * 2_000_001 + b"0]",
    "very many objects": b"[" + b"[]," * 1_000_001 + b"0]",
}


@pytest.mark.parametrize("raw", REFUSED_JSON.values(), ids=REFUSED_JSON)
def test_json_beyond_the_bounds_is_an_error_of_the_class_that_was_asked_for(raw: bytes) -> None:
    with pytest.raises(OutputError) as caught:
        parse_json(raw, "a.json", error=OutputError, remedy="do this")
    assert caught.value.where == "a.json" and caught.value.remedy == "do this"
    str(caught.value).encode()


def test_json_of_another_type_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"a\.json: not a JSON object: found list"):
        parse_object(b"[]", "a.json")
    for raw in (b'{"a": "x"}', b'{"a": 1.5}', b'{"a": 9223372036854775808}'):
        with pytest.raises(OutputError, match=r"a\.json: cannot be used: found "):
            decode_json(raw, dict[str, int], "a.json", error=OutputError)


REFUSED_TOML = {
    "cut off": "a = ",
    "endless number": "a = " + "9" * 5000,
    "long number": "a = 0x" + "f" * 50,
    "infinity": "a = inf",
    "not a number": "a = nan",
    "deep": "a = " + "[" * 5000,
    "a key of many parts": ".".join("a" * 30_000) + " = 1",
    "a quoted key of many parts": ".".join(['"a"'] * 30_000) + " = 1",
    "a table of many parts": "[" + " . ".join("a" * 30_000) + "]",
    "a key of many parts within a table": "x = {" + ".".join("a" * 30_000) + " = 1}",
    "long": "#" * (1 << 20) + "\n",
}


@pytest.mark.parametrize("document", REFUSED_TOML.values(), ids=REFUSED_TOML)
def test_toml_beyond_the_bounds_is_an_error(document: str) -> None:
    with pytest.raises(RecipeError, match=r"a\.toml: "):
        parse_toml(document.encode(), "a.toml", error=RecipeError)


def test_toml_is_read_as_the_standard_library_reads_it() -> None:
    document = 'a.b = "x.y.z"\n[[rule]]\nmatch = ["a.*.b", "**"]\nwhen = 2026-01-01\n# ' + "." * 200
    assert parse_toml(document.encode(), "f") == tomllib.loads(document)


REFUSED_YAML = {
    "not YAML": "a: [",
    "a key twice": "a: 1\na: 2",
    "a merge key": "a: &x {b: 1}\nc: {<<: *x}",
    "a Python tag": "a: !!python/object/apply:os.system [ls]",
    "an own tag": "a: !thing 1",
    "bytes": "a: !!binary aGFsbG8=",
    "a set": "!!set {a, b}",
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{n}: &{n} [{', '.join([f'*{b}'] * 10)}]\n" for b, n in zip("abcdefgh", "bcdefghi", strict=True)),
    "an alias of itself": "&a [*a]",
    "deep": "[" * 5000,
    "deep blocks": "".join(" " * n + "-\n" for n in range(200)),
    "half a character": 'a: "\\ud800"',
    "endless number": "a: " + "9" * 5000,
    "a key that is a list": "? [a]\n: 1",
    "a key of equal value": "1: a\n1.0: b",
    "a control character": "a: \x00",
    "a boolean that is none": "a: !!bool maybe",
}


@pytest.mark.parametrize("document", REFUSED_YAML.values(), ids=REFUSED_YAML)
def test_yaml_beyond_json_is_an_error(document: str) -> None:
    with pytest.raises(SourceError, match=r"README\.md: not YAML: found ") as caught:
        parse_yaml(document, "README.md")
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("document", "value"),
    [
        ("2026-01-31", "2026-01-31"),
        ("2026-13-45", "2026-13-45"),
        ("2026-01-31 25:61:61", "2026-01-31 25:61:61"),
        (".nan", ".nan"),
        ("-.inf", "-.inf"),
        ("1e999", "1e999"),
        ("12:30:45", "12:30:45"),
        ("0x10", "0x10"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("=", "="),
        ("12", 12),
        ("-1.5e+3", -1500.0),
        ("no", False),
        ("", None),
        ('"no"', "no"),
    ],
)
def test_yaml_scalars_that_json_lacks_stay_text(document: str, value: object) -> None:
    assert parse_yaml(f"a: {document}", "f") == {"a": value}


def test_aliases_within_the_bound_are_expanded() -> None:
    assert parse_yaml("a: &x [1, {b: 2}]\nc: *x\nd: [*x, *x]", "f")["d"] == [[1, {"b": 2}]] * 2


def _header(shape: list[int], offsets: list[int]) -> bytes:
    return json.dumps({"t": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        _header([1 << 62, 1 << 62, 0], [0, 0]),
        _header([1 << 63], [0, 0]),
        _header([1] * 65, [0, 4]),
        _header([1 << 62] * 64, [0, 4]),
        _header([1], [-(1 << 70), 4]),
        b'{"t": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 4]}}',
        b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
        b'{"__metadata__": {"\xff": "a"}}',
        b'{"__metadata__": {"a": "\\ud800"}}',
        b'{"t\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b"{" + b'"":{},' * 300_000 + b'"a":{}}',
    ],
)
def test_header_beyond_the_bounds_is_an_error(raw: bytes) -> None:
    with pytest.raises(SourceError, match=r"m\.safetensors"):
        parse_header(raw, "m.safetensors", 8 + len(raw) + 4)


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "a/../b", "a\\b", "a\0b", "a\nb", "C:x", "a//b", "\ud800"])
def test_names_that_leave_their_folder_are_none(name: str) -> None:
    assert not is_inner_path(name) and not is_plain_name(name)


def test_names_within_a_folder_are_some() -> None:
    assert is_plain_name("model-00001-of-00002.safetensors") and is_inner_path("assets/bits.png")
    assert not is_plain_name("assets/bits.png")
