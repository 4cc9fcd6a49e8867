"""`hubtool doctor`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from hubtool import units
from hubtool.cli.console import Console, table
from hubtool.cli.options import parse_size, with_console

if TYPE_CHECKING:
    from hubtool.validate.doctor import Diagnosis
    from hubtool.validate.needs import Needs


@click.command("doctor")
@click.argument("source", metavar="[FOLDER|ORG/NAME[@REVISION]]", required=False)
@click.option("--recipe", metavar="NAME|FILE.toml", help="For a source: what would be made of it.")
@click.option(
    "--memory-limit",
    callback=parse_size,
    metavar="SIZE",
    help="What a validation may take, as 96GB.  [default: 80% of what is available]",
)
@with_console
def command(console: Console, source: str | None, recipe: str | None, memory_limit: int | None) -> int:
    """Tell what this machine can do, and what of a folder or a planned conversion it can validate, and why not more."""
    from hubtool.guard.guard import Limits
    from hubtool.validate.doctor import diagnose
    from hubtool.validate.ladder import default_limit

    limits = Limits(memory_limit or default_limit())
    needs, disk_nbytes = _needs(source, recipe) if source else (None, 0)
    diagnosis = diagnose(Path(source or "."), needs, limits, disk_nbytes)
    document = {
        "machine": msgspec.to_builtins(diagnosis.machine),
        "versions": dict(diagnosis.versions),
        "memory_limit_nbytes": limits.memory_nbytes,
        "checks": [asdict(check) for check in diagnosis.checks],
        "needs": asdict(needs) if needs else None,
        "rungs": [asdict(verdict) for verdict in diagnosis.verdicts],
    }
    console.answer(document, lambda: _text(diagnosis))
    return 1 if any(check.state == "broken" for check in diagnosis.checks) else 0


def _needs(source: str, recipe: str | None) -> tuple["Needs", int]:
    """What the model in question needs: a finished folder's, or that of a plan, which needs disk too."""
    from hubtool.record import require_record
    from hubtool.validate.doctor import needs_of_plan
    from hubtool.validate.ladder import DEFAULT_TOKENS
    from hubtool.validate.needs import needs_of_folder

    if recipe is None:
        return needs_of_folder(Path(source), require_record(Path(source)), DEFAULT_TOKENS), 0
    from hubtool.checkpoint.open import open_source
    from hubtool.convert.record import plan_record
    from hubtool.plan.plan import plan_source

    (plan,) = plan_source(open_source(source), [recipe])
    return needs_of_plan(plan, plan_record(plan).cache, DEFAULT_TOKENS), plan.disk_nbytes


def _text(diagnosis: "Diagnosis") -> str:
    machine = diagnosis.machine
    lines = [
        f"{machine.model}, {machine.chip}, {units.format_gib(machine.memory_nbytes)}, {machine.system}",
        ", ".join(f"{name} {version}" for name, version in diagnosis.versions.items()),
        "",
        table(["check", "state", "found", "to do"], [[c.name, c.state, c.found, c.remedy] for c in diagnosis.checks]),
    ]
    if diagnosis.verdicts:
        rows = [[v.rung, "yes" if v.possible else "no", v.why] for v in diagnosis.verdicts]
        lines += ["", table(["validation", "here", ""], rows)]
    return "\n".join(lines)
