"""`hubtool verify`."""

from pathlib import Path

import click

from hubtool import units
from hubtool.checkpoint.source import HUB_PREFIX
from hubtool.cli.console import Console
from hubtool.cli.destination import open_hub
from hubtool.cli.options import EXISTING_FILE, FOLDER, examples, repo_argument, with_console
from hubtool.errors import UsageError
from hubtool.hub.patience import PatientHub
from hubtool.hub.verify import verify
from hubtool.release import card as cards
from hubtool.release.signing import verify_signature


@click.command(
    "verify", epilog=examples("hubtool verify ORG/NAME", "hubtool verify ORG/NAME ./V4-mixed_3_6 --revision refs/pr/1")
)
@repo_argument
@click.argument("folder", type=FOLDER, required=False)
@click.option("--revision", default="main", show_default=True, help="A branch, tag, commit, or refs/pr/NUMBER.")
@click.option("--template-dir", "templates", type=FOLDER, help="The templates that the card was made with.")
@click.option("--public-key", type=EXISTING_FILE, help="Hold the folder against its signature, made with this key.")
@with_console
def command(
    console: Console,
    repo: str,
    folder: Path | None,
    revision: str,
    templates: Path | None,
    public_key: Path | None,
) -> int:
    """Compare a repo on the Hub with its record.

    Headers are read in part from the Hub and compared with config, index, record and card. A folder is compared too,
    if one is given. No weights are fetched.
    """
    if public_key is not None:
        _verify_signature(folder, public_key)
    api = open_hub()
    result = verify(PatientHub(api, say=console.say), repo, revision=revision, folder=folder)
    checked = cards.check(cards.open_card(f"{HUB_PREFIX}{repo}@{result.commit}", api), templates)
    named = {problem.partition(":")[0] for problem in result.problems}
    problems = [*result.problems, *(problem for problem in checked.problems if problem.partition(":")[0] not in named)]

    if result.foreign:
        console.say(f"{repo} has files that are not hubtool's; they are not looked at: {', '.join(result.foreign)}")

    def text() -> str:
        against = "the record and the folder" if folder else "the record"
        remark = f"; the card was {checked.remark}" if checked.remark else ""
        if problems:
            return "\n".join([*problems, f"{repo} at {result.commit}: not verified{remark}"])
        return (
            f"{repo} at {result.commit}: verified, {result.files} files, {units.format_nbytes(result.nbytes)}, "
            f"against {against}; headers, config, index and card agree{remark}"
        )

    document = {
        "repo": result.repo,
        "commit": result.commit,
        "files": result.files,
        "nbytes": result.nbytes,
        "problems": problems,
        "card_compared": checked.how,
        "foreign": list(result.foreign),
        "verified": not problems,
    }
    console.answer(document, text)
    return 1 if problems else 0


def _verify_signature(folder: Path | None, public_key: Path) -> None:

    if folder is None:
        raise UsageError("needs a folder", where="--public-key", remedy="give the folder that the files lie in")
    verify_signature(folder, public_key)
