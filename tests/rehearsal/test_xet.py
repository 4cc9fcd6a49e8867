"""The default path of the stock client: contents go through hf_xet."""

import hashlib
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import BadRequestError

from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.wire import Refusal
from hubtool.rehearsal.xet import XetStore
from tests.rehearsal.content import REPO, additions, shard


@pytest.fixture(autouse=True)
def xet_on(monkeypatch: pytest.MonkeyPatch, client_settings: None) -> None:
    """The client as it comes."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)


def test_published_through_xet_is_read_back(api: HfApi, hub: RehearsalHub, tmp_path: Path) -> None:
    api.create_repo(REPO)
    files = {f"model-{n}.safetensors": shard(n, rows=900) for n in (1, 2)}
    local = tmp_path / "local"
    local.mkdir()
    for name, content in files.items():
        (local / name).write_bytes(content)
    operations = [CommitOperationAdd(name, local / name) for name in files]
    api.preupload_lfs_files(REPO, operations[:1], free_memory=False)
    api.create_commit(REPO, operations, commit_message="Through xet")
    assert list((hub.data / "xet" / REPO).rglob("*.mdb")), "the contents went through hf_xet"
    assert api.verify_repo_checksums(REPO, local_dir=local).mismatches == []
    folder = Path(api.snapshot_download(REPO, local_dir=tmp_path / "read"))
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_what_finished_through_xet_is_known_before_the_commit(api: HfApi, http: httpx2.Client) -> None:
    api.create_repo(REPO)
    content = shard(3)
    api.preupload_lfs_files(REPO, additions({"a.safetensors": content}))
    objects = [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]
    answer = http.post(f"/{REPO}.git/info/lfs/objects/batch", json={"operation": "upload", "objects": objects}).json()
    assert "actions" not in answer["objects"][0]


def test_a_hash_that_was_not_computed_from_the_bytes_is_refused(api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    file = tmp_path / "a.safetensors"
    file.write_bytes(shard(4))
    operation = CommitOperationAdd("a.safetensors", file)
    operation.upload_info.sha256 = bytes(32)
    with pytest.raises(BadRequestError, match=f"has no LFS object {bytes(32).hex()}: the bytes hash to"):
        api.create_commit(REPO, [operation], commit_message="False hash")
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["initial commit"]


def test_discarding_hub_drops_the_chunks_too(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "data", discard=True) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO)
        for number in (1, 2):
            content = {f"{number}.safetensors": shard(number, rows=2000)}
            api.create_commit(REPO, additions(content), commit_message=f"Shard {number}")
        info = api.model_info(REPO, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
        assert sizes["1.safetensors"] == len(shard(1, rows=2000))
        kept = sum(path.stat().st_size for path in hub.data.rglob("*") if path.is_file() and path.suffix != ".redb")
        assert kept < 600_000 < len(shard(1, rows=2000))


def test_damaged_store_is_noticed(api: HfApi, hub: RehearsalHub) -> None:
    api.create_repo(REPO)
    operations = additions({"a.safetensors": shard(6, rows=900)})
    api.preupload_lfs_files(REPO, operations, free_memory=False)
    (xorb,) = [path for path in hub.data.glob("xet/**/default.*") if path.suffix != ".tagset"]
    xorb.write_bytes(xorb.read_bytes()[:-1000])
    with pytest.raises(BadRequestError, match="has no LFS object"):
        api.create_commit(REPO, operations, commit_message="Damaged")


def test_discarding_hub_says_why_it_cannot_take_what_was_deduplicated(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "data", discard=True) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO)
        content = shard(7, rows=2000)
        api.create_commit(REPO, additions({"1.safetensors": content}), commit_message="First")
        with pytest.raises(BadRequestError, match="this Hub discards what it has checked"):
            api.create_commit(REPO, additions({"2.safetensors": content + content}), commit_message="Twice")


def test_store_of_another_format_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = XetStore(tmp_path, REPO)
    shards = tmp_path / REPO / "xet" / "xorbs" / "shards"
    shards.mkdir(parents=True)
    start = b"HFRepoMetaData\0" + bytes(17) + (2).to_bytes(8, "little") + bytes(8)
    for content in (b"something else", start[:32] + (3).to_bytes(8, "little") + bytes(100), start + bytes(10)):
        (shards / "0.mdb").write_bytes(content)
        with pytest.raises(Refusal, match="format this rehearsal Hub does not know"):
            store.files()
