"""`hubtool quality`."""

from pathlib import Path
from typing import Any

import click
import msgspec

from hubtool.cli.console import Console, table
from hubtool.cli.evidence import OUTCOMES
from hubtool.cli.options import examples, parse_size, with_console
from hubtool.cli.validate import exit_code
from hubtool.files.whole import STATE_DIR
from hubtool.guard.guard import Limits
from hubtool.record import DistanceRecord
from hubtool.validate.ladder import default_limit
from hubtool.validate.measure import measure_folders
from hubtool.validate.quality import DEFAULT_CONTEXT, DEFAULT_TOKENS, Measure, Measured
from hubtool.validate.text import TEXTS_DIR, open_text


@click.command(
    "quality",
    epilog=examples(
        "hubtool quality ./V4-mixed_3_6 --against ./V4 --text wiki.test.raw",
        "hubtool quality ./V4-* --against ./V4 --text chats.jsonl --tokens 131072",
    ),
)
@click.argument("folders", nargs=-1, required=True, metavar="FOLDERS|ORG/NAME[@REVISION]")
@click.option("--against", "source", required=True, metavar="FOLDER|ORG/NAME[@REVISION]", help="The source.")
@click.option("--text", required=True, metavar="FILE|hf://datasets/ORG/NAME[@REVISION]/FILE", help="A .txt or .jsonl.")
@click.option(
    "--tokens", type=click.IntRange(2), default=DEFAULT_TOKENS, show_default=True, help="How many of the text are read."
)
@click.option("--context", type=click.IntRange(4), default=DEFAULT_CONTEXT, show_default=True, help="Of a window.")
@click.option(
    "--memory-limit",
    callback=parse_size,
    metavar="SIZE",
    help="Most memory of the guarded process, as 24GB.  [default: 80% of what is available]",
)
@click.option("--floor/--no-floor", default=True, help="Hold the source against itself in bfloat16.  [default: floor]")
@click.option(
    "--save-reference",
    "reference",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the source's predictions as llama.cpp's --kl-divergence-base does.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run a folder's model code although it is not hubtool's own.")
@with_console
def command(
    console: Console,
    folders: tuple[str, ...],
    *,
    source: str,
    text: str,
    tokens: int,
    context: int,
    memory_limit: int | None,
    floor: bool,
    reference: Path | None,
    trust_remote_code: bool,
) -> int:
    """Measure how far predictions are from the source's.

    Source and folders run side by side over the same text, one layer of one of them in memory at a time. What is found
    goes into the records of local folders and onto their cards. Ended in whatever way, the same command goes on.
    """
    state = Path(folders[0]) if Path(folders[0]).is_dir() else Path()
    console.log_to(state)
    measure = Measure(
        source=source,
        folders=folders,
        text=open_text(text, state / STATE_DIR / TEXTS_DIR),
        tokens=tokens,
        context=context,
        limits=Limits(memory_limit or default_limit()),
        floor=floor,
        reference=reference,
        trust_remote_code=trust_remote_code,
    )
    measured, evidence = measure_folders(measure, console)
    document, lines = _document(measure, measured), _lines(measure, measured)
    console.answer(document, lambda: lines)
    return exit_code(evidence, frozenset({"quality"}))


def _document(measure: Measure, measured: Measured) -> dict[str, Any]:
    """The answer as JSON."""
    cost = {"read_nbytes": measured.cost.read_nbytes, "memory_nbytes": measured.cost.memory_nbytes}
    document: dict[str, Any] = {
        "source": measure.source,
        "outcome": measured.finding.outcome,
        "detail": measured.finding.detail,
        "cost": {**cost, "disk_nbytes": measured.cost.disk_nbytes},
        "figures": measured.finding.figures,
    }
    if measured.qualities:
        first = measured.qualities[0]
        floor = first.floor
        document |= {
            "text": {**msgspec.to_builtins(first.text), "stream_sha256": first.stream_sha256},
            "tokens": first.tokens,
            "windows": first.windows,
            "context": first.context,
            "floor": None if floor is None else {"folder": measure.source, **msgspec.to_builtins(floor)},
            "variants": [
                {"folder": folder, **msgspec.to_builtins(quality.distance)}
                for folder, quality in zip(measure.folders, measured.qualities, strict=True)
            ],
        }
    return document


COLUMNS = ("", ">KL mean", ">+-", ">median", ">99 %", ">largest", ">same top", ">ppl", ">ln ratio")


def _lines(measure: Measure, measured: Measured) -> str:
    """The answer as a table."""
    if not measured.qualities:
        return f"quality: {OUTCOMES[measured.finding.outcome]}\n  {measured.finding.detail}"
    floor = measured.qualities[0].floor
    rows = [
        _row(Path(folder).name, quality.distance)
        for folder, quality in zip(measure.folders, measured.qualities, strict=True)
    ]
    if floor is not None:
        rows.append(_row("the source in bfloat16", floor))
    nats = "KL divergence in nats, +- its standard error; ln ratio of the perplexities"
    return f"{measured.finding.detail}\n{table(COLUMNS, rows)}\n{nats}"


def _row(name: str, distance: DistanceRecord) -> list[str]:
    error = "" if distance.kl_stderr is None else f"{distance.kl_stderr:.2g}"
    nats = [f"{each:.4g}" for each in (distance.kl_median, distance.kl_p99, distance.kl_max)]
    ratio = f"{distance.ln_ppl_ratio:+.4f}"
    return [name, f"{distance.kl_mean:.4g}", error, *nats, f"{distance.top1:.2%}", f"{distance.ppl:.4g}", ratio]
