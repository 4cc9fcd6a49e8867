"""`hubtool status` and `hubtool withdraw`."""

from pathlib import Path

import click
import msgspec

from hubtool.cli.console import Console, table
from hubtool.cli.options import check_repo, repo_argument, with_console, yes_option
from hubtool.cli.target import confirm, dry_run_option, open_hub


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
@dry_run_option
@yes_option
@with_console
def withdraw(console: Console, repo: str, reason: str, new_version: str | None, *, dry_run: bool, yes: bool) -> None:
    """Mark card and record of a published repo as withdrawn. Nothing is deleted."""
    from hubtool import withdrawing

    api = open_hub()
    if not dry_run:
        confirm(console, api.endpoint, repo, yes=yes)
    done = withdrawing.withdraw(api, repo, withdrawing.mark(reason, new_version), console, dry_run=dry_run)
    document = {
        "repo": repo,
        "commit": done.commit,
        "reason": reason,
        "new_version": new_version,
        "changed": list(done.changed),
        "dry_run": dry_run,
    }
    would = f"{repo} at {done.commit}: {', '.join(done.changed) or 'nothing'} would change; nothing was written"
    console.answer(document, lambda: would if dry_run else f"{repo} at {done.commit}: withdrawn; its files stay")
