"""The Hub that a command writes to: which it is, and the publisher's consent."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from huggingface_hub import HfApi

from hubtool.card.consent import Replace
from hubtool.card.documents import Wording
from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, Command, repo_option
from hubtool.errors import UsageError
from hubtool.hub.client import make_api
from hubtool.hub.destination import Destination
from hubtool.hub.state import is_loopback


def destination_options(command: Command) -> Command:
    """Adds --to and all that says how to publish there, and hands them to the command as `to`, None without --to."""
    options = (
        repo_option,
        click.option("--public/--private", default=False, help="Whether a new repo is public.  [default: private]"),
        click.option("--public-after-verify", is_flag=True, help="Make the repo public when its files are verified."),
        click.option("--pr", is_flag=True, help="Open a pull request, or go on with it, instead of committing."),
        click.option("--revision", default="main", show_default=True, help="A branch; made if it is not there."),
        click.option("--tag", help="The tag of the release.  [default: hubtool-, and the start of the record's hash]"),
        click.option("--collection", metavar="SLUG", help="Add the repo to this collection."),
        click.option("--replace", "replace_other", is_flag=True, help="Replace another model that the repo holds."),
        click.option("--delete-foreign", is_flag=True, help="Delete weights of others that the repo holds."),
    )

    @functools.wraps(command)
    def wrapped(
        *arguments: Any,
        repo: str | None,
        public: bool,
        public_after_verify: bool,
        pr: bool,
        revision: str,
        tag: str | None,
        collection: str | None,
        replace_other: bool,
        delete_foreign: bool,
        **values: Any,
    ) -> Any:

        allowed = {"replace": replace_other, "delete_foreign": delete_foreign}
        given = Destination("-/-", not public, revision, pr, tag, public_after_verify, collection, **allowed)
        to = replace(given, repo=repo) if repo else None
        return command(*arguments, to=to, **values)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


dry_run_option = click.option("--dry-run", is_flag=True, help="Make all checks, say what would be done, and end.")


replace_card_option = click.option(
    "--replace-card", is_flag=True, help="Replace what people wrote in a card where the new one cannot keep it."
)


def card_options(command: Command) -> Command:
    """Adds what the publisher may say of the card, and hands it to the command as `wording`."""
    options = (
        click.option("--template-dir", type=FOLDER, help="Templates of the card that go before hubtool's; remembered."),
        click.option("--card-tag", "tags", multiple=True, metavar="TAG", help="A tag for the card; repeatable."),
        click.option("--card-language", "languages", multiple=True, metavar="CODE", help="Likewise a language, as en."),
        replace_card_option,
    )

    @functools.wraps(command)
    def wrapped(
        console: Console,
        *arguments: Any,
        template_dir: Path | None,
        tags: tuple[str, ...],
        languages: tuple[str, ...],
        replace_card: bool,
        **values: Any,
    ) -> Any:
        ask = ask_to_replace(console, allowed=replace_card)
        wording = Wording(template_dir, tags=tags, languages=languages, may_replace=ask)
        wording.check("the options")
        return command(console, *arguments, wording=wording, **values)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def ask_to_replace(console: Console, *, allowed: bool) -> Replace:
    """Who decides that something of a card may be replaced: the option, or else whoever sits at the terminal."""

    def ask(question: str) -> bool:
        if allowed:
            console.detail(question)
            return True
        if console.json_mode or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        console.say(question)
        return click.confirm("Replace it?", err=True)

    return ask


def open_hub() -> HfApi:
    """The Hub that HF_ENDPOINT and HF_TOKEN, or the stock login, name."""
    return make_api()


def confirm(console: Console, endpoint: str, repo: str, *, yes: bool) -> None:
    """Ask before writing to a Hub that is not on loopback.

    Raises:
        UsageError: There is nobody to ask, and --yes was not given.
        click.Abort: The answer was no.
    """
    if yes or is_loopback(endpoint):
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"would write to {repo} on {endpoint}", remedy="add --yes to allow it")
    click.confirm(f"Write to {repo} on {endpoint}?", abort=True, err=True)


@contextmanager
def rehearsal(data: Path, *, discard: bool = False) -> Iterator[HfApi]:
    """A rehearsal Hub that runs for the time of a `with`, as the Hub to write to."""
    from hubtool.rehearsal import RehearsalHub

    with RehearsalHub(data, discard=discard) as hub:
        yield make_api(hub.endpoint, hub.token)
