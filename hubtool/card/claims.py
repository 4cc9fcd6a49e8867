"""What evidence lets a card say: one rule for each claim, and no other words for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hubtool import units
from hubtool.card.markdown import escape
from hubtool.record import Evidence, MachineRecord, Outcome, Record

STATED = "stated by the publisher"

CHECKS = {
    "integrity": "Integrity",
    "load": "Load",
    "smoke": "Generation, resident",
    "smoke-streamed": "Generation, streamed",
    "quality": "Quality",
    "perplexity": "Quality, perplexity",
    "kl-divergence": "Quality, KL divergence",
    "benchmark": "Quality, benchmark",
}
"""The rungs in their order, then what only publishers state, as the card names them."""

QUALITY = frozenset({"quality", "perplexity", "kl-divergence", "benchmark"})
"""Checks that say something of quality; none of them says that the model was run to generate."""

_LOOK = ("integrity", "measured")
"""Check and kind of the evidence of which bytes the files are."""

GENERATION = {"smoke": "generation", "smoke-streamed": "streamed generation"}

_OUTCOMES: dict[Outcome, str] = {
    "passed": "passed",
    "failed": "failed",
    "refused_preflight": "refused beforehand",
    "aborted_by_guard": "stopped by the memory guard",
    "not_run": "not run",
}

_REASONS: dict[Outcome, str] = {
    "passed": f"that a {{what}} passed{{where}} is {STATED}, not measured",
    "failed": "a {what} failed{where}",
    "refused_preflight": "a {what} was refused before it began{where}",
    "aborted_by_guard": "a {what} was stopped by the memory guard{limit}{where}",
    "not_run": "a {what} was not run{where}",
}

_BY_HAND = ("stopped by the memory guard", "stopped for lack of memory")
"""What the guard does, and how it is called where the publisher did it without hubtool."""

_FIGURES = {
    "limit_nbytes": "memory limit",
    "peak_nbytes": "peak memory",
    "swap_growth_nbytes": "swap growth",
    "pressure_peak": "peak memory pressure",
    "pressure_limit": "limit of memory pressure",
    "swap_limit_nbytes": "limit of swap growth",
    "reason": "stopped because of",
    "read_nbytes": "read from disk",
    "kl_mean_nats": "mean KL divergence in nats",
    "floor_kl_mean_nats": "the floor's",
    "same_top_share": "share of the same top token",
}
"""How figures are called; others are called by their name without its unit."""


@dataclass(frozen=True)
class Row:
    """A line of the table of validations, as Markdown."""

    check: str
    outcome: str
    seen: str
    where: str
    when: str


@dataclass(frozen=True)
class Status:
    """What an artifact may be called.

    Attributes:
        words: `converted and load-validated, not generation-qualified`.
        reasons: Sentences: why not more.
    """

    words: str
    reasons: tuple[str, ...]


def find_change(record: Record) -> Evidence | None:
    """The evidence that the files are no longer those of the record, None if the last look at them found that they are.

    Files that were looked at are others if the check failed and names another digest.
    """
    looks = [item for item in record.evidence if _is_verdict(item) and (item.check, item.kind) == _LOOK]
    changed = looks and looks[-1].outcome == "failed" and looks[-1].subject != record.subject
    return looks[-1] if changed else None


def _is_verdict(item: Evidence) -> bool:
    return item.outcome in ("passed", "failed")


def current_evidence(record: Record) -> tuple[Evidence, ...]:
    """What is known of the files as they are, by check, machine and kind: none if they were changed; in checks' order.

    The last verdict stands. What was refused, stopped or not run is no verdict, and takes none back.
    """
    if find_change(record):
        return ()
    latest: dict[tuple[object, ...], Evidence] = {}
    for item in record.evidence:
        key = (item.check, item.machine, item.kind)
        if item.subject == record.subject and (_is_verdict(item) or not (key in latest and _is_verdict(latest[key]))):
            latest[key] = item
    order = list(CHECKS)
    return tuple(sorted(latest.values(), key=lambda e: order.index(e.check) if e.check in order else len(order)))


def describe_status(record: Record) -> Status:
    """What the evidence allows to say.

    * `load-validated`: a load passed; `stated` evidence is shown as such.
    * `generation-qualified`: a resident generation was measured to pass, on that memory.
    * `generation-qualified, streamed`: a streamed one was.
    * `not generation-qualified`: neither was, with the reason; and whatever was, if the files did not pass as such.
    """
    evidence = current_evidence(record)
    if (change := find_change(record)) or (change := _failed_look(evidence)):
        return Status("converted, not generation-qualified", (_broken(change, record),))
    words = ["converted"]
    loads = {item.kind for item in evidence if item.check == "load" and item.outcome == "passed"}
    if loads:
        words.append("load-validated" if "measured" in loads else f"load-validated ({STATED})")
    tries = [item for item in evidence if item.check in GENERATION]
    proofs = [item for item in tries if item.outcome == "passed" and item.kind == "measured"]
    rest = tuple(_sentence(_reason(item)) for item in tries if item not in proofs)
    if not proofs:
        failed = [GENERATION.get(item.check, "load") for item in evidence if _blocks(item)]
        why = f" ({_join(list(dict.fromkeys(failed)))} failed)" if failed else ""
        return Status(f"{_join(words)}, not generation-qualified{why}", rest or ("Generation was not run.",))
    for check in GENERATION:
        where = [describe_memory(item.machine.memory_nbytes) for item in proofs if item.check == check]
        if where:
            how = "generation-qualified" if check == "smoke" else "generation-qualified, streamed,"
            words.append(f"{how} on {_join(list(dict.fromkeys(where)))}")
    return Status(_join(words), rest)


def _blocks(item: Evidence) -> bool:
    """Whether it was measured that the files cannot be loaded, or do not generate."""
    return item.outcome == "failed" and item.kind == "measured" and item.check in ("load", *GENERATION)


def _failed_look(evidence: Sequence[Evidence]) -> Evidence | None:
    failed = [item for item in evidence if (item.check, item.kind) == _LOOK and item.outcome == "failed"]
    return failed[0] if failed else None


def _broken(item: Evidence, record: Record) -> str:
    what = "The files are not sound" if item.subject == record.subject else "The files are no longer those recorded"
    return _sentence(f"{what}, and nothing is claimed of them: {escape(item.detail)}")


def describe_rows(record: Record) -> tuple[Row, ...]:
    """A row for the conversion, and one for each piece of evidence; of changed files, for that evidence alone."""
    change = find_change(record)
    return (_conversion(record), *map(_row, [change] if change else current_evidence(record)))


def _conversion(record: Record) -> Row:
    measured, planned = record.measured, record.plan
    differing = [
        name
        for name in ("nbytes", "parameters", "tensors", "shards", "dtypes")
        if getattr(measured, name) != getattr(planned, name)
    ]
    what = f"{units.format_count(measured.tensors)} tensors, {units.format_nbytes(measured.nbytes)}, in " + (
        "one shard" if measured.shards == 1 else f"{units.format_count(measured.shards)} shards"
    )
    if differing:
        return Row("Conversion", "failed", f"{what}; not as planned: {', '.join(differing)}", "", "")
    return Row("Conversion", "passed", f"{what}: read back, and exactly as planned", "", "")


def _row(item: Evidence) -> Row:
    outcome = _OUTCOMES[item.outcome]
    if item.kind == "stated":
        outcome = f"{outcome.replace(*_BY_HAND)}, {STATED}"
    seen = [_sentence(escape(item.detail))] if item.detail.strip() else []
    if item.figures:
        seen.append(_sentence(", ".join(describe_figure(name, value) for name, value in item.figures.items())))
    where = "; ".join(filter(None, [describe_machine(item.machine), describe_versions(item.versions)]))
    check = CHECKS.get(item.check) or escape(item.check)
    return Row(check, outcome, " ".join(seen), where, escape(item.started[:10]))


def _reason(item: Evidence) -> str:
    limit = item.figures.get("limit_nbytes") if item.figures.get("reason", "memory") == "memory" else None
    machine = describe_machine(item.machine, system=False)
    text = _REASONS[item.outcome].format(
        what=GENERATION[item.check],
        where=f" ({machine})" if machine else "",
        limit=f" at its limit of {units.format_size(limit)}" if isinstance(limit, int) else "",
    )
    if item.kind == "stated":
        text = text.replace(*_BY_HAND)
    return f"{text}: {escape(item.detail)}" if item.detail.strip() else text


def describe_machine(machine: MachineRecord, *, system: bool = True) -> str:
    """`Mac Studio, Apple M2 Ultra, 128 GB, macOS 15.4`; what is not known is left out."""
    memory = describe_memory(machine.memory_nbytes) if machine.memory_nbytes else ""
    parts = [machine.model, machine.chip, memory, machine.system if system else ""]
    return ", ".join(escape(part) for part in parts if part.strip())


def known(shown: str, how: str | None) -> str:
    """What is shown, marked if it is stated."""
    return f"{shown} ({STATED})" if how == "stated" else shown


def describe_versions(versions: Mapping[str, str]) -> str:
    """`mlx 0.32.4, mlx-lm 0.32.2`; what is no number after a colon."""
    return ", ".join(
        escape(f"{name} {version}" if version[:1].isdigit() else f"{name}: {version}")
        for name, version in versions.items()
    )


def describe_memory(nbytes: int) -> str:
    """Memory as machines are sold with it: `128 GB`, whose GB are GiB."""
    return f"{nbytes // units.GIB} GB" if nbytes % units.GIB == 0 else units.format_gib(nbytes)


def describe_figure(name: str, value: int | float | str) -> str:
    """A figure by its name, which holds the unit: `peak memory 16.7 GB (15.55 GiB)`, `tokens per second 4.65`."""
    words = _FIGURES.get(name) or escape(name.removesuffix("_nbytes").removesuffix("_seconds").replace("_", " "))
    if isinstance(value, str):
        return f"{words} {escape(value)}"
    if name.endswith("_nbytes"):
        return f"{words} {describe_nbytes(int(value))}"
    if name.endswith("_seconds") or name == "seconds":
        return f"{words} {units.format_seconds(value)}"
    return f"{words} {units.format_count(value) if isinstance(value, int) else format(value, '.4g')}"


def describe_nbytes(nbytes: int) -> str:
    """A size in both units, `135.35 GB (126.05 GiB)`; small ones in one."""
    if nbytes < units.GB:
        return units.format_size(nbytes)
    return f"{units.format_size(nbytes)} ({units.format_gib(nbytes)})"


def _sentence(text: str) -> str:
    begun = text[:1].upper() + text[1:]
    return begun if begun.endswith((".", "!", "?")) else f"{begun}."


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
