"""Holds a repo's files against the record, by the hashes that the Hub itself has."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from hubtool.files.read import file_sha256
from hubtool.hub.client import HubFile, git_sha1, list_files
from hubtool.hub.destination import MAIN
from hubtool.hub.patience import PatientHub
from hubtool.hub.reader import decode_hub_record, read_hub_file
from hubtool.hub.standing import foreign_weights
from hubtool.hub.upload import ATTRIBUTES_FILE, published_names
from hubtool.record import CARD_FILE, DERIVED_FILES, RECORD_FILE, Record


@dataclass(frozen=True, slots=True)
class Verification:
    """How a repo compares with a record: `problems` is empty if it holds.

    Attributes:
        repo: `org/name`.
        commit: The commit that was looked at.
        files: How many of its files are hubtool's.
        nbytes: Their bytes.
        problems: Where it does not hold, as sentences.
        foreign: Names of the other files, which nothing is known of.
    """

    repo: str
    commit: str
    files: int
    nbytes: int
    problems: tuple[str, ...]
    foreign: tuple[str, ...] = ()


def verify(
    api: HfApi | PatientHub,
    repo: str,
    *,
    revision: str = MAIN,
    folder: Path | None = None,
    names: Sequence[str] | None = None,
) -> Verification:
    """Compare the Hub's hashes of every file with the repo's record, and with a folder if one is given.

    A file that the Hub keeps in git has no SHA-256 there: its content is fetched and hashed.

    Args:
        api: The Hub.
        repo: `org/name`.
        revision: A branch, tag, pull request's reference or commit.
        folder: What the repo should have been made of.
        names: The files of the folder that are compared; by default all that are published of it.

    Raises:
        VerificationError: The repo has no record.
        HubError: The Hub refused, or could not be reached.
    """
    hub = api if isinstance(api, PatientHub) else PatientHub(api)
    commit = hub.attempt(repo, lambda: hub.api.model_info(repo, revision=revision).sha)
    assert commit is not None
    return verify_commit(hub, repo, commit, folder=folder, names=names)


def verify_commit(
    hub: PatientHub, repo: str, commit: str, *, folder: Path | None = None, names: Sequence[str] | None = None
) -> Verification:
    """As `verify`, of a commit that is known.

    Of a small file whose git hash the folder's has too, the folder's is hashed instead of fetching it.

    Raises:
        VerificationError: The repo has no record.
        HubError: The Hub refused, or could not be reached.
    """
    there = hub.attempt(repo, lambda: list_files(hub.api, repo, commit))

    def read(name: str) -> bytes | None:
        own = folder / name if folder is not None else None
        if own is not None and own.is_file() and name in there and not there[name].sha256:
            content = own.read_bytes()
            if git_sha1(content) == there[name].git_sha1:
                return content
        return read_hub_file(hub, repo, commit, name)

    record = decode_hub_record(repo, read(RECORD_FILE))
    problems = list(_compare(there, record, read))
    if folder is not None:
        problems += _compare_folder(folder, there, published_names(record, folder) if names is None else names)
    hashes = record.hashes()
    ours = {name: file.nbytes for name, file in there.items() if name in hashes or name in DERIVED_FILES}
    foreign = tuple(sorted(there.keys() - ours.keys() - {ATTRIBUTES_FILE}))
    for name in foreign_weights([each for each in foreign if "/" not in each], ()):
        problems.append(f"{name}: weights that are not the record's, and that mlx-lm would load too")
    return Verification(repo, commit, len(ours), sum(ours.values()), tuple(problems), foreign)


def _compare(there: Mapping[str, HubFile], record: Record, read: Callable[[str], bytes | None]) -> Iterator[str]:
    for expected in record.files:
        found = there.get(expected.name)
        if found is None:
            yield f"{expected.name}: not in the repo"
            continue
        sha256 = found.sha256
        if sha256 is None:
            sha256 = hashlib.sha256(read(expected.name) or b"").hexdigest()
        if sha256 != expected.sha256:
            yield f"{expected.name}: the Hub has sha256 {sha256}, the record {expected.sha256}"
        if found.nbytes != expected.nbytes:
            yield f"{expected.name}: the Hub has {found.nbytes} bytes, the record {expected.nbytes}"
    if CARD_FILE not in there:
        yield f"{CARD_FILE}: not in the repo"


def _compare_folder(folder: Path, there: Mapping[str, HubFile], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        path, found = folder / name, there.get(name)
        if not path.is_file():
            yield f"{name}: not in the folder"
        elif found is None:
            yield f"{name}: not in the repo"
        elif found.sha256 is not None:
            sha256 = file_sha256(path)
            if sha256 != found.sha256:
                yield f"{name}: the Hub has sha256 {found.sha256}, the folder {sha256}"
        elif git_sha1(path.read_bytes()) != found.git_sha1:
            yield f"{name}: the Hub has git sha1 {found.git_sha1}, the folder {git_sha1(path.read_bytes())}"
