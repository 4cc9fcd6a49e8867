"""A Hub with a checkpoint, and what opens it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars

from hubtool.checkpoint import prefetch
from hubtool.checkpoint.prefetch import Storage
from hubtool.checkpoint.remote import HubSource
from hubtool.hub.client import make_api
from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import Faults
from tests.checkpoint.repo import FINISHED, REPO
from tests.fixtures import Conversions, Samples


@pytest.fixture(scope="package")
def filled_hub(tmp_path_factory: pytest.TempPathFactory, converted: Conversions) -> Iterator[RehearsalHub]:
    """A Hub with a checkpoint, and with a folder that was made of it."""
    made = converted("mini", "mixed_3_6")
    disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch, RehearsalHub(tmp_path_factory.mktemp("hub")) as hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        for repo, folder in ((REPO, made.source), (FINISHED, made.folder)):
            api.create_repo(repo)
            api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=".hubtool/**")
        yield hub


@pytest.fixture
def client(filled_hub: RehearsalHub, stock_client: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """HF_ENDPOINT and HF_TOKEN name the Hub, which does as it should; retries come at once."""
    monkeypatch.setenv("HF_ENDPOINT", filled_hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", filled_hub.token)
    monkeypatch.setattr(prefetch, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    filled_hub.hub.faults.clear()
    yield
    huggingface_hub.set_client_factory(default_client_factory)


@pytest.fixture
def faults(filled_hub: RehearsalHub) -> Faults:
    """What goes wrong on the Hub, and what was asked of it."""
    return filled_hub.hub.faults


@pytest.fixture
def api(filled_hub: RehearsalHub) -> HfApi:
    """The owner's client, on the LFS path."""
    return make_api(filled_hub.endpoint, filled_hub.token, xet=False)


@pytest.fixture
def folder(sample: Samples) -> Path:
    """The checkpoint, as a folder."""
    return sample("mini")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., HubSource]]:
    """Opens the checkpoint on the Hub with a place for its shards, which is closed in the end."""
    sources: list[HubSource] = []

    def open_repo(limit: int | None = None, *, keep: bool = False) -> HubSource:
        sources.append(HubSource(REPO, storage=Storage(tmp_path / "shards", limit, keep)))
        return sources[-1]

    yield open_repo
    for source in sources:
        source.close()
