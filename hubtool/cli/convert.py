"""`hubtool convert`."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hubtool import units
from hubtool.checkpoint.open import open_source
from hubtool.cli.console import Console
from hubtool.cli.options import (
    FOLDER,
    base_model_option,
    download_options,
    effort_options,
    examples,
    fit_options,
    recipes_option,
    source_argument,
    with_console,
)
from hubtool.convert.convert import Converted, convert_sources
from hubtool.convert.job import Effort, Job
from hubtool.errors import UsageError
from hubtool.plan.budget import Request, plan_all, require_choice


@click.command(
    "convert",
    epilog=examples(
        "hubtool convert ./source --recipe mixed_3_6 --out ./V4-mixed_3_6",
        "hubtool convert ./source --recipe mixed_3_6 --recipe native --out-root ./all",
    ),
)
@source_argument
@recipes_option
@fit_options
@click.option("--out", type=FOLDER, help="The folder to make, or to go on with, for one recipe.")
@click.option("--out-root", type=FOLDER, help="Where each recipe gets a folder of its name: one pass over the source.")
@base_model_option
@download_options
@effort_options
@with_console
def command(
    console: Console,
    source: str,
    recipes: tuple[str, ...],
    statistics: Path | None,
    request: Request | None,
    out: Path | None,
    out_root: Path | None,
    base_model: str | None,
    effort: "Effort",
    *,
    disk_limit: int | None,
    keep_source: bool,
) -> None:
    """Convert a checkpoint into a folder that is ready to publish.

    Run it again after any interruption, and it goes on where it stopped.
    """
    require_choice(recipes, request)
    if (out is None) == (out_root is None) or (out and len(recipes) > 1):
        raise UsageError("needs --out for one recipe, or --out-root for several", found=f"{len(recipes)} recipes")
    download_to = out or out_root
    console.log_to(Path(out or out_root or ""))
    with closing(
        open_source(source, base_model, out=download_to, disk_limit=disk_limit, keep_source=keep_source)
    ) as opened:
        plans = plan_all(opened, recipes, request, statistics)
        work = [Job(plan, out or Path(out_root or "", plan.recipe.name)) for plan in plans]
        if len({job.folder for job in work}) < len(work):
            raise UsageError("two recipes of one name", where="--recipe", found=", ".join(recipes))
        converted = convert_sources(opened, work, effort, console)
    documents = [converted_document(each) for each in converted]
    console.answer(
        documents if out_root else documents[0], lambda: "\n".join(converted_text(each) for each in converted)
    )


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
        f"bits, {units.format_nbytes(measured.nbytes)} in {measured.tensors} tensors and "
        f"{units.format_shards(measured.shards)}, as planned"
    )
