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
        from hubtool.journal import STATE_DIR

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
        print(json.dumps(event, ensure_ascii=False) if self.json_mode else text, file=sys.stderr, flush=True)

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
        return json.dumps({"time": now, **event}, ensure_ascii=False) + "\n"

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A stage of a run, with a bar on a terminal, JSON lines in JSON mode, and a line when it ends otherwise."""
        begun = time.monotonic()
        self.detail(f"{name} begins")
        if self.json_mode:
            yield self._json_progress(name, total_nbytes)
        elif sys.stderr.isatty() and not self.quiet and total_nbytes:
            with self._bar(name, total_nbytes) as advance:
                yield advance
        else:
            yield lambda nbytes, label: None
        seconds = time.monotonic() - begun
        size = f"{units.format_size(total_nbytes)} in " if total_nbytes else ""
        event = {"done": name, "seconds": round(seconds, 3)}
        self._record(event)
        if not self.quiet:
            self._print(event, f"{name}: {size}{units.format_seconds(seconds)}")

    def _json_progress(self, name: str, total_nbytes: int) -> Callable[[int, str], None]:
        done, shown = 0, 0.0

        def advance(nbytes: int, label: str) -> None:
            nonlocal done, shown
            done += nbytes
            now = time.monotonic()
            if (now - shown >= PROGRESS_SECONDS or done >= total_nbytes) and not self.quiet:
                shown = now
                self._print({"stage": name, "nbytes": done, "total_nbytes": total_nbytes, "at": label}, "")

        return advance

    @contextmanager
    def _bar(self, name: str, total_nbytes: int) -> Iterator[Callable[[int, str], None]]:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[at]}"),
        )
        with progress.Progress(*columns, console=rich_console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total_nbytes, at="")
            yield lambda nbytes, label: bar.update(task, advance=nbytes, at=label)


def rich_console(*, stderr: bool = False) -> "RichConsole":
    """Rich's console; it honours NO_COLOR itself."""
    from rich.console import Console as RichConsole

    return RichConsole(stderr=stderr, soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; a name that begins with `>` is aligned to the right."""
    heads = [name.removeprefix(">") for name in columns]
    right = [name.startswith(">") for name in columns]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), "  ".join("-" * width for width in widths), *map(line, rows)])
