"""Which Hub repo and commit a checkpoint is, and how that is known."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hubtool.errors import UsageError

COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Knowledge = Literal["observed", "stated"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Which Hub repo and commit a source is, and how that is known.

    `observed` is what the Hub itself says, or what its client left beside the files; `stated` is the publisher's word.
    A value that is not known is None, and so is how it is known.
    """

    repo: str | None = None
    repo_known: Knowledge | None = None
    commit: str | None = None
    commit_known: Knowledge | None = None


UNKNOWN = Identity()


def parse_base_model(text: str) -> Identity:
    """The stated identity `ORG/NAME` or `ORG/NAME@COMMIT`.

    Raises:
        UsageError: The text is neither, or the commit is not 40 hexadecimal digits.
    """
    repo, _, commit = text.partition("@")
    if not REPO.fullmatch(repo) or ("@" in text and not COMMIT.fullmatch(commit)):
        raise UsageError(
            "not a base model",
            where="--base-model",
            found=text,
            expected="ORG/NAME or ORG/NAME@COMMIT, the commit in 40 hexadecimal digits",
            remedy="write it so",
        )
    return Identity(repo, "stated", commit or None, "stated" if commit else None)


def merge_identity(observed: Identity, stated: Identity) -> Identity:
    """What is observed, completed by what is stated.

    Raises:
        UsageError: The statement contradicts the observation.
    """
    for known, claimed in ((observed.repo, stated.repo), (observed.commit, stated.commit)):
        if known and claimed and known != claimed:
            raise UsageError(
                "contradicts what is known of the source",
                where="--base-model",
                found=claimed,
                expected=known,
                remedy="leave the option out, or take the right folder",
            )
    return Identity(
        observed.repo or stated.repo,
        observed.repo_known or stated.repo_known,
        observed.commit or stated.commit,
        observed.commit_known or stated.commit_known,
    )


def observe_identity(folder: Path) -> Identity:
    """The Hub repo and commit of a local folder, from what huggingface_hub leaves when it downloads.

    A snapshot of its cache lies in `models--ORG--NAME/snapshots/COMMIT`. A `--local-dir` holds one
    `.cache/huggingface/download/FILE.metadata` a file, whose first line is the commit; the repo's name is not there.
    A commit is believed only if all files agree.
    """
    resolved = folder.resolve()
    if resolved.parent.name == "snapshots" and COMMIT.fullmatch(resolved.name):
        kind, _, rest = resolved.parent.parent.name.partition("--")
        if kind == "models" and "--" in rest:
            return Identity(rest.replace("--", "/", 1), "observed", resolved.name, "observed")
    commits = set()
    for metadata in (folder / ".cache" / "huggingface" / "download").glob("*.metadata"):
        with metadata.open(encoding="utf-8", errors="replace") as file:
            commits.add(file.readline().strip())
    if len(commits) == 1 and COMMIT.fullmatch(commit := commits.pop()):
        return Identity(commit=commit, commit_known="observed")
    return Identity()
