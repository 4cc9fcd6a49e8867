"""The xet path: where the client's hf_xet is to store, and the taking over of what it stored there."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubtool.rehearsal.api_repos import REPO
from hubtool.rehearsal.blobs import WrongBytes
from hubtool.rehearsal.hub import Hub, contributable_repo, hub_of
from hubtool.rehearsal.repos import Repo
from hubtool.rehearsal.xet import XetFile, XetStore

log = logging.getLogger(__name__)

TOKEN_SECONDS = 3600
DISCARDED = " (this Hub discards what it has checked, so content that hf_xet found in an earlier file is gone)"


async def write_token(request: Request) -> Response:
    """The address of the repo's content store, in the form of a token for it.

    The client asks before every upload, so what the one before it left is taken over here.
    """
    repo, _ = contributable_repo(request)
    hub = hub_of(request)
    if _store(hub, repo).renew_index():
        log.warning("%s: xet's index, which a killed client left half made, is made again", repo.name)
    await take_over(hub, repo)
    url, expires, token = _store(hub, repo).url, int(time.time()) + TOKEN_SECONDS, secrets.token_hex(16)
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return JSONResponse({"casUrl": url, "accessToken": token, "exp": expires}, headers=headers)


async def take_over(hub: Hub, repo: Repo) -> None:
    """Stores, under its hash, every file that hf_xet registered for a repo since the last time.

    A file whose bytes are not those of its sha256 is left out: a commit that names it is refused.

    Raises:
        Refusal: 403 beyond the quota; 500 if the store does not look as expected.
    """
    async with hub.locks.setdefault(repo.name, asyncio.Lock()):
        store = _store(hub, repo)
        new = {file.sha256: file for file in store.files() if file.sha256 not in repo.objects}
        hub.check_quota(repo, sum(file.nbytes for file in new.values()))
        for file in new.values():
            try:
                await run_in_threadpool(_rebuild, hub, store, file)
            except WrongBytes as error:
                log.warning("%s: an upload through xet was not taken over: %s", repo.name, error)
                hub.rejected[file.sha256] = f"{error}{DISCARDED if hub.blobs.discard else ''}"
                continue
            repo.add_object(file.sha256, file.nbytes)
            if hub.blobs.discard:
                store.drop(file)


def _store(hub: Hub, repo: Repo) -> XetStore:
    return XetStore(hub.folder / "xet", repo.name)


def _rebuild(hub: Hub, store: XetStore, file: XetFile) -> None:
    with hub.blobs.receive(file.nbytes) as receiver:
        for chunk in _chunks(store, file):
            receiver.write(chunk)
        receiver.keep(file.sha256)


def _chunks(store: XetStore, file: XetFile) -> Iterator[bytes]:
    try:
        yield from store.read(file)
    except OSError as error:
        raise WrongBytes(f"hf_xet cannot read {file.xet_hash} back: {error}") from error


ROUTES = [Route(f"{REPO}/xet-write-token/{{revision:segment}}", write_token)]
