"""`hubtool sample`."""

from pathlib import Path

import click

from hubtool import units
from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, Choice, examples, with_console
from hubtool.sample import SIZES, write_sample


@click.command("sample", epilog=examples("hubtool sample ./source", "hubtool sample ./larger --size small --seed 7"))
@click.argument("folder", type=FOLDER)
@click.option(
    "--size",
    type=Choice(["tiny", "small"]),
    default="tiny",
    show_default=True,
    help="12 MB, or 1.5 GB in a published model's proportions.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other weights for another seed.")
@with_console
def command(console: Console, folder: Path, size: str, seed: int) -> None:
    """Write a small random checkpoint in the published format."""
    write_sample(folder, SIZES[size], seed)
    nbytes = sum(path.stat().st_size for path in folder.iterdir())
    document = {"folder": str(folder), "size": size, "seed": seed, "nbytes": nbytes}
    console.answer(document, lambda: f"{folder}: a random DeepSeek-V4 checkpoint, {units.format_size(nbytes)}")
