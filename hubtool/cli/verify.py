"""`hubtool verify`."""

from pathlib import Path

import click
import msgspec

from hubtool import units
from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, with_console
from hubtool.cli.target import open_hub


@click.command("verify")
@click.argument("repo", metavar="ORG/NAME")
@click.argument("folder", type=FOLDER, required=False)
@click.option("--revision", default="main", show_default=True, help="A branch, tag or commit.")
@with_console
def command(console: Console, repo: str, folder: Path | None, revision: str) -> int:
    """Hold the Hub's hashes of a repo against its record, and against a folder."""
    from hubtool import hub

    result = hub.verify(open_hub(), repo, revision=revision, folder=folder)

    def text() -> str:
        against = "the record and the folder" if folder else "the record"
        if result.problems:
            return "\n".join([*result.problems, f"{repo} at {result.commit}: not verified"])
        return (
            f"{repo} at {result.commit}: verified, {result.files} files, {units.format_nbytes(result.nbytes)}, "
            f"against {against}"
        )

    document = {
        "repo": result.repo,
        "commit": result.commit,
        "files": result.files,
        "nbytes": result.nbytes,
        "problems": msgspec.to_builtins(result.problems),
        "verified": not result.problems,
    }
    console.answer(document, text)
    return 1 if result.problems else 0
