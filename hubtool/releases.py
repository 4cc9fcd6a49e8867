"""A release of several variants from one file, `release.toml`: made in one pass, published, and asked how far it is.

source = "deepseek-ai/DeepSeek-V4-Flash"        # a folder beside this file, or org/name[@revision]
repo = "someone/DeepSeek-V4-Flash-{recipe}"     # what the variants are published as
out = "work"                                    # where their folders lie, beside this file
disk_limit = "20GB"                             # most bytes of a source on the Hub that lie on the disk at once
keep_source = false                             # whether what was fetched of it stays
private = true                                  # of repos that have to be made
public_after_verify = false
tag = "v1.0"                                    # of every variant; by default from each record
validate = ["integrity"]                        # rungs that have to be passed before anything is published

[collection]                                    # by its slug, or made by its title
title = "DeepSeek-V4 for MLX"

[card]
templates = "templates"                         # beside this file

[[variant]]
recipe = "mixed_3_6"                            # a name, or a file beside this one
notes = "Fits a machine of 192 GB."             # into the card's notes, where those are empty

[[variant]]
recipe = "native"
repo = "someone/DeepSeek-V4-Flash-original"
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from huggingface_hub import HfApi

from hubtool import hub, units
from hubtool.card import current_evidence, find_prose_fault
from hubtool.conversion import Converted, Effort, Watch, convert_sources
from hubtool.convert import Target
from hubtool.documents import Wording, address
from hubtool.errors import HubError, RecordError, UsageError, VerificationError
from hubtool.hubrules import is_repo_id
from hubtool.planning import open_source, plan_source
from hubtool.record import (
    RECORD_FILE,
    Evidence,
    Record,
    SiblingRecord,
    read_record,
)
from hubtool.release import PATIENCE, Release, check_before, foresee, look, publish_folder
from hubtool.source import Source

RUNGS = ("integrity", "load", "smoke", "smoke-streamed")
Rung = Literal["integrity", "load", "smoke", "smoke-streamed"]
Validate = Callable[[Path, Sequence[Rung]], Sequence[Evidence]]
"""Climbs rungs for a folder, writes the evidence into its record, and gives it."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file, which may hold nothing unknown."""


class Variant(_Strict, frozen=True):
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
    """How the cards are made."""

    templates: str | None = None


class _File(_Strict, frozen=True):
    source: str
    variant: tuple[Variant, ...]
    repo: str | None = None
    base_model: str | None = None
    out: str | None = None
    disk_limit: str | None = None
    keep_source: bool = False
    private: bool = True
    public_after_verify: bool = False
    revision: str = "main"
    tag: str | None = None
    validate: tuple[Rung, ...] = ()
    collection: CollectionTable = CollectionTable()
    card: CardTable = CardTable()


@dataclass(frozen=True)
class Planned:
    """A variant with its names resolved."""

    recipe: str
    destination: hub.Destination
    folder: Path
    notes: str


@dataclass(frozen=True)
class ReleaseFile:
    """What release.toml says, with every path made absolute.

    Attributes:
        path: The file.
        source: A folder, or `org/name[@revision]`.
        base_model: What the publisher says it is.
        out: Where the folders of the variants lie.
        disk_limit: Most bytes of a source on the Hub that lie on the disk at once.
        keep_source: Whether what was fetched of it stays.
        variants: In the order of the file.
        validate: Rungs that have to be passed before anything is published.
        collection: Where to collect the repos.
        templates: Templates that go before hubtool's.
    """

    path: Path
    source: str
    base_model: str | None
    out: Path
    disk_limit: int | None
    keep_source: bool
    variants: tuple[Planned, ...]
    validate: tuple[Rung, ...]
    collection: CollectionTable
    templates: Path | None


def load_release(path: Path) -> ReleaseFile:
    """What a release.toml says.

    Raises:
        UsageError: It cannot be read, holds something unknown, or contradicts itself.
    """
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise UsageError("cannot be read", where=path, found=error.strerror, remedy="check the path") from error
    except msgspec.DecodeError as error:
        raise UsageError("not a release", where=path, found=str(error), remedy="mend the file") from error
    beside = path.absolute().parent
    out = beside / (file.out or path.stem)
    variants = tuple(_resolve(each, file, beside, out, path) for each in file.variant)
    repos = [each.destination.repo for each in variants]
    if not variants or len(set(repos)) < len(repos) or len({each.folder for each in variants}) < len(variants):
        raise UsageError(
            "needs variants with a repo of its own each", where=path, found=", ".join(repos) or "none", remedy="mend it"
        )
    local = beside / file.source
    templates = beside / file.card.templates if file.card.templates else None
    if templates is not None and not templates.is_dir():
        raise UsageError("no such folder", where=f"{path}: card.templates", found=templates, remedy="check the path")
    return ReleaseFile(
        path=path,
        source=str(local) if local.is_dir() else file.source,
        base_model=file.base_model,
        out=out,
        disk_limit=_parse_limit(file.disk_limit, path),
        keep_source=file.keep_source,
        variants=variants,
        validate=file.validate,
        collection=file.collection,
        templates=templates,
    )


def _parse_limit(text: str | None, path: Path) -> int | None:
    try:
        return None if text is None else units.parse_nbytes(text)
    except ValueError as error:
        raise UsageError("no size", where=f"{path}: disk_limit", found=str(error), remedy='as "20GB"') from error


def _resolve(variant: Variant, file: _File, beside: Path, out: Path, path: Path) -> Planned:
    name = Path(variant.recipe).stem if variant.recipe.endswith(".toml") else variant.recipe
    repo = (variant.repo or file.repo or "").replace("{recipe}", name)
    if not is_repo_id(repo):
        raise UsageError(
            "no name that the Hub allows",
            where=f"{path}: variant {name}",
            found=repo or "none",
            expected="ORG/NAME, of the variant or with {recipe} of the release",
            remedy="mend `repo`",
        )
    if fault := find_prose_fault(variant.notes):
        raise UsageError(
            "cannot stand in a card",
            where=f"{path}: variant {name}: notes, line {fault.line}",
            found=fault.found,
            remedy="close it, or leave it out",
        )
    local = beside / variant.recipe
    return Planned(
        recipe=str(local) if local.is_file() else variant.recipe,
        destination=hub.Destination(
            repo,
            private=file.private,
            revision=file.revision,
            tag=file.tag,
            public_after_verify=file.public_after_verify,
        ),
        folder=out / repo.rpartition("/")[2],
        notes=variant.notes,
    )


def publish_release(
    api: HfApi, release: ReleaseFile, effort: Effort, watch: Watch, validate: Validate | None = None
) -> list[Release]:
    """Convert all variants in one pass over the source, then publish each; what is done already is not done again.

    Args:
        api: The Hub.
        release: What is wanted.
        effort: How the conversion works.
        watch: Told how it goes.
        validate: Climbs the rungs that the release asks for.

    Raises:
        VerificationError: A rung that has to be passed was not.
        HubtoolError: Any stage failed; what was done is kept, and the same call goes on.
    """
    converted = _convert(api, release, effort, watch)
    for each in converted:
        missing = _missing_rungs(each.folder, release.validate)
        if missing and validate is not None:
            _require_passed(each.folder, validate(each.folder, missing))
    variants = [_sibling(planned, each.record) for planned, each in zip(release.variants, converted, strict=True)]
    published = []
    for planned, each in zip(release.variants, converted, strict=True):
        repo = planned.destination.repo
        others = [variant for variant in variants if variant.repo != repo]
        wording = Wording(release.templates, planned.notes)
        record = address(each.folder, _require_record(each.folder), repo, others, wording)
        published.append(publish_folder(api, Converted(each.folder, record, each.fresh), planned.destination, watch))
    _collect(hub.PatientHub(api, PATIENCE, watch.say), release)
    return published


@dataclass(frozen=True)
class Foreseen:
    """What publishing a variant would do, and whether its folder is finished."""

    converted: bool
    to: hub.Destination
    outlook: hub.Outlook


def look_at_release(api: HfApi, release: ReleaseFile, watch: Watch) -> list[Foreseen]:
    """What `publish_release` would do, after all its checks; nothing is written.

    Raises:
        HubtoolError: A check failed.
    """
    with closing(_open_source(release)) as source:
        return [
            Foreseen(converted, to, outlook)
            for target, to in _targets(source, release, watch)
            for converted, outlook in [look(api, source, target, to, watch)]
        ]


def _convert(api: HfApi, release: ReleaseFile, effort: Effort, watch: Watch) -> list[Converted]:
    with closing(_open_source(release)) as source:
        targets = _targets(source, release, watch)
        for target, to in targets:
            foresee(api, target.plan, target.folder, to, watch)
        return convert_sources(source, [target for target, _ in targets], effort, watch)


def _targets(source: Source, release: ReleaseFile, watch: Watch) -> list[tuple[Target, hub.Destination]]:
    for each in release.variants:
        check_before(source, each.destination.repo, watch)
    plans = plan_source(source, [each.recipe for each in release.variants])
    return [(Target(plan, each.folder), each.destination) for plan, each in zip(plans, release.variants, strict=True)]


def _open_source(release: ReleaseFile) -> Source:
    return open_source(
        release.source,
        release.base_model,
        out=release.out,
        disk_limit=release.disk_limit,
        keep_source=release.keep_source,
    )


def _sibling(planned: Planned, record: Record) -> SiblingRecord:
    return SiblingRecord(
        repo=planned.destination.repo,
        recipe=record.recipe.name,
        nbytes=record.measured.nbytes,
        effective_bits=record.measured.effective_bits,
    )


def _require_record(folder: Path) -> Record:
    record = read_record(folder)
    if record is None:
        raise RecordError("no record", where=folder, expected=RECORD_FILE, remedy="run it again")
    return record


def _missing_rungs(folder: Path, wanted: Sequence[Rung]) -> Sequence[Rung]:
    """The rungs of which nobody measured that these very files pass them."""
    evidence = current_evidence(_require_record(folder))
    passed = {each.check for each in evidence if (each.kind, each.outcome) == ("measured", "passed")}
    return [rung for rung in wanted if rung not in passed]


def _require_passed(folder: Path, evidence: Sequence[Evidence]) -> None:
    failed = [each for each in evidence if each.outcome != "passed"]
    if failed:
        raise VerificationError(
            "a validation that the release asks for was not passed",
            where=folder,
            found="; ".join(f"{each.check}: {each.outcome}, {each.detail}" for each in failed),
            remedy="see why, or take the rung out of `validate`",
        )


def _collect(target: hub.PatientHub, release: ReleaseFile) -> None:
    """Add every repo to the collection, which is made if there is none of its title."""
    wanted = release.collection
    slug = wanted.slug
    if slug is None and wanted.title is not None:
        title, namespace = wanted.title, _collection_owner(release)
        slug = target.attempt(
            f"collection {title}",
            lambda: (
                target.api.create_collection(
                    title, namespace=namespace, description=wanted.description, exists_ok=True
                ).slug
            ),
        )
    for planned in release.variants if slug else ():
        assert slug is not None
        hub.add_to_collection(target, slug, planned.destination.repo)


@dataclass(frozen=True)
class VariantStatus:
    """How far a variant is.

    Attributes:
        recipe: Its recipe.
        repo: Its repo.
        converted: Whether its folder is finished.
        published: The commit of the repo that has exactly the folder's files, None if there is none.
        problems: What the repo lacks or has otherwise, or what else is still to be done with it.
        tagged: Whether the tag of the release names a commit that has the folder's record.
    """

    recipe: str
    repo: str
    converted: bool
    published: str | None
    problems: tuple[str, ...]
    tagged: bool

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self.published is not None and self.tagged and not self.problems


def release_status(api: HfApi, release: ReleaseFile, watch: Watch) -> list[VariantStatus]:
    """How far each variant is, by its folder and by what the Hub says.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    target = hub.PatientHub(api, PATIENCE, watch.say)
    return [_variant_status(target, release, planned) for planned in release.variants]


def _variant_status(target: hub.PatientHub, release: ReleaseFile, planned: Planned) -> VariantStatus:
    to, folder = planned.destination, planned.folder
    record = read_record(folder) if folder.is_dir() else None
    name = Path(planned.recipe).stem
    if record is None:
        return VariantStatus(name, to.repo, False, None, ("not converted",), False)
    if record.repo is None:
        return VariantStatus(name, to.repo, True, None, ("not published",), False)
    # The Hub's hashes of all else are compared with the record, which is one of these.
    names = [each for each in hub.published_names(record, folder) if each not in record.hashes()]
    try:
        seen = hub.verify(target, to.repo, revision=to.revision, folder=folder, names=names)
        if seen.problems:
            return VariantStatus(name, to.repo, True, None, seen.problems, False)
        tagged = hub.find_tag(target, to.repo, to.tag or hub.default_tag(record))
        whole = tagged is not None and hub.has_record(target, to.repo, tagged, record)
        left = tuple(_left(target, release, to))
    except (VerificationError, HubError) as error:
        return VariantStatus(name, to.repo, True, None, (str(error),), False)
    return VariantStatus(name, to.repo, True, seen.commit, left, whole)


def _left(target: hub.PatientHub, release: ReleaseFile, to: hub.Destination) -> Iterator[str]:
    """What is still to be done with a repo that has every file."""
    if to.public_after_verify and target.attempt(to.repo, lambda: target.api.model_info(to.repo)).private:
        yield "still private"
    wanted = release.collection
    if wanted.slug is None and wanted.title is None:
        return
    slug = wanted.slug or _find_collection(target, wanted.title, _collection_owner(release))
    collected = slug and target.attempt(f"collection {slug}", lambda: target.api.get_collection(slug))
    if not collected or to.repo not in [item.item_id for item in collected.items]:
        yield f"not in the collection {wanted.slug or wanted.title}"


def _find_collection(target: hub.PatientHub, title: str | None, owner: str) -> str | None:
    found = target.attempt(f"collection {title}", lambda: list(target.api.list_collections(owner=owner)))
    return next((each.slug for each in found if each.title == title), None)


def _collection_owner(release: ReleaseFile) -> str:
    return release.variants[0].destination.repo.partition("/")[0]
