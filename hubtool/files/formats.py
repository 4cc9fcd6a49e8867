"""Strict readers of the formats that files come in."""

import json
from collections import Counter
from typing import Any, NoReturn

from hubtool.errors import SourceError
from hubtool.files.read import AGAIN


def parse_json(raw: bytes, name: str) -> Any:
    """The value of a JSON file.

    Raises:
        SourceError: It is not JSON (RFC 8259), which has no NaN; or a name stands twice in an object.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number of JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise SourceError("a name stands twice", where=name, found=twice, expected="each name once", remedy=AGAIN)
        return values

    try:
        return json.loads(raw, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SourceError("not JSON", where=name, found=str(error), expected="JSON", remedy=AGAIN) from error
