"""The fifth rung: how far the predictions of finished folders are from those of their source, on a text.

source, folders, text -> cost    -> what it will take
-> compare -> a guarded child runs all of them layer by layer (hubtool.worker.quality)
-> Measured, by folder
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import LocalSource, Source
from hubtool.errors import UsageError
from hubtool.files.lock import held
from hubtool.files.whole import STATE_DIR, writing
from hubtool.guard.guard import Limits
from hubtool.progress import Advance, Watch
from hubtool.record import RECORD_FILE, ComparedRecord, DistanceRecord, QualityRecord, Record, TextRecord, decode_record
from hubtool.units import GB
from hubtool.validate.child import judge, run_task, trusts
from hubtool.validate.cost import Cost, estimate_cost
from hubtool.validate.finding import Finding
from hubtool.validate.text import Text
from hubtool.worker.events import Compared, Compares, CompareTask, Event, LayerDone

DEFAULT_TOKENS = 16384

DEFAULT_CONTEXT = 512

QUALITY_DIR = "quality"
"""Where a run is kept that was ended, in the state of the first folder."""


@dataclass(frozen=True)
class Measure:
    """What is to be measured, and how.

    Attributes:
        source: A folder, or `org/name[@revision]`.
        folders: Of the variants, likewise.
        text: On what.
        tokens: How many of its tokens are read.
        context: Tokens of a window.
        limits: Of the guard.
        floor: Whether the source is held against itself.
        reference: Where to write the source's distributions, if anywhere.
        trust_remote_code: Run model code that is not hubtool's own.
    """

    source: str
    folders: tuple[str, ...]
    text: Text
    limits: Limits
    tokens: int = DEFAULT_TOKENS
    context: int = DEFAULT_CONTEXT
    floor: bool = True
    reference: Path | None = None
    trust_remote_code: bool = False

    @property
    def command(self) -> str:
        """The command line that asks for this, without the folders and paths."""
        return f"hubtool quality {self.options} --memory-limit {self.limits.memory_nbytes / GB:.6g}GB"

    @property
    def options(self) -> str:
        """The options that decide what is measured, without paths."""
        source = Path(self.source).name if Path(self.source).exists() else self.source
        words = [f"--against {source} --text {self.text.name} --tokens {self.tokens}"]
        if self.context != DEFAULT_CONTEXT:
            words.append(f"--context {self.context}")
        words += [] if self.floor else ["--no-floor"]
        return " ".join([*words, *(["--trust-remote-code"] if self.trust_remote_code else [])])

    @property
    def state(self) -> Path:
        """The folder of a run that was ended."""
        local = [Path(folder) for folder in self.folders if Path(folder).is_dir()]
        return (local[0] if local else Path()) / STATE_DIR / QUALITY_DIR


@dataclass(frozen=True)
class Measured:
    """What a run found.

    Attributes:
        finding: How it ended.
        cost: What it was to take.
        qualities: By folder, in their order; empty if it did not come to its end.
    """

    finding: Finding
    cost: Cost
    qualities: tuple[QualityRecord, ...]


def measure_quality(measure: Measure, watch: Watch) -> Measured:
    """How far the folders' predictions are from the source's.

    Raises:
        UsageError: Too little memory, a window that is too short, or model code that is not hubtool's own.
        SourceError: Source or folder cannot be used.
        HubError: The Hub refused, or could not be reached.
    """
    source = open_source(measure.source)
    variants = [open_source(folder) for folder in measure.folders]
    _check(measure, variants)
    windows = measure.tokens // measure.context, measure.context
    cost = estimate_cost(source, variants, windows, measure.limits.memory_nbytes, floor=measure.floor)
    watch.say(f"measuring {windows[0]} windows of {windows[1]} tokens {cost.describe()}")
    state = measure.state
    with writing(state):
        state.parent.mkdir(parents=True, exist_ok=True)
    task = CompareTask(
        source=_absolute(source, measure.source),
        folders=[_absolute(each, spec) for each, spec in zip(variants, measure.folders, strict=True)],
        text=str(measure.text.path),
        tokens=measure.tokens,
        context=measure.context,
        together=cost.together,
        state=str(state.resolve()),
        keep_nbytes=cost.keep_nbytes,
        floor=measure.floor,
        reference=str(measure.reference.resolve()) if measure.reference else None,
    )
    online = any(not isinstance(each, LocalSource) for each in (source, *variants))
    with held(state.with_suffix(".lock"), state), watch.stage("quality", cost.read_nbytes) as advance:
        ran = run_task(task, measure.limits, _Progress(advance), online=online)
    failed = judge(ran, task)
    compared, compares = ran.last(Compared), ran.last(Compares)
    if failed is not None or compared is None or compares is None:
        return Measured(failed or Finding("failed", "the process ended without an answer"), cost, ())
    records = [_record(each) for each in variants]
    qualities = tuple(_quality(number, measure, compares, compared, records) for number in range(len(variants)))
    figures = {**ran.figures(), "read_nbytes": compared.read_nbytes}
    return Measured(Finding("passed", _sentence(measure, compares), figures), cost, qualities)


def found(measured: Measured, number: int) -> Finding:
    """What a run found of one of its folders."""
    if not measured.qualities:
        return measured.finding
    quality = measured.qualities[number]
    figures: dict[str, int | float | str] = {"kl_mean_nats": quality.distance.kl_mean}
    if quality.floor is not None:
        figures["floor_kl_mean_nats"] = quality.floor.kl_mean
    figures |= {"same_top_share": quality.distance.top1, "perplexity": quality.distance.ppl}
    return replace(measured.finding, figures={**figures, **measured.finding.figures}, quality=quality)


def _check(measure: Measure, variants: Sequence[Source]) -> None:
    if measure.tokens < measure.context:
        raise UsageError(
            "fewer tokens than a window has",
            where="--tokens",
            found=measure.tokens,
            expected=f"at least --context, which is {measure.context}",
        )
    for variant in variants:
        if not measure.trust_remote_code and isinstance(variant, LocalSource):
            if not trusts(variant.folder, variant.config):
                raise UsageError(
                    "model code that is not hubtool's own",
                    where=variant.folder,
                    found=variant.config["model_file"],
                    remedy="read it, then add --trust-remote-code",
                )


def _absolute(source: Source, spec: str) -> str:
    """What another process opens the source by."""
    return str(source.folder.resolve()) if isinstance(source, LocalSource) else spec


class _Progress:
    """Bytes of weights that were read, for whoever watches."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._read = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, LayerDone):
            self._advance(event.read_nbytes - self._read, f"layer {event.number} of {event.layers}")
            self._read = event.read_nbytes


def _record(variant: Source) -> Record | None:
    """The record of a variant, None for a folder that hubtool did not make."""
    return decode_record(variant.read_file(RECORD_FILE)) if RECORD_FILE in variant.files else None


def _quality(
    number: int, measure: Measure, compares: Compares, compared: Compared, records: Sequence[Record | None]
) -> QualityRecord:
    text = measure.text
    others = tuple(
        ComparedRecord(
            recipe=record.recipe.name,
            repo=record.repo,
            nbytes=record.measured.nbytes,
            effective_bits=record.measured.effective_bits,
            distance=_distance(compared, f"variant{other}"),
        )
        for other, record in enumerate(records)
        if other != number and record is not None
    )
    return QualityRecord(
        text=TextRecord(
            name=f"{text.repo}: {text.name}" if text.repo else text.name,
            commit=text.commit,
            sha256=text.sha256,
            tokens=compares.windows * measure.context,
        ),
        stream_sha256=compares.stream_sha256,
        tokens=compares.scored,
        windows=compares.windows,
        context=measure.context,
        distance=_distance(compared, f"variant{number}"),
        floor=_distance(compared, "floor") if measure.floor else None,
        others=others,
    )


def _distance(compared: Compared, lane: str) -> DistanceRecord:
    return msgspec.convert(
        {**compared.figures[lane], "by_position": compared.buckets[lane], "experts": compared.experts[lane]},
        DistanceRecord,
    )


def _sentence(measure: Measure, compares: Compares) -> str:
    windows = "one window" if compares.windows == 1 else f"{compares.windows} windows"
    return (
        f"predictions held against the source's on {compares.scored} tokens of {measure.text.name}, "
        f"in {windows} of {measure.context}"
    )
