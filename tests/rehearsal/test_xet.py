"""The default path of the stock client: contents go through hf_xet."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hf_xet  # type: ignore[import-untyped]  # it has no types
import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import BadRequestError

from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import EXPIRED_TOKEN, QUOTA_REACHED, Answer, Fault
from hubtool.rehearsal.wire import Refusal
from hubtool.rehearsal.xet import INDEX_FILE, XetStore
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
        assert kept < 1_300_000 < len(shard(1, rows=2000))


@pytest.mark.parametrize("answer", [EXPIRED_TOKEN, QUOTA_REACHED])
def test_refused_xet_token_ends_the_upload_and_leaves_the_repo_as_it_was(
    api: HfApi, hub: RehearsalHub, answer: Answer
) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault("xet-token", answer=answer))
    operations = additions({"a.safetensors": shard(9)})
    with pytest.raises((ConnectionError, PermissionError)):
        api.create_commit(REPO, operations, commit_message="Refused")
    assert hub.faults.calls["xet-token"] == 1 and hub.faults.calls["commit"] == 0
    api.create_commit(REPO, operations, commit_message="Taken")
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["Taken", "initial commit"]


def test_commit_through_xet_may_have_landed_though_its_answer_was_lost(api: HfApi, hub: RehearsalHub) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault("commit", "reset-after"))
    with pytest.raises(httpx2.TransportError):
        api.create_commit(REPO, additions({"a.safetensors": shard(9)}), commit_message="Landed")
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["Landed", "initial commit"]


def test_repo_that_is_made_again_knows_nothing_of_the_deleted_one(api: HfApi) -> None:
    operations = {"a.safetensors": shard(9)}
    for _ in range(2):
        api.create_repo(REPO)
        assert api.model_info(REPO).used_storage == 0
        api.create_commit(REPO, additions(operations), commit_message="Publish")
        assert api.model_info(REPO).used_storage == len(shard(9))
        api.delete_repo(REPO)


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


def test_stream_without_a_local_file_is_committed(api: HfApi, hub: RehearsalHub) -> None:
    api.create_repo(REPO)
    content = shard(8, rows=1500)
    address = f"{hub.endpoint}/api/models/{REPO}/xet-write-token/main"
    headers = {"authorization": f"Bearer {hub.token}"}
    with hf_xet.XetSession().new_upload_commit(token_refresh_url=address, token_refresh_headers=headers) as upload:
        stream = upload.start_upload_stream(sha256=hf_xet.COMPUTE_SHA256)
        for start in range(0, len(content), 100_000):
            stream.write(content[start : start + 100_000])
        info = stream.finish()
    lines = [
        {"key": "header", "value": {"summary": "Streamed"}},
        {"key": "lfsFile", "value": {"path": "m.safetensors", "oid": info.xet_info.sha256, "size": len(content)}},
    ]
    body = "\n".join(json.dumps(line) for line in lines)
    answer = httpx2.post(f"{hub.endpoint}/api/models/{REPO}/commit/main", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert Path(api.hf_hub_download(REPO, "m.safetensors")).read_bytes() == content


HALF_MADE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda whole: whole[: len(whole) // 2],
    "its header alone": lambda whole: whole[:320],
    "not closed": lambda whole: whole[:9] + bytes([whole[9] | 2]) + whole[10:],
    "never written": lambda whole: bytes(len(whole)),
}
"""What a killed client may leave of xet's index."""


@pytest.mark.parametrize("name", HALF_MADE)
def test_index_that_a_killed_client_left_half_made_is_made_again(
    name: str, api: HfApi, hub: RehearsalHub, tmp_path: Path
) -> None:
    index = _made_index(tmp_path)
    api.create_repo(REPO)
    beside = hub.data / "xet" / REPO / "xet" / "xorbs" / INDEX_FILE
    beside.parent.mkdir(parents=True)
    beside.write_bytes(HALF_MADE[name](index))
    content = shard(5)
    api.create_commit(REPO, additions({"a.safetensors": content}), commit_message="Through xet")
    assert Path(api.hf_hub_download(REPO, "a.safetensors", local_dir=tmp_path / "read")).read_bytes() == content


def test_index_of_a_client_at_work_is_left_to_it(tmp_path: Path) -> None:
    store = XetStore(tmp_path, REPO)
    index = store.folder / "xet" / "xorbs" / INDEX_FILE
    index.parent.mkdir(parents=True)
    index.write_bytes(b"half")
    with index.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not store.renew_index() and index.is_file()
    assert store.renew_index() and not index.exists()
    assert not store.renew_index()


def _made_index(folder: Path) -> bytes:
    """An index as hf_xet leaves it when it ends."""
    script = "import sys, hf_xet; hf_xet.XetSession().new_upload_commit(endpoint=sys.argv[1]).wait_to_finish()"
    command = [sys.executable, "-c", script, f"local://{folder / 'store'}"]
    subprocess.run(command, check=True, env=os.environ | {"HF_HOME": str(folder / "home")})
    return next((folder / "store").rglob(INDEX_FILE)).read_bytes()
