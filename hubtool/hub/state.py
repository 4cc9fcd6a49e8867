"""What was done towards one destination, kept in `.hubtool/hub/` of the output folder.

It is a hint for the next run, never the truth: the Hub is asked before any of it is relied on.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

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
        name = f"{_host(self.endpoint)}/{self.destination}"
        self._path = self.folder / STATE_DIR / HUB_DIR / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        self._kept = _Kept(name)
        if self._path.is_file():
            try:
                self._kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
            except msgspec.DecodeError:
                self._path.unlink()  # a hint that cannot be read is none

    @property
    def pull_request(self) -> int | None:
        """The number of the pull request that was opened; a repo made anew may have another of that number."""
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


def _host(endpoint: str) -> str:
    """The Hub's host and port; of this machine the host alone, since a rehearsal has another port each time."""
    address = urlsplit(endpoint)
    try:
        loopback = ip_address(address.hostname or "").is_loopback
    except ValueError:
        loopback = address.hostname == "localhost"
    return "loopback" if loopback else address.netloc
