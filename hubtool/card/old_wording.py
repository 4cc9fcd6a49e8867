"""What earlier templates wrote where today's have other words: their cards stay true as long as their facts are."""

from collections.abc import Iterator

from hubtool import units
from hubtool.card.claims import CHECKS, STATED, current_evidence, describe_nbytes, describe_versions
from hubtool.card.markdown import code, escape, link
from hubtool.record import Evidence, Record

_OUTCOMES = {"aborted_by_guard": "aborted by guard", "refused_preflight": "refused preflight", "not_run": "not run"}


def older_lines(record: Record) -> dict[str, str]:
    """Each line that earlier templates would make of a record, with the label under which today's say the same.

    The label is empty where today's have none.
    """
    return {line: label for label, line in (*_totals(record), *_sentences(record), *_validation(record))}


def _totals(record: Record) -> Iterator[tuple[str, str]]:
    metadata, recipe = record.source.metadata, record.recipe
    license_name = str(metadata.get("license_name") or metadata.get("license") or "")
    yield "license", f"- License: {escape(license_name)}"
    yield "made with", f"- Tooling: {describe_versions(record.versions)}"
    yield "recipe", f"- Quantization recipe: {escape(recipe.name)} (SHA-256 {code(recipe.sha256)})"
    yield "indexed mlx tensor size", f"- Indexed MLX tensor size: {units.format_nbytes(record.measured.nbytes)}"
    for dropped in record.source.dropped:
        size = f"{units.format_count(dropped.tensors)} tensors, {units.format_nbytes(dropped.nbytes)}"
        yield "not converted", f"- Not converted: {code(dropped.names)}, {size} ({escape(dropped.reason)})."


def _sentences(record: Record) -> Iterator[tuple[str, str]]:
    source, recipe, measured = record.source, record.recipe, record.measured
    bits = units.format_bits(measured.effective_bits)
    name = (source.repo or source.model_type).rpartition("/")[2]
    yield "", f"# {escape(f'{name}, {recipe.name} (MLX)')}"
    if source.repo:
        yield "", f"This is an MLX conversion of {link(source.repo)}: {escape(recipe.summary).rstrip('.')}."
    nbytes = describe_nbytes(measured.nbytes)
    yield "", f"It takes {nbytes} of memory for its weights, {bits} bits per parameter."
    if record.plan.label_bits:
        yield (
            "",
            f'The Hub\'s "{record.plan.label_bits}-bit" label follows the `bits` at the top of config.json; the '
            f"modules are stored as the table says, {bits} bits per parameter in all, scales and biases included.",
        )
    if any(file.name == f"{source.model_type}.py" for file in record.files):
        model_file = code(f"{source.model_type}.py")
        allow = "mlx-lm runs it after you allow it with `--trust-remote-code`."
        yield "", f"- The model code travels with the weights as {model_file}; {allow}"
    yield "", "- `hubtool.json` records sources, recipe, versions and the SHA-256 of every file."


def _validation(record: Record) -> Iterator[tuple[str, str]]:
    measured, planned = record.measured, record.plan
    keys = ("nbytes", "parameters", "tensors", "shards", "dtypes")
    if all(getattr(measured, key) == getattr(planned, key) for key in keys):
        tensors, shards = units.format_count(measured.tensors), units.format_count(measured.shards)
        done = "- Conversion completed successfully. Every file was read back and hashed:"
        yield "check conversion", f"{done} {tensors} tensors and"
        yield "", f"  {units.format_nbytes(measured.nbytes)} in {shards} shards, exactly as planned."
    for item in current_evidence(record):
        yield f"check {CHECKS.get(item.check, item.check)}", _evidence(item)


def _evidence(item: Evidence) -> str:
    stated = f" ({STATED})" if item.kind == "stated" else ""
    return f"- {item.check}: {_OUTCOMES.get(item.outcome, item.outcome)}{stated}. {escape(item.detail)}"
