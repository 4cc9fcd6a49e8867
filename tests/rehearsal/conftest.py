"""A rehearsal Hub and the stock client for it, on the LFS path unless a test says otherwise."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils.tqdm import disable_progress_bars

from hubtool.rehearsal import RehearsalHub


@pytest.fixture(autouse=True)
def client_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client on its LFS path, with a cache of its own and no token but those given to it."""
    disable_progress_bars()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RehearsalHub]:
    """A fresh Hub that takes objects over 1 MiB in parts."""
    with RehearsalHub(tmp_path / "data", part_nbytes=1 << 20) as running:
        yield running


@pytest.fixture
def api(hub: RehearsalHub) -> HfApi:
    """The stock client, with the owner's token."""
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def http(hub: RehearsalHub) -> Iterator[httpx2.Client]:
    """A bare HTTP client with the owner's token, for what the stock client would not send."""
    headers = {"authorization": f"Bearer {hub.token}"}
    with httpx2.Client(base_url=hub.endpoint, headers=headers, timeout=30) as client:
        yield client
