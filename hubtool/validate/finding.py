"""What a rung finds, before it is known where and when it was found."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hubtool.record import Outcome, QualityRecord


@dataclass(frozen=True)
class Finding:
    """A rung's outcome, a sentence on it, figures by name with the unit in the name, and what `quality` measured."""

    outcome: Outcome
    detail: str
    figures: dict[str, int | float | str] = field(default_factory=dict)
    quality: QualityRecord | msgspec.UnsetType = msgspec.UNSET


_PATH = re.compile(
    r"(?P<quote>[\"'`])(?:file://)?[/~][^\"'`\n]*/(?P<quoted>[^\"'`\n/]*)/?(?P=quote)"
    r"|(?:file:|(?<![\w.:/-]))~?(?:/+[\w.@+%=,#-]+)*/+(?P<bare>[\w.@+%=,#-]+)/?"
)


def without_paths(text: str, folder: str) -> str:
    """A text in which each absolute path is its last part alone: the rest tells whose machine it is.

    Args:
        text: What a library said, say.
        folder: A path to look for as it is, whatever characters it holds.
    """
    for path in (str(Path(folder).resolve()), folder):
        text = text.replace(path, Path(path).name) if len(path) > 1 else text
    return _PATH.sub(
        lambda found: found["bare"] or f"{found['quote']}{found['quoted']}{found['quote']}",
        text,
    )
