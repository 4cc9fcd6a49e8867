"""What a commit changes: its lines, read one by one as they arrive, and applied to the files of its parent."""

import base64
import binascii
import fnmatch
from collections.abc import AsyncIterator
from typing import Any, Literal, TypeVar

import msgspec
from starlette.requests import Request

from hubtool.errors import HubError
from hubtool.files.formats import Failure, convert, decode_json
from hubtool.hub.rules import REGULAR_LIMIT_NBYTES, check_metadata
from hubtool.rehearsal import git
from hubtool.rehearsal.hub import Hub
from hubtool.rehearsal.repos import Commit, File, Repo
from hubtool.rehearsal.wire import Nbytes, Refusal, Sha256

LINE_LIMIT = 15 << 20
"""Bytes of the longest line of a commit: the largest regular file in base64, and its path."""

COMMIT_LIMIT = 256 << 20
"""Bytes of the longest commit; the client sends at most 100 MiB of small files in one."""

PATH_LIMIT = 1024
ATTRIBUTES = ".gitattributes"
IGNORE = ".gitignore"
SPACE = "[[:space:]]"
"""How git-lfs writes a space of a path, which would end the pattern."""


class Header(msgspec.Struct):
    """The first line of a commit."""

    summary: str
    description: str = ""
    parentCommit: str | None = None  # noqa: N815


class RegularFile(msgspec.Struct):
    """A regular file, content included."""

    path: str
    content: str
    encoding: Literal["utf-8", "base64"] = "utf-8"


class LfsFile(msgspec.Struct):
    """A file whose content was uploaded before."""

    path: str
    oid: Sha256
    algo: Literal["sha256"] = "sha256"
    size: Nbytes | None = None


class Deletion(msgspec.Struct):
    """A file or folder to delete."""

    path: str


Key = Literal["header", "file", "lfsFile", "deletedFile", "deletedFolder"]


class Line(msgspec.Struct):
    """One line of a commit."""

    key: Key
    value: dict[str, Any]


class Changes:
    """The lines of a commit, checked one by one as they arrive; regular files go to disk at once."""

    def __init__(self, hub: Hub, repo: Repo) -> None:
        self._hub = hub
        self._repo = repo
        self._added: dict[str, File] = {}
        self._deleted: list[tuple[str, bool]] = []
        self.header = Header("")

    async def read(self, request: Request) -> None:
        """Takes all lines of the request.

        Raises:
            Refusal: 400 for a line that cannot be taken, 413 for a body that is too long.
        """
        started = False
        async for raw in _lines(request):
            try:
                line = decode_json(raw, Line, "commit", error=HubError)
                if started is (line.key == "header"):
                    raise Refusal(400, "a commit starts with its one header")
                started = True
                self._take(line)
            except HubError as error:
                raise Refusal(400, f"a line of the commit cannot be read: {error.found}") from error
        if not self.header.summary.strip():
            raise Refusal(400, "a commit needs a summary")

    def _take(self, line: Line) -> None:
        if line.key == "header":
            self.header = _part(line, Header)
        elif line.key == "file":
            self._take_regular(_part(line, RegularFile))
        elif line.key == "lfsFile":
            self._take_lfs(_part(line, LfsFile))
        else:
            path = _part(line, Deletion).path
            self._deleted.append((_checked(path.rstrip("/")), line.key == "deletedFolder"))

    def _take_regular(self, file: RegularFile) -> None:
        try:
            encoded = file.content.encode()
            content = base64.b64decode(encoded, validate=True) if file.encoding == "base64" else encoded
        except binascii.Error as error:
            raise Refusal(400, f"{file.path}: not base64: {error}") from error
        if len(content) > REGULAR_LIMIT_NBYTES:
            raise Refusal(400, f"{file.path}: {len(content)} bytes; files larger than 10 MiB go through LFS or xet")
        if file.path == "README.md":
            fatal = [problem.message for problem in check_metadata(content.decode("utf-8", "replace")) if problem.fatal]
            if fatal:
                raise Refusal(400, "Invalid metadata in README.md: " + "; ".join(fatal))
        self._added[_checked(file.path)] = self._hub.put_regular(content)

    def _take_lfs(self, file: LfsFile) -> None:
        nbytes = self._repo.objects.get(file.oid)
        if nbytes is None:
            why = self._hub.rejected.get(file.oid, "it was never uploaded")
            raise Refusal(400, f"{file.path}: {self._repo.name} has no LFS object {file.oid}: {why}")
        if file.size is not None and file.size != nbytes:
            raise Refusal(400, f"{file.path}: the LFS object {file.oid} has {nbytes} bytes, not {file.size}")
        self._added[_checked(file.path)] = File(git.blob_oid(git.lfs_pointer(file.oid, nbytes)), nbytes, file.oid)

    def check_parent(self, head: Commit) -> None:
        """Refuses changes that were made against another commit than `head`.

        Raises:
            Refusal: 412.
        """
        parent = self.header.parentCommit
        if parent is not None and not (len(parent) >= 7 and head.oid.startswith(parent)):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")

    def applied_to(self, parent: Commit) -> dict[str, File]:
        """All files after the changes: deletions first, then additions.

        Raises:
            Refusal: 404 for the deletion of what is not there, 400 for a file in the place of a folder.
        """
        files = dict(parent.files)
        for path, is_folder in self._deleted:
            gone = [name for name in files if name.startswith(f"{path}/")] if is_folder else [path]
            if not gone or gone[0] not in files:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
            for name in gone:
                del files[name]
        files |= self._added
        for path in files:
            parts = path.split("/")
            for depth in range(1, len(parts)):
                if "/".join(parts[:depth]) in files:
                    raise Refusal(400, f"{path}: {'/'.join(parts[:depth])} is a file")
        return self._with_attributes(files)

    def _with_attributes(self, files: dict[str, File]) -> dict[str, File]:
        """The files with every LFS file named in `.gitattributes`: the Hub adds a line for those no pattern covers."""
        patterns = lfs_patterns(self._hub, files)
        lfs = [path for path, file in self._added.items() if file.sha256 is not None]
        missing = [path for path in lfs if not matches(path, patterns)]
        if not missing:
            return files
        text = self._hub.read_regular(files.get(ATTRIBUTES)) or b""
        text += b"\n" if text and not text.endswith(b"\n") else b""
        text += "".join(
            f"{path.replace(' ', SPACE)} filter=lfs diff=lfs merge=lfs -text\n" for path in missing
        ).encode()
        return {**files, ATTRIBUTES: self._hub.put_regular(text)}


Part = TypeVar("Part")


def _part(line: Line, kind: type[Part]) -> Part:
    """What a line holds.

    Raises:
        HubError: It is something else.
    """
    return convert(line.value, kind, Failure("a line", "commit", HubError, ""))


async def _lines(request: Request) -> AsyncIterator[bytes]:
    """The lines of a request as they arrive.

    Raises:
        Refusal: 413, a line or the whole is too long.
    """
    waiting, total = bytearray(), 0
    async for chunk in request.stream():
        total += len(chunk)
        waiting += chunk
        *lines, rest = waiting.split(b"\n") if b"\n" in chunk else [waiting]
        waiting = bytearray(rest)
        if total > COMMIT_LIMIT or len(waiting) > LINE_LIMIT:
            raise Refusal(413, f"request entity too large: a commit has at most {COMMIT_LIMIT} bytes")
        for line in lines:
            if line.strip():
                yield bytes(line)
    if waiting.strip():
        yield bytes(waiting)


def _checked(path: str) -> str:
    """The path, if a git tree can hold it and it stays inside the repo.

    Raises:
        Refusal: 400.
    """
    parts = path.split("/")
    odd = any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
    if odd or len(path) > PATH_LIMIT or any(ord(char) < 32 or char == "\\" for char in path):
        raise Refusal(400, f"Invalid path: {path[:PATH_LIMIT]!r}")
    return path


def lfs_patterns(hub: Hub, files: dict[str, File]) -> list[str]:
    """The patterns of `.gitattributes` that send a file through LFS."""
    text = (hub.read_regular(files.get(ATTRIBUTES)) or b"").decode("utf-8", "replace")
    lines = (line.split() for line in text.splitlines())
    return [words[0].replace(SPACE, " ") for words in lines if words and "filter=lfs" in words[1:]]


def ignore_patterns(hub: Hub, files: dict[str, File], text: str | None) -> list[str]:
    """The plain patterns of a client's `.gitignore`, or else of the repo's; those of folders and exceptions are not."""
    if text is None:
        text = (hub.read_regular(files.get(IGNORE)) or b"").decode("utf-8", "replace")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(("#", "!")) and not line.endswith("/")]


def matches(path: str, patterns: list[str]) -> bool:
    """Whether a pattern covers the path; one without a slash is matched against the last part alone (gitattributes)."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(path if "/" in p else name, p.replace("**/", "*")) for p in patterns)
