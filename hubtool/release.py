"""The stages in their order: source, plan, convert, measure, record, card, upload, verify."""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import huggingface_hub
import msgspec

import hubtool
from hubtool import hub
from hubtool.architectures import read_model
from hubtool.card import render_card
from hubtool.convert import Target, check_folder, convert
from hubtool.errors import OutputError, VerificationError
from hubtool.folder import carried_files, source_metadata, write_documents
from hubtool.journal import STATE_DIR, Journal, write_beside
from hubtool.measure import measure
from hubtool.plan import Plan, make_plan
from hubtool.recipe import load_recipe
from hubtool.record import (
    RECORD_FILE,
    SCHEMA,
    ComponentRecord,
    DroppedRecord,
    FileRecord,
    PlanRecord,
    RecipeRecord,
    Record,
    SourceRecord,
    encode_record,
    read_record,
)
from hubtool.source import CARD_FILE, CONFIG_FILE, LocalSource, Source, parse_base_model


class Watch(Protocol):
    """Who is told how a run goes; the terminal, a log, or nobody."""

    def stage(self, name: str, total_nbytes: int = 0) -> AbstractContextManager[Callable[[int, str], None]]:
        """A stage for the time of a `with`; it gives a function that takes bytes done and a label."""

    def say(self, text: str) -> None:
        """A fact that the person should read."""


@dataclass(frozen=True)
class Converted:
    """A finished folder."""

    folder: Path
    record: Record
    fresh: bool


@dataclass(frozen=True)
class Release:
    """A finished folder, published and verified."""

    converted: Converted
    published: hub.Published
    verification: hub.Verification


def open_source(spec: str, base_model: str | None = None) -> Source:
    """The checkpoint that a command line names.

    Args:
        spec: A folder.
        base_model: What the publisher says it is, `ORG/NAME[@COMMIT]`.

    Raises:
        SourceError: There is no such folder.
        UsageError: `base_model` is not one.
    """
    return LocalSource(Path(spec), *([parse_base_model(base_model)] if base_model else []))


def plan_source(source: Source, recipes: Sequence[str]) -> tuple[Plan, ...]:
    """A plan for each recipe, by name or file.

    Raises:
        SourceError: The checkpoint cannot be used.
        RecipeError: A recipe cannot be used, or not for this checkpoint.
    """
    chosen = [load_recipe(recipe) for recipe in recipes]
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    return tuple(make_plan(model, recipe) for recipe in chosen)


def convert_source(source: Source, plan: Plan, folder: Path, jobs: int, watch: Watch) -> Converted:
    """Make the finished folder of a plan, or find that it is there.

    Raises:
        HubtoolError: Any stage failed; what was done is kept, and the same call goes on.
    """
    metadata = source_metadata(source)
    if (record := finished(source, plan, folder)) is not None:
        watch.say(f"{folder} is finished: nothing to convert")
        return Converted(folder, record, fresh=False)
    target = Target(plan, folder)
    with ThreadPoolExecutor(1, "hubtool-hash") as pool:
        with watch.stage("convert", plan.nbytes) as advance:
            files: Future[tuple[FileRecord, ...]] | None = None
            for step in convert(source, [target], jobs):
                if files is None:
                    files = pool.submit(hash_source, source, folder / STATE_DIR)
                advance(step.nbytes, step.label)
        source_files = files.result() if files else hash_source(source, folder / STATE_DIR)
    with watch.stage("measure") as advance:
        write_documents(source, plan, folder)
        record = make_record(source, plan, folder, metadata, source_files)
    write_beside(folder / CARD_FILE, render_card(record).encode())
    write_beside(folder / RECORD_FILE, encode_record(record))
    return Converted(folder, record, fresh=True)


def finished(source: Source, plan: Plan, folder: Path) -> Record | None:
    """The record of a folder if it was made by this plan and every file is there at its size, else None.

    Raises:
        OutputError: The folder belongs to another plan or source.
    """
    check_folder(Target(plan, folder), source)
    record = read_record(folder) if folder.is_dir() else None
    if record is None or record.plan.digest != plan.digest:
        return None
    sizes = {file.name: file.nbytes for file in record.files}
    there = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
    return record if there and (folder / CARD_FILE).is_file() else None


class _HashedFile(msgspec.Struct, frozen=True):
    stamp: str
    file: FileRecord


def hash_source(source: Source, state: Path) -> tuple[FileRecord, ...]:
    """Name, SHA-256 and size of every file of the source that the conversion reads.

    What was hashed is kept in `state`, so that a run that goes on does not read the source again.
    """
    cache = state / "source.json"
    known = msgspec.json.decode(cache.read_bytes(), type=dict[str, _HashedFile]) if cache.is_file() else {}
    hashed: dict[str, _HashedFile] = {}
    for name in (CONFIG_FILE, CARD_FILE, *carried_files(source), *source.shards):
        stamp = source.stamp(name)
        entry = known.get(name)
        if entry is None or entry.stamp != stamp:
            entry = _HashedFile(stamp, FileRecord(name=name, sha256=source.sha256(name), nbytes=source.nbytes(name)))
        hashed[name] = entry
        write_beside(cache, msgspec.json.encode({**known, **hashed}))
    return tuple(entry.file for _, entry in sorted(hashed.items()))


def make_record(
    source: Source,
    plan: Plan,
    folder: Path,
    metadata: dict[str, str | list[str]],
    source_files: tuple[FileRecord, ...],
) -> Record:
    """The record of a folder whose files are all written.

    Raises:
        OutputError: What was measured is not what was planned.
    """
    measurement = measure(folder, None, Journal(folder).load().shards)
    planned = plan_record(plan)
    problems = list(measurement.disagreements)
    for key in ("nbytes", "parameters", "tensors", "shards", "dtypes"):
        if getattr(measurement.facts, key) != getattr(planned, key):
            problems.append(f"{key}: planned {getattr(planned, key)}, measured {getattr(measurement.facts, key)}")
    if problems:
        raise OutputError(
            "the folder is not what was planned",
            where=folder,
            found="; ".join(problems),
            remedy="remove the folder, convert again, and report this",
        )
    identity = source.identity
    return Record(
        schema=SCHEMA,
        source=SourceRecord(
            repo=identity.repo,
            repo_known=identity.repo_known,
            commit=identity.commit,
            commit_known=identity.commit_known,
            architecture=plan.model.architecture,
            model_type=plan.model.model_type,
            metadata=metadata,
            files=source_files,
            dropped=tuple(
                DroppedRecord(names=item.names, tensors=item.tensors, nbytes=item.nbytes, reason=item.reason)
                for item in plan.model.dropped
            ),
        ),
        recipe=RecipeRecord(
            name=plan.recipe.name, summary=plan.recipe.summary, sha256=plan.recipe.sha256, text=plan.recipe.text
        ),
        versions=versions(),
        plan=planned,
        measured=measurement.facts,
        files=tuple(file for file in measurement.files if file.name not in (RECORD_FILE, CARD_FILE)),
    )


def plan_record(plan: Plan) -> PlanRecord:
    """What of a plan goes into the record."""
    quantization = plan.quantization() or {}
    return PlanRecord(
        digest=plan.digest,
        nbytes=plan.nbytes,
        parameters=plan.parameters,
        tensors=plan.tensors,
        shards=len(plan.shards),
        dtypes=plan.dtypes,
        mode=quantization.get("mode"),
        group_size=quantization.get("group_size"),
        label_bits=quantization.get("bits"),
        components=tuple(
            ComponentRecord(
                name=share.component.value, parameters=share.parameters, nbytes=share.nbytes, formats=share.formats
            )
            for share in plan.shares
        ),
    )


def versions() -> dict[str, str]:
    """Hubtool and the libraries that make the bytes, with their versions."""
    libraries = {name: importlib.metadata.version(name) for name in ("mlx", "numpy")}
    return {"hubtool": hubtool.__version__, **libraries, "python": platform.python_version()}


def publish_folder(api: huggingface_hub.HfApi, converted: Converted, to: hub.Destination, watch: Watch) -> Release:
    """Upload a finished folder and verify what the Hub then has.

    Raises:
        HubError: The Hub refused, or could not be reached.
        VerificationError: The Hub has other bytes than the record says.
    """
    total = sum((converted.folder / name).stat().st_size for name in hub.published_names(converted.record))
    with watch.stage("upload", total) as advance:
        published = hub.upload(
            api,
            converted.folder,
            converted.record,
            to,
            progress=lambda name, nbytes: advance(nbytes, name),
        )
    if not published.changed:
        watch.say(f"{to.repo} has every file already: nothing to upload")
    with watch.stage("verify"):
        verification = hub.verify(api, to.repo, folder=converted.folder)
    require_verified(verification)
    return Release(converted, published, verification)


def require_verified(verification: hub.Verification) -> None:
    """Raise VerificationError if anything on the Hub is not what it should be."""
    if verification.problems:
        raise VerificationError(
            "the Hub's files are not those of the record",
            where=f"{verification.repo} at {verification.commit}",
            found="; ".join(verification.problems),
            remedy="upload again; if it stays so, do not release this repo",
        )
