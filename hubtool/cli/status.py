"""`hubtool status`."""

from pathlib import Path

import click
import msgspec

from hubtool.cli.console import Console, table
from hubtool.cli.destination import open_hub
from hubtool.cli.options import examples, with_console
from hubtool.release.file import load_release
from hubtool.release.status import release_status


@click.command("status", epilog=examples("hubtool status release.toml", "hubtool status release.toml --json"))
@click.argument("release", type=click.Path(dir_okay=False, path_type=Path), metavar="RELEASE.toml")
@with_console
def command(console: Console, release: Path) -> int:
    """Say what of a release is done and what is left.

    Exit code 1 if anything is left.
    """
    found = release_status(open_hub(), load_release(release), console)
    rows = [
        [
            each.repo,
            each.recipe,
            _words(each.converted),
            each.published or each.state,
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
