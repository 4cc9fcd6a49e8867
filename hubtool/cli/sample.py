"""`hubtool sample`."""

from pathlib import Path

import click

from hubtool import units
from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, Choice, examples, with_console
from hubtool.errors import UsageError
from hubtool.sample import PUBLISHED, SIZES, write_architecture, write_sample


@click.command("sample", epilog=examples("hubtool sample ./source", "hubtool sample ./larger --size small --seed 7"))
@click.argument("folder", type=FOLDER)
@click.option(
    "--size",
    type=Choice(["tiny", "small"]),
    default="tiny",
    show_default=True,
    help="12 MB, or 1.5 GB in a published model's proportions.",
)
@click.option(
    "--architecture",
    type=Choice(["deepseek_v4", *PUBLISHED]),
    metavar="NAME",
    default="deepseek_v4",
    show_default=True,
    help=f"What it is a checkpoint of: deepseek_v4, {', '.join(PUBLISHED)}.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other weights for another seed.")
@with_console
def command(console: Console, folder: Path, size: str, architecture: str, seed: int) -> None:
    """Write a small random checkpoint in the published format."""
    if architecture == "deepseek_v4":
        write_sample(folder, SIZES[size], seed)
        name = "DeepSeek-V4"
    elif size == "tiny":
        write_architecture(folder, architecture, seed)
        name = architecture
    else:
        raise UsageError(
            "size that this architecture does not come in",
            where="--size",
            found=size,
            expected="tiny",
            remedy="leave --size out, or take the architecture deepseek_v4",
        )
    nbytes = sum(path.stat().st_size for path in folder.iterdir())
    document = {"folder": str(folder), "size": size, "seed": seed, "nbytes": nbytes}
    if architecture != "deepseek_v4":
        document["architecture"] = architecture
    console.answer(document, lambda: f"{folder}: a random {name} checkpoint, {units.format_size(nbytes)}")
