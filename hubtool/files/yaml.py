"""The strict reader of YAML: front matter and files become values of JSON's types, or an error of hubtool's.

YAML has ways to stand for far more than its length (aliases, merge keys), to ask for objects (tags), and values that
JSON lacks. Aliases are expanded within a bound; merge keys, and tags other than those of JSON's types, are refused;
dates, and numbers that are not finite, stay the text that they are.
"""

import re
from collections import Counter
from typing import Any

import yaml

from hubtool.errors import HubtoolError, SourceError
from hubtool.files.formats import MAX_DEPTH, Failure, check_values, decode_utf8, parse_integer, refuse_for
from hubtool.files.read import AGAIN
from hubtool.units import MIB

MAX_YAML_NBYTES = 1 * MIB
"""A card that lists the results of hundreds of evaluations has half of that."""

MAX_NODES = 200_000
"""Values, with every alias counted as all that it stands for."""

_TYPES = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))
_MERGE = "<<"


def parse_yaml(
    source: str | bytes, name: object, *, error: type[HubtoolError] = SourceError, remedy: str = AGAIN
) -> Any:
    """The value of a YAML document, None if it is empty.

    Args:
        source: The document, or its text.
        name: The file that it comes from, for the message.
        error: The class of the error.
        remedy: What to do about it.

    Raises:
        HubtoolError: Of the class `error`. It is not YAML, goes beyond a bound, or has what is refused here; or a key
            stands twice in a mapping.
    """
    failure = Failure("YAML", name, error, remedy)
    raw = source.encode(errors="surrogatepass") if isinstance(source, str) else source
    text = decode_utf8(raw, failure, MAX_YAML_NBYTES)
    try:
        _check_events(text, failure)
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as reason:
        # What PyYAML's constructors raise for scalars that are not of their tag.
        refuse_for(failure, reason)
    check_values(value, failure)
    return value


_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where PyYAML was built with it, which is ten times as fast."""


def _check_events(text: str, failure: Failure) -> None:
    """Raise the error for what must not be built, from the parser's events: these take no memory."""
    total = 0
    opened: list[tuple[int, str | None]] = []
    whole: dict[str | None, int] = {}
    for event in yaml.parse(text, Loader=_Parser):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in whole:
                failure.refuse(f"the alias *{event.anchor} of what is not complete")
            total += whole[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            _check_node(event, failure)
            total += 1
            whole[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            _check_node(event, failure)
            opened.append((total, event.anchor))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            begun, anchor = opened.pop()
            whole[anchor] = total - begun
        if len(opened) > MAX_DEPTH:
            failure.refuse(f"nested deeper than {MAX_DEPTH}")
        if total > MAX_NODES:
            failure.refuse("too many values", expected=f"at most {MAX_NODES}, aliases expanded")


def _check_node(event: yaml.NodeEvent, failure: Failure) -> None:
    """Raise the error for a tag that is not of JSON's types, and for a merge key."""
    tag = getattr(event, "tag", None)
    if tag is not None and tag not in _TYPES and tag != "!":
        failure.refuse(f"the tag {tag}", expected="values that JSON has too")
    if isinstance(event, yaml.ScalarEvent) and event.value == _MERGE and event.implicit[0]:
        failure.refuse("the merge key <<", expected="every key written out")


class _Loader(_Parser):  # type: ignore[misc]
    """YAML as the Hub reads it: a key that is named twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice, times = names.most_common(1)[0] if names else ("", 0)
        if times > 1:
            problem = f"the key {twice!r} is named twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        mapping: dict[object, object] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            problem = "two keys with the same value"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> object:
        """An integer or decimal number; one that is not finite, or not written as JSON would, is its text."""
        text = str(self.construct_scalar(node))
        if _INTEGER.fullmatch(text):
            return parse_integer(text)
        return float(text) if _DECIMAL.fullmatch(text) and abs(float(text)) < float("inf") else text


_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?(?=[0-9]*\.?[0-9])[0-9]*\.[0-9]*(?:[eE][-+]?[0-9]+)?")

_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
for _name in ("timestamp", "value"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", yaml.constructor.SafeConstructor.construct_yaml_str)
