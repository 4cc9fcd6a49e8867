"""The error tree: what went wrong, where, what was found and expected, and what to do about it.

    HubtoolError
    |-- UsageError            the command line or an option is wrong                       exit 2
    |   `-- RecipeError       a recipe file cannot be used                                 exit 2
    |-- SourceError           the checkpoint cannot be read, or contradicts itself         exit 1
    |-- OutputError           the output folder is in the way, full, or not what was made  exit 1
    |-- RecordError           hubtool.json cannot be read                                  exit 1
    |-- BackendError          MLX is missing its backend, or has two                       exit 1
    |-- HubError              the Hub refused, or could not be reached                     exit 1
    |-- VerificationError     bytes are not what the record says                           exit 1
    |-- GuardError            the memory guard stopped a child process                     exit 75
    `-- InterruptedByUser     Ctrl-C or SIGTERM; the state is kept                         exit 130

Only the command line turns these into exit codes; every other exception is a bug and keeps its traceback.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The question after the choice that is nearest to a mistyped name, as a clause; empty if none is near."""
    near = get_close_matches(name, list(choices), n=1)
    return f"did you mean {near[0]}?" if near else ""


class HubtoolError(Exception):
    """A failure with a message for the person who can act on it.

    Args:
        what: The failure in one clause.
        where: The file, tensor, rule or address that it concerns.
        found: What was there.
        expected: What should have been there.
        remedy: What to do next, as an instruction.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else _shown(where)
        self.found = None if found is None else _shown(found)
        self.expected = None if expected is None else _shown(expected)
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        """One sentence: `where: what: found ..., expected ...; remedy`."""
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        facts = [f"{name} {value}" for name, value in (("found", self.found), ("expected", self.expected)) if value]
        if facts:
            text += ": " + ", ".join(facts)
        if self.remedy:
            text += f"; {self.remedy}"
        return text


_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would steer a terminal, turn the direction of what follows, or cannot be written at all."""

SHOWN_LENGTH = 2000
"""Characters of a fact that a message repeats."""


_SECRETS = (
    (re.compile(r"\bhf_\w{8,}[\w.-]*"), "*****"),
    (re.compile(r"(?<=bearer )\S+", re.IGNORECASE), "*****"),
    (re.compile(r"(?<=://)[^\s/@'\"]+(?=@)"), "*****"),
    (re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*"), r"\1*****"),
    (re.compile(r"\?[^\s='\"]+=[^\s'\"]*"), "*****"),
)
"""Tokens of any kind; user and password of an address; and its query: storage's are signed, and good for anybody."""


def redact(text: str) -> str:
    """`text` without tokens, without who asks in an address, and without its query."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _shown(fact: object) -> str:
    """A fact as it may stand in a message: it may be secret, or come from a file that nobody has looked at."""
    text = redact(_UNSHOWABLE.sub(lambda match: ascii(match[0])[1:-1], str(fact)))
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."


class UsageError(HubtoolError):
    """The command line or an option is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe file cannot be used."""


class SourceError(HubtoolError):
    """The checkpoint cannot be read, or contradicts itself."""


class OutputError(HubtoolError):
    """The output folder is in the way, full, or not what was made."""


class RecordError(HubtoolError):
    """The record (hubtool.json) cannot be read."""


class BackendError(HubtoolError):
    """MLX is missing its backend, or has two."""


class HubError(HubtoolError):
    """The Hub refused, or could not be reached."""


class VerificationError(HubtoolError):
    """Bytes are not what the record says."""


class GuardError(HubtoolError):
    """The memory guard stopped a child process."""

    exit_code = 75


class InterruptedByUser(HubtoolError):
    """Ctrl-C or SIGTERM; the state is kept."""

    exit_code = 130
