"""`hubtool card`."""

from pathlib import Path

import click

from hubtool.cli.console import Console
from hubtool.cli.options import FOLDER, with_console
from hubtool.errors import RecordError


@click.command("card")
@click.argument("folder", type=FOLDER)
@with_console
def command(console: Console, folder: Path) -> None:
    """Write README.md anew from the record and the templates."""
    from hubtool.card import render_card
    from hubtool.journal import write_beside
    from hubtool.record import RECORD_FILE, read_record
    from hubtool.source import CARD_FILE

    record = read_record(folder)
    if record is None:
        raise RecordError("no record", where=folder, expected=RECORD_FILE, remedy="give a folder that hubtool made")
    card = render_card(record).encode()
    path = folder / CARD_FILE
    changed = not path.is_file() or path.read_bytes() != card
    if changed:
        write_beside(path, card)
    document = {"card": str(path), "changed": changed}
    console.answer(document, lambda: f"{path}: {'written' if changed else 'unchanged'}")
