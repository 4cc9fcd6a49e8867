"""`hubtool calibrate`."""

from pathlib import Path

import click
import msgspec

from hubtool import units
from hubtool.checkpoint.statistics import Statistics
from hubtool.cli.console import Console
from hubtool.cli.options import base_model_option, examples, parse_size, source_argument, with_console
from hubtool.errors import UsageError
from hubtool.files.whole import STATE_DIR
from hubtool.guard.guard import Limits
from hubtool.validate.calibrate import DEFAULT_TOKENS, Calibrate, calibrate_source
from hubtool.validate.ladder import default_limit
from hubtool.validate.text import Text, open_text


@click.command(
    "calibrate",
    epilog=examples(
        "hubtool calibrate ./source --text chats.jsonl --out s.safetensors",
        "hubtool calibrate ./source --text a.txt --text b.txt=2 --sensitivity --out s",
    ),
)
@source_argument
@click.option(
    "--text",
    "specs",
    multiple=True,
    required=True,
    metavar="TEXT[=SHARE]",
    help="A .txt or .jsonl, or hf://datasets/ORG/NAME[@REVISION]/FILE; may be repeated.",
)
@click.option("--tokens", type=click.IntRange(2), default=DEFAULT_TOKENS, show_default=True, help="How many are read.")
@click.option("--context", type=click.IntRange(4), default=512, show_default=True, help="Tokens of a window.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE", help="The file to write."
)
@click.option("--sensitivity", is_flag=True, help="Measure too what each format does to each layer, for --fit.")
@click.option(
    "--memory-limit",
    callback=parse_size,
    metavar="SIZE",
    help="Most memory of the guarded process, as 24GB.  [default: 80% of what is available]",
)
@base_model_option
@with_console
def command(
    console: Console,
    source: str,
    *,
    specs: tuple[str, ...],
    tokens: int,
    context: int,
    out: Path,
    sensitivity: bool,
    memory_limit: int | None,
    base_model: str | None,
) -> None:
    """Measure the inputs of each weight, to fit conversions to.

    The source reads the texts, one layer of it in memory at a time. Ended in whatever way, the same command goes on.
    """
    folder = out.absolute().parent / STATE_DIR / "texts"
    wanted = Calibrate(
        source=source,
        texts=[_text(spec, folder) for spec in specs],
        out=out,
        limits=Limits(memory_limit or default_limit()),
        base_model=base_model,
        tokens=tokens,
        context=context,
        sensitivity=sensitivity,
    )
    calibrated = calibrate_source(wanted, console)
    digest = Statistics(out).digest
    unseen = f", {units.format_count(calibrated.unseen)} saw none" if calibrated.unseen else ""
    document = {"file": str(out), "sha256": digest, **msgspec.to_builtins(calibrated)}
    document.pop("type", None)
    console.answer(
        document,
        lambda: (
            f"{out}: {units.format_count(calibrated.inputs)} inputs over {units.format_count(calibrated.tokens)} "
            f"tokens; at least {units.format_count(calibrated.least_tokens)} tokens each{unseen}; SHA-256 {digest}"
        ),
    )


def _text(spec: str, folder: Path) -> tuple[Text, float]:
    """A text and its share of the tokens, 1 where none is given."""
    name, found, share = spec.rpartition("=")
    if not found or Path(spec).is_file():
        return open_text(spec, folder), 1.0
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError("not a share", where="--text", found=spec, expected="TEXT=2, say")
    return open_text(name, folder), value
