"""`hubtool status` and `hubtool withdraw`."""

from pathlib import Path

import click
import msgspec

from hubtool.cli.console import Console, table
from hubtool.cli.options import check_repo, repo_argument, with_console, yes_option
from hubtool.cli.target import confirm, open_hub


@click.command("status")
@click.argument("release", type=click.Path(dir_okay=False, path_type=Path), metavar="RELEASE.toml")
@with_console
def status(console: Console, release: Path) -> int:
    """Say what of a release is done and what is left; exit 1 if anything is."""
    from hubtool.releases import load_release, release_status

    found = release_status(open_hub(), load_release(release), console)
    rows = [
        [
            each.repo,
            each.recipe,
            _words(each.converted),
            each.published or "no",
            _words(each.tagged),
            "; ".join(each.problems),
        ]
        for each in found
    ]
    document = {"done": all(each.done for each in found), "variants": msgspec.to_builtins(found)}
    console.answer(document, lambda: table(["repo", "recipe", "converted", "published", "tagged", "left"], rows))
    return 0 if document["done"] else 1


def _words(done: bool) -> str:
    return "yes" if done else "no"


@click.command("withdraw")
@repo_argument
@click.option("--reason", required=True, help="Why it should no longer be used, in a sentence.")
@click.option("--new-version", callback=check_repo, metavar="ORG/NAME", help="What takes its place.")
@yes_option
@with_console
def withdraw(console: Console, repo: str, reason: str, new_version: str | None, *, yes: bool) -> None:
    """Mark card and record of a published repo as withdrawn. Nothing is deleted."""
    from hubtool.releases import withdraw as mark

    api = open_hub()
    confirm(console, api.endpoint, repo, yes=yes)
    commit = mark(api, repo, reason, new_version, console)
    document = {"repo": repo, "commit": commit, "reason": reason, "new_version": new_version}
    console.answer(document, lambda: f"{repo} at {commit}: withdrawn; its files stay")
