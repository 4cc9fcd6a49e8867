"""What every endpoint needs of HTTP: paths with escaped slashes, bounded bodies, the Hub's errors and its paging."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, unquote, urlencode

import msgspec
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubtool.errors import HubError
from hubtool.files.formats import decode_json

JSON_LIMIT = 8_000_000
"""Bytes of the longest JSON body taken; the client's own requests stay below 1 MB (256 files a call)."""

HEARD_NBYTES = 64 << 20
"""Bytes of a refused body that are read at most."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Nbytes = Annotated[int, msgspec.Meta(ge=0)]

Body = TypeVar("Body")
Item = TypeVar("Item")


class Refusal(Exception):
    """An answer other than success, in the Hub's form.

    Args:
        status: HTTP status.
        message: For the person; in the body and in X-Error-Message.
        code: X-Error-Code, by which the client picks its exception.
        extra: Further keys of the body.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        extra: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **(extra or {})}
        one_line = " ".join(message.split()).encode("latin-1", "replace").decode("latin-1")
        self.headers = {"X-Error-Message": one_line, **(headers or {})}
        if code is not None:
            self.headers["X-Error-Code"] = code


async def refused(request: Request, error: Exception) -> JSONResponse:
    """The response for a Refusal."""
    assert isinstance(error, Refusal)
    return JSONResponse(error.body, error.status, error.headers)


async def left(request: Request, error: Exception) -> Response:
    """The response to a client that has gone; nobody gets it."""
    return Response(status_code=400)


class EscapedPaths:
    """Routes on the path as it was sent, so that `refs%2Fpr%2F1` stays one segment of it.

    Starlette routes on the decoded path. Here that path is rebuilt with `/` and `%` inside a segment kept escaped; the
    convertors `segment` and `rest` decode them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with the rebuilt path."""
        if scope["type"] == "http":
            segments = scope["raw_path"].decode("ascii", "replace").split("/")
            decoded = (unquote(segment).replace("%", "%25").replace("/", "%2F") for segment in segments)
            scope = {**scope, "path": "/".join(decoded)}
        await self.app(scope, receive, send)


class HeardOut:
    """Reads what is left of a request's body before it is refused.

    A connection that is closed with data unread is reset, and with it the refusal may be lost on its way: the client
    would see a network error, which it repeats, in place of an answer, which it shows.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        complete = scope["type"] != "http"

        async def receiving() -> Message:
            nonlocal complete
            message = await receive()
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                heard = 0
                while not complete and heard < HEARD_NBYTES:
                    heard += len((await receiving()).get("body", b""))
            await send(message)

        await self.app(scope, receiving, sending)


class Segment(Convertor[str]):
    """One segment of a path."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """The segment with its escapes undone."""
        return unquote(value)

    def to_string(self, value: str) -> str:
        """The segment escaped."""
        return quote(value, safe="")


class Rest(Segment):
    """The rest of a path."""

    regex = ".*"


class Slug(Segment):
    """The slug of a collection, which has a slash in it."""

    regex = "[^/]+/[^/]+"


register_url_convertor("segment", Segment())
register_url_convertor("rest", Rest())
register_url_convertor("slug", Slug())


async def read_body(request: Request, limit: int = JSON_LIMIT) -> bytes:
    """The request's body.

    Raises:
        Refusal: 413, it is longer than `limit` bytes.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise Refusal(413, f"request entity too large: more than {limit} bytes")
    return bytes(body)


async def read_json(request: Request, kind: type[Body]) -> Body:
    """The request's JSON body, checked against its type.

    Raises:
        Refusal: 400 with the place of the first wrong value, or 413.
    """
    body = await read_body(request)
    try:
        return decode_json(body, kind, "the request", error=HubError)
    except HubError as error:
        raise Refusal(400, str(error.found)) from error


def page_of(request: Request, items: Sequence[Item], size: int) -> tuple[Sequence[Item], dict[str, str]]:
    """One page of a list, and the Link header that names the next.

    Args:
        request: Its `cursor` says where the page starts, its `limit` may ask for a shorter one.
        items: The whole list.
        size: The longest page.
    """
    start, size = _number(request, "cursor", 0), min(size, _number(request, "limit", size) or size)
    page = items[start : start + size]
    if start + size >= len(items):
        return page, {}
    query: list[tuple[str, Any]] = [item for item in request.query_params.multi_items() if item[0] != "cursor"]
    path = request.scope["raw_path"].decode("ascii", "replace")
    url = f"{base_url(request)}{path}?{urlencode([*query, ('cursor', start + size)])}"
    return page, {"Link": f'<{url}>; rel="next"'}


def base_url(request: Request) -> str:
    """The endpoint by which the client reached us, without a slash at the end."""
    return str(request.base_url).rstrip("/")


def truthy(value: str | None) -> bool:
    """Whether a query or form value says yes, in any spelling the client's HTTP library gives to True."""
    return value is not None and value.lower() in ("1", "true", "yes")


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
