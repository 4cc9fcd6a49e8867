"""Makes the record of a folder: what was planned, what was measured, and the source's hashes."""

import importlib.metadata
import platform
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import hubtool
from hubtool.checkpoint.measure import Measurement, measure
from hubtool.checkpoint.metadata import source_metadata
from hubtool.checkpoint.source import CONFIG_FILE, INDEX_FILE, Source, stopped
from hubtool.checkpoint.usable import carried_files
from hubtool.convert.config import chat_template
from hubtool.convert.device import require_backend
from hubtool.convert.job import Job
from hubtool.convert.journal import Journal, Progress
from hubtool.errors import OutputError, SourceError
from hubtool.files.formats import decode_json
from hubtool.files.whole import write_beside
from hubtool.models import Component, Parameter, architecture_of
from hubtool.plan.plan import FIT_CANDIDATES, Plan
from hubtool.record import (
    CARD_FILE,
    SCHEMA,
    CacheRecord,
    ComponentRecord,
    DroppedRecord,
    FileRecord,
    FitRecord,
    LayerRecord,
    PlanRecord,
    RecipeRecord,
    Record,
    SourceRecord,
    WeightErrorRecord,
)


class _HashedFile(msgspec.Struct, frozen=True):
    stamp: str
    file: FileRecord


@contextmanager
def hashing(source: Source, state: Path) -> Iterator[Callable[[], Future[tuple[FileRecord, ...]]]]:
    """What begins to hash the source in a thread: see `hash_source`. If the `with` fails, the thread ends with it."""
    ended = threading.Event()
    with ThreadPoolExecutor(1, "hubtool-source") as pool:
        try:
            yield lambda: pool.submit(hash_source, source, state, ended)
        except BaseException:
            ended.set()
            source.stop()
            raise


def hash_source(source: Source, state: Path, ended: threading.Event | None = None) -> tuple[FileRecord, ...]:
    """Name, SHA-256 and size of every file of the source that the conversion reads.

    What was hashed is kept in `state`, so that a run that goes on does not read the source again.

    Raises:
        SourceError: A file cannot be read, or `ended` was set meanwhile.
    """
    cache = state / "source.json"
    known = _read_hashed(cache)
    hashed: dict[str, _HashedFile] = {}
    index = [INDEX_FILE] if INDEX_FILE in source.files else []
    for name in (CONFIG_FILE, CARD_FILE, *index, *carried_files(source), *source.shards):
        stamp = source.stamp(name)
        entry = known.get(name)
        if entry is None or entry.stamp != stamp:
            if ended is not None and ended.is_set():
                raise stopped(name)
            entry = _HashedFile(stamp, FileRecord(name=name, sha256=source.sha256(name), nbytes=source.nbytes(name)))
        hashed[name] = entry
        write_beside(cache, msgspec.json.encode({**known, **hashed}))
    return tuple(entry.file for _, entry in sorted(hashed.items()))


def _read_hashed(cache: Path) -> Mapping[str, _HashedFile]:
    """What an earlier run has hashed; nothing if that cannot be read."""
    if not cache.is_file():
        return {}
    try:
        return decode_json(cache.read_bytes(), dict[str, _HashedFile], cache)
    except SourceError:
        return {}


def make_record(
    source: Source,
    job: Job,
    source_files: tuple[FileRecord, ...],
    published: Collection[str],
    error_rows: int,
) -> Record:
    """The record of a folder whose files are all written; of them it names those that are `published`.

    `error_rows` is the sample of rows by which the conversion measured its error.

    Raises:
        OutputError: What was measured is not what was planned.
    """
    plan, folder = job.plan, job.folder
    progress = Journal(folder).load()
    known = {shard.file: progress.sha256(folder / shard.file) for shard in plan.shards}
    measurement = measure(folder, None, {file: sha256 for file, sha256 in known.items() if sha256})
    files = tuple(file for file in measurement.files if file.name in published)
    return record_findings(source, plan, Findings(folder, source_files, measurement, files, progress, error_rows))


@dataclass(frozen=True)
class Findings:
    """What is known of a conversion when all of its files are made.

    Attributes:
        folder: The output folder, for messages.
        source_files: Of the source, what was read.
        measurement: What the files hold.
        files: Those that are published, but for what is made of the record.
        progress: Holds the errors that were measured, and what of the source was read unverified.
        error_rows: The sample of rows by which they were.
    """

    folder: Path
    source_files: tuple[FileRecord, ...]
    measurement: Measurement
    files: tuple[FileRecord, ...]
    progress: Progress
    error_rows: int


def record_findings(source: Source, plan: Plan, findings: Findings) -> Record:
    """The record of a conversion, wherever its files lie.

    Raises:
        OutputError: What was measured is not what was planned.
    """
    errors = _Errors(plan, findings.progress if findings.error_rows else None)
    measurement = findings.measurement
    planned = plan_record(plan, errors)
    problems = list(measurement.disagreements)
    for key in ("nbytes", "parameters", "tensors", "shards", "dtypes"):
        if getattr(measurement.facts, key) != getattr(planned, key):
            problems.append(f"{key}: planned {getattr(planned, key)}, measured {getattr(measurement.facts, key)}")
    if problems:
        raise OutputError(
            "the folder is not what was planned",
            where=findings.folder,
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
            metadata=source_metadata(source),
            files=findings.source_files,
            dropped=tuple(
                DroppedRecord(names=item.names, tensors=item.tensors, nbytes=item.nbytes, reason=item.reason)
                for item in plan.model.dropped
            ),
            encodings=encodings(plan),
            unverified=tuple(sorted(findings.progress.unverified)),
            chat_template=chat_template(source, plan.model.config).reason,
        ),
        recipe=RecipeRecord(
            name=plan.recipe.name,
            summary=plan.recipe.summary,
            sha256=plan.recipe.sha256,
            text=plan.recipe.text,
            description=" ".join(plan.recipe.description.split()),
        ),
        versions=versions(),
        plan=planned,
        measured=measurement.facts,
        files=findings.files,
        weight_error=errors.record(findings.error_rows),
        fit=fit_record(plan),
    )


class _Errors:
    """The errors that the journal holds, by whatever the plan's steps are grouped by."""

    def __init__(self, plan: Plan, progress: Progress | None) -> None:
        self._plan = plan
        self._sums: dict[int, tuple[float, ...]] = {}
        numbers = progress.errors if progress else {}
        for number, piece in enumerate(plan.pieces() if numbers else ()):
            if number in numbers:
                self._sums[piece.step] = _added(self._sums.get(piece.step), numbers[number])

    def by(self, key: Callable[[Parameter], Any], *, weighted: bool = False) -> dict[Any, float]:
        """Relative mean squared error by what `key` makes of a parameter, over all that was quantized.

        With `weighted`, each channel counts as calibration saw it, over all whose input is known.
        """
        first = 2 if weighted else 0
        sums: dict[Any, tuple[float, ...]] = {}
        for index, each in self._sums.items():
            if each[first:]:
                group = key(self._plan.steps[index].parameter)
                sums[group] = _added(sums.get(group), each[first : first + 2])
        return {group: _round(error / weight) for group, (error, weight) in sums.items() if weight}

    def record(self, rows: int) -> WeightErrorRecord | None:
        """What goes into the record, None if nothing was measured."""
        tensors = self.by(lambda parameter: parameter.path)
        weighted = self.by(lambda parameter: parameter.path, weighted=True)
        if not tensors:
            return None
        return WeightErrorRecord(every_row=rows, tensors=tensors, weighted=weighted or msgspec.UNSET)


def _added(before: tuple[float, ...] | None, sums: tuple[float, ...]) -> tuple[float, ...]:
    return sums if before is None else tuple(map(sum, zip(before, sums, strict=True)))


def fit_record(plan: Plan) -> FitRecord | msgspec.UnsetType:
    """How a plan's scales are fitted, unset if none is."""
    quantized = [step for step in plan.steps if step.how == "quantize"]
    fitted = [step for step in quantized if step.fit != "nearest"]
    if not fitted or plan.statistics is None:
        return msgspec.UNSET
    counts = [step.inputs.count for step in fitted if step.inputs]
    stacks = [count for count in counts if len(count) > 1]
    return FitRecord(
        method=fitted[0].fit,
        candidates=FIT_CANDIDATES,
        statistics=plan.statistics.digest,
        calibration=plan.statistics.calibration,
        fitted=len(fitted),
        nearest=len(quantized) - len(fitted),
        experts=sum(map(len, stacks)),
        least_tokens=min(min(count) for count in stacks or counts),
        unseen=sum(count.count(0) for count in stacks),
    )


def _round(value: float) -> float:
    """Six significant digits: float32 sums differ beyond them from machine to machine."""
    return float(f"{value:.6g}")


def plan_record(plan: Plan, errors: _Errors | None = None) -> PlanRecord:
    """What of a plan goes into the record, with the errors that were measured."""
    errors = errors or _Errors(plan, None)
    component_errors = errors.by(lambda parameter: parameter.component)
    weighted_errors = errors.by(lambda parameter: parameter.component, weighted=True)
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
                name=share.component.value,
                parameters=share.parameters,
                nbytes=share.nbytes,
                formats=share.formats,
                error=component_errors.get(share.component),
                weighted_error=weighted_errors.get(share.component, msgspec.UNSET),
            )
            for share in plan.shares
        ),
        layers=_layer_records(plan, errors),
        cache=_cache_records(plan),
    )


CACHE_TOKENS = (4 * 1024, 32 * 1024, 128 * 1024)
"""Lengths of a conversation for which the record says how much memory its cache takes."""


def encodings(plan: Plan) -> dict[str, int]:
    """Logical parameters by how they are published, the most first."""
    sizes: Counter[str] = Counter()
    for parameter in plan.model.parameters:
        sizes[parameter.encoding] += parameter.size
    return dict(sizes.most_common())


def _layer_records(plan: Plan, errors: _Errors) -> tuple[LayerRecord, ...]:
    measured = errors.by(lambda parameter: (parameter.layer, parameter.component.value))
    parameters: Counter[tuple[int | None, str]] = Counter()
    nbytes: Counter[tuple[int | None, str]] = Counter()
    for step in plan.steps:
        key = (step.parameter.layer, step.parameter.component.value)
        parameters[key] += step.parameter.size
        nbytes[key] += step.nbytes
    return tuple(
        LayerRecord(
            layer=layer,
            component=component,
            parameters=size,
            nbytes=nbytes[layer, component],
            error=measured.get((layer, component)),
        )
        for (layer, component), size in parameters.items()
    )


def _cache_records(plan: Plan) -> tuple[CacheRecord, ...]:
    # Activations have the dtype of the embeddings, or of their scales, and of those only float32 is wider than BF16.
    embeddings = [step for step in plan.steps if step.parameter.component is Component.EMBEDDINGS]
    wide = any(output.spec.dtype == "F32" for step in embeddings for output in step.outputs)
    cache_nbytes, config = architecture_of(plan.model.config).cache_nbytes, plan.model.config
    sizes = {tokens: cache_nbytes(config, tokens, 4 if wide else 2) for tokens in CACHE_TOKENS}
    return tuple(CacheRecord(tokens=tokens, nbytes=nbytes) for tokens, nbytes in sizes.items() if nbytes is not None)


def versions() -> dict[str, str]:
    """Hubtool and the libraries that make the bytes, with their versions."""
    libraries = {name: importlib.metadata.version(name) for name in ("mlx", "numpy")}
    backend = {"mlx backend": require_backend()}
    return {"hubtool": hubtool.__version__, **libraries, **backend, "python": platform.python_version()}
