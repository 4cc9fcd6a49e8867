"""`hubtool publish`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from huggingface_hub import HfApi

from hubtool.card.documents import Wording
from hubtool.cli.console import Console
from hubtool.cli.convert import converted_document, converted_text
from hubtool.cli.destination import card_options, confirm, destination_options, dry_run_option, open_hub, rehearsal
from hubtool.cli.options import (
    EXISTING_FILE,
    FOLDER,
    Choice,
    base_model_option,
    check_recipe,
    complete_files,
    complete_recipes,
    download_options,
    effort_options,
    examples,
    fit_options,
    with_console,
    yes_option,
)
from hubtool.cli.upload import plan_document, plan_text, published_document, published_text
from hubtool.convert.job import Effort
from hubtool.errors import UsageError
from hubtool.hub.destination import Destination
from hubtool.plan.budget import Request
from hubtool.record import RUNGS, Rung
from hubtool.release import publish
from hubtool.release.file import load_release
from hubtool.release.folder import Published
from hubtool.release.publish import DryRun
from hubtool.release.release import Release, Variant, require_notes

RELEASE_SUFFIX = ".toml"

IN_THE_FILE = frozenset(
    {
        *("recipe", "repo", "public", "public_after_verify", "revision", "tag", "collection"),
        *("folder", "base_model", "disk_limit", "keep_source", "notes", "statistics"),
        *("template_dir", "tags", "languages"),
    }
)
"""Options for which a release has its own words; the others are about this run, or add to what its file says."""


NONE = "none"


class _Rungs(Choice):
    """Rungs with commas between them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same, each of them known."""
        known = super().convert
        return ",".join(known(each.strip(), param, ctx) for each in str(value).split(","))


def _choose_rungs(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[Rung, ...] | None:
    """The rungs of all values, none of them for `none`; None if nothing is chosen."""
    names = [name for value in values for name in value.split(",")]
    if NONE in names and set(names) != {NONE}:
        raise click.BadParameter("none stands alone", context, parameter)
    return tuple(rung for rung in RUNGS if rung in names) if names else None


@click.command(
    "publish",
    epilog=examples(
        "hubtool publish deepseek-ai/DeepSeek-V4-Flash --recipe native --to me/V4",
        "hubtool publish ./source --recipe mixed_3_6 --to me/V4 --rehearse",
        "hubtool publish release.toml",
    ),
)
@click.argument("source", metavar="FOLDER|ORG/NAME[@REVISION]|RELEASE.toml", shell_complete=complete_files)
@click.option(
    "--recipe",
    metavar="NAME|FILE.toml",
    callback=check_recipe,
    shell_complete=complete_recipes,
    help="How the weights are stored.",
)
@fit_options
@destination_options
@click.option("--out", "folder", type=FOLDER, help="The folder to make.  [default: ./NAME of the repo]")
@base_model_option
@download_options
@effort_options
@click.option("--notes", default="", help="Text for the notes of the card, where they are empty.")
@click.option(
    "--validate",
    "rungs",
    multiple=True,
    type=_Rungs((*RUNGS, NONE)),
    callback=_choose_rungs,
    help="To pass first, or none.  [default: all that memory allows]",
)
@click.option("--allow-failed", is_flag=True, help="Publish what failed to validate; its card says so.")
@click.option("--stream", is_flag=True, help="Send each shard while it is made: none ever lies on this disk.")
@dry_run_option
@yes_option
@click.option("--sign", "sign_key", type=EXISTING_FILE, help="Sign the files with this private key (PEM).")
@click.option("--rehearse", is_flag=True, help="Publish to a rehearsal Hub on this machine instead.")
@click.option("--rehearsal-data", type=FOLDER, help="Where the rehearsal Hub keeps its repos.  [default: beside --out]")
@click.option("--rehearsal-discard", is_flag=True, help="Let the rehearsal Hub drop what it has checked.")
@with_console
@card_options
def command(
    console: Console,
    source: str,
    recipe: str | None,
    statistics: Path | None,
    request: Request | None,
    to: Destination | None,
    wording: Wording,
    folder: Path | None,
    base_model: str | None,
    effort: Effort,
    *,
    disk_limit: int | None,
    keep_source: bool,
    notes: str,
    rungs: tuple[Rung, ...] | None,
    allow_failed: bool,
    stream: bool,
    dry_run: bool,
    yes: bool,
    sign_key: Path | None,
    rehearse: bool,
    rehearsal_data: Path | None,
    rehearsal_discard: bool,
) -> None:
    """Convert a checkpoint and publish it; or a whole release.

    Every stage is skipped whose result is there already: run it again after any failure.

    A file that ends in .toml is a release of several variants: they are made in one pass over the source.
    """
    several = source.endswith(RELEASE_SUFFIX)
    if several:
        release = _load(Path(source), rungs, sign_key, wording, stream=stream)
        release = replace(release, allow_failed=allow_failed)
    else:
        if (recipe is None and request is None) or to is None:
            remedy = "give both, or a release in a .toml file"
            raise UsageError("needs --recipe, or --fit, and --to", where=source, remedy=remedy)
        require_notes(notes, "--notes")
        out = folder or Path(to.repo.rpartition("/")[2])
        console.log_to(out)
        release = Release(
            source,
            (Variant(recipe, to, out, notes),),
            out,
            base_model=base_model,
            disk_limit=disk_limit,
            keep_source=keep_source,
            whole=False,
            validate=rungs,
            allow_failed=allow_failed,
            wording=wording,
            statistics=statistics,
            fit=request,
            stream=stream,
            sign_key=sign_key,
        )
    data = (rehearsal_data or release.out.absolute().parent / "rehearsal") if rehearse else None
    with publish.open_release(release, console) as opened:
        if not (rehearse or dry_run):
            repos = ", ".join(each.destination.repo for each in release.variants)
            confirm(console, open_hub().endpoint, repos, yes=yes)
        with _hub(data, discard=rehearsal_discard) as api:
            if dry_run:
                _answer_plans(console, publish.dry_run(api, opened, console), several=several)
            else:
                _answer(console, publish.publish(api, opened, effort, console), data, several=several)


def _load(
    path: Path, rungs: tuple[Rung, ...] | None, sign_key: Path | None, wording: Wording, *, stream: bool
) -> Release:
    """The release of a file, with what the options of this run add to it.

    Raises:
        UsageError: An option was given that a release has its own word for.
    """
    context = click.get_current_context()
    given = [
        "/".join([*parameter.opts, *parameter.secondary_opts])
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
        and parameter.name in IN_THE_FILE
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            "options that belong in the release file",
            where=path,
            found=", ".join(given),
            remedy="remove them here, and set them in the file where it has such a key",
        )
    release = load_release(path)
    release = release.proposed() if context.params["pr"] else release
    allowed = {"replace": context.params["replace_other"], "delete_foreign": context.params["delete_foreign"]}
    release = release.sent(**{name: True for name, value in allowed.items() if value})
    return replace(
        release,
        validate=_together(release.validate, rungs),
        stream=release.stream or stream,
        sign_key=sign_key or release.sign_key,
        wording=replace(release.wording, may_replace=wording.may_replace),
    )


def _together(filed: tuple[Rung, ...] | None, rungs: tuple[Rung, ...] | None) -> tuple[Rung, ...] | None:
    """What a file and the options of a run ask for, or the run's `none`."""
    if not rungs:
        return filed if rungs is None else ()
    return tuple(dict.fromkeys([*(filed or ()), *rungs]))


@contextmanager
def _hub(data: Path | None, *, discard: bool) -> Iterator[HfApi]:
    """The Hub that is written to, for the time of a `with`: a rehearsal if there is a folder for its data."""
    if data is None:
        yield open_hub()
    else:
        with rehearsal(data, discard=discard) as api:
            yield api


def _answer(console: Console, published: Sequence[Published], data: Path | None, *, several: bool) -> None:
    documents = [converted_document(each.converted) | published_document(each) for each in published]
    document: dict[str, object] = {"variants": documents} if several else documents[0]
    text = "\n\n".join(f"{converted_text(each.converted)}\n{published_text(each)}" for each in published)
    if data is not None:
        text += f"\nrehearsal   {data} holds the repo; `hubtool rehearse --data {data}` serves it"
        document["rehearsal_data"] = str(data)
    console.answer(document, lambda: text)


def _answer_plans(console: Console, runs: Sequence[DryRun], *, several: bool) -> None:
    documents = [{"converted": each.converted} | plan_document(each.to, each.plan) for each in runs]
    text = "\n\n".join(plan_text(each.to, each.plan) for each in runs)
    console.answer({"variants": documents} if several else documents[0], lambda: text)
