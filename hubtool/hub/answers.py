"""What a Hub answers, held against the protocol before the stock client makes anything of it.

A gateway, a login page of a network or a broken proxy answers with what no Hub says: a page with status 200, half a
document, `{}`. The stock client takes an answer apart as it needs it, so that such a one shows as whatever its code
stumbles over. Here every answer of the API that comes in is read whole, within a bound, and compared with what the
protocol says of its address; the fields are those that huggingface_hub 2.4 and hubtool read, others may be there.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any, NamedTuple

import httpx2
import msgspec
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from hubtool.errors import HubError
from hubtool.files.formats import decode_json
from hubtool.files.read import is_inner_path
from hubtool.units import KIB, MIB

MAX_ANSWER_NBYTES = 64 * MIB
"""Of one JSON answer. A page of a list of files has 1,000 entries in about 400 kB."""

MAX_PACKED_NBYTES = 512 * KIB
"""Of one that comes compressed: gzip may unfold to a thousand times its size."""

MAX_REFUSAL_NBYTES = 1 * MIB


class AnswerError(Exception):
    """An answer is not what the protocol says; to ask again may help, since it may not be the Hub that answered.

    Args:
        where: The method and the address.
        found: What came.
    """

    def __init__(self, where: str, found: str) -> None:
        super().__init__(f"{where}: an answer that is not a Hub's: {found}")
        self.where = where
        self.found = found

    def explain(self) -> HubError:
        """The error for people."""
        return HubError(
            "the answer is not one of a Hub",
            where=self.where,
            found=self.found,
            expected="what the Hub's protocol says",
            remedy="check HF_ENDPOINT, and the network's proxy or login page, then run it again",
        )


Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
Commit = Annotated[str, msgspec.Meta(pattern="^[0-9a-zA-Z]{1,128}$")]
NBytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Time = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]


class _Named(msgspec.Struct):
    name: Name
    roleInOrg: str | None = None


class _WhoAmI(msgspec.Struct):
    name: Name
    orgs: list[_Named] = []
    auth: dict[str, Any] = {}


class _Sibling(msgspec.Struct):
    rfilename: Name


class _Info(msgspec.Struct):
    id: Name
    sha: Commit | None = None
    private: bool | None = None
    siblings: list[_Sibling] | None = None
    tags: list[str] | None = None
    lastModified: Time | None = None
    createdAt: Time | None = None
    cardData: dict[str, Any] | None = None
    safetensors: dict[str, Any] | None = None


class _Lfs(msgspec.Struct):
    oid: Name
    size: NBytes


class _Entry(msgspec.Struct):
    type: Name
    path: Name
    oid: Name | None = None
    size: NBytes | None = None
    lfs: _Lfs | None = None


class _Ref(msgspec.Struct):
    name: Name
    ref: Name
    targetCommit: Commit


class _Refs(msgspec.Struct):
    branches: list[_Ref]
    tags: list[_Ref]


class _Candidate(msgspec.Struct):
    path: Name
    uploadMode: Name


class _Preupload(msgspec.Struct):
    files: list[_Candidate]


class _Message(msgspec.Struct):
    message: str


class _YamlCheck(msgspec.Struct):
    errors: list[_Message] = []
    warnings: list[_Message] = []


class _XetToken(msgspec.Struct):
    casUrl: Name
    accessToken: Name
    exp: int


class _Action(msgspec.Struct):
    href: Name
    header: dict[str, Any] | None = None


class _Object(msgspec.Struct):
    oid: Name
    size: NBytes = 0
    actions: dict[str, _Action] | None = None
    error: dict[str, Any] | None = None


class _Batch(msgspec.Struct):
    objects: list[_Object]


class _Commit(msgspec.Struct):
    commitUrl: Name
    commitOid: Commit
    pullRequestUrl: str | None = None


class _Discussion(msgspec.Struct):
    num: int
    title: str
    status: Name


class _Discussions(msgspec.Struct):
    discussions: list[_Discussion]
    count: int


class _Form(NamedTuple):
    """What is said of an address: by which methods, and what the answer holds."""

    method: str
    path: re.Pattern[str]
    kind: Any


_MODEL = r"/api/models/[^/]+/[^/]+"
_FORMS = tuple(
    _Form(method, re.compile(path + "$"), kind)
    for method, path, kind in (
        ("GET", "/api/whoami-v2", _WhoAmI),
        ("GET", rf"{_MODEL}(?:/revision/[^/]+)?", _Info),
        ("GET", rf"{_MODEL}/tree/.+", list[_Entry]),
        ("POST", rf"{_MODEL}/paths-info/.+", list[_Entry]),
        ("GET", rf"{_MODEL}/refs", _Refs),
        ("POST", rf"{_MODEL}/preupload/[^/]+", _Preupload),
        ("POST", rf"{_MODEL}/commit/[^/]+", _Commit),
        ("GET", rf"{_MODEL}/xet-write-token/[^/]+", _XetToken),
        ("GET", rf"{_MODEL}/discussions", _Discussions),
        ("GET", rf"{_MODEL}/discussions/\d+", _Discussion),
        ("POST", "/api/validate-yaml", _YamlCheck),
        ("POST", r"\.git/info/lfs/objects/batch", _Batch),
    )
)


class _Bounded(httpx2.SyncByteStream):
    """A stream that ends with an error where it is longer than any answer is."""

    def __init__(self, stream: httpx2.SyncByteStream, limit: int, where: str) -> None:
        self._stream = stream
        self._limit = limit
        self._where = where

    def __iter__(self) -> Iterator[bytes]:
        nbytes = 0
        for chunk in self._stream:
            nbytes += len(chunk)
            if nbytes > self._limit:
                raise AnswerError(self._where, f"more than {self._limit} bytes")
            yield chunk

    def close(self) -> None:
        """Close the stream within."""
        self._stream.close()


def check_answer(response: httpx2.Response) -> None:
    """Read an answer of the API whole, and hold it against the protocol: a hook of the HTTP client.

    Answers that hold files are left to who asked for them.

    Raises:
        AnswerError: It is not what the protocol says of its address, or longer than any answer is.
    """
    path = response.request.url.raw_path.decode("ascii", "replace").partition("?")[0]
    where = f"{response.request.method} {_shown(response.request.url)}"
    form = next((each for each in _FORMS if each.method == response.request.method and each.path.search(path)), None)
    refused = response.status_code >= 400
    if not refused and form is None and "/api/" not in path:
        return
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    limit = MAX_REFUSAL_NBYTES if refused else MAX_PACKED_NBYTES if packed else MAX_ANSWER_NBYTES
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Bounded(response.stream, limit, where)
    if form is None or not response.is_success:
        return
    try:
        content = response.read()
    except httpx2.DecodingError as error:
        raise AnswerError(where, f"content that cannot be unpacked: {error}") from error
    try:
        answer = decode_json(content, form.kind, where, error=HubError)
    except HubError as error:
        raise AnswerError(where, _describe(response, content, error)) from error
    _check_list(answer, response, where)


def read_bounded(response: httpx2.Response, limit: int) -> bytes:
    """The content of an answer that holds a file, of which no more than `limit` bytes and a chunk are read."""
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > limit:
            break
    return bytes(content)


def _describe(response: httpx2.Response, content: bytes, error: HubError) -> str:
    kind = response.headers.get("Content-Type", "no content type").partition(";")[0]
    is_page = content.lstrip()[:1] == b"<"
    what = "a page in HTML" if is_page else f"{error.what}, {error.found}"
    return f"status {response.status_code}, {kind}, {len(content)} bytes: {what}"


def _check_list(answer: object, response: httpx2.Response, where: str) -> None:
    """Raise AnswerError for a list that would lead out of its folder, to another host, or for ever on."""
    entries = answer if isinstance(answer, list) else []
    for entry in entries:
        if not is_inner_path(entry.path):
            raise AnswerError(where, f"a path out of the repo, {entry.path!a:.200}")
        if entry.type == "file" and (entry.size is None or entry.oid is None):
            raise AnswerError(where, f"no size or hash of {entry.path!a:.200}")
    if isinstance(answer, _Discussions) and not answer.discussions and answer.count > 0:
        raise AnswerError(where, f"no discussions, but a count of {answer.count}")
    following = response.links.get("next", {}).get("url")
    if following is None:
        return
    try:
        url = response.request.url.join(following)
    except (httpx2.InvalidURL, ValueError) as error:
        raise AnswerError(where, f"a next page without an address: {error}") from error
    origin = (url.scheme, url.host, url.port)
    if origin != (response.request.url.scheme, response.request.url.host, response.request.url.port):
        raise AnswerError(where, f"a next page on another host, {url.host}")
    if not entries or url == response.request.url:
        raise AnswerError(where, "an empty page with a next one" if not entries else "a page that is its own next one")


def _shown(url: httpx2.URL) -> str:
    """An address without who asks and what is asked for, which may be secret."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn what the stock client stumbles over in an answer into an AnswerError.

    What is raised in hubtool's own code is a bug, and goes on.

    Raises:
        AnswerError: The stock client could not make anything of an answer.
    """
    try:
        yield
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError):
        raise
    except (httpx2.InvalidURL, httpx2.StreamError) as error:  # of an address to go on at, of content without an end
        raise AnswerError(where, f"{type(error).__name__}: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if not _raised_by_client(error.__traceback__):
            raise
        raise AnswerError(where, f"{type(error).__name__}: {error}") from error


def _raised_by_client(traceback: TracebackType | None) -> bool:
    """Whether the call that failed was one of hubtool's into the stock client, rather than within hubtool."""
    packages = []
    while traceback is not None:
        packages.append(traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0])
        traceback = traceback.tb_next
    own = len(packages) - packages[::-1].index("hubtool") if "hubtool" in packages else 0
    return own < len(packages) and packages[own] == "huggingface_hub"
