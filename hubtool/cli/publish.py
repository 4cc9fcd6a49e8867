"""`hubtool publish`."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubtool.cli.console import Console
from hubtool.cli.convert import converted_document, converted_text
from hubtool.cli.destination import confirm, destination_options, dry_run_option, open_hub, rehearsal
from hubtool.cli.options import (
    EXISTING_FILE,
    FOLDER,
    base_model_option,
    check_recipe,
    complete_files,
    complete_recipes,
    download_options,
    effort_options,
    examples,
    fit_options,
    with_console,
    yes_option,
)
from hubtool.cli.upload import outlook_document, outlook_text, release_document, release_text
from hubtool.errors import UsageError
from hubtool.plan.budget import Request, plan_all

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hubtool.convert.job import Effort
    from hubtool.hub.destination import Destination
    from hubtool.record import Evidence, Rung
    from hubtool.release.publish import Release

RELEASE_SUFFIX = ".toml"

RELEASE_OPTIONS = frozenset(
    {
        *("jobs", "memory_limit", "measure_error"),
        *("dry_run", "yes", "rehearse", "rehearsal_data", "rehearsal_discard"),
        *("json_mode", "quiet", "verbose"),
    }
)
"""Options of this machine and this run, which go with a release; all that is published stands in its file."""


@click.command(
    "publish",
    epilog=examples(
        "hubtool publish deepseek-ai/DeepSeek-V4-Flash --recipe native --to me/V4",
        "hubtool publish ./source --recipe mixed_3_6 --to me/V4 --rehearse",
        "hubtool publish release.toml",
    ),
)
@click.argument("source", metavar="FOLDER|ORG/NAME[@REVISION]|RELEASE.toml", shell_complete=complete_files)
@click.option(
    "--recipe",
    metavar="NAME|FILE.toml",
    callback=check_recipe,
    shell_complete=complete_recipes,
    help="How the weights are stored.",
)
@fit_options
@destination_options
@click.option("--out", "folder", type=FOLDER, help="The folder to make.  [default: ./NAME of the repo]")
@base_model_option
@download_options
@effort_options
@click.option("--stream", is_flag=True, help="Send each shard while it is made: none ever lies on this disk.")
@dry_run_option
@yes_option
@click.option("--sign", "sign_key", type=EXISTING_FILE, help="Sign the files with this private key (PEM).")
@click.option("--rehearse", is_flag=True, help="Publish to a rehearsal Hub on this machine instead.")
@click.option("--rehearsal-data", type=FOLDER, help="Where the rehearsal Hub keeps its repos.  [default: beside --out]")
@click.option("--rehearsal-discard", is_flag=True, help="Let the rehearsal Hub drop what it has checked.")
@with_console
def command(
    console: Console,
    source: str,
    recipe: str | None,
    statistics: Path | None,
    request: Request | None,
    to: "Destination | None",
    folder: Path | None,
    base_model: str | None,
    effort: "Effort",
    *,
    disk_limit: int | None,
    keep_source: bool,
    stream: bool,
    dry_run: bool,
    yes: bool,
    sign_key: Path | None,
    rehearse: bool,
    rehearsal_data: Path | None,
    rehearsal_discard: bool,
) -> None:
    """Convert a checkpoint and publish it; or a whole release.

    Every stage is skipped whose result is there already: run it again after any failure.

    A file that ends in .toml is a release of several variants: they are made in one pass over the source.
    """
    hub = _Hub(console, yes, rehearse, rehearsal_data, rehearsal_discard)
    if source.endswith(RELEASE_SUFFIX):
        _refuse_options(source)
        if dry_run:
            _look_at_release(hub, Path(source))
        else:
            _publish_release(hub, Path(source), effort)
        return
    if (recipe is None and request is None) or to is None:
        raise UsageError(
            "needs --recipe, or --fit, and --to", where=source, remedy="give both, or a release in a .toml file"
        )
    from hubtool.checkpoint.open import open_source
    from hubtool.release.publish import check_before

    folder = folder or Path(to.repo.rpartition("/")[2])
    console.log_to(folder)
    with closing(open_source(source, base_model, out=folder, disk_limit=disk_limit, keep_source=keep_source)) as opened:
        check_before(opened, to.repo, console)
        (plan,) = plan_all(opened, [recipe] if recipe else [], request, statistics)
        run = _Run(hub, opened, plan, folder, to, effort, sign_key)
        if stream and sign_key:
            raise UsageError("a streamed folder cannot be signed: its shards never lie here", where="--sign")
        if dry_run:
            run.look()
        elif stream:
            run.stream()
        else:
            run.publish()


class _Hub:
    """The Hub that is written to, or a rehearsal of it."""

    def __init__(self, console: Console, yes: bool, rehearse: bool, data: Path | None, discard: bool) -> None:
        self.console = console
        self.rehearse = rehearse
        self._yes = yes
        self._data = data
        self._discard = discard

    def data(self, folder: Path) -> Path:
        """Where the rehearsal Hub of a folder keeps its repos."""
        return self._data or folder.absolute().parent / "rehearsal"

    def confirm(self, repos: Sequence[str]) -> None:
        """Ask for consent, before hours of work."""
        if not self.rehearse:
            confirm(self.console, open_hub().endpoint, ", ".join(repos), yes=self._yes)

    @contextmanager
    def open(self, folder: Path) -> Iterator["HfApi"]:
        """The Hub for the time of a `with`."""
        if self.rehearse:
            with rehearsal(self.data(folder), discard=self._discard) as api:
                yield api
        else:
            yield open_hub()

    def answer(self, folder: Path, document: Any, text: str) -> None:
        """The command's answer, with where a rehearsal's repos lie."""
        if self.rehearse:
            data = self.data(folder)
            text += f"\nrehearsal   {data} holds the repo; `hubtool rehearse --data {data}` serves it"
            if isinstance(document, dict):
                document["rehearsal_data"] = str(data)
        self.console.answer(document, lambda: text)


class _Run:
    """One checkpoint, one recipe, one repo."""

    def __init__(
        self,
        hub: _Hub,
        source: Any,
        plan: Any,
        folder: Path,
        to: "Destination",
        effort: "Effort",
        sign_key: Path | None,
    ) -> None:
        self._sign_key = sign_key
        self._hub = hub
        self._source = source
        self._plan = plan
        self._folder = folder
        self._to = to
        self._effort = effort

    def publish(self) -> None:
        from hubtool.convert.convert import convert_sources
        from hubtool.convert.job import Job
        from hubtool.release.publish import addressed, foresee, publish_folder
        from hubtool.release.signing import sign

        console = self._hub.console
        self._hub.confirm([self._to.repo])
        with self._hub.open(self._folder) as api:
            foresee(api, self._plan, self._folder, self._to, console)
        (converted,) = convert_sources(self._source, [Job(self._plan, self._folder)], self._effort, console)
        if self._sign_key is not None:
            converted = addressed(converted, self._to.repo)
            sign(converted.folder, converted.record, self._sign_key)
        with self._hub.open(self._folder) as api:
            self._answer(publish_folder(api, converted, self._to, console))

    def stream(self) -> None:
        from hubtool.convert.job import Job
        from hubtool.release.stream import Streaming

        self._hub.confirm([self._to.repo])
        job = Job(self._plan, self._folder)
        with self._hub.open(self._folder) as api:
            streaming = Streaming(api, self._source, job, self._to, self._hub.console, self._effort)
            self._answer(streaming.publish())

    def look(self) -> None:
        from hubtool.convert.job import Job
        from hubtool.release.publish import look

        job = Job(self._plan, self._folder)
        with self._hub.open(self._folder) as api:
            converted, outlook = look(api, self._source, job, self._to, self._hub.console)
        document = {"converted": converted} | outlook_document(self._to, outlook)
        self._hub.console.answer(document, lambda: outlook_text(self._to, outlook))

    def _answer(self, release: "Release") -> None:
        document = converted_document(release.converted) | release_document(release)
        text = f"{converted_text(release.converted)}\n{release_text(release)}"
        self._hub.answer(self._folder, document, text)


def _refuse_options(release: str) -> None:
    """Raise UsageError if an option was given that a release has its own word for, or cannot have."""
    context = click.get_current_context()
    given = [
        "/".join([*parameter.opts, *parameter.secondary_opts])
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
        and parameter.name not in RELEASE_OPTIONS
        and context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            "a release says itself what is published, and where",
            where=release,
            found=", ".join(given),
            remedy="leave that out, and write it into the file as far as a release has it",
        )


def _publish_release(hub: _Hub, path: Path, effort: "Effort") -> None:
    from hubtool.release.file import load_release
    from hubtool.release.publish import publish_release

    release = load_release(path)
    hub.confirm([variant.destination.repo for variant in release.variants])
    with hub.open(release.out) as api:
        published = publish_release(api, release, effort, hub.console, _validator(hub.console))
    documents = [converted_document(each.converted) | release_document(each) for each in published]
    text = "\n\n".join(f"{converted_text(each.converted)}\n{release_text(each)}" for each in published)
    hub.answer(release.out, {"variants": documents}, text)


def _look_at_release(hub: _Hub, path: Path) -> None:
    from hubtool.release.file import load_release
    from hubtool.release.publish import look_at_release

    release = load_release(path)
    with hub.open(release.out) as api:
        found = look_at_release(api, release, hub.console)
    documents = [{"converted": each.converted} | outlook_document(each.to, each.outlook) for each in found]
    text = "\n\n".join(outlook_text(each.to, each.outlook) for each in found)
    hub.console.answer({"variants": documents}, lambda: text)


def _validator(console: Console) -> Any:
    """Climbs rungs of the ladder for a folder, as `hubtool validate` does."""

    def validate(folder: Path, rungs: Sequence["Rung"]) -> Sequence["Evidence"]:
        from hubtool.card.documents import add_evidence
        from hubtool.guard.guard import Limits
        from hubtool.record import require_record
        from hubtool.validate.ladder import Request, default_limit
        from hubtool.validate.ladder import validate as climb

        request = Request(Limits(default_limit()), frozenset(rungs))
        evidence = list(climb(folder, require_record(folder), request, console))
        add_evidence(folder, evidence, wait=True)
        return [each for each in evidence if each.check in rungs]

    return validate
