"""What a person may have meant by a key or value that a file must not have."""

import re
from collections.abc import Iterator, Sequence

import msgspec.inspect
from msgspec.inspect import Type

from hubtool.errors import did_you_mean


def suggest(message: str, table: object) -> str:
    """The question after the key or value that a person may have meant, as a clause; empty if none is near.

    Args:
        message: What msgspec found wrong in a value.
        table: The type that it should be.
    """
    wrong = _UNKNOWN.match(message)
    if wrong is None:
        return ""
    key, value, path = wrong.groups()
    types = [msgspec.inspect.type_info(table)]
    for name in _STEP.findall(path or ""):
        types = [inner for each in types for inner in _members(each, name)]
    return did_you_mean(key or value, _choices(types, keys=key is not None))


_UNKNOWN = re.compile(r"(?:Object contains unknown field `(.+?)`|Invalid enum value '(.+?)')(?: - at `\$(.+)`)?$")
"""How msgspec 0.20 words a key or a value that is not one of those that are allowed, and where."""

_STEP = re.compile(r"\.\w+|\[[^]]*\]")
"""A step of msgspec's paths: into a key of a table, or an item of a list."""


def _members(outer: Type, step: str) -> list[Type]:
    """The types that a step leads to."""
    if isinstance(outer, msgspec.inspect.UnionType):
        return [inner for each in outer.types for inner in _members(each, step)]
    if isinstance(outer, msgspec.inspect.StructType):
        return [field.type for field in outer.fields if f".{field.encode_name}" == step]
    if isinstance(outer, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)):
        return [outer.item_type] if step.startswith("[") else []
    return []


def _choices(types: Sequence[Type], *, keys: bool) -> Iterator[str]:
    """The keys, or else the values, that types allow."""
    for each in types:
        if isinstance(each, msgspec.inspect.UnionType):
            yield from _choices(each.types, keys=keys)
        elif keys and isinstance(each, msgspec.inspect.StructType):
            yield from (field.encode_name for field in each.fields)
        elif not keys and isinstance(each, msgspec.inspect.EnumType):
            yield from (str(member.value) for member in each.cls)
        elif not keys and isinstance(each, msgspec.inspect.LiteralType):
            yield from map(str, each.values)
