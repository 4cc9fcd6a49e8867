"""The front matter: an allow-list of the Hub's keys, and what the Hub would say of it."""

from collections.abc import Mapping
from typing import Any

import yaml

from hubtool.errors import SourceError, UsageError
from hubtool.hub.rules import check_metadata, is_repo_id
from hubtool.record import CARRIED_KEYS, Record

PIPELINE_TAG = "text-generation"
CHAT_TEMPLATE_FILE = "chat_template.jinja"


def make_metadata(
    carried: Mapping[str, str | list[str]],
    base_model: str | None,
    *,
    conversational: bool,
) -> dict[str, Any]:
    """The metadata of a card.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md lists the keys. There is none for the commit.

    Args:
        carried: License and language as the source declares them.
        base_model: The source's repo, if known.
        conversational: Whether there is a chat template.
    """
    metadata: dict[str, Any] = {key: carried[key] for key in CARRIED_KEYS if key in carried}
    metadata |= {"library_name": "mlx", "pipeline_tag": PIPELINE_TAG}
    if base_model is not None:
        metadata["base_model"] = base_model
        metadata["base_model_relation"] = "quantized"
    # `mlx` makes the Hub offer MLX's apps; `conversational` makes its snippets chats rather than completions.
    return metadata | {"tags": ["mlx", *(["conversational"] if conversational else [])]}


def card_metadata(record: Record) -> dict[str, Any]:
    """The metadata of a record's card."""
    names = {file.name for file in record.files}
    metadata = make_metadata(record.source.metadata, record.source.repo, conversational=CHAT_TEMPLATE_FILE in names)
    if record.withdrawn is not None and record.withdrawn.new_version is not None:
        metadata["new_version"] = record.withdrawn.new_version
    return metadata


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Metadata as YAML that parses back to it."""
    # Written as they are, YAML 1.1 folds the line breaks that only Unicode has, U+0085 say, into spaces.
    readable = "".join(str(value) for value in metadata.values()).isprintable()
    return yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=readable, width=float("inf"))


def check_publishable(
    carried: Mapping[str, str | list[str]], base_model: str | None, repo: str | None = None
) -> tuple[str, ...]:
    """What the Hub would warn about in a card that does not exist yet; before hours of work.

    Args:
        carried: License and language as the source declares them.
        base_model: The source's repo, if known.
        repo: Where it is to be published, if that is decided.

    Raises:
        UsageError: The Hub allows no repo of this name.
        SourceError: The Hub would refuse the metadata.
    """
    if repo is not None and not is_repo_id(repo):
        raise UsageError(
            "not a name that the Hub allows",
            where="--to",
            found=repo,
            expected="NAMESPACE/NAME of letters, digits, dots, dashes and underscores",
        )
    metadata = make_metadata(carried, base_model, conversational=True)
    problems = check_metadata(f"---\n{dump_metadata(metadata)}---\n")
    fatal = [problem.message for problem in problems if problem.fatal]
    if fatal:
        raise SourceError(
            "the Hub would refuse the card's metadata",
            where="README.md of the source",
            found="; ".join(fatal),
            remedy="correct the front matter of the source's README.md, or name the base model as it is on the Hub",
        )
    return tuple(problem.message for problem in problems)
