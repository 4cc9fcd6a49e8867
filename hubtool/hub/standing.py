"""What stands at a destination, compared with what is to be published there, before a byte is sent."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hubtool.errors import HubError, RecordError, SourceError
from hubtool.files.formats import parse_object
from hubtool.hub.client import HubFile
from hubtool.hub.destination import Destination, Place
from hubtool.hub.patience import PatientHub
from hubtool.hub.reader import read_hub_file
from hubtool.record import DERIVED_FILES, RECORD_FILE, Record, decode_record

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
LOADED = "model*.safetensors"
"""The weights that mlx-lm loads of a folder, whatever an index says (`mlx_lm.utils.load_model`)."""

ANY_INDEX = "*.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be published, as far as another model can be told from it.

    Attributes:
        model_type: config.json's.
        source: `org/name` of the source, if known.
        recipe: The recipe's name.
        config: SHA-256 of config.json, None before it is made.
        names: Names of its files.
    """

    model_type: str
    source: str | None
    recipe: str
    config: str | None
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Standing:
    """What was found: how it is another model, None if it is none; and weights of others that are to be deleted."""

    other: str | None = None
    delete: tuple[str, ...] = ()


def wanted_of(record: Record) -> Wanted:
    """What a record's folder is."""
    hashes = record.hashes()
    source = record.source
    names = frozenset({*hashes, *DERIVED_FILES})
    return Wanted(source.model_type, source.repo, record.recipe.name, hashes.get(CONFIG_FILE), names)


def foreign_weights(names: Collection[str], ours: Collection[str]) -> tuple[str, ...]:
    """Files that are not ours, and that stock readers would take for weights, or an index, of the same model."""
    return tuple(
        sorted(
            name for name in names if name not in ours and (fnmatchcase(name, LOADED) or fnmatchcase(name, ANY_INDEX))
        )
    )


def require_standing(
    hub: PatientHub, to: Destination, place: Place, wanted: Wanted, earlier: Record | None = None
) -> Standing:
    """What stands at a destination, if it may be published over; `earlier` is its record, if that was read.

    Raises:
        HubError: Another model stands there, and `to` does not allow to replace it; or weights of somebody else, and it
            does not allow to delete them; or the Hub could not be reached.
    """
    if place.head is None or not place.files:
        return Standing()
    earlier = earlier or read_earlier(hub, to, place)
    other = "; ".join(_differences(hub, to, place, wanted, earlier)) or None
    if other is not None and not to.replace:
        raise HubError(
            "the repo holds another model",
            where=to.repo,
            found=other,
            remedy="publish to another repo, or replace it with --replace: its card is then not taken over",
        )
    ours = {*wanted.names, *(earlier.hashes() if earlier is not None else ()), *DERIVED_FILES}
    foreign = foreign_weights([name for name in place.files if "/" not in name], ours)
    if foreign and not to.delete_foreign:
        raise HubError(
            "the repo holds weights of somebody else, which mlx-lm would load too",
            where=to.repo,
            found=", ".join(foreign),
            remedy="publish to another repo, or delete them in the same commit with --delete-foreign",
        )
    return Standing(other, foreign)


def read_earlier(hub: PatientHub, to: Destination, place: Place) -> Record | None:
    """The record at a destination, None if there is none that can be read."""
    if RECORD_FILE not in place.files or place.head is None:
        return None
    try:
        return decode_record(read_hub_file(hub, to.repo, place.head, RECORD_FILE) or b"")
    except RecordError:
        return None  # the upload says so, and deletes nothing


def _differences(
    hub: PatientHub, to: Destination, place: Place, wanted: Wanted, earlier: Record | None
) -> Iterator[str]:
    if earlier is None:
        if RECORD_FILE not in place.files and CONFIG_FILE in place.files:
            yield from _foreign_config(hub, to, place.files[CONFIG_FILE], place.head or "", wanted)
        return
    source = earlier.source
    if source.model_type != wanted.model_type:
        yield f"model type {source.model_type}, this is {wanted.model_type}"
    if None not in (source.repo, wanted.source) and source.repo != wanted.source:
        yield f"source {source.repo}, this is of {wanted.source}"
    if earlier.recipe.name != wanted.recipe:
        yield f"recipe {earlier.recipe.name}, this is {wanted.recipe}"


def _foreign_config(hub: PatientHub, to: Destination, file: HubFile, head: str, wanted: Wanted) -> Iterator[str]:
    """How a config.json that hubtool did not put there says that the model is another."""
    raw = read_hub_file(hub, to.repo, head, CONFIG_FILE) or b""
    try:
        found: Mapping[str, object] = parse_object(raw, CONFIG_FILE)
    except SourceError:
        found = {}
    if wanted.config is not None and file.sha256 == wanted.config:
        return
    yield f"a model that hubtool did not publish, model type {found.get('model_type', 'unknown')}"
