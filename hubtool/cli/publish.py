"""`hubtool publish`."""

from pathlib import Path

import click

from hubtool.cli.console import Console
from hubtool.cli.convert import converted_document, converted_text
from hubtool.cli.options import (
    FOLDER,
    base_model_option,
    jobs_option,
    public_option,
    recipe_option,
    repo_option,
    source_argument,
    with_console,
    yes_option,
)
from hubtool.cli.target import confirm, open_hub, rehearsal
from hubtool.cli.upload import release_document, release_text


@click.command("publish")
@source_argument
@recipe_option
@repo_option
@click.option("--out", "folder", type=FOLDER, help="The folder to make.  [default: ./NAME of the repo]")
@base_model_option
@jobs_option
@public_option
@yes_option
@click.option("--rehearse", is_flag=True, help="Publish to a rehearsal Hub on this machine instead.")
@click.option("--rehearsal-data", type=FOLDER, help="Where the rehearsal Hub keeps its repos.  [default: beside --out]")
@with_console
def command(
    console: Console,
    source: str,
    recipe: str,
    repo: str,
    folder: Path | None,
    base_model: str | None,
    jobs: int,
    *,
    public: bool,
    yes: bool,
    rehearse: bool,
    rehearsal_data: Path | None,
) -> None:
    """Convert, measure, write the card, upload in one commit, and verify. Run it again and it goes on."""
    from hubtool.hub import Destination
    from hubtool.release import convert_source, open_source, plan_source, publish_folder

    opened = open_source(source, base_model)
    (plan,) = plan_source(opened, [recipe])
    to = Destination(repo, private=not public)
    folder = folder or Path(repo.rpartition("/")[2])
    data = rehearsal_data or folder.absolute().parent / "rehearsal"
    if not rehearse:
        api = open_hub()
        confirm(console, api.endpoint, repo, yes=yes)
    converted = convert_source(opened, plan, folder, jobs, console)
    if rehearse:
        with rehearsal(data) as api:
            release = publish_folder(api, converted, to, console)
    else:
        release = publish_folder(api, converted, to, console)
    document = converted_document(converted) | release_document(release)
    where = f"\nrehearsal   {data} holds the repo; `hubtool rehearse --data {data}` serves it" if rehearse else ""
    if rehearse:
        document["rehearsal_data"] = str(data)
    console.answer(document, lambda: f"{converted_text(converted)}\n{release_text(release)}{where}")
