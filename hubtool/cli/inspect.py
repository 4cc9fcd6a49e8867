"""`hubtool inspect`."""

from pathlib import Path

import click
import msgspec

from hubtool import units
from hubtool.cli.console import Console, table
from hubtool.cli.options import FOLDER, with_console


@click.command("inspect")
@click.argument("folder", type=FOLDER)
@with_console
def command(console: Console, folder: Path) -> int:
    """Measure a folder from its headers and files, and name every disagreement."""
    from hubtool.measure import measure
    from hubtool.record import read_record

    measurement = measure(folder, read_record(folder))
    facts = measurement.facts
    document = msgspec.to_builtins(facts) | {
        "files": msgspec.to_builtins(measurement.files),
        "disagreements": list(measurement.disagreements),
    }

    def text() -> str:
        rows = [[file.name, units.format_count(file.nbytes), file.sha256] for file in measurement.files]
        return "\n".join(
            [
                f"bytes       {units.format_nbytes(facts.nbytes)}",
                f"bits        {units.format_bits(facts.effective_bits)} effective",
                f"parameters  {units.format_count(facts.parameters)}",
                f"tensors     {units.format_count(facts.tensors)} in {facts.shards} shards",
                "dtypes      " + ", ".join(f"{name} {units.format_count(n)}" for name, n in facts.dtypes.items()),
                "",
                table(["file", ">bytes", "sha256"], rows),
                "",
                *(measurement.disagreements or ["no disagreements"]),
            ]
        )

    console.answer(document, text)
    return 1 if measurement.disagreements else 0
