"""The only writer to the Hub: all blobs first, then one commit that names every file, then a look at the Hub's hashes.

Readers see the old state or the whole new one; nothing is believed until the Hub's own hashes say so.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from hubtool.errors import HubError, OutputError, VerificationError
from hubtool.http import redact
from hubtool.record import RECORD_FILE, Record, decode_record
from hubtool.source import CARD_FILE


@dataclass(frozen=True, slots=True)
class Published:
    """A repo as it was left: `changed` is False if everything stood there already."""

    repo: str
    commit: str
    url: str
    files: int
    nbytes: int
    changed: bool


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repo with the hashes that the Hub has for it; `sha256` is None for files that are not LFS or xet."""

    name: str
    nbytes: int
    git_sha1: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Verification:
    """How a repo compares with a record: `problems` is empty if it holds."""

    repo: str
    commit: str
    files: int
    nbytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Destination:
    """A repo to publish to: `org/name`, and whether it is private if it has to be made."""

    repo: str
    private: bool = True


def published_names(record: Record) -> tuple[str, ...]:
    """Every file that is uploaded: those of the record, the record and the card. Nothing else ever is."""
    return tuple(sorted([*(file.name for file in record.files), RECORD_FILE, CARD_FILE]))


def upload(
    api: HfApi,
    folder: Path,
    record: Record,
    to: Destination,
    progress: Callable[[str, int], None] = lambda name, nbytes: None,
) -> Published:
    """Publish a finished folder: blobs, shard by shard, then one commit with every file that differs.

    Args:
        api: The Hub.
        folder: A finished folder.
        record: Its record.
        to: The repo; made if it is not there.
        progress: Called with a file's name and bytes when its blob lies on the Hub.

    Raises:
        OutputError: A file of the record is not in the folder.
        HubError: The Hub refused, or could not be reached.
    """
    repo, names = to.repo, published_names(record)
    for name in names:
        if not (folder / name).is_file():
            raise OutputError("missing file", where=folder / name, remedy="convert again")
    with translated(repo):
        api.create_repo(repo, private=to.private, exist_ok=True)
        head = api.model_info(repo).sha
        assert head is not None
        there = list_files(api, repo, head)
        changed = [name for name in names if not _same(folder / name, there.get(name), record.hashes().get(name))]
        nbytes = sum((folder / name).stat().st_size for name in names)
        if not changed:
            return Published(repo, head, _commit_url(api, repo, head), len(names), nbytes, changed=False)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in changed]
        for addition in additions:
            api.preupload_lfs_files(repo, additions=[addition])
            progress(addition.path_in_repo, (folder / addition.path_in_repo).stat().st_size)
        commit = api.create_commit(
            repo,
            operations=additions,
            commit_message=f"Publish {record.recipe.name} with hubtool {record.versions['hubtool']}",
            parent_commit=head,
        )
    return Published(repo, commit.oid, _commit_url(api, repo, commit.oid), len(names), nbytes, changed=True)


def _commit_url(api: HfApi, repo: str, commit: str) -> str:
    return f"{api.endpoint}/{repo}/tree/{commit}"


def _same(path: Path, there: HubFile | None, sha256: str | None) -> bool:
    if there is None or there.nbytes != path.stat().st_size:
        return False
    if there.sha256 is not None and sha256 is not None:
        return there.sha256 == sha256
    return there.git_sha1 == git_sha1(path.read_bytes()) if there.sha256 is None else False


def list_files(api: HfApi, repo: str, commit: str) -> Mapping[str, HubFile]:
    """Every file of a repo at a commit, by name."""
    return {
        entry.path: HubFile(entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in api.list_repo_tree(repo, recursive=True, revision=commit)
        if isinstance(entry, RepoFile)
    }


def git_sha1(content: bytes) -> str:
    """The object id that git gives a blob with this content, in hexadecimal."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_hub_record(api: HfApi, repo: str, commit: str) -> Record:
    """The record of a repo.

    Raises:
        VerificationError: The repo has none.
        RecordError: It cannot be read.
    """
    content = _read_hub_file(api, repo, commit, RECORD_FILE)
    if content is None:
        raise VerificationError(
            "has no record", where=repo, expected=RECORD_FILE, remedy="hubtool verifies what hubtool published"
        )
    return decode_record(content)


def _read_hub_file(api: HfApi, repo: str, commit: str, name: str) -> bytes | None:
    url = f"{api.endpoint}/{repo}/resolve/{commit}/{name}"
    headers = api._build_hf_headers()
    response = get_session().get(url, headers=headers, follow_redirects=True)
    if response.status_code == 404:
        return None
    hf_raise_for_status(response)
    return response.content


def verify(api: HfApi, repo: str, *, revision: str = "main", folder: Path | None = None) -> Verification:
    """Compare the Hub's hashes of every file with the record, and with a folder if one is given.

    The record is the folder's, or else the repo's own. A file that the Hub keeps in git has no SHA-256 there: its
    content is fetched and hashed.

    Raises:
        VerificationError: Neither has a record.
        HubError: The Hub refused, or could not be reached.
    """
    with translated(repo):
        commit = api.model_info(repo, revision=revision).sha
        assert commit is not None
        there = list_files(api, repo, commit)
        record = read_hub_record(api, repo, commit)
        problems = list(_compare(api, repo, commit, there, record))
        if folder is not None:
            problems += _compare_folder(folder, there, published_names(record))
    nbytes = sum(file.nbytes for file in there.values())
    return Verification(repo, commit, len(published_names(record)), nbytes, tuple(problems))


def _compare(api: HfApi, repo: str, commit: str, there: Mapping[str, HubFile], record: Record) -> Iterator[str]:
    for expected in record.files:
        found = there.get(expected.name)
        if found is None:
            yield f"{expected.name}: not in the repo"
            continue
        sha256 = found.sha256 or hashlib.sha256(_read_hub_file(api, repo, commit, expected.name) or b"").hexdigest()
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
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != found.sha256:
                yield f"{name}: the Hub has sha256 {found.sha256}, the folder {sha256}"
        elif git_sha1(path.read_bytes()) != found.git_sha1:
            yield f"{name}: the Hub has git sha1 {found.git_sha1}, the folder {git_sha1(path.read_bytes())}"


@contextmanager
def translated(repo: str) -> Iterator[None]:
    """Turn what the stock client raises into a HubError with a remedy."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise HubError("no token", where=repo, remedy="run `hf auth login`, or set HF_TOKEN") from error
    except GatedRepoError as error:
        raise HubError(
            "the repo is gated", where=repo, found=_said(error), remedy="accept its terms on its page first"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            "no such repo, or the token may not see it", where=repo, remedy="check the name, and log in"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError("no such revision", where=repo, found=_said(error), remedy="check the revision") from error
    except HfHubHTTPError as error:
        raise HubError("the Hub refused", where=repo, found=_said(error), remedy=_remedy(error)) from error
    except (httpx2.TransportError, ConnectionError) as error:
        raise HubError(
            "the Hub cannot be reached", where=repo, found=redact(str(error)), remedy="check the network, run it again"
        ) from error


def _said(error: HfHubHTTPError) -> str:
    return redact(error.server_message or str(error)).strip()


_REMEDIES: Mapping[int, str] = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "take a token that may write to this repo",
    412: "someone else has committed meanwhile; look at the repo, then run it again",
    429: "wait, then run it again",
}


def _remedy(error: HfHubHTTPError) -> str:
    return _REMEDIES.get(error.response.status_code, "run it again; what is done stays done")
