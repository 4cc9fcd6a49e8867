"""What goes into each matrix of a source while it reads texts, in a file that conversions are fitted to.

source, texts -> cost -> what it will take
              -> a guarded child runs the source layer by layer (hubtool.worker.calibrate) -> the file of statistics
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import LocalSource
from hubtool.errors import GuardError, HubtoolError, OutputError, SourceError, UsageError
from hubtool.files.lock import held
from hubtool.files.whole import STATE_DIR, writing
from hubtool.guard.guard import Limits
from hubtool.progress import Advance, Watch
from hubtool.validate.child import judge, run_task
from hubtool.validate.cost import estimate_cost
from hubtool.validate.finding import Finding
from hubtool.validate.text import Text
from hubtool.worker.events import Calibrated, CalibrateTask, Event, LayerDone, TaskText

DEFAULT_TOKENS = 16384
"""The weighted error on SmolLM2-135M with 2,048 tokens is 0.381 of `mx.quantize`'s, with 65,536 it is 0.380: the
rest is for experts, which each see a part."""

SENSITIVITY_TOKENS = 2048
"""Tokens on which the costs of formats are measured: each format of each part runs its layer again."""


@dataclass(frozen=True)
class Calibrate:
    """What is to be calibrated, and how.

    Attributes:
        source: A folder, or `org/name[@revision]`.
        texts: What it reads, each with its share.
        out: The file to write.
        limits: Of the guard.
        base_model: What the source is, where its files do not tell.
        tokens: How many are read in all.
        context: Tokens of a window.
        sensitivity: Whether the costs of formats are measured too.
    """

    source: str
    texts: Sequence[tuple[Text, float]]
    out: Path
    limits: Limits
    base_model: str | None = None
    tokens: int = DEFAULT_TOKENS
    context: int = 512
    sensitivity: bool = False

    @property
    def state(self) -> Path:
        """Where a run is kept that was ended."""
        return self.out.absolute().parent / STATE_DIR / f"calibrate-{self.out.name}"


def calibrate_source(wanted: Calibrate, watch: Watch) -> Calibrated:
    """The file of statistics, written whole, and what is in it.

    Raises:
        UsageError: Too little memory, or fewer tokens than a window has; the file is there already.
        SourceError: The source or a text cannot be used.
        GuardError: The memory guard stopped it.
        HubError: The Hub refused, or could not be reached.
    """
    if wanted.out.exists():
        raise OutputError("a file is in the way", where=wanted.out, remedy="give another --out, or remove it")
    source = open_source(wanted.source, wanted.base_model)
    texts = _shares(wanted)
    windows = sum(text.tokens // wanted.context for text in texts)
    cost = estimate_cost(source, [], (windows, wanted.context), wanted.limits.memory_nbytes, floor=False)
    again = ", and reads each layer again for each format that is tried" if wanted.sensitivity else ""
    watch.say(f"calibrating on {windows} windows of {wanted.context} tokens {cost.describe()}{again}")
    with writing(wanted.state):
        wanted.state.parent.mkdir(parents=True, exist_ok=True)
    task = CalibrateTask(
        source=str(source.folder.resolve()) if isinstance(source, LocalSource) else wanted.source,
        base_model=wanted.base_model,
        texts=texts,
        context=wanted.context,
        together=cost.together,
        state=str(wanted.state),
        keep_nbytes=cost.keep_nbytes,
        out=str(wanted.out.absolute()),
        sensitivity=min(SENSITIVITY_TOKENS, windows * wanted.context) if wanted.sensitivity else 0,
    )
    online = not isinstance(source, LocalSource)
    with held(wanted.state.with_suffix(".lock"), wanted.state), watch.stage("calibrate", cost.read_nbytes) as advance:
        ran = run_task(task, wanted.limits, _Progress(advance), online=online)
    failed, calibrated = judge(ran, task), ran.last(Calibrated)
    if failed is not None or calibrated is None:
        raise _failure(failed or Finding("failed", "the process ended without an answer"), wanted)
    return calibrated


def _failure(found: Finding, wanted: Calibrate) -> HubtoolError:
    kind = GuardError if found.outcome == "aborted_by_guard" else SourceError
    remedy = "correct what it says, and run the same command again: it goes on where it stopped"
    return kind("calibration did not come to its end", where=wanted.source, found=found.detail, remedy=remedy)


def _shares(wanted: Calibrate) -> list[TaskText]:
    """The texts with the tokens that each gives: whole windows, by its share."""
    total = sum(share for _, share in wanted.texts)
    texts = []
    for text, share in wanted.texts:
        tokens = int(wanted.tokens * share / total) // wanted.context * wanted.context
        if not tokens:
            raise UsageError(
                "fewer tokens than a window has",
                where=f"--text {text.name}",
                found=int(wanted.tokens * share / total),
                expected=f"at least --context, which is {wanted.context}",
                remedy="raise --tokens",
            )
        name = f"{text.repo}: {text.name}" if text.repo else text.name
        texts.append(TaskText(path=str(text.path), tokens=tokens, name=name, commit=text.commit, sha256=text.sha256))
    return texts


class _Progress:
    """Bytes of weights that were read, for whoever watches."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._read = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, LayerDone):
            self._advance(event.read_nbytes - self._read, f"layer {event.number} of {event.layers}")
            self._read = event.read_nbytes
