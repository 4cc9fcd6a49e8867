"""Options that several commands share."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from hubtool import units
from hubtool.cli.console import Console
from hubtool.convert.device import default_jobs
from hubtool.convert.job import ERROR_ROWS, Effort
from hubtool.errors import did_you_mean
from hubtool.hub.rules import is_repo_id
from hubtool.models import Component
from hubtool.plan.budget import Request
from hubtool.plan.recipe import load_recipe, recipe_names

Command = Callable[..., Any]

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def parse_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """The number of bytes that an option says, as `20GB`."""
    try:
        return None if value is None else units.parse_nbytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


class Choice(click.Choice[str]):
    """A choice that answers a mistyped value with the nearest."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        """Click's sentence, and the question."""
        question = did_you_mean(str(value), map(str, self.choices))
        return " ".join([super().get_invalid_choice_message(value, ctx), question]).rstrip()


def check_recipe(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The recipe or recipes that an option names, which are there and can be used.

    Raises:
        RecipeError: There is no such recipe, or it cannot be used.
    """
    for name in [value] if isinstance(value, str) else value or ():
        load_recipe(name)
    return value


def examples(*lines: str) -> str:
    """What stands at the end of a command's help: command lines that do what people mostly want."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def with_console(command: Command) -> Command:
    """Adds --json, -q and -v, and hands the command a Console as its first argument."""

    @click.option("--json", "json_mode", is_flag=True, help="One JSON document on stdout, progress as JSON lines.")
    @click.option("-q", "--quiet", is_flag=True, help="Only the answer and errors.")
    @click.option("-v", "--verbose", is_flag=True, help="More of what happens.")
    @functools.wraps(command)
    def wrapped(*arguments: Any, json_mode: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        console = Console(json_mode=json_mode, quiet=quiet, verbose=verbose)
        click.get_current_context().find_root().obj = console
        with _warnings_told(console):
            return command(console, *arguments, **options)

    return wrapped


@contextmanager
def _warnings_told(console: Console) -> Iterator[None]:
    """Let what libraries warn of be said as all else is: in JSON mode every line of stderr is JSON."""

    def show(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
        console.say(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def complete_folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Has the shell complete folders: names of repos it cannot know."""
    return [CompletionItem(incomplete, type="dir")]


def complete_files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Has the shell complete files and folders."""
    return [CompletionItem(incomplete, type="file")]


def complete_recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The recipes that begin like this, with their summaries; the shell completes a path."""
    named = [
        CompletionItem(name, help=load_recipe(name).summary) for name in recipe_names() if name.startswith(incomplete)
    ]
    return named or [CompletionItem(incomplete, type="file")]


source_argument = click.argument("source", metavar="FOLDER|ORG/NAME[@REVISION]", shell_complete=complete_folders)


def download_options(command: Command) -> Command:
    """Adds --disk-limit and --keep-source, for commands that read the weights of a source on the Hub."""
    limit = click.option(
        "--disk-limit",
        callback=parse_size,
        metavar="SIZE",
        help="Most bytes of a source on the Hub that lie on the disk at once, as 20GB.  [default: six of its shards]",
    )
    keep = click.option("--keep-source", is_flag=True, help="Keep what was fetched in .hubtool/source of the folder.")
    return limit(keep(command))


base_model_option = click.option(
    "--base-model",
    metavar="ORG/NAME[@COMMIT]",
    help="What the source is, where the files do not tell; recorded as stated.",
)

recipes_option = click.option(
    "--recipe",
    "recipes",
    multiple=True,
    callback=check_recipe,
    metavar="NAME|FILE.toml",
    shell_complete=complete_recipes,
    help="A recipe; may be repeated.",
)


def _parse_floors(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[Component, int]:
    """Least bits by component, from `router=8`."""
    floors = {}
    for value in values:
        name, _, bits = value.partition("=")
        try:
            floors[Component(name.strip())] = int(bits)
        except ValueError as error:
            names = ", ".join(Component)
            raise click.BadParameter(f"{value!r} is not COMPONENT=BITS; components: {names}", context) from error
    return floors


def fit_options(command: Command) -> Command:
    """Adds --statistics, --fit, --fit-mac, --context and --floor, and hands the command `statistics` and `request`."""
    options = (
        click.option(
            "--statistics",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Fit the scales of affine formats to these statistics, as `hubtool calibrate` writes them.",
        ),
        click.option("--fit", metavar="SIZE|BITS", help="Make a recipe for a budget of weights: 99GB, or 3.8bits."),
        click.option("--fit-mac", type=click.IntRange(1), metavar="GB", help="Make one for a Mac with so much memory."),
        click.option(
            "--context",
            type=click.IntRange(1),
            default=32 * 1024,
            show_default=True,
            metavar="TOKENS",
            help="With --fit-mac: tokens whose cache has to fit beside the weights.",
        ),
        click.option(
            "--floor",
            "floors",
            multiple=True,
            callback=_parse_floors,
            metavar="COMPONENT=BITS",
            help="With --fit or --fit-mac: least bits of a component, as router=8; may be repeated.",
        ),
    )

    @functools.wraps(command)
    def wrapped(
        *arguments: Any, fit: str | None, fit_mac: int | None, context: int, floors: dict[Component, int], **values: Any
    ) -> Any:
        if fit is not None and fit_mac is not None:
            raise click.UsageError("--fit and --fit-mac are two budgets: give one.")
        request = Request(fit, fit_mac, context, floors) if fit or fit_mac else None
        return command(*arguments, request=request, **values)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _default_jobs(context: click.Context, parameter: click.Parameter, value: int | None) -> int:

    return default_jobs() if value is None else value


jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    callback=_default_jobs,
    help="Pieces that are worked on at once.  [default: one a core, at most 8; 2 on a GPU]",
)


def effort_options(command: Command) -> Command:
    """Adds --jobs, --memory-limit and --measure-error, and hands them to the command as `effort`."""
    options = (
        jobs_option,
        click.option(
            "--memory-limit",
            callback=parse_size,
            metavar="SIZE",
            help="Most memory of the process, as 2GB: fewer jobs are taken.  [default: none]",
        ),
        click.option(
            "--measure-error",
            type=Choice(["sample", "full", "off"]),
            default="sample",
            show_default=True,
            help="Rows whose quantization error is measured: one in 64, all, or none.",
        ),
    )

    @functools.wraps(command)
    def wrapped(*arguments: Any, jobs: int, memory_limit: int | None, measure_error: str, **values: Any) -> Any:

        rows = {"sample": ERROR_ROWS, "full": 1, "off": 0}[measure_error]
        return command(*arguments, effort=Effort(jobs, memory_limit, rows), **values)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def check_repo(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The repo that an option or argument names, in a form that the Hub allows."""
    if value is not None and not is_repo_id(value):
        raise click.BadParameter(f"{value!r} is not ORG/NAME as the Hub allows it.", context, parameter)
    return value


repo_option = click.option("--to", "repo", callback=check_repo, metavar="ORG/NAME", help="The repo to publish to.")

repo_argument = click.argument("repo", callback=check_repo, metavar="ORG/NAME")

yes_option = click.option("--yes", is_flag=True, help="Write to the Hub without asking.")
