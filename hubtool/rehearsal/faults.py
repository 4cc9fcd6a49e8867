"""Failures on demand: at a chosen call, the Hub fails in one of the ways that Hubs and networks do.

From Python: `hub.faults.add(Fault("commit", "reset-after"))`. Over HTTP, with the owner's token: POST a JSON list of
such objects to /rehearsal/faults; GET shows how often each struck and each stage was called; DELETE is rid of them.
"""

import re
from collections import Counter
from typing import Literal

import msgspec

_REPO = "/[^/]+/[^/]+"
STAGES = {
    "whoami": ("GET", "/api/whoami-v2"),
    "create": ("POST", "/api/repos/create"),
    "settings": ("PUT", f"/api/models{_REPO}/settings"),
    "auth-check": ("GET", f"/api/models{_REPO}/auth-check(/write)?"),
    "info": ("GET", f"/api/models{_REPO}(/revision/.+)?"),
    "validate": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", f"/api/models{_REPO}/preupload/.+"),
    "batch": ("POST", rf"{_REPO}\.git/info/lfs/objects/batch"),
    "put": ("PUT", f"/storage/(object|part){_REPO}"),
    "complete": ("POST", f"/storage/complete{_REPO}"),
    "verify": ("POST", rf"{_REPO}\.git/info/lfs/objects/verify"),
    "xet-store": ("GET|POST|PUT", "/xet-store/.+"),
    "xet-token": ("GET", f"/api/models{_REPO}/xet-write-token/.+"),
    "commit": ("POST", f"/api/models{_REPO}/commit/.+"),
    "commits": ("GET", f"/api/models{_REPO}/commits/.+"),
    "tree": ("GET", f"/api/models{_REPO}/tree/.+"),
    "paths-info": ("POST", f"/api/models{_REPO}/paths-info/.+"),
    "resolve": ("GET|HEAD", f"{_REPO}/resolve/.+"),
    "refs": ("GET", f"/api/models{_REPO}/refs"),
    "tag": ("POST", f"/api/models{_REPO}/tag/.+"),
    "branch": ("POST", f"/api/models{_REPO}/branch/.+"),
    "discussions": ("GET|POST", f"/api/models{_REPO}/discussions.*"),
    "collections": ("GET|POST|PATCH|DELETE", "/api/collections.*"),
}
"""Stage -> method and path, both as regular expressions; the path with the escapes of one segment kept.

Nothing but faults answers at xet-store: a client comes there that was given that address with its token.
"""

OTHER = "other"
"""What calls of no stage are counted as."""

Effect = Literal["answer", "answer-after", "reset", "reset-after", "cut", "hang"]


class Answer(msgspec.Struct, frozen=True):
    """What is answered in place of the truth.

    Attributes:
        status: HTTP status.
        message: For the person; in the body and in X-Error-Message.
        headers: Further headers.
        body: What comes in place of the Hub's JSON, as from a gateway that knows nothing of Hubs.
    """

    status: int = 500
    message: str = "Internal Error - We're working hard to fix this as soon as possible!"
    headers: dict[str, str] = {}
    body: str | None = None


RATE_LIMITED = Answer(429, "You have been rate limited", {"Retry-After": "1"})
RATE_WINDOW_FULL = Answer(
    429,
    "You have been rate limited",
    {"ratelimit": '"api";r=0;t=1', "ratelimit-policy": '"fixed window";"api";q=500;w=300'},
)
UNAVAILABLE = Answer(503, "Service Unavailable")
EXPIRED_ADDRESS = Answer(403, "Request has expired")
EXPIRED_TOKEN = Answer(401, "Invalid credentials in Authorization header")
QUOTA_REACHED = Answer(403, "Private repository storage limit reached")
COMMIT_IN_PROGRESS = Answer(409, "Another commit operation is in progress")
STALE_PARENT = Answer(412, "A commit has happened since. Please refresh and try again.")
GATEWAY_TIMEOUT = Answer(504, body="<html><body><h1>504 Gateway Time-out</h1></body></html>")
COMMIT_LIMIT_REACHED = Answer(429, "You have exceeded the rate limit for repository commits (128 per hour)")


class Fault(msgspec.Struct):
    """One failure, and where it strikes.

    Attributes:
        stage: One of STAGES.
        effect: `answer` instead of doing anything, or `answer-after` everything was done; `reset` the connection after
            `nbytes` of the request's body, or `reset-after` everything was done; `cut` the connection after `nbytes` of
            the answer's body; `hang` without an answer for `seconds` or until the client gives up.
        answer: For the first two.
        nbytes: For `reset` and `cut`.
        seconds: For `hang`.
        skip: Calls that are let through first.
        times: Calls it strikes after that.
        struck: Calls it has struck.
    """

    stage: str
    effect: Effect = "answer"
    answer: Answer = Answer()
    nbytes: int = 0
    seconds: float = 3600
    skip: int = 0
    times: int = 1
    struck: int = 0

    def __post_init__(self) -> None:
        """Refuses a stage that there is not, for which the fault would never strike."""
        if self.stage not in STAGES:
            raise ValueError(f"there is no stage {self.stage!r}; there are {', '.join(STAGES)}")


class Faults:
    """The faults in wait, and how often each stage was called."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []
        self.calls: Counter[str] = Counter()

    def add(self, *faults: Fault) -> None:
        """Lets these faults wait for their call."""
        self.waiting += faults

    def clear(self) -> None:
        """Forgets all faults and counts."""
        self.waiting, self.calls = [], Counter()

    def next_for(self, method: str, path: str) -> Fault | None:
        """The fault that strikes this call, if one does; the call is counted."""
        stages = [name for name, call in STAGES.items() if _matches(call, method, path)]
        for stage in stages or [OTHER]:
            self.calls[stage] += 1
            for fault in (fault for fault in self.waiting if fault.stage == stage):
                if fault.skip > 0:
                    fault.skip -= 1
                elif fault.struck < fault.times:
                    fault.struck += 1
                    return fault
        return None


def _matches(call: tuple[str, str], method: str, path: str) -> bool:
    return re.fullmatch(call[0], method) is not None and re.fullmatch(call[1], path) is not None
