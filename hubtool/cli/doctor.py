"""`hubtool doctor`."""

from dataclasses import asdict
from pathlib import Path

import click
import msgspec

from hubtool import units
from hubtool.checkpoint.open import open_source
from hubtool.cli.console import Console, table
from hubtool.cli.options import check_recipe, complete_folders, complete_recipes, examples, parse_size, with_console
from hubtool.convert.record import plan_record
from hubtool.guard.guard import Limits
from hubtool.plan.plan import plan_source
from hubtool.record import require_record
from hubtool.validate.doctor import Diagnosis, diagnose, needs_of_plan
from hubtool.validate.ladder import DEFAULT_TOKENS, default_limit
from hubtool.validate.needs import Needs, needs_of_folder


@click.command(
    "doctor", epilog=examples("hubtool doctor", "hubtool doctor deepseek-ai/DeepSeek-V4-Flash --recipe mixed_3_6")
)
@click.argument("source", metavar="[FOLDER|ORG/NAME[@REVISION]]", required=False, shell_complete=complete_folders)
@click.option(
    "--recipe",
    metavar="NAME|FILE.toml",
    callback=check_recipe,
    shell_complete=complete_recipes,
    help="For a source: what would be made of it.",
)
@click.option(
    "--memory-limit",
    callback=parse_size,
    metavar="SIZE",
    help="What a validation may take, as 96GB.  [default: 80% of what is available]",
)
@with_console
def command(console: Console, source: str | None, recipe: str | None, memory_limit: int | None) -> int:
    """Say what this machine can do, and what it lacks."""
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


def _needs(source: str, recipe: str | None) -> tuple[Needs, int]:
    """What the model in question needs: a finished folder's, or that of a plan, which needs disk too."""
    if recipe is None:
        return needs_of_folder(Path(source), require_record(Path(source)), DEFAULT_TOKENS), 0

    (plan,) = plan_source(open_source(source), [recipe])
    return needs_of_plan(plan, plan_record(plan).cache, DEFAULT_TOKENS), plan.disk_nbytes


def _text(diagnosis: Diagnosis) -> str:
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
