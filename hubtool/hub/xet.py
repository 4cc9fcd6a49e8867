"""Sends content by xet: files that lie on the disk, and streams that lie nowhere.

hf_xet is driven directly, because huggingface_hub 2.4 neither streams nor tells of progress without its own bars. It
computes the SHA-256 of what it sends; one that is handed to it is not checked, so none ever is.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hubtool.errors import HubError, redact
from hubtool.hub.patience import NOT_FOUND, DeniedError, PatientHub, TransferError, refused_status
from hubtool.hub.private import (
    abort_xet_session,
    auth_headers,
    get_xet_session,
    hf_xet,
    is_xet_available,
    xet_headers_without_auth,
)
from hubtool.hub.state import Blob

__all__ = ["Access", "is_xet_available", "send_file", "send_stream"]

_DENIED = re.compile(r"HTTP status client error \(40[123] ")
"""How hf_xet 1.8 words an answer with status 401, 402 or 403; it hands on nothing else of it."""

Reach = Callable[[int], None]
"""Takes how many bytes from the beginning the Hub has taken by now; called from any thread."""


class Access:
    """Access to the store of one repo's large contents.

    Args:
        hub: The Hub.
        repo: `org/name`.
        revision: The branch or pull request that they will be committed to.
    """

    def __init__(self, hub: PatientHub, repo: str, revision: str) -> None:
        self.hub = hub
        self._repo = repo
        self.address = f"/api/models/{repo}/xet-write-token/{quote(revision, safe='')}"
        self._token: Any = None

    def is_offered(self) -> bool:
        """Whether the Hub gives tokens for xet at all: older ones, and those of others, do not know the address.

        Raises:
            HubError: The Hub refused for another reason, or could not be reached.
        """
        try:
            self._token = self._ask()
        except HubError as error:
            if refused_status(error) != NOT_FOUND:
                raise
            return False
        return True

    def take_token(self) -> Any:
        """A token that was not used yet: the one that `is_offered` was given, or another.

        Raises:
            HubError: The Hub refused, or could not be reached.
        """
        token, self._token = self._token, None
        return self._ask() if token is None else token

    def _ask(self) -> Any:
        # Asked here, where it is known what may be repeated: hf_xet repeats for minutes without a word.
        return self.hub.ask("GET", self.address, self._repo)


def send_file(access: Access, path: Path, reach: Reach) -> Blob:
    """What was sent of a file; the Hub has it when this returns.

    Raises:
        TransferError: It did not get through.
        HubError: The Hub gives no token for it.
    """

    def send() -> Blob:
        with _upload(access, reach) as upload:
            handle = upload.start_upload_file(str(path), sha256=hf_xet().COMPUTE_SHA256)
        return _blob(handle.result())

    return _beside(send)


def send_stream(access: Access, chunks: Iterable[bytes]) -> Blob:
    """What was sent of a stream; the Hub has it when this returns. Memory is what hf_xet buffers, and one chunk.

    Raises:
        TransferError: It did not get through.
        HubError: The Hub gives no token for it.
    """

    def send() -> Blob:
        with _upload(access, lambda done: None) as upload:
            stream = upload.start_upload_stream(sha256=hf_xet().COMPUTE_SHA256)
            for chunk in chunks:
                with _broken_off():
                    stream.write(chunk)
            with _broken_off():
                info = stream.finish()
        return _blob(info)

    return _beside(send)


def _beside(send: Callable[[], Blob]) -> Blob:
    """The result of `send`, run in a second thread, which an interrupt then finds waiting here.

    It would be lost in hf_xet's call of the progress callback: Rust has nobody to hand a KeyboardInterrupt to.
    """
    sent: Future[Blob] = Future()

    def run() -> None:
        try:
            sent.set_result(send())
        except BaseException as error:  # noqa: BLE001  handed on to who waits
            sent.set_exception(error)

    threading.Thread(target=run, name="hubtool-xet", daemon=True).start()
    try:
        return sent.result()
    except KeyboardInterrupt:
        abort_xet_session()
        raise


@contextmanager
def _upload(access: Access, reach: Reach) -> Iterator[Any]:
    """An upload of hf_xet, which registers what was sent when the `with` ends without an error."""
    api = access.hub.api
    token = access.take_token()
    sent = dict(auth_headers(api))
    with _broken_off():
        upload = get_xet_session().new_upload_commit(
            endpoint=token["casUrl"],
            token=token["accessToken"],
            token_expiry_unix_secs=token["exp"],
            token_refresh_url=f"{api.endpoint}{access.address}",
            token_refresh_headers=sent,
            custom_headers=xet_headers_without_auth(sent),
            progress_callback=lambda report, items: reach(report.total_bytes_completed),
        )
    try:
        yield upload
    except BaseException:
        upload.abort()
        raise
    with _broken_off():
        upload.wait_to_finish()


@contextmanager
def _broken_off() -> Iterator[None]:
    """Turn what hf_xet raises into a TransferError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError) as error:  # what its Rust errors become
        reason = f"xet: {redact(str(error))}"
        if _DENIED.search(reason):
            raise DeniedError(reason) from error
        raise TransferError(reason, repeatable=True) from error


def _blob(info: Any) -> Blob:
    return Blob(info.xet_info.sha256, info.xet_info.file_size)
