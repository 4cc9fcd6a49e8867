"""`hubtool upload`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from hubtool import units
from hubtool.cli.console import Console
from hubtool.cli.destination import card_options, confirm, destination_options, dry_run_option, open_hub
from hubtool.cli.options import FOLDER, examples, with_console, yes_option
from hubtool.errors import UsageError

if TYPE_CHECKING:
    from hubtool.card.documents import Wording
    from hubtool.hub.destination import Destination
    from hubtool.hub.upload import Outlook
    from hubtool.release.publish import Release


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
    from hubtool.convert.convert import Converted
    from hubtool.record import require_record
    from hubtool.release.publish import Manner, look_at_folder, publish_folder

    record = require_record(folder)
    console.log_to(folder)
    api = open_hub()
    converted = Converted(folder, record, fresh=False)
    if dry_run:
        outlook = look_at_folder(api, converted, to, console, Manner(wording))
        console.answer(outlook_document(to, outlook), lambda: outlook_text(to, outlook))
        return
    confirm(console, api.endpoint, to.repo, yes=yes)
    release = publish_folder(api, converted, to, console, Manner(wording))
    console.answer(release_document(release), lambda: release_text(release))


def outlook_document(to: "Destination", outlook: "Outlook") -> dict[str, Any]:
    """What an upload would do."""
    place = outlook.place
    return {
        "repo": to.repo,
        "exists": place.exists,
        "made": place.made,
        "private": place.private,
        "revision": place.revision,
        "pull_request": place.pull_request,
        "head": place.head,
        "send": list(outlook.send),
        "nbytes": outlook.nbytes,
        "keep": list(outlook.keep),
        "delete": list(outlook.delete),
        "foreign": list(outlook.foreign),
    }


def outlook_text(to: "Destination", outlook: "Outlook") -> str:
    """What an upload would do, as lines."""
    place = outlook.place
    state = "there" if place.made else "to be made" if not place.exists else "to be made in the repo that is there"
    repo = f"{state}, {'private' if place.private else 'public'}"
    where = f"a pull request to {to.repo}" if to.pull_request else f"{to.repo}, branch {to.revision}"
    lines = [
        f"destination {where} ({repo})",
        f"to send     {len(outlook.send)} files, {units.format_nbytes(outlook.nbytes)}",
        *(f"            {name}" for name in outlook.send),
        f"there       {len(outlook.keep)} files as they should be",
    ]
    lines += [f"to delete   {', '.join(outlook.delete)}"] if outlook.delete else []
    lines += [f"left alone  {', '.join(outlook.foreign)}"] if outlook.foreign else []
    return "\n".join([*lines, "nothing was written"])


def release_document(release: "Release") -> dict[str, Any]:
    """The facts of a published release."""
    published = release.published
    return {
        "repo": published.repo,
        "commit": published.commit,
        "url": published.url,
        "tag": release.tag,
        "pull_request": published.pull_request,
        "files": published.files,
        "uploaded_nbytes": published.nbytes,
        "changed": published.changed,
        "deleted": msgspec.to_builtins(published.deleted),
        "foreign": msgspec.to_builtins(published.foreign),
        "verified": not release.verification.problems,
    }


def release_text(release: "Release") -> str:
    """The facts of a published release, as lines."""
    published = release.published
    lines = [
        f"repo        {published.repo}",
        f"page        {published.url}",
        f"commit      {published.commit}",
    ]
    lines += [f"tag         {release.tag}"] if release.tag else []
    lines += [f"deleted     {', '.join(published.deleted)}"] if published.deleted else []
    lines.append(
        f"verified    {published.files} files, {units.format_nbytes(published.nbytes)}: the Hub's hashes are those "
        "of the record and the folder"
    )
    return "\n".join(lines)
