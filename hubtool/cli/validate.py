"""`hubtool validate`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import click
import msgspec

from hubtool.card.documents import add_evidence
from hubtool.cli.console import Console
from hubtool.cli.evidence import evidence_text
from hubtool.cli.options import FOLDER, examples, parse_size, with_console
from hubtool.errors import GuardError
from hubtool.files.lock import locked
from hubtool.files.whole import STATE_DIR
from hubtool.guard.guard import Limits
from hubtool.progress import Advance
from hubtool.record import RUNGS, Evidence, require_record
from hubtool.validate.ladder import Request, default_limit, validate
from hubtool.validate.quality import DEFAULT_TOKENS as TEXT_TOKENS
from hubtool.validate.quality import Measure
from hubtool.validate.text import TEXTS_DIR, open_text


@click.command(
    "validate",
    epilog=examples(
        "hubtool validate ./V4-mixed_3_6", "hubtool validate ./V4-mixed_3_6 --streamed --memory-limit 48GB"
    ),
)
@click.argument("folder", type=FOLDER)
@click.option("--integrity", is_flag=True, help="Headers, index, config, hashes, finite scales.")
@click.option("--load", is_flag=True, help="Stock mlx-lm loads it, lazily and strictly.")
@click.option("--smoke", is_flag=True, help="Generate with all weights in memory.")
@click.option("--streamed", is_flag=True, help="Generate with one layer's weights in memory at a time.")
@click.option("--quality", is_flag=True, help="Hold predictions against those of --against, on --text.")
@click.option("--against", "source", metavar="FOLDER|ORG/NAME[@REVISION]", help="The source, for --quality.")
@click.option("--text", metavar="FILE|hf://datasets/ORG/NAME[@REVISION]/FILE", help="A .txt or .jsonl, for --quality.")
@click.option("--text-tokens", type=click.IntRange(2), default=TEXT_TOKENS, show_default=True, help="Read of the text.")
@click.option("--tokens", type=click.IntRange(1), default=16, show_default=True, help="How many are generated.")
@click.option(
    "--memory-limit",
    callback=parse_size,
    metavar="SIZE",
    help="Most memory of the guarded process, as 96GB.  [default: 80% of what is available]",
)
@click.option(
    "--max-swap-growth",
    callback=parse_size,
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="Most that swap may grow.",
)
@click.option("--max-pressure", type=click.FloatRange(0, 1), default=0.6, show_default=True, help="Of memory, 0 to 1.")
@click.option("--grace", type=click.FloatRange(0), default=3.0, show_default=True, help="Seconds from TERM to KILL.")
@click.option("--force", is_flag=True, help="Generate although there seems to be no room; the guard still watches.")
@click.option("--trust-remote-code", is_flag=True, help="Run the folder's model code although it is not hubtool's own.")
@with_console
def command(
    console: Console,
    folder: Path,
    *,
    integrity: bool,
    load: bool,
    smoke: bool,
    streamed: bool,
    quality: bool,
    source: str | None,
    text: str | None,
    text_tokens: int,
    tokens: int,
    memory_limit: int | None,
    max_swap_growth: int,
    max_pressure: float,
    grace: float,
    force: bool,
    trust_remote_code: bool,
) -> int:
    """Check a finished folder step by step, and record the evidence.

    Without a step named, all that this machine can do safely, cheapest first. Whatever runs the model runs in a process
    of its own, which is stopped when it takes more memory than it may.
    """
    console.log_to(folder)
    record = require_record(folder)
    named = zip(RUNGS, (integrity, load, smoke, streamed, quality), strict=True)
    limits = Limits(memory_limit or default_limit(), max_swap_growth, max_pressure, grace=grace)
    measure = None
    if quality or source or text:
        if source is None or text is None:
            raise click.UsageError("--quality needs --against and --text.")
        opened = open_text(text, folder / STATE_DIR / TEXTS_DIR)
        measure = Measure(source, (str(folder),), opened, limits, text_tokens, trust_remote_code=trust_remote_code)
    rungs = frozenset(rung for rung, asked in named if asked)
    request = Request(limits, rungs, tokens, force, trust_remote_code, measure)
    evidence: list[Evidence] = []
    for each in validate(folder, record, request, _WhenFree(console, folder)):
        add_evidence(folder, [each], wait=True)
        evidence.append(each)
    console.answer({"evidence": msgspec.to_builtins(evidence)}, lambda: evidence_text(evidence))
    return exit_code(evidence, request.named)


class _WhenFree:
    """The console, whose stages begin only when no other process holds the folder."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.say = console.say
        self._console = console
        self._folder = folder

    def stage(self, name: str, total_nbytes: int = 0) -> AbstractContextManager[Advance]:
        """The console's stage."""
        with locked(self._folder):
            return self._console.stage(name, total_nbytes)


def exit_code(evidence: Sequence[Evidence], named: frozenset[str]) -> int:
    """75 if the guard stopped a rung; 1 if one failed, or one that was named was not gone through with; else 0."""
    if any(each.outcome == "aborted_by_guard" for each in evidence):
        return GuardError.exit_code
    failed = [each for each in evidence if each.outcome == "failed"]
    missed = [each for each in evidence if each.check in named and each.outcome in ("refused_preflight", "not_run")]
    return 1 if failed or missed else 0
