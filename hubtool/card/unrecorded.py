"""A folder or repo that hubtool did not make, as far as it can be measured."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec

from hubtool import units
from hubtool.checkpoint.measure import FP4_GROUP, is_packed_fp4
from hubtool.checkpoint.tensors import Header, TensorSpec
from hubtool.errors import SourceError
from hubtool.hub.rules import read_metadata
from hubtool.record import CARRIED_KEYS, MeasuredRecord

STATED_KEYS = (*CARRIED_KEYS, "pipeline_tag", "base_model", "base_model_relation", "tags")
"""What is repeated of a card that is someone else's."""


@dataclass(frozen=True)
class StoredAs:
    """What is stored in one way: how, logical parameters, and bytes with scales and biases."""

    form: str
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Unrecorded:
    """Facts of a checkpoint without a record.

    Attributes:
        name: What it is called.
        repo: `org/name`, if it is one.
        measured: Totals, from the headers.
        architecture: config.json's `architectures[0]`, if it has one.
        model_type: config.json's `model_type`, likewise.
        model_file: config.json's `model_file`, likewise.
        label_bits: The `bits` that the Hub's label follows, likewise.
        forms: By how it is stored, the largest first.
        library: `mlx` if its headers say so, else what its card names.
        metadata: What its own card says of itself; nothing is added but the library.
    """

    name: str
    repo: str | None
    measured: MeasuredRecord
    architecture: str | None
    model_type: str | None
    model_file: str | None
    label_bits: int | None
    forms: tuple[StoredAs, ...]
    library: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Unread:
    """What of a checkpoint its description is made from.

    Attributes:
        name: What it is called.
        repo: `org/name`, if it is one.
        headers: Of its shards, by file name.
        config: config.json.
        card: Its README.md, or empty.
    """

    name: str
    repo: str | None
    headers: Mapping[str, Header]
    config: Mapping[str, Any]
    card: str


def describe_unrecorded(unread: Unread, measured: MeasuredRecord) -> Unrecorded:
    """What can be said of a checkpoint from its headers, its config.json and its own card."""
    config = unread.config
    block = config.get("quantization") or config.get("quantization_config")
    quantization = block if isinstance(block, dict) else {}
    own = _read_own(unread.card)
    formats = {header.metadata.get("format") for header in unread.headers.values()}
    named = config.get("architectures")
    architectures = named if isinstance(named, list) and named else [None]
    forms = _forms(unread.headers, quantization)
    parameters = sum(form.parameters for form in forms)
    bits = units.effective_bits(measured.nbytes, parameters)
    return Unrecorded(
        name=unread.name,
        repo=unread.repo,
        measured=msgspec.structs.replace(measured, parameters=parameters, effective_bits=bits),
        architecture=_text(architectures[0]),
        model_type=_text(config.get("model_type")),
        model_file=_text(config.get("model_file")),
        label_bits=_bits(quantization),
        forms=forms,
        library="mlx" if formats == {"mlx"} else _text(own.get("library_name")),
        metadata={key: own[key] for key in STATED_KEYS if _is_text(own.get(key))},
    )


def _read_own(card: str) -> Mapping[str, object]:
    """The front matter of somebody's card; nothing of one that cannot be read: see `find_card_fault`."""
    try:
        return read_metadata(card)
    except SourceError:
        return {}


def find_card_fault(card: str) -> str | None:
    """Why the front matter of a card cannot be read, as a sentence; None if it can."""
    try:
        read_metadata(card)
    except SourceError as error:
        return str(error)
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _bits(entry: Mapping[str, Any]) -> int | None:
    """The `bits` of a quantization, None where they are no width that 32-bit words can hold."""
    bits = entry.get("bits")
    return bits if type(bits) is int and 0 < bits <= 32 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _forms(headers: Mapping[str, Header], quantization: Mapping[str, Any]) -> tuple[StoredAs, ...]:
    specs = {tensor.spec.name: tensor.spec for header in headers.values() for tensor in header.tensors}
    parameters: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for spec in specs.values():
        module, _, name = spec.name.rpartition(".")
        weight = specs.get(f"{module}.weight")
        form, size = spec.dtype.lower(), spec.size
        if weight is not None and (scale := specs.get(f"{module}.scale")) and scale.dtype == "F8_E8M0":
            form, size = _scaled(weight, scale, name)
        elif weight is not None and weight.dtype == "U32" and f"{module}.scales" in specs:
            entry = quantization.get(module)
            entry = entry if isinstance(entry, dict) else quantization
            bits, group, mode = _bits(entry), entry.get("group_size"), entry.get("mode", "affine")
            form = f"{mode} {bits}-bit, group {group}" if bits else "quantized"
            size = prod(spec.shape) * 32 // (bits or 32) if name == "weight" else 0
        parameters[form] += size
        nbytes[form] += spec.nbytes
    return tuple(StoredAs(form, parameters[form], size) for form, size in nbytes.most_common())


def _scaled(weight: TensorSpec, scale: TensorSpec, name: str) -> tuple[str, int]:
    """How a weight with E8M0 scales is stored, and the parameters that its tensor `name` stands for."""
    packed = is_packed_fp4(weight, scale)
    form = f"fp4, two in a byte, group {FP4_GROUP}" if packed else f"{weight.dtype.lower()}, with scales"
    return form, (weight.size * (2 if packed else 1) if name == "weight" else 0)
