"""What a person may have meant in a file of TOML."""

from typing import Any, Literal

import msgspec
import pytest

from hubtool.files.suggest import suggest


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    mode: Literal["affine", "mxfp4"] | None = None
    group_size: int = 0


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    summary: str = ""
    rule: list[Inner] = []
    pairs: tuple[Inner, ...] = ()
    card: Inner | None = None
    rungs: list[Literal["integrity", "smoke"]] = []


@pytest.mark.parametrize(
    ("table", "question"),
    [
        ({"sumary": ""}, "did you mean summary?"),
        ({"rule": [{}, {"mode": "mxpf4"}]}, "did you mean mxfp4?"),
        ({"rule": [{"groupsize": 1}]}, "did you mean group_size?"),
        ({"pairs": [{"mde": "affine"}]}, "did you mean mode?"),
        ({"card": {"mode": "afine"}}, "did you mean affine?"),
        ({"rungs": ["smoke", "integity"]}, "did you mean integrity?"),
        ({"zzz": ""}, ""),
        ({"rule": [{"mode": "published"}]}, ""),
        ({"rule": [{"mode": 4}]}, ""),
        ({"summary": 4}, ""),
    ],
)
def test_wrong_key_or_value_is_answered_with_the_nearest_that_is_allowed_there(
    table: dict[str, Any], question: str
) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(table, Outer)
    assert suggest(str(raised.value), Outer) == question
