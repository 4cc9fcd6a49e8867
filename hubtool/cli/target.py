"""The Hub that a command writes to: which it is, and the publisher's consent."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from hubtool.cli.console import Console
from hubtool.errors import UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def open_hub() -> "HfApi":
    """The Hub that HF_ENDPOINT and HF_TOKEN, or the stock login, name."""
    from hubtool.http import make_api

    return make_api(os.environ.get("HF_ENDPOINT"), os.environ.get("HF_TOKEN"))


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


def is_loopback(endpoint: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def rehearsal(data: Path) -> Iterator["HfApi"]:
    """A rehearsal Hub that runs for the time of a `with`, as the Hub to write to."""
    from hubtool.http import make_api
    from hubtool.rehearsal import RehearsalHub

    with RehearsalHub(data) as hub:
        yield make_api(hub.endpoint, hub.token, xet=False)
