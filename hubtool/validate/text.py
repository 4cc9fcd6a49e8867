"""The text that predictions are measured on: a local file, or one of a dataset on the Hub at a commit."""

import re
from dataclasses import dataclass
from pathlib import Path

from hubtool.errors import UsageError
from hubtool.files.read import file_sha256
from hubtool.files.whole import write_beside
from hubtool.hub.client import make_api, translated
from hubtool.hub.reader import RepoReader
from hubtool.hub.rules import is_repo_id

TEXTS_DIR = "texts"
"""Where files of the Hub are kept, in the state of a folder."""

SUFFIXES = (".txt", ".raw", ".jsonl")

_ON_THE_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/([^@]+)")
"""As huggingface_hub's own file system writes it; a revision with a slash in it is not understood."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
        path: The local file.
        name: Its name, within its repo where it has one.
        sha256: Of its bytes.
        repo: The dataset on the Hub, None for a local file.
        commit: Of that repo.
    """

    path: Path
    name: str
    sha256: str
    repo: str | None = None
    commit: str | None = None


def open_text(spec: str, folder: Path) -> Text:
    """The text that a command line names.

    Args:
        spec: A path, or `hf://datasets/ORG/NAME[@REVISION]/FILE`.
        folder: Where a file of the Hub is kept; it is fetched once for each commit.

    Raises:
        UsageError: There is no such file, or it is of another kind.
        HubError: The Hub refused, or could not be reached.
    """
    match = _ON_THE_HUB.fullmatch(spec)
    if Path(spec).suffix not in SUFFIXES or (match is None and spec.startswith("hf:")):
        raise UsageError(
            "not a text",
            where="--text",
            found=spec,
            expected=f"a file that ends in {', '.join(SUFFIXES)}, or hf://datasets/ORG/NAME[@REVISION]/FILE",
        )
    if match is not None:
        return _fetch(match[1], match[2] or "main", match[3], folder)
    path = Path(spec)
    if not path.is_file():
        raise UsageError("no such file", where="--text", found=spec, remedy="check the path of the text")
    return Text(path.resolve(), path.name, file_sha256(path, lambda nbytes: None))


def _fetch(repo: str, revision: str, name: str, folder: Path) -> Text:
    if not is_repo_id(repo):
        raise UsageError("not a dataset's name", where="--text", found=repo, expected="ORG/NAME as the Hub allows it")
    api = make_api()
    commit = revision
    if not _COMMIT.fullmatch(revision):
        with translated(repo):
            commit = str(api.dataset_info(repo, revision=revision).sha)
    path = folder / f"{repo.replace('/', '--')}-{commit}-{name.replace('/', '--')}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_beside(path, RepoReader(api, f"datasets/{repo}", commit).read(name))
    return Text(path.resolve(), name, file_sha256(path, lambda nbytes: None), repo, commit)
