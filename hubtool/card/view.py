"""Everything that the templates may show: the record's values as words, figures and commands, safe in Markdown."""

from collections.abc import Collection, Mapping, Sequence

from hubtool import units
from hubtool.card.claims import (
    QUALITY,
    Status,
    current_evidence,
    describe_nbytes,
    describe_rows,
    describe_status,
    known,
)
from hubtool.card.commands import citation_section, loaded_with, reproduce_section, run_section
from hubtool.card.markdown import code, escape, link
from hubtool.card.metadata import card_metadata, dump_metadata
from hubtool.card.prose import block
from hubtool.card.quality import current_quality, describe_limit, quality_section
from hubtool.card.tables import (
    NOT_RECORDED,
    TEXT_COLUMNS,
    Section,
    label_rows,
    machine_table,
    recipe_section,
    total_rows,
)
from hubtool.card.unrecorded import Unrecorded
from hubtool.checkpoint.usable import is_license
from hubtool.record import PICTURE_FILES, QUALITY_PICTURE, MeasuredRecord, Record, SiblingRecord

SECTIONS = (
    "summary",
    "machines",
    "run",
    "chips",
    "recipe",
    "source",
    "quality",
    "validation",
    "limits",
    "reproduce",
    "siblings",
    "citation",
    "notes",
)
"""Where the publisher's prose may stand; a section of that name that a template leaves out loses none."""

PICTURES = dict(
    zip(
        PICTURE_FILES,
        (
            "Bits per parameter of each component, layer by layer",
            "Bytes by component",
            "Relative error of each component, layer by layer",
            "Bytes and KL divergence of the variants",
        ),
        strict=True,
    )
)
"""Alternative text by name of the picture; `plots` draws them."""

_ENCODINGS = {"fp4": "FP4 (E2M1)", "fp8": "FP8 (E4M3)", "plain": "BF16, float32 or integers"}


def view_record(record: Record, assets: Collection[str]) -> Section:
    """What the templates may show of a record."""
    status = describe_status(record)
    return {
        "metadata": dump_metadata(card_metadata(record)),
        "title": _title(record),
        "prose": {name: block(name) for name in SECTIONS},
        "withdrawn": _withdrawn(record),
        "summary": _summary(record, status),
        "machines": machine_table(record),
        "run": run_section(record.repo, _model_file(record), loaded_with(record)),
        "chips": label_rows(record.measured, record.plan.label_bits, mlx=True),
        "recipe": recipe_section(record),
        "source": _source(record),
        "quality": _quality(record, assets),
        "validation": _validation(record, status),
        "limits": _limits(record),
        "reproduce": reproduce_section(record),
        "siblings": [_sibling(each) for each in record.siblings],
        "citation": citation_section(record),
        "pictures": _pictures([name for name in PICTURES if name != QUALITY_PICTURE], assets),
    }


def _pictures(names: Sequence[str], assets: Collection[str]) -> list[dict[str, str]]:
    return [{"alt": PICTURES[name], "name": name} for name in names if name in assets]


def _quality(record: Record, assets: Collection[str]) -> Section | None:
    section = quality_section(record)
    return None if section is None else {**section, "pictures": _pictures([QUALITY_PICTURE], assets)}


def view_unrecorded(found: Unrecorded) -> Section:
    """What the templates may show of a checkpoint that hubtool did not make: no more than was measured."""
    measured = found.measured
    stated = found.metadata.get("base_model", [])
    bases = ", ".join(link(str(base)) for base in ([stated] if isinstance(stated, str) else stated))
    columns = [TEXT_COLUMNS[1], ("Parameters", "---:"), ("Bytes", "---:")]
    return {
        "metadata": dump_metadata({**found.metadata, **({"library_name": found.library} if found.library else {})}),
        "title": escape(found.name),
        "prose": {name: block(name) for name in SECTIONS},
        "withdrawn": None,
        "summary": {
            "what": f"{_kind(found)}. How it was made is {NOT_RECORDED}.",
            "size": _size(measured),
            "status": f"validation {NOT_RECORDED}",
        },
        "machines": None,
        "run": run_section(found.repo, found.model_file, None) if found.library == "mlx" else None,
        "chips": label_rows(measured, found.label_bits, mlx=found.library == "mlx"),
        "recipe": {
            "description": "",
            "error": "",
            "fit": "",
            "facts": [("Recipe", NOT_RECORDED), *total_rows(measured), ("Made with", NOT_RECORDED)],
            "head": columns,
            "components": [
                (escape(form.form), units.format_count(form.parameters), units.format_count(form.nbytes))
                for form in found.forms
            ],
        },
        "source": {
            "facts": [
                ("Base model", f"{bases} (stated by the card)" if bases else NOT_RECORDED),
                ("Source revision", NOT_RECORDED),
                ("Architecture", escape(found.architecture or NOT_RECORDED)),
                ("Model type", escape(found.model_type or NOT_RECORDED)),
                ("License", escape(str(found.metadata.get("license", NOT_RECORDED)))),
            ],
            "decoding": "",
            "files": [],
        },
        "quality": None,
        "validation": None,
        "limits": [],
        "reproduce": None,
        "siblings": [],
        "citation": None,
        "pictures": [],
    }


def _kind(found: Unrecorded) -> str:
    form = "An MLX" if found.library == "mlx" else "A safetensors"
    return (
        f"{form} checkpoint of the model type {escape(found.model_type)}" if found.model_type else f"{form} checkpoint"
    )


def _model_file(record: Record) -> str | None:
    """The model code that is shipped: the only file of Python that ever is."""
    return next((file.name for file in record.files if file.name.endswith(".py")), None)


def _title(record: Record) -> str:
    if record.repo:
        return escape(record.repo.rpartition("/")[2])
    name = (record.source.repo or record.source.model_type).rpartition("/")[2]
    return escape(f"{name}, {record.recipe.name} (MLX)")


def _size(measured: MeasuredRecord) -> str:
    bits, parameters = units.format_bits(measured.effective_bits), units.format_parameters(measured.parameters)
    return f"{describe_nbytes(measured.nbytes)}, {bits} bits per weight, {parameters} parameters"


def _summary(record: Record, status: Status) -> Section:
    source = record.source
    origin = link(source.repo) if source.repo else f"a {escape(source.model_type)} checkpoint"
    return {
        "what": f"An MLX conversion of {origin}: {escape(record.recipe.summary).rstrip('.')}.",
        "size": _size(record.measured),
        "status": status.words,
    }


def _withdrawn(record: Record) -> Section | None:
    if record.withdrawn is None:
        return None
    instead = record.withdrawn.new_version
    return {
        "date": record.withdrawn.date[: len("2026-01-31")],
        "reason": escape(record.withdrawn.reason),
        "instead": link(instead) if instead else None,
    }


def _source(record: Record) -> Section:
    source = record.source
    repo, commit = source.repo, source.commit
    facts = [
        ("Base model", known(link(repo), source.repo_known) if repo else NOT_RECORDED),
        ("Source revision", known(code(commit), source.commit_known) if commit else NOT_RECORDED),
        ("Architecture", escape(source.architecture)),
        ("Model type", escape(source.model_type)),
        ("License", _license(record)),
    ]
    if source.chat_template:
        facts.append(("Chat template", escape(source.chat_template)))
    if source.files:
        nbytes = sum(file.nbytes for file in source.files)
        facts.append(("Files read", f"{units.format_count(len(source.files))}, {units.format_nbytes(nbytes)}"))
    if source.unverified:
        names = ", ".join(code(name) for name in source.unverified)
        facts.append(
            ("Hashes not checked", f"{names}: read in part straight from the Hub, whose word their SHA-256 is")
        )
    if source.encodings:
        published = "; ".join(
            f"{units.format_count(size)} parameters in {_ENCODINGS.get(name, escape(name))}"
            for name, size in source.encodings.items()
        )
        facts.append(("Published as", published))
    return {
        "facts": facts,
        "decoding": _decoding(source.encodings),
        "files": [(code(file.name), units.format_count(file.nbytes), code(file.sha256)) for file in source.files],
    }


def _decoding(encodings: Mapping[str, int]) -> str:
    names = [name for key, name in (("fp4", "FP4"), ("fp8", "FP8")) if key in encodings]
    if not names:
        return ""
    return (
        f"{' and '.join(names)} weights were decoded exactly before they were stored again: a scale byte b of the "
        "published E8M0 scales is the raw exponent of 2^(b − 127)."
    )


def _license(record: Record) -> str:
    metadata = record.source.metadata
    name = escape(str(metadata.get("license_name") or metadata.get("license") or NOT_RECORDED))
    files = [file for file in record.files if is_license(file.name) or file.name == metadata.get("license_link")]
    return "; ".join([name, *(f"{code(file.name)}, SHA-256 {code(file.sha256)}" for file in files)])


def _validation(record: Record, status: Status) -> Section:
    return {
        "status": status.words,
        "reasons": list(status.reasons),
        "rows": describe_rows(record),
        "subject": code(record.subject),
        "evidence": bool(current_evidence(record)),
    }


def _limits(record: Record) -> list[str]:
    limits = [
        f"Not converted: {code(dropped.names)}, {units.format_count(dropped.tensors)} tensors, "
        f"{units.format_nbytes(dropped.nbytes)}. {_capital(escape(dropped.reason)).rstrip('.')}."
        for dropped in record.source.dropped
    ]
    if not any(component.error is not None for component in record.plan.components):
        limits.append("The error of the stored weights against the published ones was not measured.")
    quality = current_quality(record)
    if quality is not None:
        return [*limits, describe_limit(quality)]
    stated = any(item.check in QUALITY and item.kind == "stated" for item in current_evidence(record))
    said = "what is said of it under Validation is stated by the publisher, and " if stated else ""
    limits.append(f"Quality was not measured: {said}the benchmark results of the source are not this conversion's.")
    return limits


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sibling(sibling: SiblingRecord) -> tuple[str, str, str, str]:
    bits = units.format_bits(sibling.effective_bits)
    return link(sibling.repo), code(sibling.recipe), bits, describe_nbytes(sibling.nbytes)
