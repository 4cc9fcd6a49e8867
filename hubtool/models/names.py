"""Published names of DeepSeek-V4's tensors -> MLX paths, and back.

They come from `PUBLISHED_NAMES` of the runtime file, read as data: this module does not import MLX.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

RUNTIME_FILE = Path(__file__).parent.parent / "runtime" / "deepseek_v4.py"


@dataclass(slots=True)
class Found:
    """What the source has for one MLX path: published names by expert index (None outside the experts)."""

    weights: dict[int | None, str] = field(default_factory=dict)
    scales: dict[int | None, str] = field(default_factory=dict)


@cache
def published_names() -> tuple[tuple[re.Pattern[str], str], ...]:
    """(pattern of the published name, replacement that is the MLX name), in order; the first match wins."""
    tree = ast.parse(RUNTIME_FILE.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "PUBLISHED_NAMES":
            return tuple((re.compile(pattern, re.ASCII), name) for pattern, name in ast.literal_eval(node.value))
    raise AssertionError("the runtime file holds PUBLISHED_NAMES")


_INDEX = re.compile(r"\.([0-9]+)(?=\.)")
_STAND_INS = ("90001", "90002")
"""Indices that stand for a name's first and second index while its wording is looked up."""


@dataclass(frozen=True, slots=True)
class _Wording:
    """What all published names of one wording have in common, `layers.N.ffn.experts.N.w1.weight` say.

    Attributes:
        path: MLX path with `{0}` and `{1}` for the first and second index.
        expert: Which index is the expert's, None outside the experts.
        is_scale: Whether it is the scale of the weight at `path`.
    """

    path: str
    expert: int | None
    is_scale: bool


def map_names(names: Iterable[str]) -> tuple[dict[str, Found], list[str]]:
    """Published names by MLX path, and the names that have none.

    Which pattern fits depends on a name's words alone, so patterns are tried once for each wording.
    """
    wordings: dict[tuple[str, ...], _Wording | None] = {}
    found: dict[str, Found] = defaultdict(Found)
    unmapped = []
    for name in names:
        pieces = _INDEX.split(name)
        words, indices = tuple(pieces[::2]), pieces[1::2]
        if words not in wordings:
            wordings[words] = _read_wording(words)
        wording = wordings[words]
        # Two spellings of one number would be two tensors in one place.
        if wording is None or any(len(index) > 1 and index[0] == "0" for index in indices):
            unmapped.append(name)
            continue
        entry = found[wording.path.format(*indices)]
        expert = None if wording.expert is None else int(indices[wording.expert])
        (entry.scales if wording.is_scale else entry.weights)[expert] = name
    return found, unmapped


def _read_wording(words: tuple[str, ...]) -> _Wording | None:
    indices = _STAND_INS[: len(words) - 1]
    if len(indices) < len(words) - 1:
        return None
    name = words[0] + "".join(f".{index}{word}" for index, word in zip(indices, words[1:], strict=True))
    for pattern, replacement in published_names():
        if match := pattern.fullmatch(name):
            groups = match.groupdict()
            path = match.expand(replacement)
            is_scale = groups.get("param") == "scale"
            if is_scale:
                path = path.removesuffix("scale") + "weight"
            for position, index in enumerate(indices):
                path = path.replace(index, f"{{{position}}}")
            expert = groups.get("expert")
            return _Wording(path, None if expert is None else indices.index(expert), is_scale)
    return None


def published_name(path: str, expert: int | None = None) -> str:
    """The published name of the weight at an MLX path, of one expert's where it is stacked."""
    layer = next(iter(re.findall(r"layers\.(\d+)\.", path)), "0")
    for pattern, _ in published_names():
        for name in _spelled(pattern.pattern, {"layer": layer, "expert": str(expert), "param": "weight"}):
            if (match := pattern.fullmatch(name)) and match.expand(dict(published_names())[pattern]) == path:
                return name
    return path


def _spelled(pattern: str, values: Mapping[str, str]) -> list[str]:
    """The names that a pattern stands for: its groups at their values, or at each of their alternatives."""
    names = [""]
    for literal, group, choices in re.findall(r"((?:[^()])*)(?:\(\?P<(\w+)>([^()]*)\))?", pattern):
        options = [values[group]] if group in values else choices.split("|")
        names = [name + literal + option for name in names for option in options]
    return [name.replace("\\", "") for name in names]
