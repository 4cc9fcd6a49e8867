"""`hubtool convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubtool import units
from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, base_model_option, jobs_option, recipe_option, source_argument, with_console

if TYPE_CHECKING:
    from hubtool.release import Converted


@click.command("convert")
@source_argument
@recipe_option
@click.option("--out", "folder", type=FOLDER, required=True, help="The folder to make, or to go on with.")
@base_model_option
@jobs_option
@with_console
def command(console: Console, source: str, recipe: str, folder: Path, base_model: str | None, jobs: int) -> None:
    """Convert a checkpoint into a folder that is ready to publish."""
    from hubtool.release import convert_source, open_source, plan_source

    opened = open_source(source, base_model)
    (plan,) = plan_source(opened, [recipe])
    converted = convert_source(opened, plan, folder, jobs, console)
    console.answer(converted_document(converted), lambda: converted_text(converted))


def converted_document(converted: "Converted") -> dict[str, Any]:
    """The figures of a finished folder."""
    measured = converted.record.measured
    return {
        "folder": str(converted.folder),
        "recipe": converted.record.recipe.name,
        "nbytes": measured.nbytes,
        "effective_bits": measured.effective_bits,
        "parameters": measured.parameters,
        "shards": measured.shards,
        "tensors": measured.tensors,
        "converted": converted.fresh,
    }


def converted_text(converted: "Converted") -> str:
    """The figures of a finished folder, as lines."""
    measured = converted.record.measured
    return (
        f"{converted.folder}: {converted.record.recipe.name}, {units.format_bits(measured.effective_bits)} effective "
        f"bits, {units.format_nbytes(measured.nbytes)} in {measured.tensors} tensors and {measured.shards} "
        f"shard{'s' if measured.shards > 1 else ''}, as planned"
    )
