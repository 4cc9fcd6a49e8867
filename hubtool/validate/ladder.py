"""The ladder: which rungs are climbed, in which order, and the evidence that each leaves."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hubtool.checkpoint.source import CONFIG_FILE
from hubtool.files.formats import parse_object
from hubtool.guard.guard import Limits
from hubtool.guard.machine import this_machine, versions
from hubtool.guard.memory import capacity
from hubtool.progress import Advance, Watch
from hubtool.record import RUNGS, Evidence, MachineRecord, Record, Rung
from hubtool.units import GB
from hubtool.validate.child import LIBRARIES, trusts
from hubtool.validate.finding import Finding, without_paths
from hubtool.validate.integrity import check_integrity
from hubtool.validate.load import check_load
from hubtool.validate.needs import Needs, needs_of_folder
from hubtool.validate.quality import Measure, found, measure_quality
from hubtool.validate.smoke import check_resident, check_streamed, compare_tokens, refuse
from hubtool.validate.stamps import describe_touched, find_touched, is_unchanged
from hubtool.worker.events import Event, Task, Token

DEFAULT_TOKENS = 16

DEFAULT_SHARE = 0.8
"""Of the memory that is available: what a child may take unless a limit is given. The rest is for everything else."""


def default_limit() -> int:
    """Bytes of memory that a child may take on this machine as it is now."""
    return int(capacity().available_nbytes * DEFAULT_SHARE)


@dataclass(frozen=True)
class Request:
    """What is to be validated, and how.

    Attributes:
        limits: Of the guard.
        named: Rungs asked for by name; none means all that the machine can do safely.
        tokens: How many are generated.
        force: Begin a generation although the preflight says that there is no room for it.
        trust_remote_code: Run model code that is not hubtool's own.
        quality: What predictions are held against; None leaves that rung out.
    """

    limits: Limits
    named: frozenset[Rung] = field(default_factory=frozenset)
    tokens: int = DEFAULT_TOKENS
    force: bool = False
    trust_remote_code: bool = False
    quality: Measure | None = None

    @property
    def command(self) -> str:
        """The command line that asks for this, without the folder's path."""
        words = ["hubtool validate", *(f"--{_OPTIONS[rung]}" for rung in RUNGS if rung in self.named)]
        words += [self.quality.options] if self.quality else []
        if self.tokens != DEFAULT_TOKENS:
            words.append(f"--tokens {self.tokens}")
        words.append(f"--memory-limit {self.limits.memory_nbytes / GB:.6g}GB")
        words += self._limit_options()
        words += [f"--{name}" for name in ("force", "trust_remote_code") if getattr(self, name)]
        return " ".join(words).replace("_", "-")

    def _limit_options(self) -> Iterator[str]:
        """The guard's other thresholds, where they are not the defaults."""
        limits, usual = self.limits, Limits(0)
        if limits.swap_growth_nbytes != usual.swap_growth_nbytes:
            yield f"--max-swap-growth {limits.swap_growth_nbytes / GB:.6g}GB"
        if limits.pressure != usual.pressure:
            yield f"--max-pressure {limits.pressure:g}"
        if limits.grace != usual.grace:
            yield f"--grace {limits.grace:g}"


_OPTIONS: dict[Rung, str] = {
    "integrity": "integrity",
    "load": "load",
    "smoke": "smoke",
    "smoke-streamed": "streamed",
    "quality": "quality",
}


def validate(folder: Path, record: Record, request: Request, watch: Watch) -> Iterator[Evidence]:
    """Climb the ladder, and give the evidence of each rung when it is done.

    The integrity of the files comes first, whatever was asked for, so that evidence is about the bytes that it names;
    it is taken for granted where it was shown before and no file was touched since. What follows a rung that failed is
    not run.

    Args:
        folder: A finished folder.
        record: Its record.
        request: Which rungs, within which limits.
        watch: Sees a stage a rung.
    """
    climb = _Climb(folder, record, request, watch)
    asked = request.named or {rung for rung in RUNGS if rung != "quality" or request.quality}
    wanted = [rung for rung in RUNGS if rung in asked]
    if "integrity" in wanted or not is_unchanged(folder, record):
        evidence = climb.integrity()
        yield evidence
        if evidence.outcome != "passed":
            yield from climb.not_run(wanted, "the files are not those of the record")
            return
    failed = None
    for rung in [rung for rung in wanted if rung != "integrity"]:
        if failed:
            yield from climb.not_run([rung], failed)
            continue
        evidence = climb.rung(rung)
        yield evidence
        if evidence.outcome == "failed":
            failed = f"the rung before it, {rung}, failed"


class _Climb:
    """One run of the ladder."""

    def __init__(self, folder: Path, record: Record, request: Request, watch: Watch) -> None:
        self._folder = folder
        self._record = record
        self._request = request
        self._watch = watch
        self._subject = record.subject
        self._evidence = list(record.evidence)

    @cached_property
    def _machine(self) -> MachineRecord:
        return this_machine()

    @cached_property
    def _config(self) -> Any:
        return parse_object((self._folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)

    @cached_property
    def _needs(self) -> Needs:
        return needs_of_folder(self._folder, self._record, self._request.tokens)

    def integrity(self) -> Evidence:
        """The first rung; from then on evidence is about the files as they are."""
        total = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))
        started, begun = _now(), time.monotonic()
        with self._watch.stage("integrity", total) as advance:
            integrity = check_integrity(self._folder, self._record, advance)
        self._subject = integrity.subject
        return self._make("integrity", integrity.finding, started, time.monotonic() - begun, ("numpy",))

    def rung(self, rung: Rung) -> Evidence:
        """One of the others."""
        started, begun = _now(), time.monotonic()
        if rung == "quality":
            finding = self._measure()
        else:
            with self._watch.stage(rung) as advance:
                finding = self._find(rung, lambda event: _show(event, advance))
        if finding.outcome in ("passed", "failed"):
            finding = self._unless_touched(finding)
        return self._make(rung, finding, started, time.monotonic() - begun, LIBRARIES)

    def _unless_touched(self, finding: Finding) -> Finding:
        """The finding, if the files are still those that it names: a rung can take hours."""
        touched = find_touched(self._folder, self._record)
        if touched == ():
            return finding
        what = describe_touched(touched or ["a file"])
        return Finding("not_run", f"{what} while it ran, which therefore says nothing of the files of the record")

    def not_run(self, rungs: Sequence[Rung], reason: str) -> Iterator[Evidence]:
        """Evidence that rungs were not run, and why."""
        for rung in rungs:
            if rung != "integrity":
                yield self._make(rung, Finding("not_run", reason), _now(), 0.0, ())

    def _find(self, rung: Rung, on_event: Callable[[Event], None]) -> Finding:
        request = self._request
        if not (request.trust_remote_code or trusts(self._folder, self._config)):
            return Finding("refused_preflight", f"{self._config['model_file']} is not hubtool's own model code")
        assert rung != "integrity", rung
        assert rung != "quality", rung
        folder = str(self._folder.resolve())
        task = Task(rung, folder, 0 if rung == "load" else request.tokens, trust_remote_code=True)
        if not request.force and (refusal := refuse(task, self._needs, request.limits)):
            return refusal
        if rung == "load":
            return check_load(task, request.limits)
        check, other = _GENERATIONS[rung]
        finding = check(task, request.limits, on_event)
        if finding.outcome != "passed":
            return finding
        digest = self._digest_of(other)
        if rung == "smoke" and digest is None:
            return finding  # it stands by itself: a streamed run is what needs one to be held against
        return compare_tokens(finding, _HOW[other], digest)

    def _measure(self) -> Finding:
        """The fifth rung."""
        if not (self._request.trust_remote_code or trusts(self._folder, self._config)):
            return Finding("refused_preflight", f"{self._config['model_file']} is not hubtool's own model code")
        if self._request.quality is None:
            return Finding("not_run", "it is not known what source and text the predictions are to be held against")
        measured = measure_quality(
            replace(self._request.quality, folders=(str(self._folder),), limits=self._request.limits), self._watch
        )
        return found(measured, 0)

    def _digest_of(self, rung: Rung) -> str | None:
        """What the tokens of a generation were, by the same libraries on this machine and as many."""
        for evidence in reversed(self._evidence):
            if (
                (evidence.check, evidence.outcome, evidence.kind) == (rung, "passed", "measured")
                and (evidence.subject, evidence.machine) == (self._subject, self._machine)
                and evidence.versions == versions(LIBRARIES)
                and evidence.figures.get("tokens") == self._request.tokens
            ):
                return str(evidence.figures["tokens_digest"])
        return None

    def _make(self, rung: Rung, finding: Finding, started: str, seconds: float, libraries: Sequence[str]) -> Evidence:
        evidence = Evidence(
            check=rung,
            outcome=finding.outcome,
            detail=without_paths(finding.detail, str(self._folder)),
            figures=finding.figures,
            machine=self._machine,
            versions=versions(libraries),
            command=self._request.command,
            started=started,
            seconds=round(seconds, 3),
            subject=self._subject,
            quality=finding.quality,
        )
        self._evidence.append(evidence)
        return evidence


_GENERATIONS: dict[Rung, tuple[Callable[[Task, Limits, Callable[[Event], None]], Finding], Rung]] = {
    "smoke": (check_resident, "smoke-streamed"),
    "smoke-streamed": (check_streamed, "smoke"),
}
"""How a model generates, and in what other way, whose tokens must be the same."""

_HOW: dict[Rung, str] = {"smoke": "resident", "smoke-streamed": "streamed"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _show(event: Event, advance: Advance) -> None:
    if isinstance(event, Token):
        advance(0, f"token {event.number}")
