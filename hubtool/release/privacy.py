"""What must not reach a published file: paths, names and addresses of the publisher's machine, and tokens.

Every file that is text is looked through before anything is sent: line by line as it stands, and as its reader gives
its strings.
"""

import codecs
import getpass
import ipaddress
import re
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from hubtool.errors import OutputError, SourceError
from hubtool.files.formats import parse_json, parse_toml
from hubtool.files.read import read_small
from hubtool.files.yaml import parse_yaml
from hubtool.hub.rules import read_metadata

WEIGHTS = (".safetensors", ".gguf", ".npz")
"""Ends of names of files that are too large to hold text, or to be looked through."""

HEAD_NBYTES = 8192
"""By which it is judged whether a file is text."""

CODE = (".py", ".jinja", ".js")

LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "AUTHORS")
"""Beginnings of names of files whose mail addresses are meant to be there."""

_REMARKABLE = (
    ("mail address", re.compile(r"(?<![\w.+/-])[\w.+-]+@(?!example\.)[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}(?![\w@])")),
    (
        "internal host",
        re.compile(
            r"(?<![\w./-])(?:[A-Za-z0-9-]+\.)+(?:corp|home|internal|intranet|lan|localdomain|local)(?![\w(=]|\.\w)"
        ),
    ),
    ("code of another repo that a reader would fetch and run", re.compile(r"(?<![\w./-])[\w.-]+/[\w.-]+--[\w.]+\.\w+")),
)
"""What a publisher may well mean: kinds and patterns. `org/repo--file.Class` is transformers' remote `auto_map`."""

VOCABULARIES = ("tokenizer.json", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json")
"""Files that list words: a name of the machine among them says nothing, nor does what looks like any path.

They are looked through for all else, and for paths of which the beginning tells that they are some.
"""

GENERIC_NAMES = frozenset(
    "admin builder debian docker localhost macbook macbook-air macbook-pro mac-mini mac-studio nobody root runner "
    "ubuntu user users".split()
)
"""User and host names that name nobody."""

LEAST_NAME = 4
"""Characters of a user or host name below which it may be any word."""

_PLACES = (
    r"/(?:Users|home|Volumes|media|mnt|private|root|scratch|tmp|var/folders)/[\w.@+-]+"
    r"|[A-Za-z]:\\{2}[\w .$-]+\\"
    r"|[A-Za-z]:\\(?![nrt])[\w .$-]+\\"  # in text that is code, one backslash and one of these is a line break
    r"|\\\\[\w.-]+\\[\w.$-]+"
    r"|~[\w-]*/(?!\.cache/|\.config/)[\w.-]+"
    r"|file://[^\s\"'<>]+"
)
_ELSEWHERE = r"/(?:usr/(?:local/)?)?s?bin/|/dev/(?:null|shm|std|u?random|zero)|/proc/|/sys/|/path/to\b|/v\d+/|/api/"
"""What lies at the same place on every machine or on a server, and what stands for a place."""

_OPTION = r"(?<=\s-[A-Za-z])"
_KNOWN_PATHS = re.compile(rf"(?:(?<![\w./~-])|{_OPTION})(?:{_PLACES})[\w./@+\\-]*")
# Not within a tag, a pattern, or what is put together from parts.
_PATHS = re.compile(
    rf"{_KNOWN_PATHS.pattern}|(?:(?<![\w./~<)\]}}*$-])|{_OPTION})(?!{_ELSEWHERE})/[\w.@+-]+/[\w.@+-]+[\w./@+\\-]*"
)
_TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20,}"  # GitHub, GitLab
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}\b"
    r"|\bpypi-[\w-]{16,}|(?i:\bBearer\s+)[A-Za-z0-9._~+/-]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web token
    r"|(?<=://)[^\s/@:\"']+:[^\s/@\"']+(?=@)"  # a password in an address
)
_ADDRESSES = re.compile(
    r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"
    r"|(?<![\w.:])(?=[0-9a-fA-F:]*:[0-9a-fA-F]*:)[0-9a-fA-F:]{4,39}(?![\w:]|\.\d)"
)

PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
        *("169.254.0.0/16", "100.64.0.0/10"),  # RFC 3927, RFC 6598
        *("fc00::/7", "fe80::/10"),  # RFC 4193, RFC 4291
    )
)


@dataclass(frozen=True)
class Leak:
    """Something that must not be published.

    Attributes:
        file: Where.
        line: From 1.
        kind: `path`, `token`, `private address`, `user name` or `host name`.
        found: What, a token only by its beginning.
    """

    file: str
    line: int
    kind: str
    found: str

    def __str__(self) -> str:
        where = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{where}: {self.kind} {self.found!r}"


@dataclass(frozen=True)
class Identity:
    """The names of whoever publishes, and of the machine."""

    users: frozenset[str]
    hosts: frozenset[str]

    def without(self, names: Iterable[str]) -> "Identity":
        """The names but these, which are public anyway: those of the organisation and the repo."""
        public = {part.lower() for name in names for part in re.split(r"[/\s]", name)}
        return Identity(self.users - public, self.hosts - public)


def read_identity() -> Identity:
    """The names of this machine and its user, in small letters; those left out that name nobody."""
    try:
        users = {getpass.getuser(), Path.home().name}
    except (KeyError, OSError, RuntimeError):
        users = set()
    full = socket.gethostname()
    return Identity(_telling(users), _telling({full, full.partition(".")[0]}))


def _telling(names: Iterable[str]) -> frozenset[str]:
    small = {name.lower() for name in names}
    return frozenset(name for name in small if len(name) >= LEAST_NAME and name not in GENERIC_NAMES)


def scan_text(file: str, text: str, identity: Identity) -> Iterator[Leak]:
    """Everything in a text that must not be published, by line."""
    is_vocabulary = _is_vocabulary(file)
    named = Identity(frozenset(), frozenset()) if is_vocabulary else identity
    paths = _KNOWN_PATHS if is_vocabulary else _PATHS
    kinds = (("user name", _words(named.users)), ("host name", _words(named.hosts)))
    for number, line in enumerate(text.splitlines(), start=1):
        for match in paths.finditer(line):
            yield Leak(file, number, "path", match[0])
        for match in _TOKENS.finditer(line):
            yield Leak(file, number, "token", f"{match[0][:6]}...")
        for match in _ADDRESSES.finditer(line):
            if _is_private(match[0]):
                yield Leak(file, number, "private address", match[0])
        for kind, words in kinds:
            for match in words.finditer(line) if words else ():
                yield Leak(file, number, kind, match[0])


def _is_vocabulary(file: str) -> bool:
    return any(fnmatchcase(file.rpartition("/")[2], pattern) for pattern in VOCABULARIES)


def _words(names: Collection[str]) -> re.Pattern[str] | None:
    if not names:
        return None
    return re.compile(rf"(?<![\w])(?:{'|'.join(map(re.escape, sorted(names)))})(?![\w])", re.IGNORECASE)


def _is_private(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in PRIVATE_NETWORKS if network.version == address.version)


def scan_files(files: Iterable[tuple[str, bytes]], identity: Identity) -> Iterator[Leak]:
    """Everything in files, given by name and content, that must not be published; as a reader of them would see it."""
    for name, content in files:
        if name.startswith("/") or ".." in Path(name).parts:
            yield Leak(name, 0, "path", name)
        text = read_text(content)
        if text is None:
            continue
        seen = set()
        for leak in scan_text(name, text, identity):
            seen.add((leak.kind, leak.found))
            yield leak
        # What is written with escapes, or over several lines, shows only when it is read.
        for leak in scan_text(name, "\n".join(read_strings(name, content)), identity):
            if (leak.kind, leak.found) not in seen:
                yield replace(leak, line=0)


def scan_warnings(files: Iterable[tuple[str, bytes]]) -> Iterator[Leak]:
    """What in files may well be meant, and should not be published unnoticed."""
    for name, content in files:
        text = read_text(content)
        if text is None or _is_vocabulary(name):
            continue
        decoded = "\n".join(read_strings(name, content))
        for kind, pattern in _REMARKABLE:
            if _is_meant(kind, name):
                continue
            for found in dict.fromkeys(match[0] for match in pattern.finditer(f"{text}\n{decoded}")):
                line = next((n for n, each in enumerate(text.splitlines(), start=1) if found in each), 0)
                yield Leak(name, line, kind, found)


def _is_meant(kind: str, name: str) -> bool:
    """Whether a file of this name has that for good: authors in a license, attributes that look like hosts in code."""
    if kind == "internal host":
        return name.endswith(CODE)
    return kind == "mail address" and name.upper().startswith(LEGAL)


def read_text(content: bytes) -> str | None:
    """The text of a file in UTF-8 or UTF-16, None for one that is none; a name's end says nothing of it."""
    head = content[:HEAD_NBYTES]
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return content.decode("utf-16", errors="replace")
    if 0 in head:
        # Of text in a language that ASCII writes, every other byte of UTF-16 is 0.
        for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head[start::2].count(0) > len(head) * 0.4 and head[1 - start :: 2].count(0) < len(head) * 0.1:
                return content.decode(encoding, errors="replace")
        return None
    return content.decode("utf-8", errors="replace")


def read_strings(name: str, content: bytes) -> list[str]:
    """Every string in a JSON, TOML or YAML file, or in the front matter of Markdown, as its reader gives it.

    JSON without an escape says nothing that its text does not.
    """
    try:
        if name.endswith((".json", ".ipynb", ".jsonl")):
            lines = content.split(b"\n") if name.endswith(".jsonl") else [content]
            value: object = [parse_json(line, name) for line in lines if b"\\" in line]
        elif name.endswith(".toml"):
            value = parse_toml(content, name, error=SourceError)
        elif name.endswith((".yaml", ".yml")):
            value = parse_yaml(content, name)
        elif name.endswith(".md"):
            value = read_metadata(content.decode("utf-8", errors="replace"), name)
        else:
            return []
    except SourceError:
        return []  # nobody can read it otherwise than as text
    return list(_strings(value))


def _strings(value: object) -> Iterator[str]:
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list):
            left += item


def scan_folder(folder: Path, names: Iterable[str], identity: Identity) -> tuple[Leak, ...]:
    """Everything in these files of a folder that must not be published.

    Args:
        folder: The folder.
        names: The files that are to be published.
        identity: Whose names must not be.
    """
    return tuple(scan_files(_read(folder, names), identity))


def _read(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    return ((name, b"" if name.endswith(WEIGHTS) else read_small(folder / name)) for name in names)


def require_private(folder: Path, names: Iterable[str], public: Iterable[str] = ()) -> None:
    """Refuse to publish files that tell of the publisher's machine.

    Args:
        folder: The folder.
        names: The files that are to be published.
        public: Names that are public anyway, of repos and organisations.

    Raises:
        OutputError: A file holds a path, a token, a private address, or the user's or machine's name.
    """
    _refuse(folder, scan_folder(folder, names, read_identity().without(public)))


def require_private_texts(where: str, files: Mapping[str, bytes], public: Iterable[str] = ()) -> None:
    """Refuse to publish files, by name and content, that tell of the publisher's machine: see `require_private`."""
    _refuse(where, tuple(scan_files(files.items(), read_identity().without(public))))


def _refuse(where: Path | str, leaks: Sequence[Leak]) -> None:
    if leaks:
        shown = "; ".join(str(leak) for leak in leaks[:5])
        more = f"; and {len(leaks) - 5} more" if len(leaks) > 5 else ""
        raise OutputError(
            "private information in a file that would be published",
            where=where,
            found=f"{shown}{more}",
            remedy="take it out of the file, or out of the source that the file comes from, and convert again",
        )
