"""Runs a task of the worker under the guard, and reads from its events how it went."""

import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

import hubtool
from hubtool.files.formats import decode_line
from hubtool.guard.guard import GuardReport, Limits, run_guarded
from hubtool.record import Outcome
from hubtool.validate.finding import Finding
from hubtool.worker.events import AnyTask, Device, Event, Failed, Peak, Task, Token

LIBRARIES = ("mlx", "mlx-lm", "transformers")
"""Whose versions belong to what a child finds."""

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_TOKEN_PATH")
"""Environment variables that a model's code has no use for."""

_TUNING = {
    "TOKENIZERS_PARALLELISM": "false",
    # The worker shares products among the cores itself: BLAS's own threads wait for each other by spinning.
    "OPENBLAS_NUM_THREADS": "1",
    # glibc otherwise keeps what was released: a third of a process that reads layer after layer.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
}
"""Of the environment of a child."""

EventType = TypeVar("EventType")


@dataclass(frozen=True)
class Ran:
    """A task that came to an end."""

    report: GuardReport
    events: tuple[Event, ...]

    def last(self, kind: type[EventType]) -> EventType | None:
        """The last event of a kind."""
        return next((event for event in reversed(self.events) if isinstance(event, kind)), None)

    @property
    def peak_nbytes(self) -> int:
        """The most memory that it took: what was sampled of all its processes, or what the system knows of the first.

        A sample can miss what is gone after a moment; the system can count what others share.
        """
        high_water = self.last(Peak)
        return max(self.report.peak_nbytes, high_water.nbytes if high_water else 0)

    def figures(self) -> dict[str, int | float | str]:
        """What evidence says of its memory, and of what it ran on."""
        figures = self.report.figures() | {"peak_nbytes": self.peak_nbytes}
        device = self.last(Device)
        if device is not None:
            figures["backend"] = device.backend
            if device.backend == "cuda":
                figures["unmeasured"] = "; ".join([*self.report.unmeasured, "the GPU's own memory"])
        return figures


def run_task(
    task: AnyTask, limits: Limits, on_event: Callable[[Event], None] = lambda event: None, *, online: bool = False
) -> Ran:
    """Do a task in a guarded child process, offline and without the person's tokens unless it reads from the Hub."""
    events: list[Event] = []
    decoder = msgspec.json.Decoder(Event)

    def take(line: str) -> None:
        event = decode_line(line.encode(), decoder)
        if event is None:
            return  # a library, or the model's own code, has printed something
        events.append(event)
        on_event(event)

    # -P: a file that lies in the working directory must not be taken for a library.
    command = [sys.executable, "-P", "-m", "hubtool.worker.worker", msgspec.json.encode(task).decode()]
    with tempfile.TemporaryDirectory(prefix="hubtool-") as home:
        report = run_guarded(command, limits, environment=_environment(home, online=online), on_line=take)
    return Ran(report, tuple(events))


def _environment(home: str, *, online: bool) -> dict[str, str]:
    package_root = str(Path(hubtool.__file__).parent.parent)
    kept = {name: value for name, value in os.environ.items() if online or name not in SECRETS}
    path = os.pathsep.join(filter(None, [kept.get("PYTHONPATH"), package_root]))
    alone = {} if online else {"HF_HUB_OFFLINE": "1", "HF_HOME": home}
    return {**kept, **alone, **_TUNING, "PYTHONPATH": path}


def judge(ran: Ran, task: AnyTask) -> Finding | None:
    """What went wrong with a task, or None if it ended by itself and well."""
    report, failure = ran.report, ran.last(Failed)
    figures = ran.figures()
    made = max((event.number for event in ran.events if isinstance(event, Token)), default=0)
    if isinstance(task, Task) and task.tokens:
        figures = {"tokens": made, **figures}
    if report.reason:
        return Finding("aborted_by_guard", report.explanation(), figures)
    outcome: Outcome = "failed" if ran.last(Device) else "not_run"
    if failure is not None:
        return Finding(outcome, failure.detail, figures)
    if report.returncode:
        return Finding(outcome, _death(report), figures)
    return None


def _death(report: GuardReport) -> str:
    if report.returncode < 0:
        name = signal.Signals(-report.returncode).name
        cause = ", which the system sends when memory has run out" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{cause}"
    last = report.errors.splitlines()[-1:] or ["nothing was said"]
    return f"the process ended with code {report.returncode}: {last[0]}"


def tokens_digest(tokens: Sequence[int]) -> str:
    """The first 16 digits of the SHA-256 of tokens, written in decimal with commas: to compare runs by."""
    return hashlib.sha256(",".join(map(str, tokens)).encode()).hexdigest()[:16]


def trusts(folder: Path, config: Mapping[str, object]) -> bool:
    """Whether the model code in a folder is hubtool's own, byte for byte, or there is none."""
    name = config.get("model_file")
    if name is None:
        return True
    if not isinstance(name, str) or Path(name).name != name:
        return False
    own, shipped = Path(hubtool.__file__).parent / "runtime" / name, folder / name
    return own.is_file() and shipped.is_file() and own.read_bytes() == shipped.read_bytes()
