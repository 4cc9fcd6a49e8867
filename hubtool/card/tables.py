"""The tables of a card: machines, labels, and what the recipe made of each component."""

from typing import Any

import msgspec

from hubtool import units
from hubtool.card.claims import current_evidence, describe_machine, describe_nbytes, describe_versions
from hubtool.card.markdown import code, escape, link
from hubtool.checkpoint.tensors import DTYPE_NBYTES
from hubtool.record import ComponentRecord, Evidence, FitRecord, MeasuredRecord, Record

NOT_RECORDED = "not recorded"

Section = dict[str, Any]

SHOWN_SIZES = tuple(size for size in units.MEMORY_SIZES if size >= 64)
"""Machines that the card's table names; smaller ones too where they hold the model."""

_DTYPES = {
    "BF16": "scales and biases of quantized weights, and what is kept in bfloat16",
    "F16": "scales and biases of quantized weights, and what is kept in float16",
    "F32": "what is kept in float32",
    "U32": "quantized weights, packed into 32-bit words",
    "U8": "scales of block formats",
    "I64": "integer routing tables",
    "I32": "integer routing tables",
}

TEXT_COLUMNS = (("Component", "---"), ("Stored as", "---"))
"""Names of columns, and Markdown's rule below them."""


def machine_table(record: Record) -> Section | None:
    """What weights and cache take, and which machines hold them; None if the cache is not recorded."""
    cache, weights = record.plan.cache, record.measured.nbytes
    if not cache:
        return None
    needed = [weights + each.nbytes for each in cache]
    holding = [size for size in units.MEMORY_SIZES if units.fits(needed[0], size)]
    least = min([SHOWN_SIZES[0], *holding])
    streamed = [
        item
        for item in current_evidence(record)
        if item.check == "smoke-streamed" and item.outcome == "passed" and item.kind == "measured"
    ]
    return {
        "lengths": [f"{each.tokens // 1024}k tokens" for each in cache],
        "weights": [describe_nbytes(weights)] * len(cache),
        "cache": [describe_nbytes(each.nbytes) for each in cache],
        "needed": [describe_nbytes(nbytes) for nbytes in needed],
        "rows": [
            (
                f"{size} GB ({units.format_gib(units.usable_nbytes(size))} usable)",
                ["yes" if units.fits(nbytes, size) else "no" for nbytes in needed],
            )
            for size in units.MEMORY_SIZES
            if size >= least
        ],
        "share": f"{units.USABLE_SHARE:.0%}",
        "smallest": f"{holding[0]} GB" if holding else None,
        "shortest": f"{cache[0].tokens // 1024}k tokens",
        "streamed": [_streamed(item) for item in streamed],
    }


def _streamed(item: Evidence) -> str:
    peak = item.figures.get("peak_nbytes")
    within = f" in {describe_nbytes(peak)} of memory" if isinstance(peak, int) else ""
    where = describe_machine(item.machine)
    return f"Streamed from disk, one layer's weights at a time, it generated{within} ({where})."


def label_rows(measured: MeasuredRecord, label_bits: int | None, *, mlx: bool) -> list[tuple[str, str]]:
    """Each label of the Hub's page, and what it means here."""
    rows = []
    bits = units.format_bits(measured.effective_bits)
    if label_bits is not None:
        label = f"the `bits` at the top of config.json. The files hold {bits} bits per weight, scales and biases"
        rows.append((f"{label_bits}-bit", f"{label} included"))
    stored = sum(nbytes // DTYPE_NBYTES.get(dtype, 1) for dtype, nbytes in measured.dtypes.items())
    counts = f"{units.format_count(measured.parameters)} logical parameters"
    if stored != measured.parameters:
        counts += f", in {units.format_count(stored)} stored values. Apps that count stored values show a smaller model"
    rows.append((f"Model size {units.format_short_parameters(measured.parameters)} params", counts))
    rows += [
        (f"Tensor type {escape(dtype)}", f"{units.format_nbytes(nbytes)}: {_DTYPES.get(dtype, 'other tensors')}")
        for dtype, nbytes in measured.dtypes.items()
    ]
    if mlx:
        rows.append(("MLX", "the format that the headers of the files name, and no type of a tensor"))
    return rows


def total_rows(measured: MeasuredRecord) -> list[tuple[str, str]]:
    """Names and values of the totals."""
    return [
        ("Effective bits per weight", units.format_bits(measured.effective_bits)),
        ("Parameters", units.format_count(measured.parameters)),
        ("Tensors", units.format_count(measured.tensors)),
        ("Shards", units.format_count(measured.shards)),
        ("Indexed MLX tensor size", f"{units.format_nbytes(measured.nbytes)}, {describe_nbytes(measured.nbytes)}"),
    ]


def recipe_section(record: Record) -> Section:
    """The recipe, the totals, and a row for each component."""
    plan, recipe = record.plan, record.recipe
    facts = [("Recipe", f"{code(recipe.name)}, SHA-256 {code(recipe.sha256)}")]
    if plan.mode:
        facts += [("Quantization mode", escape(plan.mode)), ("Group size", str(plan.group_size))]
    facts += total_rows(record.measured)
    facts.append(("Made with", describe_versions(record.versions)))
    measured_error = any(component.error is not None for component in plan.components)
    weighted = any(component.weighted_error is not msgspec.UNSET for component in plan.components)
    rows = [
        (
            escape(component.name),
            escape("; ".join(component.formats) or "as published"),
            units.format_count(component.parameters),
            units.format_bits(units.effective_bits(component.nbytes, component.parameters)),
            units.format_count(component.nbytes),
            *([_weighted(component)] if weighted else []),
            *([_error(component)] if measured_error else []),
        )
        for component in plan.components
    ]
    numbers = (
        "Parameters",
        "Bits",
        "Bytes",
        *(["Weighted error"] if weighted else []),
        *(["Error"] if measured_error else []),
    )
    return {
        "description": escape(recipe.description),
        "error": _error_note(record, weighted=weighted) if measured_error else "",
        "fit": fit_note(record),
        "facts": facts,
        "head": [*TEXT_COLUMNS, *((name, "---:") for name in numbers)],
        "components": rows,
    }


def _error_note(record: Record, *, weighted: bool) -> str:
    rows = record.weight_error.every_row if record.weight_error else 0
    sample = {0: "", 1: ", over every row"}.get(rows, f", over one row in {rows}")
    note = f"Error is the relative mean squared error of the stored weights against the decoded source{sample}."
    if weighted:
        note += (
            " Weighted error is the same with each channel weighted by the mean square of its inputs: what the outputs "
            "feel. Error alone says little about quality, and is a check of the bytes."
        )
    return note


def fit_note(record: Record) -> str:
    """How the scales were fitted, to what, and how much of it each expert saw; empty if they were not."""
    fit = record.fit
    if not fit:
        return ""
    calibration = fit.calibration
    texts = ", ".join(f"{code(text.name)} (SHA-256 {code(text.sha256)})" for text in calibration.texts)
    model = link(calibration.repo) if calibration.repo else f"a {escape(calibration.model_type)} checkpoint"
    tokens = f"{units.format_count(calibration.tokens)} tokens"
    note = (
        f"Scales and biases of {units.format_count(fit.fitted)} tensors were fitted ({escape(fit.method)}) so that the "
        f"error weighted by the inputs is least, which {model} had when it read {tokens} of {texts}. "
        f"Statistics: SHA-256 {code(fit.statistics)}. {_coverage(fit)}"
    )
    if fit.nearest:
        note += f" {units.format_count(fit.nearest)} tensors without statistics were quantized by MLX's own rule."
    return note


def _coverage(fit: FitRecord) -> str:
    least = f"{units.format_count(fit.least_tokens)} tokens"
    if not fit.experts:
        return f"Every input was seen with at least {least}."
    if not fit.unseen:
        return f"Every expert saw at least {least}."
    unseen = f"{units.format_count(fit.unseen)} of {units.format_count(fit.experts)} experts' matrices"
    return f"{unseen} saw no token and took the mean of their layer."


def _weighted(component: ComponentRecord) -> str:
    if isinstance(component.weighted_error, msgspec.UnsetType):
        return "no statistics" if component.formats else "not quantized"
    return f"{component.weighted_error:.2e}"


def _error(component: ComponentRecord) -> str:
    if component.error is None:
        return NOT_RECORDED if component.formats else "not quantized"
    return f"{component.error:.2e}"
