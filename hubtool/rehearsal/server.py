"""The rehearsal Hub as a server on loopback: in a thread of this process, or until it is interrupted."""

import fcntl
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from hubtool.errors import HubError
from hubtool.rehearsal import (
    api_accounts,
    api_collections,
    api_commit,
    api_discussions,
    api_faults,
    api_files,
    api_lfs,
    api_repos,
    api_xet,
    browse,
)
from hubtool.rehearsal.accounts import Accounts
from hubtool.rehearsal.api_faults import AbortableProtocol, FaultyApp
from hubtool.rehearsal.faults import Faults
from hubtool.rehearsal.hub import Hub
from hubtool.rehearsal.wire import EscapedPaths, HeardOut, Refusal, left, refused

LOOPBACK = "127.0.0.1"
PART_NBYTES = 1 << 30
"""Objects larger than this are uploaded in parts, so that a rehearsal at full size covers that way too."""

CLIENT_API = (api_repos, api_commit, api_lfs, api_xet, api_discussions, api_collections, api_files)
OWN_API = (api_accounts, api_faults, browse)


class RehearsalHub:
    """A Hub on loopback for the length of a `with` block.

    Args:
        data: Folder of its state; made if absent. A second Hub on the same folder is refused.
        port: 0 for any free one.
        discard: Keep hashes, sizes and safetensors headers, but not the other bytes of LFS objects.
        part_nbytes: LFS objects larger than this are uploaded in parts of this size.

    Attributes:
        endpoint: What HF_ENDPOINT has to be.

    Raises:
        HubError: On entering, the port or the folder is in use.
    """

    endpoint: str

    def __init__(self, data: Path, port: int = 0, *, discard: bool = False, part_nbytes: int = PART_NBYTES) -> None:
        self.data = Path(data)
        self._port = port
        self._discard = discard
        self._part_nbytes = part_nbytes

    def __enter__(self) -> "RehearsalHub":
        with ExitStack() as opened:
            opened.enter_context(_lock(self.data))
            listener = opened.enter_context(_listen(self._port))
            self.hub = _open(self.data, part_nbytes=self._part_nbytes, discard=self._discard)
            self._opened = opened.pop_all()
        self.endpoint = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            build_app(self.hub),
            http=AbortableProtocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="rehearsal-hub", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._opened.close()

    @property
    def accounts(self) -> Accounts:
        """Users, organizations and tokens."""
        return self.hub.accounts

    @property
    def faults(self) -> Faults:
        """The failures in wait."""
        return self.hub.faults

    @property
    def token(self) -> str:
        """A token that may write in every namespace; what HF_TOKEN has to be."""
        return self.hub.accounts.owner_token

    def wait(self) -> None:
        """Returns when the server has ended, which it does by itself only if it fails."""
        while self._thread.is_alive():
            # A bounded wait lets the main thread see signals on every platform.
            self._thread.join(timeout=0.5)


def serve(data: Path, port: int, *, discard: bool = False, ready: Callable[[RehearsalHub], None] | None = None) -> None:
    """Serves until interrupted.

    Args:
        data: Folder of its state; made if absent.
        port: 0 for any free one.
        discard: Keep hashes, sizes and safetensors headers, but not the other bytes of LFS objects.
        ready: Called once requests are answered, to say where.

    Raises:
        KeyboardInterrupt: Whatever ends the wait is passed on after the server has stopped.
        HubError: The port or the folder is in use.
    """
    with RehearsalHub(data, port, discard=discard) as hub:
        if ready is not None:
            ready(hub)
        hub.wait()


def build_app(hub: Hub) -> ASGIApp:
    """The ASGI application over this state."""
    routes = [route for module in (*CLIENT_API, *OWN_API) for route in module.ROUTES]
    # Requests for another host name come from a page that had its name pointed here, not from a client of ours.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])
    app = Starlette(routes=routes, middleware=[hosts], exception_handlers={Refusal: refused, ClientDisconnect: left})
    app.state.hub = hub
    return HeardOut(EscapedPaths(FaultyApp(app, hub.faults)))


def _open(data: Path, *, part_nbytes: int, discard: bool) -> Hub:
    try:
        return Hub(data, part_nbytes=part_nbytes, discard=discard)
    except HubError as error:
        what = "the rehearsal Hub's state cannot be read"
        raise HubError(what, where=data, found=error.found, remedy=error.remedy) from error


def _listen(port: int) -> socket.socket:
    # asyncio switches Nagle's delay off only where the protocol is named; with it every request takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        remedy = "choose another port, or 0 for any free one"
        raise HubError(f"cannot listen: {error.strerror}", where=f"{LOOPBACK}:{port}", remedy=remedy) from error
    # Listening from here on, so that a client may connect before the thread has started.
    listener.listen(128)
    return listener


def _lock(data: Path) -> IO[str]:
    """A file that keeps other rehearsal Hubs off the folder while it is open."""
    data.mkdir(parents=True, exist_ok=True)
    lock = (data / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        remedy = "stop the other one, or choose another folder"
        raise HubError("another rehearsal Hub uses this folder", where=data, remedy=remedy) from error
    return lock
