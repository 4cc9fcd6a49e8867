"""Patterns of module paths: as a backtracking matcher reads them, and in linear time."""

import re

from hypothesis import given
from hypothesis import strategies as st

from hubtool.plan.glob import compile_glob

pieces = st.lists(st.sampled_from(["a", "b", ".", "*", "**", "+"]), max_size=8).map("".join)
paths = st.text("ab.+\n", max_size=10)


@given(pieces, paths)
def test_patterns_match_what_the_regular_expression_matches(pattern: str, path: str) -> None:
    parts = re.split(r"(\*\*+|\*)", pattern)
    spelled = "".join(".*" if part.startswith("**") else r"[^.]*" if part == "*" else re.escape(part) for part in parts)
    assert compile_glob(pattern)(path) == (re.fullmatch(spelled, path, re.DOTALL) is not None)


def test_many_stars_cost_no_more_than_their_number() -> None:
    # A backtracking matcher would not end.
    assert not compile_glob("*a" * 200 + "c")("a" * 5000)
    assert not compile_glob("**a*b" * 200 + "c")("ab." * 5000)
