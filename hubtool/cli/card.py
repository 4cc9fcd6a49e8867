"""`hubtool card`."""

import webbrowser
from pathlib import Path

import click

from hubtool.card.consent import Replace, always
from hubtool.card.pictures import draw
from hubtool.cli.console import Console
from hubtool.cli.destination import ask_to_replace, confirm, dry_run_option, open_hub, replace_card_option
from hubtool.cli.options import FOLDER, examples, source_argument, with_console, yes_option
from hubtool.errors import UsageError
from hubtool.hub.patience import READING, PatientHub
from hubtool.hub.reader import read_hub_file
from hubtool.release import card as cards
from hubtool.release.card import Opened
from hubtool.release.preview import Read, beside, write_preview


@click.command("card", epilog=examples("hubtool card ./V4-mixed_3_6 --check", "hubtool card ORG/NAME --push --dry-run"))
@source_argument
@click.option("--check", "checked", is_flag=True, help="Exit 1 if the card says what record and bytes do not.")
@click.option("--diff", "mode", flag_value="diff", help="Show what would change, and change nothing.")
@click.option("--preview", "mode", flag_value="preview", help="Open it in a browser as the Hub would show it.")
@click.option("--push", "mode", flag_value="push", help="Commit the card to its repo, and the record if it changed.")
@click.option("--plots", is_flag=True, help="Draw the pictures of a folder first; needs the extra `plots`.")
@click.option("--template-dir", "templates", type=FOLDER, help="Templates that go before hubtool's of the same name.")
@replace_card_option
@dry_run_option
@yes_option
@with_console
def command(
    console: Console,
    source: str,
    mode: str | None,
    templates: Path | None,
    *,
    checked: bool,
    plots: bool,
    replace_card: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Write, check, compare, preview or push a model card.

    The README.md of a folder that hubtool made is written; its templates are remembered. Any other card is printed;
    --push commits a repo's. With --check nothing is written before the card holds.
    """
    _check_options(mode, checked=checked, plots=plots, dry_run=dry_run)
    opened = cards.open_card(source, open_hub())
    ask = ask_to_replace(console, allowed=replace_card)
    if plots:
        pictures = draw(opened.record)
        opened = cards.with_pictures(opened, pictures)
        if mode != "diff":
            cards.write_pictures(opened, pictures)
    problems = cards.check(opened, templates).problems if checked else ()
    if checked and (mode is None or (mode == "push" and problems)):
        return _check(console, opened, templates)
    if mode == "push":
        return _push(console, opened, templates, ask, dry_run=dry_run, yes=yes)
    card = cards.make_card(opened, templates, ask if mode is None and opened.writable else always)
    if mode == "diff":
        change = cards.diff(opened, card)
        document = {"target": opened.name, "diff": change, **({"problems": list(problems)} if checked else {})}
        console.answer(document, lambda: "\n".join([change.rstrip("\n") or "no change", *problems]))
        return 1 if checked and (change or problems) else 0
    if mode == "preview":
        _preview(console, opened, card)
        return 1 if problems else 0
    if not opened.writable:
        for problem in opened.disagreements:
            console.say(f"{opened.name}: {problem}")
        console.answer({"target": opened.name, "card": card}, lambda: card.rstrip("\n"))
    else:
        _write(console, opened, card, templates)
    return 0


def _write(console: Console, opened: Opened, card: str, templates: Path | None) -> None:
    changed = cards.write_card(opened, card, templates)
    for problem in opened.disagreements:
        console.say(f"but the card may not be true: {problem}")
    document = {"target": opened.name, "changed": list(changed)}
    console.answer(document, lambda: f"{opened.name}: {', '.join(changed) or 'nothing'} changed")


def _check_options(mode: str | None, *, checked: bool, plots: bool, dry_run: bool) -> None:
    if plots and checked:
        raise UsageError("a check draws nothing", where="--plots", remedy="leave out --plots or --check")
    if dry_run and not checked and (mode != "push" or plots):
        raise UsageError("only --push writes to the Hub", where="--dry-run", remedy="leave it out, or see --diff")


def _check(console: Console, opened: Opened, templates: Path | None) -> int:

    checked = cards.check(opened, templates)
    problems = list(checked.problems)
    document = {
        "target": opened.name,
        "commit": opened.commit,
        "true": not problems,
        "compared": checked.how,
        "problems": problems,
    }
    verdict = [] if problems else [f"{opened.name}: the card says what record and bytes say"]
    remark = [f"{opened.name}: the card was {checked.remark}"] if checked.remark else []
    console.answer(document, lambda: "\n".join([*problems, *verdict, *remark]))
    return 1 if problems else 0


def _push(console: Console, opened: Opened, templates: Path | None, ask: Replace, *, dry_run: bool, yes: bool) -> int:

    api = open_hub()
    if not dry_run:
        confirm(console, api.endpoint, opened.name if opened.folder is None else opened.record.repo or "", yes=yes)
    pushed = cards.push_card(api, opened, templates, dry_run=dry_run, may_replace=ask)
    document = {"repo": pushed.repo, "commit": pushed.commit, "changed": list(pushed.names), "dry_run": dry_run}
    what = ", ".join(pushed.names) or "nothing to change"
    note = "; nothing was written" if dry_run else ""
    console.answer(document, lambda: f"{pushed.repo} at {pushed.commit}: {what}{note}")
    return 0


def _preview(console: Console, opened: Opened, card: str) -> None:

    path = write_preview(opened.name, card, beside(opened.folder) if opened.folder else _on_the_hub(opened))
    webbrowser.open(path.as_uri())
    console.answer({"target": opened.name, "page": str(path)}, lambda: str(path))


def _on_the_hub(opened: Opened) -> Read:
    """The pictures of a repo."""
    hub = PatientHub(open_hub(), READING)
    return lambda name: read_hub_file(hub, opened.name, opened.commit or "main", name)
