"""A finished folder, a rehearsal Hub, and the stock client on both of its ways to send large files."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants

from hubtool.convert.convert import Converted
from hubtool.hub.client import TimeOuts, make_api
from hubtool.hub.destination import Destination
from hubtool.hub.patience import Patience, PatientHub
from hubtool.hub.upload import Upload, Uploaded
from hubtool.progress import UNWATCHED, Watch
from hubtool.record import Record, read_record
from hubtool.rehearsal import RehearsalHub
from hubtool.release.folder import Manner, Published, publish_folder
from tests.checkpoints import copied
from tests.fixtures import QUIET, Conversions

REPO = "someone/DeepSeek-V4-mini"
PATHS = ("lfs", "xet")


def upload(api: HfApi, folder: Path, record: Record, to: Destination, watch: Watch = UNWATCHED) -> Uploaded:
    """Send a finished folder, and neither verify nor tag it."""
    return Upload(PatientHub(api), folder, record, to).run(watch)


READ_SECONDS = 60.0


@dataclass
class Publisher:
    """Publishes one folder, without really waiting."""

    api: HfApi
    rehearsal: RehearsalHub
    folder: Path
    path: str
    waits: list[float] = field(default_factory=list)

    @property
    def record(self) -> Record:
        """The folder's record."""
        record = read_record(self.folder)
        assert record is not None
        return record

    def publish(self, to: Destination | None = None, api: HfApi | None = None) -> Published:
        """Publish as `hubtool publish` does, and tag."""
        patience = Patience(sleep=self.waits.append)
        converted = Converted(self.folder, self.record, fresh=False)
        return publish_folder(api or self.api, converted, to or Destination(REPO), QUIET, Manner(patience=patience))

    def commits(self, revision: str = "main") -> list[str]:
        """Titles of the commits after the Hub's own first, the latest first."""
        return [commit.title for commit in self.api.list_repo_commits(REPO, revision=revision)][:-1]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """By which way large files are sent."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that the stock client would have made; they are not made."""
    made: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", made.append)
    return made


@pytest.fixture
def publisher(
    path: str,
    waits: list[float],
    request: pytest.FixtureRequest,
    rehearsal: RehearsalHub,
    converted: Conversions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Publisher:
    """A small finished folder, and a Hub to publish it to."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", path == "lfs")
    marker = request.node.get_closest_marker("read_seconds")
    time_outs = TimeOuts(connect=5, read=marker.args[0] if marker else READ_SECONDS)
    api = make_api(rehearsal.endpoint, rehearsal.token, time_outs=time_outs)
    folder = copied(converted("mini", "mixed_3_6").folder, tmp_path / "made")
    return Publisher(api, rehearsal, folder, path)


Contents = frozenset[tuple[str, str]]
"""Names of files, and SHA-256 of what a reader was given for them."""


@dataclass
class Reader:
    """Someone who looks at a repo again and again, and reads each new state of it; `seen` are those, in order."""

    api: HfApi
    seen: list[Contents] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    _heads: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Poll until told to stop, and once more then."""
        last = False
        while not last:
            last = self.stop.wait(0.01)
            if self.api.repo_exists(REPO):
                self._look()

    def _look(self) -> None:
        """Read what main's head has, if it is not the head that was read last; every byte comes over the network."""
        head = self.api.model_info(REPO).sha
        assert head is not None
        if self._heads[-1:] == [head]:
            return
        self._heads.append(head)
        names = self.api.list_repo_files(REPO, revision=head)
        self.seen.append(frozenset((name, hashlib.sha256(self._read(head, name)).hexdigest()) for name in names))

    def _read(self, head: str, name: str) -> bytes:
        response = httpx2.get(
            f"{self.api.endpoint}/{REPO}/resolve/{head}/{name}",
            headers={"Authorization": f"Bearer {self.api.token}"},
            follow_redirects=True,
        )
        response.raise_for_status()
        return response.content


@pytest.fixture
def reader(publisher: Publisher) -> Iterator[Reader]:
    """A reader who polls during the whole test."""
    made = Reader(HfApi(endpoint=publisher.rehearsal.endpoint, token=publisher.rehearsal.token))
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop.set()
    thread.join()
