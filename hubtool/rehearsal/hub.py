"""The rehearsal Hub's state, and who a request may touch."""

import asyncio
import shutil
from pathlib import Path

from starlette.requests import Request

from hubtool.rehearsal.accounts import OWNER, Accounts, Token
from hubtool.rehearsal.blobs import Blobs
from hubtool.rehearsal.collections import Collections
from hubtool.rehearsal.faults import Faults
from hubtool.rehearsal.repos import INITIAL_ATTRIBUTES, File, Repo, Repos
from hubtool.rehearsal.wire import Refusal


class Hub:
    """Everything kept under one folder.

    Attributes:
        locks: By repo, held while uploads through xet are taken over.
        faults: The failures in wait.
        rejected: By sha256, why an upload through xet was not taken over.

    Args:
        folder: Made if absent.
        part_nbytes: LFS objects larger than this are uploaded in parts of this size.
        discard: Keep hashes, sizes and safetensors headers, but not the other bytes of LFS objects.
    """

    def __init__(self, folder: Path, *, part_nbytes: int, discard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.part_nbytes = part_nbytes
        self.blobs = Blobs(folder / "blobs", discard=discard)
        self.accounts = Accounts(folder)
        self.repos = Repos(folder / "repos")
        self.locks: dict[str, asyncio.Lock] = {}
        self.rejected: dict[str, str] = {}
        self.faults = Faults()
        self.collections = Collections(folder / "collections.json")

    def initial_attributes(self) -> File:
        """The `.gitattributes` of a new repo."""
        return self.put_regular(INITIAL_ATTRIBUTES.encode())

    def put_regular(self, content: bytes) -> File:
        """The file entry of this content, kept as a regular file."""
        return File(self.blobs.put_regular(content), len(content))

    def read_regular(self, repo_file: File | None, limit: int = 1 << 20) -> bytes | None:
        """The content of a small file, or None if it is absent, larger than `limit` bytes, or was discarded."""
        if repo_file is None or repo_file.nbytes > limit:
            return None
        if repo_file.sha256 is None:
            return self.blobs.regular(repo_file.oid).read_bytes()
        blob = self.blobs.get(repo_file.sha256)
        return blob.path.read_bytes() if blob and blob.held == blob.nbytes else None

    def delete_repo(self, repo: Repo) -> None:
        """Forgets a repo, and what was uploaded to it through xet."""
        self.repos.delete(repo)
        shutil.rmtree(self.folder / "xet" / repo.name, ignore_errors=True)

    def check_quota(self, repo: Repo, more_nbytes: int) -> None:
        """Refuses bytes that would pass the private quota of the repo's owner.

        Raises:
            Refusal: 403.
        """
        account = self.accounts.account(repo.namespace)
        if not repo.settings.private or account is None or account.private_quota is None:
            return
        private = (r for r in self.repos if r.settings.private and r.namespace == repo.namespace)
        if sum(r.used_nbytes for r in private) + more_nbytes > account.private_quota:
            raise Refusal(403, "Private repository storage limit reached, please upgrade your plan to increase it")


def hub_of(request: Request) -> Hub:
    """The state behind a request."""
    found = request.app.state.hub
    assert isinstance(found, Hub)
    return found


def token_of(request: Request) -> Token | None:
    """Whose request this is; None for nobody's.

    Raises:
        Refusal: 401, for a token that is not ours; and for a change by a browser, which sends what it was once given
            along with the requests of any page.
    """
    authorization = request.headers.get("authorization", "")
    if authorization.lower().startswith("basic ") and request.method not in ("GET", "HEAD"):
        raise Refusal(401, "Changes need the token as a bearer token")
    return hub_of(request).accounts.identify(authorization)


def required_token(request: Request) -> Token:
    """Whose request this is.

    Raises:
        Refusal: 401 without a token.
    """
    token = token_of(request)
    if token is None:
        raise Refusal(401, "Invalid username or password.")
    return token


def readable_repo(request: Request) -> Repo:
    """The repo in the request's path, if the sender may see it.

    Raises:
        Refusal: RepoNotFound, 404 with a token and 401 without, whether the repo is private or absent.
    """
    hub, token = hub_of(request), token_of(request)
    repo = hub.repos.get(f"{request.path_params['namespace']}/{request.path_params['name']}")
    if repo is None or not hub.accounts.may_read(token, repo):
        raise Refusal(401 if token is None else 404, "Repository not found", code="RepoNotFound")
    return repo


def writable_repo(request: Request) -> tuple[Repo, Token]:
    """The repo in the request's path and who writes to it, if they may.

    Raises:
        Refusal: 401 without a token, 403 without the right, RepoNotFound.
    """
    repo, token = readable_repo(request), required_token(request)
    require_right(request, token, repo.namespace)
    return repo, token


def contributable_repo(request: Request) -> tuple[Repo, Token]:
    """The repo in the request's path and who it is, if they may propose changes to it: whoever may read it and write.

    Raises:
        Refusal: 401 without a token, 403 with one that may only read, RepoNotFound.
    """
    repo, token = readable_repo(request), required_token(request)
    if token.role == "read":
        raise Refusal(403, "You cannot do this: your token has the role 'read'")
    return repo, token


def owners_hub(request: Request) -> Hub:
    """The state behind a request of the owner's.

    Raises:
        Refusal: 401 without a token, 403 with another's.
    """
    if required_token(request).user != OWNER:
        raise Refusal(403, "only the owner of this rehearsal Hub can do this")
    return hub_of(request)


def require_right(request: Request, token: Token, namespace: str) -> None:
    """Checks the right to write in a namespace.

    Raises:
        Refusal: 403.
    """
    if not hub_of(request).accounts.may_write(token, namespace):
        what = "your token has the role 'read'" if token.role == "read" else f"{token.user} may not write there"
        raise Refusal(403, f"You don't have the rights to write in the namespace {namespace!r}: {what}")
