"""Patterns of module paths, matched in linear time however many stars they have."""

import re
from collections import defaultdict
from collections.abc import Callable


def compile_glob(pattern: str) -> Callable[[str], bool]:
    """Whether a path matches, as a function of it.

    `*` stands for any characters but dots, `**` for any at all, everything else for itself. A backtracking matcher
    would take exponential time for many stars; this one follows all ways at once, each a bit of one integer.
    """
    # Neighbouring stars are one: where one of them is `**`, it stands for all.
    tokens = ["**" if "**" in piece else piece for piece in re.findall(r"\*+|[^*]", pattern)]
    literals: dict[str, int] = defaultdict(int)
    within = across = 0
    for position, token in enumerate(tokens):
        if token == "**":
            across |= 1 << position
        elif token == "*":
            within |= 1 << position
        else:
            literals[token] |= 1 << position
    stars, end = within | across, 1 << len(tokens)
    by_character = dict(literals)

    def matches(path: str) -> bool:
        ways = 1 | (1 & stars) << 1
        for character in path:
            stay = ways & (across if character == "." else stars)
            ways = stay | (ways & by_character.get(character, 0)) << 1
            ways |= (ways & stars) << 1
            if not ways:
                return False
        return bool(ways & end)

    return matches
