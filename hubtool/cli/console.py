"""All printing: the answer on stdout, everything else on stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubtool import units
from hubtool.errors import redact
from hubtool.progress import Advance, uncounted

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

PROGRESS_SECONDS = 1.0
"""How often progress is written as JSON lines."""


class Console:
    """Where a command's words go.

    Args:
        json_mode: One JSON document on stdout, progress as JSON lines on stderr.
        quiet: Say nothing but the answer and errors.
        verbose: Say more.
    """

    def __init__(self, *, json_mode: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json_mode = json_mode
        self.quiet = quiet
        self.verbose = verbose
        self._log: Path | None = None
        self._unlogged: list[str] = []

    def log_to(self, folder: Path) -> None:
        """Write what is said, details included, into `.hubtool/log` of a folder, as soon as its state is there.

        A line is a JSON object, with the time in UTC.
        """
        from hubtool.files.whole import STATE_DIR

        self._log = folder / STATE_DIR / "log"
        self._unlogged.append(self._stamped({"command": ["hubtool", *sys.argv[1:]]}))

    def answer(self, document: Any, text: Callable[[], str]) -> None:
        """The answer: `document` as JSON, or else what `text` makes of it."""
        if self.json_mode:
            print(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            print(text())

    def say(self, text: str) -> None:
        """A line for the person, on stderr."""
        event = {"say": text}
        self._record(event)
        if not self.quiet:
            self._print(event, text)

    def detail(self, text: str) -> None:
        """A line for those who asked for more."""
        event = {"detail": text}
        self._record(event)
        if self.verbose:
            self._print(event, text)

    def error(self, text: str) -> None:
        """What went wrong, on stderr."""
        event = {"error": text}
        self._record(event)
        self._print(event, f"Error: {text}")

    def _print(self, event: Mapping[str, Any], text: str) -> None:
        line = json.dumps(event, ensure_ascii=False) if self.json_mode else text
        print(redact(line), file=sys.stderr, flush=True)

    def _record(self, event: Mapping[str, Any]) -> None:
        """Write an event into the log; those before the folder's state is there wait for it."""
        if self._log is None:
            return
        self._unlogged.append(self._stamped(event))
        if self._log.parent.is_dir():
            with suppress(OSError), self._log.open("a", encoding="utf-8") as file:  # a log is not worth failing for
                file.writelines(self._unlogged)
                self._unlogged.clear()

    @staticmethod
    def _stamped(event: Mapping[str, Any]) -> str:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return redact(json.dumps({"time": now, **event}, ensure_ascii=False)) + "\n"

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Advance]:
        """A stage of a run, with a bar on a terminal, JSON lines in JSON mode, and a line when it ends otherwise."""
        begun = time.monotonic()
        self.detail(f"{name} begins")
        if self.json_mode:
            yield self._resumed(name, total_nbytes, self._json_progress(name, total_nbytes))
        elif sys.stderr.isatty() and not self.quiet and total_nbytes:
            with self._bar(name, total_nbytes) as advance:
                yield self._resumed(name, total_nbytes, advance)
        else:
            yield self._resumed(name, total_nbytes, uncounted)
        seconds = time.monotonic() - begun
        size = f"{units.format_size(total_nbytes)} in " if total_nbytes else ""
        event = {"done": name, "seconds": round(seconds, 3)}
        self._record(event)
        if not self.quiet:
            self._print(event, f"{name}: {size}{units.format_seconds(seconds)}")

    def _resumed(self, name: str, total_nbytes: int, advance: Advance) -> Advance:
        """The same, which says at the first step of this run how much an earlier one had done."""
        there, announced = 0, False

        def advance_and_say(nbytes: int, label: str = "", *, found: bool = False) -> None:
            nonlocal there, announced
            advance(nbytes, label, found=found)
            if found:
                there += nbytes
            elif nbytes and not announced:
                announced = True
                if there:
                    self.say(f"{name} goes on where it stopped: {spoken_part(there, total_nbytes)} are there")

        return advance_and_say

    def _json_progress(self, name: str, total_nbytes: int) -> Advance:
        pace, shown = _Pace(total_nbytes), 0.0

        def advance(nbytes: int, label: str = "", *, found: bool = False) -> None:
            nonlocal shown
            pace.add(nbytes, found)
            now = time.monotonic()
            if (now - shown >= PROGRESS_SECONDS or pace.done >= total_nbytes) and not self.quiet:
                shown = now
                self._print({"stage": name, **pace.figures(), "at": label}, "")

        return advance

    @contextmanager
    def _bar(self, name: str, total_nbytes: int) -> Iterator[Advance]:
        """One line that always fits: what is left of the width is the bar's, and a long name is cut before it wraps."""
        from rich import progress
        from rich.table import Column

        columns = (
            progress.TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            progress.BarColumn(bar_width=None, table_column=Column(min_width=8, ratio=1)),
            progress.TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, justify="right")),
        )
        pace = _Pace(total_nbytes)
        with progress.Progress(*columns, console=rich_console(stderr=True), transient=True, expand=True) as bar:
            task = bar.add_task(name, total=total_nbytes, figures=pace.spoken())

            def advance(nbytes: int, label: str = "", *, found: bool = False) -> None:
                pace.add(nbytes, found)
                bar.update(task, advance=nbytes, figures=pace.spoken())

            yield advance


class _Pace:
    """How far a stage is, how fast, and in how much memory.

    Attributes:
        done: Bytes that are done.
    """

    def __init__(self, total_nbytes: int) -> None:
        self.done = 0
        self._total = total_nbytes
        self._made = 0
        self._begun = time.monotonic()

    def add(self, nbytes: int, found: bool) -> None:
        """Count bytes; those that an earlier run made are `found`, and say nothing of the speed."""
        self.done += nbytes
        if found:
            self._begun = time.monotonic()
        else:
            self._made += nbytes

    @property
    def rate(self) -> float:
        """Bytes a second that were made, on the average."""
        return self._made / max(time.monotonic() - self._begun, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at that rate, None where there is none yet."""
        return (self._total - self.done) / self.rate if self._made and self._total else None

    def figures(self) -> dict[str, Any]:
        """The figures of a JSON line."""
        left = self.seconds_left
        return {
            "nbytes": self.done,
            "total_nbytes": self._total,
            "bytes_per_second": round(self.rate),
            "seconds_left": None if left is None else round(left, 1),
            "rss_nbytes": _rss_nbytes(),
        }

    def spoken(self) -> str:
        """The figures of a bar: percent, which is 100 for all of it only, bytes of bytes, rate and time left."""
        left = self.seconds_left
        words = [f"{100 * self.done // self._total:3}%", spoken_part(self.done, self._total)]
        words += [f"{units.format_size(round(self.rate))}/s"] if self._made else []
        words += [] if left is None else [f"{units.format_seconds(left)} left"]
        return "  ".join(words)


def spoken_part(done: int, total: int) -> str:
    """Bytes of bytes, with the unit once where it is the same: `41 of 118.00 GB`."""
    first, second = units.format_size(done), units.format_size(total)
    number, _, unit = first.partition(" ")
    return f"{number if second.endswith(f' {unit}') else first} of {second}"


def _rss_nbytes() -> int:
    """Memory of this process that is resident now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def rich_console(*, stderr: bool = False) -> "RichConsole":
    """Rich's console; it honours NO_COLOR itself."""
    from rich.console import Console as RichConsole

    return RichConsole(stderr=stderr)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; a name that begins with `>` is aligned to the right."""
    heads = [name.removeprefix(">") for name in columns]
    right = [name.startswith(">") for name in columns]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), "  ".join("-" * width for width in widths), *map(line, rows)])
