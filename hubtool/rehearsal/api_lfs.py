"""The LFS path: batch, PUT whole or in parts, verify (git-lfs, docs/api/batch.md, and the Hub's multipart transfer).

Upload addresses carry a signature instead of needing a token, as the storage behind the Hub has them.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubtool.rehearsal.api_xet import take_over
from hubtool.rehearsal.blobs import Receiver, WrongBytes
from hubtool.rehearsal.hub import contributable_repo, hub_of, readable_repo
from hubtool.rehearsal.repos import Repo
from hubtool.rehearsal.wire import Nbytes, Refusal, Sha256, base_url, read_json

ADDRESS_SECONDS = 3600
"""How long an upload address is good for."""

CHUNK_NBYTES = 1 << 20
"""Received bytes are hashed and written in pieces of about this size, off the event loop."""


class Object(msgspec.Struct):
    """An LFS object as the client announces it."""

    oid: Sha256
    size: Nbytes


class Batch(msgspec.Struct):
    """Body of the batch endpoint."""

    operation: str
    objects: list[Object]
    transfers: tuple[str, ...] = ("basic",)


class Part(msgspec.Struct):
    """One uploaded part."""

    partNumber: int  # noqa: N815
    etag: Annotated[str, msgspec.Meta(pattern='^"?[0-9a-f]{32}"?$')]


class Completion(msgspec.Struct):
    """Body that ends a multipart upload."""

    oid: Sha256
    parts: list[Part]


async def batch(request: Request) -> Response:
    """Per object: nothing to do where this repo has it, else where to send it."""
    repo, _ = contributable_repo(request)
    body = await read_json(request, Batch)
    if body.operation != "upload":
        raise Refusal(400, f"the operation {body.operation!r} is not served: files are read from their resolve address")
    hub = hub_of(request)
    await take_over(hub, repo)
    wanted = [item for item in body.objects if item.oid not in repo.objects]
    hub.check_quota(repo, sum(item.size for item in wanted))
    multipart = "multipart" in body.transfers and not hub.blobs.discard
    objects: list[dict[str, object]] = []
    for item in body.objects:
        known: dict[str, object] = {"oid": item.oid, "size": item.size}
        if item.oid not in repo.objects:
            in_parts = multipart and item.size > hub.part_nbytes
            known["actions"] = _actions(request, repo, item, hub.part_nbytes if in_parts else None)
        objects.append(known)
    return JSONResponse({"transfer": "multipart" if multipart else "basic", "objects": objects})


async def put(request: Request) -> Response:
    """Nothing; the object is stored under its hash."""
    repo, signed = _signed(request)
    with hub_of(request).blobs.receive(int(signed["size"])) as receiver:
        await _stream(request, receiver)
        _keep(receiver, signed["oid"])
    repo.add_object(signed["oid"], int(signed["size"]))
    return Response(headers={"ETag": f'"{signed["oid"]}"'})


async def put_part(request: Request) -> Response:
    """The ETag of the stored part: its MD5, as S3 has it."""
    _, signed = _signed(request)
    hub = hub_of(request)
    length = min(hub.part_nbytes, int(signed["size"]) - (int(signed["part"]) - 1) * hub.part_nbytes)
    parts = hub.blobs.parts(signed["upload"])
    # A part that is sent again may meet the one whose connection broke: each is written beside.
    beside = parts / secrets.token_hex(8)
    try:
        digest = await _write_part(request, beside, length)
        beside.replace(_part(parts, int(signed["part"]), digest))
    finally:
        beside.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{digest}"'})


async def complete(request: Request) -> Response:
    """Nothing; the parts are joined and the object is stored under its hash."""
    repo, signed = _signed(request)
    body = await read_json(request, Completion)
    hub = hub_of(request)
    if repo.objects.get(signed["oid"]) == int(signed["size"]):
        # The client asks again when the answer was lost.
        return JSONResponse({})
    count = -(-int(signed["size"]) // hub.part_nbytes)
    if body.oid != signed["oid"] or [part.partNumber for part in body.parts] != list(range(1, count + 1)):
        raise Refusal(400, f"the parts 1 to {count} of {signed['oid']} were expected")
    folder = hub.blobs.parts(signed["upload"])
    paths = [_part(folder, part.partNumber, part.etag.strip('"')) for part in body.parts]
    for part, path in zip(body.parts, paths, strict=True):
        if not path.is_file():
            raise Refusal(400, f"part {part.partNumber} was not uploaded with the ETag {part.etag}")
    with hub.blobs.receive(int(signed["size"])) as receiver:
        await run_in_threadpool(_join, receiver, paths)
        _keep(receiver, signed["oid"])
    hub.blobs.drop_parts(signed["upload"])
    repo.add_object(signed["oid"], int(signed["size"]))
    return JSONResponse({})


async def verify(request: Request) -> Response:
    """Success if this repo has the object in this size."""
    repo = readable_repo(request)
    body = await read_json(request, Object)
    if repo.objects.get(body.oid) != body.size:
        raise Refusal(404, f"no object {body.oid} of {body.size} bytes was uploaded")
    return JSONResponse({})


async def _stream(request: Request, receiver: Receiver) -> None:
    """Feeds the request's body to a receiver."""
    waiting: list[bytes] = []
    nbytes = 0
    try:
        async for chunk in request.stream():
            waiting.append(chunk)
            nbytes += len(chunk)
            if nbytes >= CHUNK_NBYTES:
                await run_in_threadpool(receiver.write, b"".join(waiting))
                waiting, nbytes = [], 0
        receiver.write(b"".join(waiting))
    except WrongBytes as error:
        raise Refusal(400, str(error)) from error


async def _write_part(request: Request, path: Path, length: int) -> str:
    """The MD5 of the request's body, which is now in a file."""
    digest, received = hashlib.md5(usedforsecurity=False), 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            received += len(chunk)
            if received > length:
                break
            digest.update(chunk)
            await run_in_threadpool(file.write, chunk)
    if received != length:
        raise Refusal(400, f"{received} bytes were sent, the part has {length}")
    return digest.hexdigest()


def _part(folder: Path, number: int, digest: str) -> Path:
    return folder / f"{number:05d}-{digest}"


def _join(receiver: Receiver, paths: Iterable[Path]) -> None:
    try:
        receiver.read_all(paths)
    except WrongBytes as error:
        raise Refusal(400, str(error)) from error


def _keep(receiver: Receiver, sha256: str) -> None:
    try:
        receiver.keep(sha256)
    except WrongBytes as error:
        raise Refusal(400, f"{error}: nothing was stored") from error


def _actions(request: Request, repo: Repo, item: Object, part_nbytes: int | None) -> dict[str, object]:
    """Where to send an object, whole or in parts."""
    verify_url = f"{base_url(request)}/{repo.name}.git/info/lfs/objects/verify"
    fields = {"oid": item.oid, "size": str(item.size)}
    if part_nbytes is None:
        upload: dict[str, object] = {"href": _sign(request, repo, "object", fields)}
        return {"upload": upload, "verify": {"href": verify_url}}
    fields["upload"] = secrets.token_hex(16)
    numbers = range(1, -(-item.size // part_nbytes) + 1)
    header = {str(number): _sign(request, repo, "part", {**fields, "part": str(number)}) for number in numbers}
    upload = {"href": _sign(request, repo, "complete", fields), "header": {"chunk_size": str(part_nbytes), **header}}
    return {"upload": upload, "verify": {"href": verify_url}}


def _sign(request: Request, repo: Repo, what: str, fields: dict[str, str]) -> str:
    """An address that may be used without a token, until it expires."""
    fields = {**fields, "expires": str(int(time.time()) + ADDRESS_SECONDS)}
    path = f"/storage/{what}/{repo.name}"
    query = urlencode({**fields, "signature": _signature(request, path, fields)})
    return f"{base_url(request)}{path}?{query}"


def _signed(request: Request) -> tuple[Repo, dict[str, str]]:
    """The repo and the fields of a signed address.

    Raises:
        Refusal: 403, it has expired or was changed; 404, the repo is gone.
    """
    fields = dict(request.query_params)
    signature = fields.pop("signature", "")
    good = hmac.compare_digest(signature.encode(), _signature(request, request.url.path, fields).encode())
    if not good or int(fields["expires"]) < time.time():
        raise Refusal(403, "Request has expired" if good else "The signature does not match the request")
    repo = hub_of(request).repos.get(f"{request.path_params['namespace']}/{request.path_params['name']}")
    if repo is None:
        raise Refusal(404, "Repository not found", code="RepoNotFound")
    return repo, fields


def _signature(request: Request, path: str, fields: dict[str, str]) -> str:
    text = f"{path}?{urlencode(sorted(fields.items()))}"
    return hmac.new(hub_of(request).accounts.secret, text.encode(), hashlib.sha256).hexdigest()


GIT = "/{namespace:segment}/{name:segment}.git/info/lfs/objects"
STORAGE = "/{namespace:segment}/{name:segment}"
ROUTES = [
    Route(f"{GIT}/batch", batch, methods=["POST"]),
    Route(f"{GIT}/verify", verify, methods=["POST"]),
    Route(f"/storage/object{STORAGE}", put, methods=["PUT"]),
    Route(f"/storage/part{STORAGE}", put_part, methods=["PUT"]),
    Route(f"/storage/complete{STORAGE}", complete, methods=["POST"]),
]
