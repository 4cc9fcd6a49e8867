"""`hubtool plan`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hubtool import units
from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import Source
from hubtool.checkpoint.usable import require_usable
from hubtool.cli.console import Console, table
from hubtool.cli.options import (
    base_model_option,
    examples,
    fit_options,
    jobs_option,
    recipes_option,
    source_argument,
    with_console,
)
from hubtool.errors import UsageError
from hubtool.files.whole import write_beside
from hubtool.plan.budget import Request, plan_all, require_choice
from hubtool.plan.plan import Plan


@click.command(
    "plan",
    epilog=examples(
        "hubtool plan deepseek-ai/DeepSeek-V4-Flash --recipe mixed_3_6",
        "hubtool plan ./source --recipe mixed_3_6 --recipe native --json",
        "hubtool plan ./source --fit-mac 128 --statistics s.safetensors",
    ),
)
@source_argument
@recipes_option
@fit_options
@click.option(
    "--write-recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.toml",
    help="Write the recipe that is planned to a file of your own.",
)
@base_model_option
@jobs_option
@with_console
def command(
    console: Console,
    source: str,
    recipes: tuple[str, ...],
    statistics: Path | None,
    request: Request | None,
    write_recipe: Path | None,
    base_model: str | None,
    jobs: int,
) -> None:
    """Print bytes, bits, shards, memory and disk of a conversion.

    Only config.json and the headers of the shards are read, on this machine or on the Hub; no weights.
    """
    require_choice(recipes, request)
    opened = open_source(source, base_model)
    plans = plan_all(opened, recipes, request, statistics)
    if write_recipe is not None:
        _write_recipe(plans, write_recipe)
    documents = [plan_document(opened, plan, jobs) for plan in plans]
    console.answer(documents if len(documents) > 1 else documents[0], lambda: _text(plans, documents))
    # Headers alone can be planned, and the figures hold; what stops a conversion is said all the same.
    for remark in require_usable(opened):
        console.say(remark)


def _write_recipe(plans: Sequence[Plan], path: Path) -> None:
    if len(plans) > 1:
        raise UsageError("several recipes for one file", where="--write-recipe", found=len(plans), expected="one")
    if path.suffix != ".toml" or path.exists():
        found = "a file that is there" if path.exists() else str(path)
        raise UsageError("not a new recipe file", where="--write-recipe", found=found, expected="a new name in .toml")
    write_beside(path, plans[0].recipe.text.encode())


def plan_document(source: Source, plan: Plan, jobs: int) -> dict[str, Any]:
    """The figures of a plan."""
    identity = source.identity
    return {
        "source": {
            "name": source.name,
            "repo": identity.repo,
            "repo_known": identity.repo_known,
            "commit": identity.commit,
            "commit_known": identity.commit_known,
        },
        "recipe": {"name": plan.recipe.name, "sha256": plan.recipe.sha256},
        "nbytes": plan.nbytes,
        "effective_bits": plan.effective_bits,
        "parameters": plan.parameters,
        "shards": len(plan.shards),
        "tensors": plan.tensors,
        "dtypes": plan.dtypes,
        "dropped": [
            {"names": item.names, "tensors": item.tensors, "nbytes": item.nbytes, "reason": item.reason}
            for item in plan.model.dropped
        ],
        "components": [
            {
                "name": share.component.value,
                "formats": list(share.formats),
                "parameters": share.parameters,
                "bits": share.bits,
                "nbytes": share.nbytes,
            }
            for share in plan.shares
        ],
        "kept": [{"modules": list(modules), "reason": reason} for reason, modules in plan.kept.items()],
        "jobs": jobs,
        "peak_nbytes": plan.peak_nbytes(jobs),
        "disk_nbytes": plan.disk_nbytes,
        "fits": {str(size): fits for size, fits in plan.machines().items()},
        "digest": plan.digest,
    }


def _text(plans: Sequence[Plan], documents: Sequence[dict[str, Any]]) -> str:
    if len(plans) > 1:
        return _comparison(plans)
    return _single(plans[0], documents[0])


def _comparison(plans: Sequence[Plan]) -> str:
    rows = [
        [
            plan.recipe.name,
            units.format_bits(plan.effective_bits),
            units.format_count(plan.nbytes),
            units.format_size(plan.nbytes),
            str(len(plan.shards)),
            _smallest(plan),
        ]
        for plan in plans
    ]
    return table(["recipe", ">bits", ">bytes", ">size", ">shards", ">fits in"], rows)


def _smallest(plan: Plan) -> str:
    fitting = [size for size, fits in plan.machines().items() if fits]
    return f"{fitting[0]} GB" if fitting else "none"


def _single(plan: Plan, document: dict[str, Any]) -> str:
    source = document["source"]
    known = f"{source['repo'] or source['name']}" + (f" at {source['commit']}" if source["commit"] else "")
    rows = [
        [
            share.component.value,
            "; ".join(share.formats) or "as published",
            units.format_count(share.parameters),
            units.format_bits(share.bits),
            units.format_count(share.nbytes),
            f"{share.nbytes / plan.nbytes:.1%}",
        ]
        for share in plan.shares
    ]
    machines = ", ".join(f"{size} {'yes' if fits else 'no'}" for size, fits in plan.machines().items())
    lines = [
        f"{known}, {plan.recipe.name}: {plan.recipe.summary}",
        "",
        f"bytes       {units.format_nbytes(plan.nbytes)} ({units.format_size(plan.nbytes)}, "
        f"{units.format_gib(plan.nbytes)})",
        f"bits        {units.format_bits(plan.effective_bits)} effective",
        f"parameters  {units.format_count(plan.parameters)}",
        f"tensors     {units.format_count(plan.tensors)} in {units.format_shards(len(plan.shards))}",
        "dtypes      " + ", ".join(f"{name} {units.format_count(n)}" for name, n in plan.dtypes.items()),
        "",
        table(["component", "stored as", ">parameters", ">bits", ">bytes", ">share"], rows),
        "",
        *(
            f"dropped     {d.names}: {d.tensors} tensors, {units.format_nbytes(d.nbytes)}; {d.reason}"
            for d in plan.model.dropped
        ),
        *(
            f"published   {modules[0]}{f' and {len(modules) - 1} more' if modules[1:] else ''}: {reason}"
            for reason, modules in plan.kept.items()
        ),
        f"memory      {units.format_size(document['peak_nbytes'])} at most to convert, with {document['jobs']} jobs",
        f"disk        {units.format_size(plan.disk_nbytes)} for the output",
        f"fits        in GB of unified memory: {machines}",
    ]
    return "\n".join(lines)
