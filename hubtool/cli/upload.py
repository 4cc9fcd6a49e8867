"""`hubtool upload`."""

from pathlib import Path
from typing import Any

import click
import msgspec

from hubtool import units
from hubtool.card.documents import Wording
from hubtool.cli.console import Console
from hubtool.cli.destination import card_options, confirm, destination_options, dry_run_option, open_hub
from hubtool.cli.options import FOLDER, examples, with_console, yes_option
from hubtool.convert.convert import Converted
from hubtool.errors import UsageError
from hubtool.hub.destination import Destination
from hubtool.hub.upload import UploadPlan
from hubtool.record import require_record
from hubtool.release.folder import Manner, Published, plan_folder, publish_folder


@click.command(
    "upload",
    epilog=examples(
        "hubtool upload ./V4-mixed_3_6 --to ORG/NAME --dry-run", "hubtool upload ./V4-mixed_3_6 --to ORG/NAME --pr"
    ),
)
@click.argument("folder", type=FOLDER)
@destination_options
@dry_run_option
@yes_option
@with_console
@card_options
def command(
    console: Console, folder: Path, to: "Destination | None", wording: "Wording", *, dry_run: bool, yes: bool
) -> None:
    """Publish a finished folder in one commit.

    The files are verified there afterwards, and tagged.
    """
    if to is None:
        raise UsageError("needs --to", remedy="say where to, as --to ORG/NAME")

    record = require_record(folder)
    console.log_to(folder)
    api = open_hub()
    converted = Converted(folder, record, fresh=False)
    if dry_run:
        plan = plan_folder(api, converted, to, console, Manner(wording))
        console.answer(plan_document(to, plan), lambda: plan_text(to, plan))
        return
    confirm(console, api.endpoint, to.repo, yes=yes)
    published = publish_folder(api, converted, to, console, Manner(wording))
    console.answer(published_document(published), lambda: published_text(published))


def plan_document(to: "Destination", plan: "UploadPlan") -> dict[str, Any]:
    """What an upload would do."""
    place = plan.place
    return {
        "repo": to.repo,
        "exists": place.exists,
        "made": place.made,
        "private": place.private,
        "revision": place.revision,
        "pull_request": place.pull_request,
        "head": place.head,
        "send": list(plan.send),
        "nbytes": plan.nbytes,
        "keep": list(plan.keep),
        "delete": list(plan.delete),
        "foreign": list(plan.foreign),
    }


def plan_text(to: "Destination", plan: "UploadPlan") -> str:
    """What an upload would do, as lines."""
    place = plan.place
    state = "there" if place.made else "to be made" if not place.exists else "to be made in the repo that is there"
    repo = f"{state}, {'private' if place.private else 'public'}"
    where = f"a pull request to {to.repo}" if to.pull_request else f"{to.repo}, branch {to.revision}"
    lines = [
        f"destination {where} ({repo})",
        f"to send     {len(plan.send)} files, {units.format_nbytes(plan.nbytes)}",
        *(f"            {name}" for name in plan.send),
        f"there       {len(plan.keep)} files as they should be",
    ]
    lines += [f"to delete   {', '.join(plan.delete)}"] if plan.delete else []
    lines += [f"left alone  {', '.join(plan.foreign)}"] if plan.foreign else []
    return "\n".join([*lines, "nothing was written"])


def published_document(published: "Published") -> dict[str, Any]:
    """The facts of what was published."""
    uploaded = published.uploaded
    return {
        "repo": uploaded.repo,
        "commit": uploaded.commit,
        "url": uploaded.url,
        "tag": published.tag,
        "pull_request": uploaded.pull_request,
        "files": uploaded.files,
        "uploaded_nbytes": uploaded.nbytes,
        "changed": uploaded.changed,
        "deleted": msgspec.to_builtins(uploaded.deleted),
        "foreign": msgspec.to_builtins(uploaded.foreign),
        "verified": not published.verification.problems,
    }


def published_text(published: "Published") -> str:
    """The facts of what was published, as lines."""
    uploaded = published.uploaded
    lines = [
        f"repo        {uploaded.repo}",
        f"page        {uploaded.url}",
        f"commit      {uploaded.commit}",
    ]
    lines += [f"tag         {published.tag}"] if published.tag else []
    lines += [f"deleted     {', '.join(uploaded.deleted)}"] if uploaded.deleted else []
    lines.append(
        f"verified    {uploaded.files} files, {units.format_nbytes(uploaded.nbytes)}: the Hub's hashes are those "
        "of the record and the folder"
    )
    return "\n".join(lines)
