"""A release -> the Hub: every variant made, validated, checked, uploaded in one commit, verified, tagged.

One variant from options and several from a file go the same way. What is found on the Hub before hours of work (the
destination, who may write) is passed on; each destination is looked at freshly once, right before its checks and its
commit, which is guarded by what was found then.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from huggingface_hub import HfApi

from hubtool.card import check_publishable, current_evidence
from hubtool.card.documents import Wording, write_documents_of
from hubtool.card.quality import current_quality
from hubtool.checkpoint.metadata import source_metadata
from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import CONFIG_FILE, Source
from hubtool.checkpoint.usable import carried_files, read_carried, require_usable, tidy_config
from hubtool.convert.config import documents
from hubtool.convert.convert import Converted, convert_folders, identified
from hubtool.convert.job import Effort, Job
from hubtool.convert.opened import OpenFolders, finished, open_folders
from hubtool.errors import VerificationError
from hubtool.files.whole import STATE_DIR
from hubtool.guard.guard import Limits
from hubtool.hub.destination import Destination, Place
from hubtool.hub.patience import Patience, PatientHub
from hubtool.hub.standing import Wanted, require_standing
from hubtool.hub.upload import UploadPlan, plan_before, release_title
from hubtool.plan.budget import plan_all
from hubtool.plan.plan import Plan
from hubtool.progress import Named, Watch
from hubtool.record import (
    CARD_FILE,
    PROVENANCE_FILE,
    RECORD_FILE,
    Evidence,
    Record,
    Rung,
    SiblingRecord,
    require_record,
)
from hubtool.release.collection import collect
from hubtool.release.folder import PATIENCE, Published, Ready, addressed, plan_ready, publish_ready
from hubtool.release.privacy import require_private_texts, scan_warnings
from hubtool.release.release import Release, Variant
from hubtool.release.signing import sign
from hubtool.release.stream import Streaming
from hubtool.validate.ladder import Request, default_limit
from hubtool.validate.ladder import validate as climb
from hubtool.validate.measure import measure_folders
from hubtool.validate.quality import Measure
from hubtool.validate.text import TEXTS_DIR, open_text

BY_DEFAULT: tuple[Rung, ...] = ("integrity", "load", "smoke")
"""The rungs that are run unless others are chosen; a streamed generation where there is no memory for the last."""

FEW_TOKENS = 2
"""Of such a streamed generation, which reads all weights for each: the second comes out of the first one's cache."""

_UNDECIDED = {"refused_preflight", "aborted_by_guard"}
"""Outcomes that say something of the machine, not of the files."""


@dataclass(frozen=True)
class DryRun:
    """What publishing a variant would do, and whether its folder is finished."""

    converted: bool
    to: Destination
    plan: UploadPlan


@dataclass(frozen=True)
class OpenRelease:
    """A release whose source is open, and a job for each variant."""

    release: Release
    source: Source
    jobs: tuple[Job, ...]

    @property
    def pairs(self) -> Iterator[tuple[Job, Variant]]:
        """Each job with its variant."""
        return zip(self.jobs, self.release.variants, strict=True)

    def watch(self, watch: Watch, job: Job) -> Watch:
        """Who watches a variant: its stages carry its name if there are others."""
        return watch if len(self.jobs) == 1 else Named(watch, job.plan.recipe.name)

    def wording(self, variant: Variant) -> Wording:
        """How the card of a variant is worded."""
        return replace(self.release.wording, notes=variant.notes)

    def siblings(self, variant: Variant) -> Sequence[SiblingRecord] | None:
        """The variants that the card of one names, None if those are to stay that it has."""
        if not self.release.whole:
            return None
        return [_sibling(job.plan, other) for job, other in self.pairs if other is not variant]


@contextmanager
def open_release(release: Release, watch: Watch) -> Iterator[OpenRelease]:
    """A release for the time of a `with`, after all that is noticed without the Hub that is written to.

    Raises:
        SourceError: The source cannot be used, or the Hub would refuse the metadata of its cards.
        RecipeError: A recipe cannot be used.
        UsageError: The Hub allows no repo of a name.
    """
    source = open_source(
        release.source,
        release.base_model,
        out=release.out,
        disk_limit=release.disk_limit,
        keep_source=release.keep_source,
    )
    with closing(source):
        for each in release.variants:
            check_before(source, each.destination.repo, watch)
        recipes = [each.recipe for each in release.variants if each.recipe is not None]
        plans = plan_all(source, recipes, release.fit, release.statistics)
        jobs = (Job(plan, each.folder) for plan, each in zip(plans, release.variants, strict=True))
        yield OpenRelease(release, source, tuple(jobs))


def check_before(source: Source, repo: str, watch: Watch) -> None:
    """Notice before hours of work what would be refused after it.

    Raises:
        UsageError: The Hub allows no repo of this name.
        SourceError: The Hub would refuse the metadata, the source tells no license, or nobody could load the model.
        OutputError: Private information in a file of the source that would be published.
    """
    for remark in require_usable(source):
        watch.say(remark)
    carried = {name: read_carried(source, name) for name in carried_files(source)}
    carried[CONFIG_FILE] = json.dumps(tidy_config(source, source.config), indent=2, ensure_ascii=False).encode()
    require_private_texts(f"source {source.name}", carried, [name for name in (repo, source.identity.repo) if name])
    for found in scan_warnings(carried.items()):
        watch.say(f"would be published: {found}")
    for warning in check_publishable(source_metadata(source), source.identity.repo, repo):
        watch.say(f"{repo}: the Hub will warn: {warning}")


def publish(
    api: HfApi, opened: OpenRelease, effort: Effort, watch: Watch, patience: Patience = PATIENCE
) -> list[Published]:
    """Make all variants in one pass over the source, then publish each; what is done already is not done again.

    Args:
        api: The Hub.
        opened: What is wanted.
        effort: How the conversion works.
        watch: Told how it goes.
        patience: How long failures of the Hub are borne.

    Raises:
        VerificationError: A rung that has to be passed was not; the Hub has other bytes than the record says.
        HubtoolError: Any stage failed; what was done is kept, and the same call goes on.
    """
    hub = PatientHub(api, patience, watch.say)
    release = opened.release
    found = {job.folder: _plan_before(hub, opened, job, variant.destination).place for job, variant in opened.pairs}
    with open_folders(opened.source, opened.jobs, effort, watch, streamed=release.stream) as folders:
        ready = _make(hub, opened, folders, found, watch)
        for job, each in zip(opened.jobs, ready, strict=True):
            each.converted = _validated(each.converted, release, opened.watch(watch, job))
        _measure(release, ready, watch)
        published = []
        for (job, variant), each in zip(opened.pairs, ready, strict=True):
            each.wording = opened.wording(variant)
            repo = variant.destination.repo
            each.converted = addressed(each.converted, repo, opened.siblings(variant), each.wording)
            if release.sign_key is not None:
                sign(job.folder, each.converted.record, release.sign_key)
            published.append(publish_ready(hub, each, opened.watch(watch, job)))
    collect(hub, release)
    return published


def dry_run(api: HfApi, opened: OpenRelease, watch: Watch) -> list[DryRun]:
    """What `publish` would do, after all its checks; nothing is written.

    Raises:
        HubtoolError: A check failed.
    """
    hub = PatientHub(api, PATIENCE, watch.say)
    runs = []
    for job, variant in opened.pairs:
        to = variant.destination
        record = finished(opened.source, job.plan, job.folder)
        if record is None:
            runs.append(DryRun(False, to, _plan_before(hub, opened, job, to)))
        else:
            ready = Ready(Converted(job.folder, record, fresh=False), to, wording=opened.wording(variant))
            runs.append(DryRun(True, to, plan_ready(hub, ready)))
    return runs


def _make(
    hub: PatientHub, opened: OpenRelease, folders: OpenFolders, found: Mapping[Path, Place], watch: Watch
) -> list[Ready]:
    """Each variant, made in its folder or sent while it is made."""
    if not opened.release.stream:
        made = convert_folders(folders, watch)
        return [
            Ready(each, variant.destination, found[each.folder])
            for each, variant in zip(made, opened.release.variants, strict=True)
        ]
    ready = []
    for job, variant in opened.pairs:
        to, there = variant.destination, found[job.folder]
        record = folders.finished.get(job.folder)
        if record is not None:
            record = identified(job.folder, record, opened.source.identity, watch)
            ready.append(Ready(Converted(job.folder, record, fresh=False), to, there))
            continue
        streaming = Streaming(hub, opened.source, job, to, opened.watch(watch, job), folders.effort)
        converted, sent = streaming.send(there)
        ready.append(Ready(converted, to, there, sent, job.plan))
    return ready


def _plan_before(hub: PatientHub, opened: OpenRelease, job: Job, to: Destination) -> UploadPlan:
    """What publishing would do that has not converted yet; how large card and record will be is not known."""
    plan = job.plan
    sizes = {shard.file: shard.nbytes for shard in plan.shards}
    sizes |= {name: len(content) for name, content in documents(opened.source, plan)}
    sizes |= dict.fromkeys((CARD_FILE, RECORD_FILE, PROVENANCE_FILE), 0)
    planned = plan_before(hub, job.folder, to, sizes, release_title(plan.recipe.name, plan.digest))
    wanted = Wanted(plan.model.model_type, opened.source.identity.repo, plan.recipe.name, None, frozenset(sizes))
    require_standing(hub, to, planned.place, wanted)
    return planned


def _sibling(plan: Plan, variant: Variant) -> SiblingRecord:
    return SiblingRecord(
        repo=variant.destination.repo,
        recipe=plan.recipe.name,
        nbytes=plan.nbytes,
        effective_bits=plan.effective_bits,
    )


def _validated(converted: Converted, release: Release, watch: Watch) -> Converted:
    """A finished folder that was validated; each rung's evidence is written when it is there.

    Raises:
        VerificationError: A rung failed; or one that is asked for by name was not passed.
    """
    if release.stream:
        return converted
    if release.validate is not None:
        return _climbed(converted, release.validate, release, Request(Limits(default_limit())), watch)
    converted = _climbed(converted, BY_DEFAULT, release, Request(Limits(default_limit())), watch)
    if any(each.check == "smoke" and each.outcome in _UNDECIDED for each in _measured(converted.record)):
        request = Request(Limits(default_limit()), tokens=FEW_TOKENS)
        converted = _climbed(converted, ("smoke-streamed",), release, request, watch)
    return converted


def _climbed(
    converted: Converted, wanted: Sequence[Rung], release: Release, request: Request, watch: Watch
) -> Converted:
    """A finished folder with the evidence of these rungs; VerificationError if one does not let it be published."""
    folder, record = converted.folder, converted.record
    missing = _missing_rungs(record, wanted, release)
    if not missing:
        return converted
    found = []
    for evidence in climb(folder, record, replace(request, named=frozenset(missing)), watch):
        record = msgspec.structs.replace(record, evidence=(*record.evidence, evidence))
        write_documents_of(folder, record)
        found.append(evidence)
    if not release.allow_failed:
        named = release.validate or ()
        _require_passed(folder, [each for each in found if each.outcome == "failed" or each.check in named])
    return replace(converted, record=record)


def _measure(release: Release, ready: Sequence[Ready], watch: Watch) -> None:
    """Hold the predictions of all variants against the source's in one run, unless that was done on the same text.

    Raises:
        VerificationError: The run was not gone through with.
    """
    wanted = release.quality
    if wanted is None:
        return
    folders = [each.converted.folder for each in ready]
    text = open_text(wanted.text, folders[0] / STATE_DIR / TEXTS_DIR)
    known = [current_quality(each.converted.record) for each in ready]
    if all(each is not None and each.text.sha256 == text.sha256 for each in known):
        return
    limits = Limits(default_limit())
    names = tuple(map(str, folders))
    measure = Measure(release.source, names, text, limits, wanted.tokens, wanted.context)
    found = measure_folders(measure, watch, _add)[1]
    for each, evidence in zip(ready, found, strict=True):
        _require_passed(each.converted.folder, [evidence])
        each.converted = replace(each.converted, record=require_record(each.converted.folder))


def _add(folder: Path, evidence: Sequence[Evidence]) -> None:
    """Append evidence to the record of a folder that this process holds."""
    record = require_record(folder)
    write_documents_of(folder, msgspec.structs.replace(record, evidence=(*record.evidence, *evidence)))


def _measured(record: Record) -> Sequence[Evidence]:
    """What is known of the files as they are that was not only stated."""
    return [each for each in current_evidence(record) if each.kind == "measured"]


def _missing_rungs(record: Record, wanted: Sequence[Rung], release: Release) -> Sequence[Rung]:
    """The rungs for which the record has no outcome yet, of these very files, that the release accepts."""
    settled = {"passed"}
    if release.allow_failed:
        settled |= {"failed", "not_run", *_UNDECIDED}
    elif release.validate is None:
        settled |= _UNDECIDED
    known = {each.check for each in _measured(record) if each.outcome in settled}
    return [rung for rung in wanted if rung not in known]


def _require_passed(folder: Path, evidence: Sequence[Evidence]) -> None:
    failed = [each for each in evidence if each.outcome != "passed"]
    if failed:
        raise VerificationError(
            "a validation was not passed; nothing is sent, and everything is kept",
            where=folder,
            found="; ".join(f"{each.check}: {each.outcome}, {each.detail}" for each in failed),
            remedy="mend what it names and publish again; or choose others with `--validate RUNGS|none`, or publish it "
            "with the failure on its card by `--allow-failed`",
        )
