"""`hubtool evidence`: what validations found, and how it gets into the record and onto the card."""

from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import click
import msgspec

from hubtool import units
from hubtool.card import find_change
from hubtool.card.claims import CHECKS as NAMES
from hubtool.card.documents import add_evidence
from hubtool.checkpoint.source import HUB_PREFIX
from hubtool.cli.console import Console, table
from hubtool.cli.options import FOLDER, Choice, examples, parse_size, with_console
from hubtool.errors import UsageError, VerificationError
from hubtool.hub.rules import is_repo_id
from hubtool.record import RUNGS, Evidence, MachineRecord, Outcome, Record, require_record
from hubtool.release.privacy import read_identity, scan_text
from hubtool.validate.stamps import describe_touched, find_touched

OUTCOMES: dict[Outcome, str] = {
    "passed": "passed",
    "failed": "FAILED",
    "refused_preflight": "refused",
    "aborted_by_guard": "stopped by the guard",
    "not_run": "not run",
}

CHECKS = (*RUNGS, *(name for name in NAMES if name not in RUNGS))
"""The rungs, and what only publishers state."""


def _duration(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", context, parameter)
    return value


@click.group(
    "evidence",
    epilog=examples(
        "hubtool evidence list ./V4",
        'hubtool evidence add ./V4 --check smoke --outcome passed --detail "OK."',
    ),
)
def command() -> None:
    """List what validations found, or add what you did elsewhere."""


@command.command(
    "list",
    epilog=examples("hubtool evidence list ./V4-mixed_3_6", "hubtool evidence list ./V4-mixed_3_6 --json"),
)
@click.argument("folder", type=FOLDER)
@with_console
def list_command(console: Console, folder: Path) -> None:
    """List the evidence of a folder.

    Evidence about other bytes than the folder now has is marked, and is never on the card.
    """
    record = require_record(folder)
    changed = _find_changed(folder, record)
    current = [each.subject == record.subject and not changed for each in record.evidence]
    documents = [
        {**msgspec.to_builtins(each), "current": now} for each, now in zip(record.evidence, current, strict=True)
    ]
    rows = [
        [each.check, each.outcome, each.kind, "yes" if now else "no", each.started, each.detail]
        for each, now in zip(record.evidence, current, strict=True)
    ]
    console.answer(documents, lambda: table(["check", "outcome", "kind", "these bytes", "when", ""], rows))
    if changed:
        console.say(f"no recorded evidence applies to these files: {changed}")


@command.command(
    "add",
    epilog=examples(
        'hubtool evidence add ./V4 --check smoke --outcome passed --detail "OK."',
        'hubtool evidence add ./V4 --check load --outcome failed --detail "120 GB."',
    ),
)
@click.argument("folder", type=FOLDER)
@click.option(
    "--check", required=True, type=Choice(CHECKS), metavar="CHECK", help=f"What was checked: {', '.join(CHECKS)}."
)
@click.option(
    "--outcome",
    required=True,
    type=Choice(tuple(OUTCOMES)),
    metavar="OUTCOME",
    help=f"How it ended: {', '.join(OUTCOMES)}.",
)
@click.option("--detail", required=True, help="A sentence on what happened.")
@click.option("--model", default="", help="The machine's model, as `Mac Studio`.")
@click.option("--chip", default="", help="Its chip, as `Apple M2 Ultra`.")
@click.option("--memory", callback=parse_size, metavar="SIZE", help="Its memory, as 128GiB.")
@click.option("--system", default="", help="Its system, as `macOS 15.4`.")
@click.option("--figure", "figures", multiple=True, metavar="NAME=VALUE", help="As tokens_per_second=4.65; repeatable.")
@click.option("--version", "versions", multiple=True, metavar="NAME=VERSION", help="As mlx-lm=0.32.2; repeatable.")
@click.option("--command", "by", default="", help="The command that was run, without paths.")
@click.option("--started", default="", metavar="TIME", help="When, as 2026-11-23T10:00:00+00:00.  [default: now]")
@click.option("--seconds", type=click.FloatRange(0), callback=_duration, default=0.0, help="How long it took.")
@with_console
def add_command(
    console: Console,
    folder: Path,
    check: str,
    outcome: Outcome,
    detail: str,
    model: str,
    chip: str,
    memory: int | None,
    system: str,
    figures: tuple[str, ...],
    versions: tuple[str, ...],
    by: str,
    started: str,
    seconds: float,
) -> None:
    """Record what you did elsewhere.

    The card shows it as stated by the publisher: it proves nothing by itself.
    """
    record = require_record(folder)
    if changed := _find_changed(folder, record):
        raise VerificationError(
            "the files may not be those of the record",
            where=folder,
            found=changed,
            remedy="run `hubtool validate --integrity`, and restore what it names",
        )
    evidence = Evidence(
        check=check,
        outcome=outcome,
        detail=detail,
        figures={name: _figure_value(name, value) for name, value in _pairs(figures, "--figure")},
        machine=MachineRecord(model=model, chip=chip, memory_nbytes=memory or 0, system=system),
        versions=dict(_pairs(versions, "--version")),
        command=by,
        started=_time(started),
        seconds=seconds,
        subject=record.subject,
        kind="stated",
    )
    _require_private(evidence)
    add_evidence(folder, [evidence])
    console.answer(msgspec.to_builtins(evidence), lambda: evidence_text([evidence]))


def _find_changed(folder: Path, record: Record) -> str | None:
    """That files are, or may be, others than the record's, as a clause; None if nothing is known of that."""
    if change := find_change(record):
        return change.detail
    touched = find_touched(folder, record)
    return f"{describe_touched(touched)} since the validation" if touched else None


def _require_private(evidence: Evidence) -> None:
    """Raise UsageError if a statement holds what must not be published."""
    texts = msgspec.json.format(msgspec.json.encode(evidence), indent=1).decode()
    found = [f"path {word!r} in --command" for word in evidence.command.split() if _is_path(word)]
    found += [f"{leak.kind} {leak.found!r}" for leak in scan_text("evidence", texts, read_identity())]
    if found:
        raise UsageError("evidence is published", found=found[0], expected="none", remedy="leave it out")


def _is_path(word: str) -> bool:
    """Whether a word of a command line, or the value of its option, is a path and not `ORG/NAME[@REVISION]`."""
    value = word.rpartition("=")[2].strip("'\"")
    return "/" in value and not is_repo_id(value.removeprefix(HUB_PREFIX).partition("@")[0])


def _pairs(values: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = [value.partition("=") for value in values]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise UsageError("not a pair", where=option, found=f"{name}{equals}{value}", expected="NAME=VALUE")
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _figure_value(name: str, text: str) -> int | float | str:
    """A figure as the unit in its name asks for it: a size for bytes; else a number, or words."""
    if name.endswith("_nbytes"):
        try:
            return units.parse_nbytes(text)
        except ValueError as error:
            expected = "bytes, as 16700000000 or 16.7GB"
            raise UsageError("not a size", where=f"--figure {name}", found=text, expected=expected) from error
    try:
        number = float(text)
    except ValueError:
        return text
    if not isfinite(number) or abs(number) >= _MOST:
        raise UsageError("not a number", where=f"--figure {name}", found=text, expected="a finite number below 2^63")
    return int(text) if text.lstrip("+-").isdecimal() else number


_MOST = 2.0**63
"""What JSON readers take for an integer is less."""


def _time(text: str) -> str:
    """A time in UTC, ISO 8601; without a time zone it is taken for the machine's."""
    try:
        when = datetime.fromisoformat(text) if text else datetime.now(UTC)
        return when.astimezone(UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError) as error:
        raise UsageError("not a time", where="--started", found=text, expected="2026-11-23T10:00:00+00:00") from error


def evidence_text(evidence: Sequence[Evidence]) -> str:
    """Evidence as lines for the person: outcome, sentence and figures."""
    blocks = []
    for each in evidence:
        figures = [f"  {name:24}{_figure(name, value)}" for name, value in each.figures.items()]
        took = f" ({units.format_seconds(each.seconds)})" if each.seconds else ""
        blocks.append("\n".join([f"{each.check}: {OUTCOMES[each.outcome]}{took}", f"  {each.detail}", *figures]))
    return "\n".join(blocks)


def _figure(name: str, value: Any) -> str:
    if name.endswith("_nbytes") and isinstance(value, int):
        return units.format_size(value)
    return units.format_count(value) if isinstance(value, int) else str(value)
