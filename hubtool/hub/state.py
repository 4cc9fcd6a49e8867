"""What was done towards one destination, kept in `.hubtool/hub/` of the output folder.

It is a hint for the next run, never the truth: the Hub is asked before any of it is relied on.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from hubtool.errors import OutputError
from hubtool.files.formats import decode_json
from hubtool.files.whole import STATE_DIR, write_beside

HUB_DIR = "hub"


class Blob(msgspec.Struct, frozen=True):
    """Content that was sent: its SHA-256, computed of the bytes while they were sent, and their number."""

    sha256: str
    nbytes: int


class _Kept(msgspec.Struct):
    destination: str
    pull_request: int | None = None
    blobs: dict[str, Blob] = {}


@dataclass
class State:
    """What is kept of one destination.

    Args:
        folder: The output folder.
        endpoint: The Hub.
        destination: The repo, and what of it.
    """

    folder: Path
    endpoint: str
    destination: str

    def __post_init__(self) -> None:
        """Read what an earlier run has left."""
        key = destination_key(self.endpoint, self.destination)
        self._path = kept_path(self.folder, HUB_DIR, key, ".json")
        self._kept = _Kept(key)
        if self._path.is_file():
            try:
                self._kept = decode_json(self._path.read_bytes(), _Kept, self._path, error=OutputError)
            except OutputError:
                self._path.unlink()  # a hint that cannot be read is none

    @property
    def pull_request(self) -> int | None:
        """The number of the pull request that was opened; a re-created repo may have another of that number."""
        return self._kept.pull_request

    @pull_request.setter
    def pull_request(self, number: int | None) -> None:
        self._kept.pull_request = number
        self._write()

    @property
    def blobs(self) -> Mapping[str, Blob]:
        """What was sent, by file name."""
        return self._kept.blobs

    def add_blob(self, name: str, blob: Blob) -> None:
        """Write down what was sent."""
        self._kept.blobs[name] = blob
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(self._path, msgspec.json.encode(self._kept))


def is_loopback(endpoint: str) -> bool:
    """Whether a Hub's address is this machine's own: `localhost`, or an address of the loopback interface."""
    host = (urlsplit(endpoint).hostname or "").removesuffix(".")
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def destination_key(endpoint: str, destination: str) -> str:
    """Which Hub, and what of it: `HOST[:PORT][/PATH]/ORG/NAME@REVISION`; whatever is kept of it is kept under this.

    A Hub on this machine is `loopback` whatever its port, since a rehearsal has another port each time. A port that the
    scheme implies is left out, and so is a login in the address.
    """
    if is_loopback(endpoint):
        return f"loopback/{destination}"
    address = urlsplit(endpoint)
    host = address.netloc.rpartition("@")[2].lower().removesuffix(_IMPLIED_PORTS.get(address.scheme, ""))
    return f"{host}{address.path.rstrip('/')}/{destination}"


def kept_path(folder: Path, kind: str, key: str, suffix: str) -> Path:
    """Where a folder keeps what is known of a destination: in `.hubtool/KIND`, under a digest of `destination_key`."""
    return folder / STATE_DIR / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}{suffix}"


_IMPLIED_PORTS = {"http": ":80", "https": ":443"}
