"""`hubtool inspect`."""

import click
import msgspec

from hubtool import units
from hubtool.checkpoint.inspect import inspect_source
from hubtool.cli.console import Console, table
from hubtool.cli.options import examples, source_argument, with_console


@click.command("inspect", epilog=examples("hubtool inspect ./V4-mixed_3_6", "hubtool inspect ORG/NAME@main --json"))
@source_argument
@with_console
def command(console: Console, source: str) -> int:
    """Measure a folder or repo, and name every disagreement.

    Of a repo on the Hub no weights are fetched.
    """
    measurement = inspect_source(source)
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
                f"tensors     {units.format_count(facts.tensors)} in {units.format_shards(facts.shards)}",
                "dtypes      " + ", ".join(f"{name} {units.format_count(n)}" for name, n in facts.dtypes.items()),
                "",
                table(["file", ">bytes", "sha256"], rows),
                "",
                *(measurement.disagreements or ["no disagreements"]),
            ]
        )

    console.answer(document, text)
    return 1 if measurement.disagreements else 0
