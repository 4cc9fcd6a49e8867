"""`hubtool withdraw`."""

import click

from hubtool.cli.console import Console
from hubtool.cli.destination import confirm, dry_run_option, open_hub
from hubtool.cli.options import check_repo, repo_argument, with_console, yes_option


@click.command("withdraw")
@repo_argument
@click.option("--reason", required=True, help="Why it should no longer be used, in a sentence.")
@click.option("--new-version", callback=check_repo, metavar="ORG/NAME", help="What takes its place.")
@dry_run_option
@yes_option
@with_console
def command(console: Console, repo: str, reason: str, new_version: str | None, *, dry_run: bool, yes: bool) -> None:
    """Mark card and record of a published repo as withdrawn. Nothing is deleted."""
    from hubtool.release.withdraw import mark, withdraw

    api = open_hub()
    if not dry_run:
        confirm(console, api.endpoint, repo, yes=yes)
    done = withdraw(api, repo, mark(reason, new_version), console, dry_run=dry_run)
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
