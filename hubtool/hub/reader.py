"""Small files of a repo, and its record."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
)

from hubtool.errors import HubError, VerificationError
from hubtool.files.read import MAX_FILE_NBYTES
from hubtool.hub.answers import read_bounded
from hubtool.hub.client import CONNECT_SECONDS, DOWNLOAD_SECONDS, HubFile, translated
from hubtool.hub.patience import PatientHub
from hubtool.hub.private import auth_headers, get_session, hf_raise_for_status, http_stream_backoff
from hubtool.record import RECORD_FILE, Record, decode_record, encode_record


def read_hub_file(hub: PatientHub, repo: str, commit: str, name: str) -> bytes | None:
    """The bytes of a small file of a repo, None if there is no such file.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """

    def read() -> bytes | None:
        url = f"{hub.api.endpoint}/{repo}/resolve/{commit}/{quote(name)}"
        with get_session().stream("GET", url, headers=auth_headers(hub.api)) as response:
            try:
                hf_raise_for_status(response)
            except EntryNotFoundError:
                return None
            return read_bounded(response, MAX_FILE_NBYTES)

    return hub.attempt(f"{repo}: {name}", read)


def read_hub_record(hub: PatientHub, repo: str, commit: str) -> Record:
    """The record of a repo.

    Raises:
        VerificationError: The repo has none.
        RecordError: It cannot be read.
        HubError: The Hub refused, or could not be reached.
    """
    return decode_hub_record(repo, read_hub_file(hub, repo, commit, RECORD_FILE))


def decode_hub_record(repo: str, content: bytes | None) -> Record:
    """The record of a repo from the bytes of its hubtool.json, None if it has no such file.

    Raises:
        VerificationError: The repo has none.
        RecordError: It cannot be read.
    """
    if content is None:
        raise VerificationError(
            "has no record", where=repo, expected=RECORD_FILE, remedy="hubtool verifies what hubtool published"
        )
    return decode_record(content)


def has_record(hub: PatientHub, repo: str, commit: str, record: Record) -> bool:
    """Whether a repo at a commit has exactly this record: then it is the same release, whatever else has changed.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    return read_hub_file(hub, repo, commit, RECORD_FILE) == encode_record(record)


class RepoReader:
    """Reads files of a repo at a commit, whole or in part; safe from several threads at once.

    Args:
        api: The Hub.
        repo: `org/name`.
        commit: The commit, in 40 hexadecimal digits.

    Attributes:
        stops: How often `stop` was called.
    """

    def __init__(self, api: HfApi, repo: str, commit: str) -> None:
        self.repo = repo
        self.commit = commit
        self._api = api
        self._changed = threading.Condition()
        self.stops = 0

    def read(self, name: str, start: int = 0, stop: int | None = None, *, stops: int | None = None) -> bytes:
        """The bytes of a file from `start` up to `stop`, or to its end.

        Args:
            name: The file.
            start: The first byte.
            stop: The byte after the last.
            stops: For a read that belongs to something longer, what `self.stops` was when that began: it ends with any
                stop since then.

        Raises:
            HubError: The Hub refused, could not be reached after several tries, or sent another part; `stop` was called
                meanwhile.
        """
        answer = _Answer()
        if stops is not None and self.stops > stops:
            raise self.stopped(name)
        # The Hub may be silent for minutes, and Python cannot break a read off: a thread is left behind that can.
        threading.Thread(target=self._fetch, args=(answer, name, start, stop), daemon=True).start()
        with self._changed:
            known = self.stops if stops is None else stops
            self._changed.wait_for(lambda: answer.settled or self.stops > known)
        if answer.content is None:
            if answer.settled and answer.error is None:
                raise RuntimeError(f"{name}: the thread that read it ended")
            raise answer.error or self.stopped(name)
        return answer.content

    def stop(self) -> None:
        """Let every `read` that waits raise HubError."""
        with self._changed:
            self.stops += 1
            self._changed.notify_all()

    def _fetch(self, answer: "_Answer", name: str, start: int, stop: int | None) -> None:
        try:
            answer.content = self._read(name, start, stop)
        except HubError as error:
            answer.error = error
        finally:
            with self._changed:
                answer.settled = True
                self._changed.notify_all()

    def _read(self, name: str, start: int, stop: int | None) -> bytes:
        ranged = start > 0 or stop is not None
        last = "" if stop is None else stop - 1
        request = self._request(name, {"Range": f"bytes={start}-{last}"} if ranged else {})
        with translated(self.where(name)):
            with http_stream_backoff("GET", **request) as response:
                hf_raise_for_status(response)
                content = read_bounded(response, MAX_FILE_NBYTES if stop is None else stop - start)
        if ranged and not _is_part(response, start, stop, len(content)):
            said_range = response.headers.get("Content-Range", "no Content-Range")
            raise HubError(
                "the Hub sent another part than was asked for",
                where=self.where(name),
                found=f"status {response.status_code}, {said_range}, {len(content)} bytes",
                expected=f"bytes {start} to {stop}",
                remedy="run it again; a proxy in between must let Range headers pass",
            )
        return content

    @contextmanager
    def stream(self, name: str, start: int) -> Iterator[httpx2.Response]:
        """The answer that a file comes in, from `start` on; status 200 means that it comes from its beginning.

        A Hub that is busy is asked again after a while; a connection that breaks, at first or later, is not.

        Raises:
            httpx2.TransportError: The connection failed.
            HfHubHTTPError: The Hub refused; to be put into `translated`, as all that the stock client raises.
        """
        request = self._request(name, {"Range": f"bytes={start}-"} if start else {})
        with http_stream_backoff("GET", retry_on_exceptions=(), **request) as response:
            hf_raise_for_status(response)
            yield response

    def wrong_bytes(self, file: HubFile, found: str) -> HubError:
        """The error for a file whose bytes hash to something else than the Hub says."""
        return HubError(
            "came with another hash than the Hub says",
            where=self.where(file.name),
            found=found,
            expected=file.etag,
            remedy="run it again; if it stays so, a proxy in between or the Hub itself gives wrong bytes",
        )

    def stopped(self, name: str) -> HubError:
        """The error for whoever waits for a file when reading is stopped."""
        return HubError("reading was stopped", where=self.where(name), remedy="run it again and it goes on")

    def where(self, name: str) -> str:
        """A file's name for messages."""
        return f"{self.repo}: {name}"

    def _request(self, name: str, headers: Mapping[str, str]) -> dict[str, Any]:
        return {
            "url": f"{self._api.endpoint}/{self.repo}/resolve/{self.commit}/{quote(name)}",
            # Ranges count the bytes of the file, not of a compressed answer.
            "headers": {**auth_headers(self._api), "Accept-Encoding": "identity", **headers},
            "timeout": httpx2.Timeout(DOWNLOAD_SECONDS, connect=CONNECT_SECONDS),
        }


_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def _is_part(response: httpx2.Response, start: int, stop: int | None, nbytes: int) -> bool:
    """Whether an answer is the part from `start` up to `stop`, or to the end, by its own words and its length."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code != 206 or match is None:
        return False
    first, end = int(match[1]), int(match[2]) + 1
    wanted = stop if stop is not None else int(match[3]) if match[3] != "*" else end
    return (first, end) == (start, wanted) and nbytes == end - start


class _Answer:
    """What a thread has fetched, or why it could not."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.error: HubError | None = None
        self.settled = False
