"""The card: Markdown that is a pure function of the record and the templates.

This module turns the record's values into words and figures; the templates lay them out and compute nothing.
"""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from hubtool import units
from hubtool.record import ComponentRecord, Evidence, Record
from hubtool.resources import templates_dir

TEMPLATE = "card.md.jinja"
NOT_RECORDED = "not recorded"

PIPELINE_TAG = "text-generation"
TAGS = ("mlx", "conversational")
"""`mlx` makes the Hub offer MLX's apps; `conversational` makes its snippets chats rather than completions."""


def card_metadata(record: Record) -> dict[str, Any]:
    """The front matter: an allow-list of the Hub's keys, from the record alone.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md lists the keys.
    """
    carried = record.source.metadata
    metadata: dict[str, Any] = dict(carried)
    metadata["library_name"] = "mlx"
    metadata["pipeline_tag"] = PIPELINE_TAG
    if record.source.repo:
        metadata["base_model"] = record.source.repo
        metadata["base_model_relation"] = "quantized"
    metadata["tags"] = list(TAGS)
    return metadata


def render_card(record: Record, templates: Path | None = None) -> str:
    """The card of a record: the same text for the same record and templates.

    Args:
        record: All that is known.
        templates: The folder of templates, hubtool's own by default.

    Raises:
        jinja2.UndefinedError: A template asks for what does not exist.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates or templates_dir()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    text = environment.get_template(TEMPLATE).render(_view(record))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _view(record: Record) -> dict[str, Any]:
    """Everything that templates may show, as strings that are safe in Markdown."""
    return {
        "metadata": yaml.safe_dump(card_metadata(record), sort_keys=False, allow_unicode=True),
        "title": escape(_title(record)),
        "source": _source_view(record),
        "recipe": _recipe_view(record),
        "facts": _facts_view(record),
        "components": [_component_view(component) for component in record.plan.components],
        "validation": {
            "evidence": [_evidence_line(evidence) for evidence in current_evidence(record)],
            "status": _status(current_evidence(record)),
        },
        "notes": _notes(record),
    }


def _title(record: Record) -> str:
    name = (record.source.repo or record.source.model_type).rpartition("/")[2]
    return f"{name}, {record.recipe.name} (MLX)"


def _source_view(record: Record) -> dict[str, str | None]:
    source = record.source
    license_name = source.metadata.get("license_name") or source.metadata["license"]
    return {
        "repo": source.repo and escape(source.repo),
        "base_model": _known(source.repo, source.repo_known),
        "revision": _known(source.commit, source.commit_known),
        "architecture": escape(source.architecture),
        "model_type": escape(source.model_type),
        "license": escape(str(license_name)),
    }


def _known(value: str | None, known: str | None) -> str:
    if value is None:
        return NOT_RECORDED
    return escape(value) + (" (stated by the publisher)" if known == "stated" else "")


def _recipe_view(record: Record) -> dict[str, Any]:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return {
        "name": escape(record.recipe.name),
        "summary": escape(record.recipe.summary),
        "sha256": record.recipe.sha256,
        "tooling": escape(versions),
        "mode": record.plan.mode,
        "group_size": record.plan.group_size,
        "label": _label(record),
    }


def _label(record: Record) -> str:
    bits = units.format_bits(record.measured.effective_bits)
    if record.plan.label_bits is None:
        return f"Nothing is quantized; {bits} bits per parameter is what the dtypes come to."
    return (
        f'The Hub\'s "{record.plan.label_bits}-bit" label follows the `bits` at the top of config.json; the modules '
        f"are stored as the table says, {bits} bits per parameter in all, scales and biases included."
    )


def _facts_view(record: Record) -> dict[str, str]:
    measured = record.measured
    return {
        "nbytes": units.format_nbytes(measured.nbytes),
        "size": units.format_size(measured.nbytes),
        "size_gib": units.format_gib(measured.nbytes),
        "effective_bits": units.format_bits(measured.effective_bits),
        "parameters": units.format_count(measured.parameters),
        "tensors": units.format_count(measured.tensors),
        "shards": units.format_count(measured.shards),
    }


def _component_view(component: ComponentRecord) -> dict[str, str]:
    return {
        "name": component.name,
        "formats": escape("; ".join(component.formats) or "as published"),
        "parameters": units.format_count(component.parameters),
        "bits": units.format_bits(units.effective_bits(component.nbytes, component.parameters)),
        "nbytes": units.format_count(component.nbytes),
    }


def current_evidence(record: Record) -> tuple[Evidence, ...]:
    """The evidence that is about the files as they are; any other never counts."""
    return tuple(evidence for evidence in record.evidence if evidence.subject == record.subject)


def _evidence_line(evidence: Evidence) -> str:
    stated = " (stated by the publisher)" if evidence.kind == "stated" else ""
    outcome = evidence.outcome.replace("_", " ")
    return f"{escape(evidence.check)}: {outcome}{stated}. {escape(evidence.detail)}"


def _status(evidence: Sequence[Evidence]) -> str:
    passed = {item.check for item in evidence if item.outcome == "passed" and item.kind == "measured"}
    if "smoke" in passed or "smoke-streamed" in passed:
        how = "generation-qualified" if "smoke" in passed else "generation-qualified, streamed"
        return f"Treat this artifact as {how}."
    if "load" in passed:
        return "Treat this artifact as converted and load-validated, not generation-qualified."
    return "Treat this artifact as converted, not generation-qualified: loading and generation were not run."


def _notes(record: Record) -> list[str]:
    notes = [
        f"Not converted: `{dropped.names}`, {units.format_count(dropped.tensors)} tensors, "
        f"{units.format_nbytes(dropped.nbytes)} ({escape(dropped.reason)})."
        for dropped in record.source.dropped
    ]
    if any(file.name == "deepseek_v4.py" for file in record.files):
        notes.append(
            "The model code travels with the weights as `deepseek_v4.py`; mlx-lm runs it after you allow it with "
            "`--trust-remote-code`."
        )
    notes.append("`hubtool.json` records sources, recipe, versions and the SHA-256 of every file.")
    return notes


_MARKDOWN = re.compile(r"([\\`*_\[\]{}|#~])")


def escape(text: str) -> str:
    """`text` as one line of Markdown that shows it and nothing else: no markup, no HTML, no Jinja."""
    line = " ".join(text.split())
    return _MARKDOWN.sub(r"\\\1", html.escape(line, quote=False))
