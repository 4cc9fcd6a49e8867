"""`hubtool upload`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubtool import units
from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, public_option, repo_option, with_console, yes_option
from hubtool.cli.target import confirm, open_hub
from hubtool.errors import RecordError

if TYPE_CHECKING:
    from hubtool.release import Release


@click.command("upload")
@click.argument("folder", type=FOLDER)
@repo_option
@public_option
@yes_option
@with_console
def command(console: Console, folder: Path, repo: str, *, public: bool, yes: bool) -> None:
    """Publish a finished folder in one commit, and verify it."""
    from hubtool.hub import Destination
    from hubtool.record import RECORD_FILE, read_record
    from hubtool.release import Converted, publish_folder

    record = read_record(folder) if folder.is_dir() else None
    if record is None:
        raise RecordError("no record", where=folder, expected=RECORD_FILE, remedy="give a folder that hubtool made")
    api = open_hub()
    confirm(console, api.endpoint, repo, yes=yes)
    release = publish_folder(api, Converted(folder, record, fresh=False), Destination(repo, not public), console)
    console.answer(release_document(release), lambda: release_text(release))


def release_document(release: "Release") -> dict[str, Any]:
    """The facts of a published release."""
    published = release.published
    return {
        "repo": published.repo,
        "commit": published.commit,
        "url": published.url,
        "files": published.files,
        "uploaded_nbytes": published.nbytes,
        "changed": published.changed,
        "verified": not release.verification.problems,
    }


def release_text(release: "Release") -> str:
    """The facts of a published release, as lines."""
    published = release.published
    return "\n".join(
        [
            f"repo        {published.repo}",
            f"commit      {published.commit}",
            f"verified    {published.files} files, {units.format_nbytes(published.nbytes)}: the Hub's hashes are those "
            "of the record and the folder",
        ]
    )
