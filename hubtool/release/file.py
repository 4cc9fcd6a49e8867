"""A release of several variants from one file, `release.toml`: made in one pass, published, and asked how far it is.

source = "deepseek-ai/DeepSeek-V4-Flash"        # a folder beside this file, or org/name[@revision]
repo = "someone/DeepSeek-V4-Flash-{recipe}"     # what the variants are published as
out = "work"                                    # where their folders lie, beside this file
disk_limit = "20GB"                             # most bytes of a source on the Hub that lie on the disk at once
keep_source = false                             # whether what was fetched of it stays
private = true                                  # of repos that have to be made
public_after_verify = false
tag = "v1.0"                                    # of every variant; by default from each record
validate = ["integrity"]                        # rungs to pass first, or "none"; without: all that memory allows
pull_request = false                            # propose to the repos instead of committing to them
stream = false                                  # send each shard while it is made, so that none lies on this disk
sign = "release.key"                            # a private key (PEM) beside this file
statistics = "statistics.safetensors"           # what calibration measured, beside this file, for recipes that fit

[quality]                                       # how far predictions are from the source's, all variants in one run
text = "wiki.test.raw"                          # beside this file, or hf://datasets/ORG/NAME@COMMIT/FILE
tokens = 16384
context = 512

[collection]                                    # by its slug, or made by its title
title = "DeepSeek-V4 for MLX"

[card]
templates = "templates"                         # beside this file
tags = ["chat"]                                 # the publisher's own, beside hubtool's
languages = ["en"]                              # of the model, beside those that its source names

[[variant]]
recipe = "mixed_3_6"                            # a name, or a file beside this one
notes = "Fits a machine of 192 GB."             # into the card's notes, where those are empty

[[variant]]
recipe = "native"
repo = "someone/DeepSeek-V4-Flash-original"
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from hubtool import units
from hubtool.card.documents import Wording
from hubtool.errors import UsageError
from hubtool.files.formats import decode_toml
from hubtool.files.read import is_file, is_folder, read_small
from hubtool.hub.destination import Destination
from hubtool.hub.rules import is_repo_id
from hubtool.record import Rung
from hubtool.release.release import Collection, QualityOf, Release, Variant, require_notes
from hubtool.validate.quality import DEFAULT_CONTEXT, DEFAULT_TOKENS


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file, which may hold nothing unknown."""


class VariantTable(_Strict, frozen=True):
    """One conversion: its recipe, what it is published as if not by the pattern, and what its card notes."""

    recipe: str
    repo: str | None = None
    notes: str = ""


class CollectionTable(_Strict, frozen=True):
    """A collection by its slug, or one that is made by its title."""

    slug: str | None = None
    title: str | None = None
    description: str | None = None


class CardTable(_Strict, frozen=True):
    """How the cards are worded."""

    templates: str | None = None
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


class QualityTable(_Strict, frozen=True):
    """What the variants' predictions are measured on."""

    text: str
    tokens: Annotated[int, msgspec.Meta(ge=2)] = DEFAULT_TOKENS
    context: Annotated[int, msgspec.Meta(ge=4)] = DEFAULT_CONTEXT


class _File(_Strict, frozen=True):
    source: str
    variant: tuple[VariantTable, ...]
    repo: str | None = None
    base_model: str | None = None
    out: str | None = None
    disk_limit: str | None = None
    keep_source: bool = False
    private: bool = True
    public_after_verify: bool = False
    revision: str = "main"
    tag: str | None = None
    validate: tuple[Rung, ...] | Literal["none"] | None = None
    pull_request: bool = False
    stream: bool = False
    sign: str | None = None
    statistics: str | None = None
    quality: QualityTable | None = None
    collection: CollectionTable = CollectionTable()
    card: CardTable = CardTable()


def load_release(path: Path) -> Release:
    """What a release.toml says.

    Raises:
        SourceError: It cannot be read.
        UsageError: It holds something unknown, or contradicts itself.
    """
    file = decode_toml(read_small(path), _File, path)
    beside = path.absolute().parent
    out = beside / (file.out or path.stem)
    variants = tuple(_resolve(each, file, beside, out, path) for each in file.variant)
    repos = [each.destination.repo for each in variants]
    if not variants:
        raise UsageError("a release without variants", where=path, found="none", remedy="add a [[variant]] table")
    _require_distinct(path, repos, "two variants publish to the same repo", "give each variant a `repo` of its own")
    folders = [each.folder.name for each in variants]
    _require_distinct(path, folders, "two variants have the same folder", "give their repos different names")
    local = beside / file.source
    templates = beside / file.card.templates if file.card.templates else None
    if templates is not None and not is_folder(templates):
        raise UsageError("no such folder", where=f"{path}: card.templates", found=templates, remedy="check the path")
    wording = Wording(templates, tags=file.card.tags, languages=file.card.languages)
    wording.check(f"{path}: card")
    return Release(
        source=str(local) if is_folder(local) else file.source,
        base_model=file.base_model,
        out=out,
        disk_limit=_parse_limit(file.disk_limit, path),
        keep_source=file.keep_source,
        variants=variants,
        validate=() if file.validate == "none" else file.validate,
        quality=_quality(file.quality, beside),
        collection=Collection(file.collection.slug, file.collection.title, file.collection.description),
        wording=wording,
        statistics=beside / file.statistics if file.statistics else None,
        stream=file.stream,
        sign_key=beside / file.sign if file.sign else None,
    )


def _quality(table: QualityTable | None, beside: Path) -> QualityOf | None:
    """The text beside the file, unless it is one of the Hub."""
    if table is None:
        return None
    local = beside / table.text
    return QualityOf(str(local) if is_file(local) else table.text, table.tokens, table.context)


def _parse_limit(text: str | None, path: Path) -> int | None:
    try:
        return None if text is None else units.parse_nbytes(text)
    except ValueError as error:
        raise UsageError("no size", where=f"{path}: disk_limit", found=str(error), remedy='as "20GB"') from error


def _require_distinct(path: Path, names: Sequence[str], what: str, remedy: str) -> None:
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UsageError(what, where=path, found=twice, expected="each once", remedy=remedy)


def _resolve(variant: VariantTable, file: _File, beside: Path, out: Path, path: Path) -> Variant:
    name = Path(variant.recipe).stem if variant.recipe.endswith(".toml") else variant.recipe
    repo = (variant.repo or file.repo or "").replace("{recipe}", name)
    if not is_repo_id(repo):
        raise UsageError(
            "not a name that the Hub allows",
            where=f"{path}: variant {name}",
            found=repo or "none",
            expected="ORG/NAME, of the variant or with {recipe} of the release",
            remedy="correct `repo`",
        )
    require_notes(variant.notes, f"{path}: variant {name}: notes")
    local = beside / variant.recipe
    return Variant(
        recipe=str(local) if is_file(local) else variant.recipe,
        destination=Destination(
            repo,
            private=file.private,
            revision=file.revision,
            pull_request=file.pull_request,
            tag=file.tag,
            public_after_verify=file.public_after_verify,
        ),
        folder=out / repo.rpartition("/")[2],
        notes=variant.notes,
    )
