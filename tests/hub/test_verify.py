"""Verifying a repo from nothing but the Hub: hashes, headers, config, index and card."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd

from hubtool.hub.patience import PatientHub
from hubtool.hub.reader import read_hub_file
from tests.checkpoints import file_bytes
from tests.fixtures import CommandLine
from tests.publisher import REPO, Publisher

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def path() -> str:
    """By which way files came makes no difference here."""
    return "lfs"


@pytest.fixture
def published(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """A published repo, whose folder is then gone."""
    monkeypatch.setenv("HF_ENDPOINT", publisher.rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", publisher.rehearsal.token)
    publisher.publish()
    publisher.rehearsal.faults.clear()
    return publisher


def replace(publisher: Publisher, name: str, content: bytes) -> None:
    """Put another file into the repo, and let the record say that it belongs there."""
    path = Path(publisher.api.hf_hub_download(REPO, "hubtool.json"))
    record: dict[str, Any] = json.loads(path.read_bytes())
    digest = hashlib.sha256(content).hexdigest()
    for entry in record["files"]:
        if entry["name"] == name:
            entry |= {"sha256": digest, "nbytes": len(content)}
    operations = [CommitOperationAdd(name, content), CommitOperationAdd("hubtool.json", json.dumps(record).encode())]
    publisher.api.create_commit(REPO, operations, commit_message="Change")


def problems(hubtool: CommandLine) -> list[str]:
    outcome = hubtool("verify", REPO, "--json")
    assert outcome.code == (1 if outcome.document["problems"] else 0)
    return list(outcome.document["problems"])


def test_published_repo_is_verified_without_its_folder_or_its_weights(
    published: Publisher, hubtool: CommandLine
) -> None:
    shard = next(published.folder.glob("*.safetensors"))
    assert problems(hubtool) == []
    sent = published.rehearsal.faults.calls
    assert sent["put"] == 0 and shard.stat().st_size > 2_000_000


def test_files_that_are_not_hubtool_s_are_named_and_not_judged(published: Publisher, hubtool: CommandLine) -> None:
    foreign = {"paper.pdf": b"%PDF", "old.safetensors": b"12345678", "assets/logo.png": b"PNG", "docs/a.md": b"# A"}
    additions = [CommitOperationAdd(name, content) for name, content in foreign.items()]
    published.api.create_commit(REPO, additions, commit_message="Mine")
    outcome = hubtool("verify", REPO, "--json")
    assert (outcome.code, outcome.document["verified"]) == (0, True), outcome.stderr
    assert outcome.document["foreign"] == sorted(foreign)
    assert outcome.document["files"] == len(file_bytes(published.folder))
    assert "paper.pdf" in hubtool("verify", REPO).stderr
    assert hubtool("card", REPO, "--check").code == 0


def test_config_that_contradicts_the_headers_is_found(published: Publisher, hubtool: CommandLine) -> None:
    config = json.loads((published.folder / "config.json").read_bytes())
    module = next(name for name, entry in config["quantization"].items() if isinstance(entry, dict))
    config["quantization"][module]["group_size"] *= 2
    replace(published, "config.json", json.dumps(config).encode())
    assert any(module in problem for problem in problems(hubtool))


def test_index_that_contradicts_the_headers_is_found(published: Publisher, hubtool: CommandLine) -> None:
    index = json.loads((published.folder / "model.safetensors.index.json").read_bytes())
    gone = index["weight_map"].popitem()[0]
    replace(published, "model.safetensors.index.json", json.dumps(index).encode())
    assert any(gone in problem for problem in problems(hubtool))


def test_header_that_contradicts_the_index_is_found(published: Publisher, hubtool: CommandLine) -> None:
    shard = next(published.folder.glob("*.safetensors"))
    content = shard.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = content[8 : 8 + length].replace(b'"lm_head.', b'"xx_head.')
    replace(published, shard.name, content[:8] + header + content[8 + length :])
    assert any("lm_head" in problem or "xx_head" in problem for problem in problems(hubtool))


def test_card_that_says_another_figure_is_found(published: Publisher, hubtool: CommandLine) -> None:
    card = (published.folder / "README.md").read_text()
    figure = f"{published.record.measured.nbytes:,}"
    assert figure in card
    content = card.replace(figure, "1,234").encode()
    published.api.create_commit(REPO, [CommitOperationAdd("README.md", content)], commit_message="Boast")
    assert any("README.md" in problem for problem in problems(hubtool))


def test_pull_request_and_tag_are_verified_by_their_names(published: Publisher, hubtool: CommandLine) -> None:
    (tag,) = published.api.list_repo_refs(REPO).tags
    assert hubtool("verify", REPO, "--revision", tag.name).code == 0
    assert hubtool("verify", REPO, published.folder).code == 0


@pytest.mark.parametrize("name", ["a b.txt", "a#b.txt", "a?b=c.txt", "a%20b.txt", "d/\u00e9.txt"])
def test_file_of_any_name_is_read(publisher: Publisher, name: str) -> None:
    publisher.api.create_repo(REPO)
    commit = publisher.api.create_commit(REPO, [CommitOperationAdd(name, b"content")], commit_message="Add").oid
    assert read_hub_file(PatientHub(publisher.api), REPO, commit, name) == b"content"
    assert read_hub_file(PatientHub(publisher.api), REPO, commit, f"{name}.absent") is None
