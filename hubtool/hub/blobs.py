"""Sends the content of large files before the commit that names them, by xet or by LFS, one file after the other.

What has been sent stays with the Hub, committed or not: it is written down, and the next run asks for it.
"""

import base64
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx2
from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import HfHubHTTPError

from hubtool.errors import HubError, OutputError, redact
from hubtool.hub import xet
from hubtool.hub.client import QUOTA_REMEDY, said
from hubtool.hub.patience import (
    EXPIRED_STATUS,
    NOT_FOUND,
    PatientHub,
    TransferError,
    is_repeated,
    refused_status,
)
from hubtool.hub.private import UploadInfo, auth_headers, mark, post_lfs_batch_info
from hubtool.hub.state import Blob, State
from hubtool.progress import Advance, HighWater

PREUPLOAD_FILES = 256
"""Of how many files the stock client asks at once by which way they go."""

_QUOTA = re.compile("storage limit|quota", re.IGNORECASE)


class Blobs:
    """The large contents of one repo.

    Args:
        hub: The Hub.
        repo: `org/name`.
        revision: The branch or pull request that they will be committed to.
        state: What earlier runs have sent.
    """

    def __init__(self, hub: PatientHub, repo: str, revision: str, state: State) -> None:
        self._hub = hub
        self._repo = repo
        self._revision = revision
        self._state = state
        self._xet = xet.Access(hub, repo, revision)
        self._offered = False

    @property
    def by_xet(self) -> bool:
        """Whether contents go by xet; a Hub without it is noticed and named, and gets them by LFS.

        Raises:
            HubError: The Hub gives no token for it for another reason.
        """
        if self._hub.lacks_xet or not xet.is_xet_available():
            return False
        if not self._offered:
            self._offered = self._xet.is_offered()
            if not self._offered:
                self._hub.lacks_xet = True
                self._hub.say(f"{redact(self._hub.api.endpoint)} has no xet: large files go by LFS")
        return self._offered

    def held(self) -> Mapping[str, Blob]:
        """What earlier runs have sent and the Hub still has, by file name; nothing if it cannot be asked."""
        sent = self._state.blobs
        if not sent:
            return {}
        infos = [UploadInfo(blob.nbytes, b"", bytes.fromhex(blob.sha256)) for blob in sent.values()]

        def ask() -> set[str]:
            answers, _, _ = post_lfs_batch_info(
                infos,
                token=None,
                repo_id=self._repo,
                repo_type="model",
                revision=self._revision,
                endpoint=self._hub.api.endpoint,
                headers=dict(auth_headers(self._hub.api)),
            )
            return {answer["oid"] for answer in answers if answer.get("actions") is None}

        try:
            there = self._hub.attempt(self._repo, ask)
        except HubError as error:
            if refused_status(error) != NOT_FOUND:
                raise
            return {}
        return {name: blob for name, blob in sent.items() if blob.sha256 in there}

    def send_file(self, name: str, path: Path, sha256: str | None, advance: Advance) -> Blob:
        """Send a file, and write that down.

        Args:
            name: Its name in the repo.
            path: Where it lies.
            sha256: What its bytes must come to, if that is recorded: it is compared, never handed on.
            advance: Counts its bytes; the last of them when the Hub has said that it has the file.

        Raises:
            OutputError: The file has changed since it was recorded.
            HubError: It did not get through.
        """
        mark = HighWater(lambda nbytes: advance(nbytes, name))
        last = path.stat().st_size - 1

        def reach(done: int) -> None:
            mark.reach(min(done, last))

        def send() -> Blob:
            if self.by_xet:
                return xet.send_file(self._xet, path, reach)
            return self._send_by_lfs(name, path, sha256, reach)

        blob = self._hub.attempt(f"{self._repo}: {name}", send)
        require_unchanged(path, sha256, blob.sha256)
        mark.reach(blob.nbytes)
        self._state.add_blob(name, blob)
        return blob

    def send_stream(self, name: str, chunks: Callable[[], Iterable[bytes]]) -> Blob:
        """Send what lies nowhere, by xet, and write that down; `chunks` is asked again for a repetition.

        Raises:
            HubError: It did not get through.
        """
        blob = self._hub.attempt(f"{self._repo}: {name}", lambda: xet.send_stream(self._xet, chunks()))
        self._state.add_blob(name, blob)
        return blob

    def _send_by_lfs(self, name: str, path: Path, sha256: str | None, reach: xet.Reach) -> Blob:
        addition = _WatchedAddition(name, path, reach)
        found = addition.upload_info.sha256.hex()
        require_unchanged(path, sha256, found)  # known before the first byte is sent
        with _lfs_failures(), _without_xet():
            self._hub.api.preupload_lfs_files(self._repo, [addition], revision=self._revision, free_memory=False)
        return Blob(found, addition.upload_info.size)


@contextmanager
def _without_xet() -> Iterator[None]:
    """The stock client sends by LFS for the time of a `with`: it decides by this constant, for the whole process."""
    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def choose_large(hub: PatientHub, repo: str, revision: str, infos: Mapping[str, UploadInfo]) -> frozenset[str]:
    """Which of these files the Hub wants by LFS or xet; the others travel in the commit itself.

    Args:
        hub: The Hub.
        repo: `org/name`.
        revision: The branch or pull request that they will be committed to.
        infos: Size and first bytes by name.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    candidates = [
        {"path": name, "size": info.size, "sample": base64.b64encode(info.sample).decode()}
        for name, info in infos.items()
    ]
    large: set[str] = set()
    for start in range(0, len(candidates), PREUPLOAD_FILES):
        answer = hub.ask(
            "POST",
            f"/api/models/{repo}/preupload/{quote(revision, safe='')}",
            repo,
            json={"files": candidates[start : start + PREUPLOAD_FILES]},
        )
        large |= {file["path"] for file in answer["files"] if file["uploadMode"] == "lfs"}
    return frozenset(name for name in large if infos[name].size > 0)


def chosen_addition(name: str, content: bytes, *, large: bool) -> CommitOperationAdd:
    """What adds a file by the way that was chosen."""
    return mark(CommitOperationAdd(name, content), large=large)


def stored_addition(name: str, blob: Blob) -> CommitOperationAdd:
    """What commits content that the Hub has, though it may lie nowhere else."""
    addition = CommitOperationAdd(name, b"")
    addition.upload_info = UploadInfo(blob.nbytes, b"", bytes.fromhex(blob.sha256))
    return mark(addition, large=True, uploaded=True)


def require_unchanged(path: Path, expected: str | None, found: str) -> None:
    """Raise OutputError if a file's SHA-256 is not the one that is expected of it, if any is."""
    if expected is not None and found != expected:
        raise OutputError(
            "the file has changed since it was recorded",
            where=path,
            found=f"sha256 {found}",
            expected=expected,
            remedy="convert again, or restore the file",
        )


class _WatchedAddition(CommitOperationAdd):
    """A file to add that reports how far it was read for sending."""

    def __init__(self, name: str, path: Path, reach: xet.Reach) -> None:
        super().__init__(name, path)
        mark(self, large=True)
        self._path = path
        self._reach = reach

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        """The file, open for reading; the stock client asks for a bar where it sends."""
        with _WatchedFile(self._path, self._reach if with_tqdm else lambda done: None) as file:
            yield file


class _WatchedFile(io.BufferedReader):
    """A file that reports how far it was read."""

    def __init__(self, path: Path, reach: xet.Reach) -> None:
        super().__init__(io.FileIO(path))
        self._reach = reach

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self._reach(self.tell())
        return content


@contextmanager
def _lfs_failures() -> Iterator[None]:
    """Turn what the stock client makes of a failed transfer into a TransferError that says what may be repeated."""
    try:
        yield
    except RuntimeError as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            status, text = cause.response.status_code, said(cause)
            full = status == EXPIRED_STATUS and _QUOTA.search(text) is not None
            repeatable = not full and (status == EXPIRED_STATUS or is_repeated(status))
            remedy = QUOTA_REMEDY if full else None
            raise TransferError(f"status {status}, {text}", repeatable=repeatable, remedy=remedy) from error
        if isinstance(cause, (httpx2.RequestError, OSError)):
            raise TransferError(str(cause) or type(cause).__name__, repeatable=True) from error
        raise
    except ValueError as error:
        if "LFS batch API returned errors" not in str(error):
            raise
        raise TransferError(str(error), repeatable=False) from error
