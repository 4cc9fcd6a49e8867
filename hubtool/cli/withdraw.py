"""`hubtool withdraw`."""

import click

from hubtool.cli.console import Console
from hubtool.cli.destination import confirm, dry_run_option, open_hub
from hubtool.cli.options import check_repo, examples, repo_argument, with_console, yes_option
from hubtool.release.withdraw import mark, withdraw


@click.command(
    "withdraw",
    epilog=examples(
        'hubtool withdraw ORG/NAME --reason "Wrong tokenizer."',
        'hubtool withdraw ORG/NAME --reason "Replaced." --new-version ORG/OTHER',
    ),
)
@repo_argument
@click.option("--reason", required=True, help="Why it should no longer be used, in a sentence.")
@click.option("--new-version", callback=check_repo, metavar="ORG/NAME", help="What takes its place.")
@dry_run_option
@yes_option
@with_console
def command(console: Console, repo: str, reason: str, new_version: str | None, *, dry_run: bool, yes: bool) -> None:
    """Mark a published repo as no longer to be used.

    Its card and its record say so, and what to use instead. Nothing is deleted.
    """
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
