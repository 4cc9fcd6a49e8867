"""Lets the faults strike, and the endpoint to add them by."""

import asyncio
import contextlib
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from hubtool.rehearsal.faults import Answer, Fault, Faults
from hubtool.rehearsal.hub import owners_hub
from hubtool.rehearsal.wire import read_json


class FaultyApp:
    """The application, with its faults."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self.app = app
        self.faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request, or strikes."""
        fault = self.faults.next_for(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if fault is None:
            await self.app(scope, receive, send)
        elif fault.effect == "cut":
            await self.app(scope, receive, _cutting(scope, send, fault.nbytes))
        elif fault.effect == "hang":
            await _hang(receive, fault.seconds)
            await _abort(scope, receive)
        else:
            if fault.effect.endswith("-after"):
                await self.app(scope, receive, _swallow)
            if fault.effect.startswith("answer"):
                await _response(fault.answer)(scope, receive, send)
            else:
                await _read(receive, fault.nbytes)
                await _abort(scope, receive)


class AbortableProtocol(H11Protocol):
    """uvicorn's protocol, with its connection in reach of the application so that it can be broken off."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Puts the connection into every request's state."""
        super().connection_made(transport)
        self.app_state: dict[str, Any] = {**self.app_state, "transport": transport}


def _response(answer: Answer) -> Response:
    if answer.body is not None:
        return Response(answer.body, answer.status, answer.headers)
    headers = {"X-Error-Message": answer.message, **answer.headers}
    return JSONResponse({"error": answer.message}, answer.status, headers)


async def _swallow(message: Message) -> None:
    """Takes what the application answers, and drops it."""


async def _read(receive: Receive, nbytes: int) -> None:
    """Takes so much of the request's body, if there is so much."""
    while nbytes > 0:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        nbytes -= len(message["body"])


async def _hang(receive: Receive, seconds: float) -> None:
    """Waits for the client to give up, at most so long."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_until_disconnected(receive), seconds)


def _cutting(scope: Scope, send: Send, nbytes: int) -> Send:
    """A `send` that breaks the connection off after so many bytes of body."""
    left = nbytes

    async def sending(message: Message) -> None:
        nonlocal left
        if message["type"] != "http.response.body":
            await send(message)
        elif left > 0:
            body = message.get("body", b"")
            await send({**message, "body": body[:left], "more_body": True})
            left -= len(body)
            if left <= 0:
                # What was written before still goes out.
                scope["state"]["transport"].close()

    return sending


async def _abort(scope: Scope, receive: Receive) -> None:
    """Breaks the connection off at once."""
    scope["state"]["transport"].abort()
    await _until_disconnected(receive)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def listing(request: Request) -> Response:
    """The faults that were added, and the calls of every stage."""
    faults = _owners_faults(request)
    return JSONResponse({"faults": [msgspec.to_builtins(fault) for fault in faults.waiting], "calls": faults.calls})


async def add(request: Request) -> Response:
    """The faults that now wait."""
    faults = _owners_faults(request)
    faults.add(*await read_json(request, list[Fault]))
    return await listing(request)


async def clear(request: Request) -> Response:
    """No faults."""
    _owners_faults(request).clear()
    return await listing(request)


def _owners_faults(request: Request) -> Faults:
    return owners_hub(request).faults


ROUTES = [
    Route("/rehearsal/faults", listing),
    Route("/rehearsal/faults", add, methods=["POST"]),
    Route("/rehearsal/faults", clear, methods=["DELETE"]),
]
