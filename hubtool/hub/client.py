"""One configured client for the Hub: bounded waits, errors for people, and no secrets in what is shown."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from hubtool.errors import HubError, UsageError, redact
from hubtool.hub.answers import AnswerError, check_answer, readable
from hubtool.hub.private import DEFAULT_ENDPOINT, client_factory, default_client_factory

CONNECT_SECONDS = 30.0
READ_SECONDS = 300.0
"""The stock client waits for ever on a silent server. The Hub itself gives up on a commit after a minute."""

DOWNLOAD_SECONDS = 60.0
"""Longest silence in a download: its address is known to answer, so a retry is better than a long wait."""

_ADDRESS = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?")


@dataclass(frozen=True, slots=True)
class TimeOuts:
    """Longest silence that a request bears with, in seconds; called by the stock client to make its HTTP client."""

    connect: float = CONNECT_SECONDS
    read: float = READ_SECONDS

    def __call__(self) -> httpx2.Client:
        """The stock client's own HTTP client, which otherwise waits for ever."""
        _never_proxy_loopback()
        try:
            client = default_client_factory()
        except ImportError as error:
            raise HubError(
                "a SOCKS proxy, whose library is not installed",
                where="the environment: ALL_PROXY, HTTPS_PROXY or HTTP_PROXY",
                found=str(error).partition(".")[0],
                remedy="pip install socksio, or unset the variable",
            ) from error
        client.timeout = httpx2.Timeout(self.read, connect=self.connect)
        client.event_hooks["request"] = [*client.event_hooks["request"], self._limit]
        client.event_hooks["response"] = [*client.event_hooks["response"], check_answer]
        return client

    def _limit(self, request: httpx2.Request) -> None:
        """Give a time-out to a request of which the stock client says that it has none, as it does for `model_info`."""
        if request.extensions.get("timeout", {}).get("read") is None:
            request.extensions["timeout"] = httpx2.Timeout(self.read, connect=self.connect).as_dict()


TIME_OUTS = TimeOuts()


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _never_proxy_loopback() -> None:
    """Let no client, and none of what it starts, ask a proxy for what is on this machine."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [each.strip() for each in os.environ.get(name, "").split(",") if each.strip()]
        os.environ[name] = ",".join([*known, *(host for host in _LOOPBACK if host not in known)])


def make_api(
    endpoint: str | None = None, token: str | None = None, *, xet: bool = True, time_outs: TimeOuts = TIME_OUTS
) -> HfApi:
    """The stock API with time-outs, and without its progress bars.

    Args:
        endpoint: The Hub's address: see `find_endpoint`.
        token: A token; HF_TOKEN or the stock login by default.
        xet: Whether large files may go by xet; False sends them by LFS in this whole process.
        time_outs: Of every request of this whole process.

    Raises:
        UsageError: HF_ENDPOINT is no address.
    """
    # Setting the factory closes the session that other threads may be reading from.
    if client_factory() != time_outs:
        huggingface_hub.set_client_factory(time_outs)
    disable_progress_bars()  # hubtool tells of progress itself, and in JSON mode stderr holds JSON lines
    if not xet:
        constants.HF_HUB_DISABLE_XET = True
    token = (token or os.environ.get("HF_TOKEN", "")).strip() or None
    return HfApi(endpoint=find_endpoint(endpoint), token=token, library_name="hubtool")


def find_endpoint(endpoint: str | None = None) -> str:
    """The Hub's address without a slash at its end: the one given, that of HF_ENDPOINT, or the public Hub's.

    Raises:
        UsageError: It is no address.
    """
    # The stock client looks at HF_ENDPOINT only once, when it is imported.
    chosen = endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT or DEFAULT_ENDPOINT
    address = chosen.strip().rstrip("/")
    if not _ADDRESS.fullmatch(address):
        raise UsageError(
            "not the address of a Hub",
            where="HF_ENDPOINT",
            found=address,
            expected="http:// or https://, a host, and a port if need be",
            remedy="set it so, or unset it for the public Hub",
        )
    return address


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repo with the hashes that the Hub has for it; `sha256` is None for files that are not LFS or xet."""

    name: str
    nbytes: int
    git_sha1: str
    sha256: str | None

    @property
    def etag(self) -> str:
        """The hash by which the Hub knows the content: SHA-256 for LFS and xet, else git's object id."""
        return self.sha256 or self.git_sha1

    def hasher(self) -> "hashlib._Hash":
        """A fresh hash whose digest is `etag` once it has the content."""
        return hashlib.sha256() if self.sha256 is not None else git_hasher(self.nbytes)


def require_head(info: ModelInfo) -> str:
    """The commit that a revision is at.

    Raises:
        HubError: The Hub names none, as where a repo has no commit yet.
    """
    if info.sha is None:
        raise HubError("the Hub names no commit", where=info.id, remedy="check the repo, then run it again")
    return info.sha


def list_files(api: HfApi, repo: str, commit: str, *, recursive: bool = True) -> Mapping[str, HubFile]:
    """Every file of a repo at a commit, by name; those of its top folder only if not `recursive`."""
    return {
        entry.path: HubFile(entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in api.list_repo_tree(repo, recursive=recursive, revision=commit)
        if isinstance(entry, RepoFile)
    }


def git_sha1(content: bytes) -> str:
    """The object id that git gives a blob with this content, in hexadecimal."""
    digest = git_hasher(len(content))
    digest.update(content)
    return digest.hexdigest()


def git_hasher(nbytes: int) -> "hashlib._Hash":
    """A fresh hash whose digest is git's object id of a blob once it has the blob's `nbytes` bytes."""
    return hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what the stock client raises into a HubError with a remedy.

    Args:
        where: The repo, or the file in it, that is concerned.
    """
    try:
        with readable(where):
            yield
    except LocalTokenNotFoundError as error:
        raise HubError("no token", where=where, remedy="run `hf auth login`, or set HF_TOKEN") from error
    except HFValidationError as error:
        raise HubError("not a name of a repo", where=where, expected="org/name", remedy="check the name") from error
    except GatedRepoError as error:
        raise HubError(
            "the repo is gated", where=where, found=said(error), remedy="accept its terms on its page, and log in"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            "no such repo, or the token may not see it", where=where, remedy="check the name, and log in"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError("no such revision", where=where, found=said(error), remedy="check the revision") from error
    except EntryNotFoundError as error:
        raise HubError("no such file in the repo", where=where, remedy="check the repo") from error
    except HfHubHTTPError as error:
        raise HubError("the Hub refused", where=where, found=said(error), remedy=_remedy(error)) from error
    except OfflineModeIsEnabled as error:
        raise HubError("offline mode is on", where=where, remedy="unset HF_HUB_OFFLINE") from error
    except (httpx2.RequestError, ConnectionError, AnswerError) as error:
        raise _unreached(error, where) from error


def _unreached(error: Exception, where: str) -> HubError:
    """The error for a request that had no answer, or none of a Hub."""
    if isinstance(error, AnswerError):
        return error.explain()
    found = redact(str(error)) or type(error).__name__
    if isinstance(error, httpx2.LocalProtocolError):
        return HubError(
            "the request cannot be sent", where=where, found=found, remedy="check HF_TOKEN, or log in again"
        )
    return HubError(
        "the Hub cannot be reached", where=where, found=found, remedy="check the network, then run it again"
    )


def said(error: HfHubHTTPError) -> str:
    """What the Hub said, without secrets."""
    return redact(error.server_message or str(error)).strip()


_REMEDIES: Mapping[int, str] = {
    401: "the token is wrong or has expired: log in with `hf auth login`, or set HF_TOKEN, then run it again",
    402: "see the billing page of the account, then run it again",
    403: "take a token that has this right in this repo, then run it again",
    412: "someone else has committed meanwhile; look at the repo, then run it again",
    429: "wait, then run it again",
}


QUOTA_REMEDY = (
    "free some private storage, take a larger plan, or publish it as public (--public), then run it again: what was "
    "sent stays sent"
)


def _remedy(error: HfHubHTTPError) -> str:
    if error.response.status_code in (402, 403) and re.search("storage|quota", said(error), re.IGNORECASE):
        return QUOTA_REMEDY
    return _REMEDIES.get(error.response.status_code, "run it again; what is done stays done")
