"""Retries what is safe to retry on the Hub, and reports each wait.

The stock client repeats most requests by itself within half a minute. Those waits are reported too, and what it then
gives up, or never repeats, is judged here:

| what happened | what follows |
| --- | --- |
| 408, 425, 429, 5xx, connection broken or silent | asked again; first looked whether it was done |
| 409, another operation is in progress | asked again |
| an answer that is not what the protocol says | asked again soon; first looked whether it was done |
| 403 of an upload's address | it has expired: another is asked for; not if it speaks of a quota |
| 401, 402, 403 of xet's store | once more with a new token |
| 412, the repo has changed | never repeated: what was compared is no longer true |
| 401, 402, 403 | never repeated: nothing will change by itself |
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from hubtool.errors import HubError, redact
from hubtool.files.formats import parse_json
from hubtool.hub.answers import AnswerError, readable
from hubtool.hub.client import said, translated
from hubtool.hub.private import HTTP_LOGGER, auth_headers, get_session, hf_raise_for_status, parse_ratelimit_headers
from hubtool.units import format_seconds

T = TypeVar("T")

EXPIRED_STATUS = 403


def is_repeated(status: int) -> bool:
    """Whether a refusal with this status may pass."""
    return status in (408, 409, 425, 429) or status >= 500


class TransferError(Exception):
    """What was sent did not get through, or its answer cannot be read; `__cause__` has the reason.

    Args:
        reason: What happened, in words.
        repeatable: Whether sending it again may help.
        remedy: What to do about it in the end.
    """

    def __init__(self, reason: str, *, repeatable: bool, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.repeatable = repeatable
        self.remedy = remedy


class DeniedError(TransferError):
    """What takes the bytes refused them: because a token expired on the way, which a new one mends, or for good."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            reason,
            repeatable=True,
            remedy="see the account's storage and the token's rights, then run it again: what was sent stays sent",
        )


NOT_FOUND = 404
BAD_REQUEST = 400


NOT_SHOWN = (401, 403, NOT_FOUND)
"""Statuses of a repo that is not there, or not for whoever asks: the Hub does not tell which."""


def refused_status(error: HubError) -> int | None:
    """The status with which the Hub refused, None if it is about something else."""
    cause = error.__cause__
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None


AT_ONCE = (OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError)
"""What no waiting mends."""

AT_FIRST = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.LocalProtocolError)
"""What no waiting mends if the Hub has never answered: its address or the token is wrong, or there is no network."""

FAILURES = (HfHubHTTPError, httpx2.RequestError, ConnectionError, TransferError, AnswerError)


@dataclass(frozen=True)
class Patience:
    """How long a failure is borne.

    Attributes:
        waits: Seconds before the second try, the third and so on; after the last, it is a failure.
        unreadable: Seconds before each new try after an answer that is not a Hub's, which often is one gateway's.
        longest: Most seconds that the Hub may ask to wait (the limit of commits is per hour).
        sleep: Waits.
    """

    waits: tuple[float, ...] = (5, 15, 60, 180, 300)
    unreadable: tuple[float, ...] = (0.5, 1.5)
    longest: float = 3900
    sleep: Callable[[float], None] = field(default=lambda seconds: time.sleep(seconds))


READING = Patience(waits=())
"""Of commands that only read: what the stock client bears within half a minute, and a gateway's answer."""


def ignore(text: str) -> None:
    """Tells nobody."""


@dataclass
class PatientHub:
    """A Hub, and how to bear with it.

    One that has never answered is not waited for: see AT_FIRST.

    Attributes:
        api: The Hub.
        patience: How long a failure is borne.
        say: Told of every wait.
        lacks_xet: Whether it was found to give no tokens for xet.
    """

    api: HfApi
    patience: Patience = Patience()
    say: Callable[[str], None] = ignore
    lacks_xet: bool = field(default=False, init=False)
    _answered: bool = field(default=False, init=False)
    _me: Mapping[str, Any] | None = field(default=None, init=False)

    def attempt(self, what: str, call: Callable[[], T], landed: Callable[[], T | None] = lambda: None) -> T:
        """The result of `call`, retried as long as that may help.

        Args:
            what: The repo, or what of it is concerned, for messages.
            call: The request.
            landed: Finds what `call` has done although its answer was lost; asked before each repetition, and before
                giving up.

        Raises:
            HubError: It was refused, or patience is at its end.
        """
        denials = 0
        waits, unreadable = iter(self.patience.waits), iter(self.patience.unreadable)
        while True:
            try:
                with self._waits_told(what), readable(f"{what} on {redact(self.api.endpoint)}"):
                    result = call()
                self._answered = True
                return result
            except AT_ONCE as error:
                raise _explained(error, what) from error
            except FAILURES as error:
                self._answered |= isinstance(error, HfHubHTTPError)
                if isinstance(error, AT_FIRST) and not self._answered:
                    raise _explained(error, what) from error
                found = landed()
                if found is not None:
                    return found
                denials += isinstance(error, DeniedError)
                if isinstance(error, AnswerError):
                    pause = next(unreadable, None)
                else:
                    pause = _pause(error, next(waits, None) if denials <= 1 else None, self.patience.longest)
                if pause is None:
                    raise _explained(error, what) from error
                self.say(f"{what}: {_reason(error)}; trying again in {format_seconds(pause)}")
                self.patience.sleep(pause)

    def me(self, what: str) -> Mapping[str, Any]:
        """Who the token belongs to, as the Hub says; it is asked once.

        Args:
            what: See `attempt`.

        Raises:
            HubError: See `attempt`.
        """
        if self._me is None:
            self._me = self.attempt(what, self.api.whoami)
        return self._me

    def ask(self, method: str, path: str, what: str, **content: Any) -> Any:
        """The JSON that answers a request that may be repeated at any time.

        Args:
            method: `GET` or `POST`.
            path: From the endpoint on.
            what: See `attempt`.
            content: As httpx2 takes it, for example `json`.

        Raises:
            HubError: See `attempt`.
        """

        def call() -> Any:
            response = get_session().request(
                method, f"{self.api.endpoint}{path}", headers=auth_headers(self.api), **content
            )
            hf_raise_for_status(response)
            return parse_json(response.content, path)

        return self.attempt(what, call)

    @contextmanager
    def _waits_told(self, what: str) -> Iterator[None]:
        """Report the waits of the stock client as hubtool's own, not through its log."""
        log = logging.getLogger(HTTP_LOGGER)
        relay, propagate = _Relay(lambda text: self.say(f"{what}: {text}")), log.propagate
        log.addHandler(relay)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(relay)
            log.propagate = propagate


class _Relay(logging.Handler):
    """Hands on what the stock client logs, without secrets."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(redact(record.getMessage()))


def _pause(error: Exception, wait: float | None, longest: float) -> float | None:
    """Seconds to wait before trying again, None if it should not be tried."""
    if wait is None:
        return None
    if isinstance(error, TransferError):
        return wait if error.repeatable else None
    if not isinstance(error, HfHubHTTPError):
        return wait
    if not is_repeated(error.response.status_code):
        return None
    asked = _asked_wait(error.response)
    if asked is None:
        return wait
    return asked + 1 if asked <= longest else None


def _asked_wait(response: httpx2.Response) -> float | None:
    """Seconds that the Hub says to wait."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = response.headers.get("Retry-After", "")
    return float(after) if after.isascii() and after.isdigit() else _seconds_until(after)


def _seconds_until(date: str) -> float | None:
    """Seconds until a date as HTTP writes it, 0 if it is past, None if it is none."""
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, LookupError, TypeError, OverflowError):  # as its words may be any
        return None
    return max(0.0, (when - datetime.now(when.tzinfo)).total_seconds()) if when.tzinfo else None


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}, {said(error)}"
    return redact(str(error)) or type(error).__name__


def _explained(error: Exception, what: str) -> HubError:
    """The error for people."""
    if isinstance(error, AnswerError):
        return error.explain()
    if isinstance(error, TransferError):
        remedy = "run it again: what the Hub has stays there" if error.repeatable else "see what it says, then again"
        return HubError("sending failed", where=what, found=_reason(error), remedy=error.remedy or remedy)
    try:
        with translated(what):
            raise error
    except HubError as explained:
        return explained
