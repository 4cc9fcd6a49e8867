"""`hubtool sample`."""

from pathlib import Path

import click

from hubtool import units
from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, with_console


@click.command("sample")
@click.argument("folder", type=FOLDER)
@click.option(
    "--size",
    type=click.Choice(["tiny", "small"]),
    default="tiny",
    show_default=True,
    help="12 MB, or 1.5 GB in a published model's proportions.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other weights for another seed.")
@with_console
def command(console: Console, folder: Path, size: str, seed: int) -> None:
    """Write a random DeepSeek-V4 checkpoint in the published format."""
    from hubtool.sample import SIZES, write_sample

    write_sample(folder, SIZES[size], seed)
    nbytes = sum(path.stat().st_size for path in folder.iterdir())
    document = {"folder": str(folder), "size": size, "seed": seed, "nbytes": nbytes}
    console.answer(document, lambda: f"{folder}: a random DeepSeek-V4 checkpoint, {units.format_size(nbytes)}")
