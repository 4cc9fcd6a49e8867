"""`hubtool inspect`."""

import click
import msgspec

from hubtool import units
from hubtool.cli.console import Console, table
from hubtool.cli.options import source_argument, with_console


@click.command("inspect")
@source_argument
@with_console
def command(console: Console, source: str) -> int:
    """Measure a folder or a repo from its headers and hashes, and name every disagreement.

    Of a repo on the Hub no weights are fetched.
    """
    from hubtool.checkpoint.inspect import inspect_source

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
