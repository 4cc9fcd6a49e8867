"""Options that several commands share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hubtool.cli.console import Console

Command = Callable[..., Any]

FOLDER = click.Path(path_type=Path)


def with_console(command: Command) -> Command:
    """Adds --json, -q and -v, and hands the command a Console as its first argument."""

    @click.option("--json", "json_mode", is_flag=True, help="One JSON document on stdout, progress as JSON lines.")
    @click.option("-q", "--quiet", is_flag=True, help="Only the answer and errors.")
    @click.option("-v", "--verbose", is_flag=True, help="More of what happens.")
    @functools.wraps(command)
    def wrapped(*arguments: Any, json_mode: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
        click.get_current_context().find_root().obj = console
        return command(console, *arguments, **options)

    return wrapped


source_argument = click.argument("source", metavar="SOURCE")

base_model_option = click.option(
    "--base-model",
    metavar="ORG/NAME[@COMMIT]",
    help="What the source is, where the files do not tell; recorded as stated.",
)

recipes_option = click.option(
    "--recipe", "recipes", multiple=True, required=True, metavar="NAME|FILE.toml", help="A recipe; may be repeated."
)

recipe_option = click.option("--recipe", required=True, metavar="NAME|FILE.toml", help="How the weights are stored.")

jobs_option = click.option(
    "--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Pieces that are worked on at once."
)

repo_option = click.option("--to", "repo", required=True, metavar="ORG/NAME", help="The repo to publish to.")

public_option = click.option(
    "--public/--private", default=False, help="Whether a new repo is public.  [default: private]"
)

yes_option = click.option("--yes", is_flag=True, help="Write to the Hub without asking.")
