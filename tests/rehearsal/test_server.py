"""The server itself: where it listens, who it listens to, what it refuses, and that its state survives it."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hubtool.errors import HubError
from hubtool.rehearsal import RehearsalHub
from tests.rehearsal.content import REPO, additions, shard

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    """The HTTP status behind the client's exception."""
    return int(error.value.response.status_code)


def test_state_survives_a_restart(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "data") as hub:
        api, token = HfApi(endpoint=hub.endpoint, token=hub.token), hub.token
        api.create_repo(REPO, private=True)
        commit = api.create_commit(REPO, additions({"m.safetensors": shard(1), "a.txt": b"a"}), commit_message="One")
        api.create_tag(REPO, tag="v1")
    with RehearsalHub(tmp_path / "data") as hub:
        api = HfApi(endpoint=hub.endpoint, token=token)
        assert api.model_info(REPO, revision="v1").sha == commit.oid
        assert api.model_info(REPO).private is True
        assert Path(api.hf_hub_download(REPO, "m.safetensors")).read_bytes() == shard(1)
        assert [item.title for item in api.list_repo_commits(REPO)] == ["One", "initial commit"]


def test_killed_server_goes_on_where_it_was(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hubtool.rehearsal import serve\n"
        "serve(Path(sys.argv[1]), 0, ready=lambda hub: print(hub.endpoint, hub.token, flush=True))"
    )

    def start() -> tuple["subprocess.Popen[str]", HfApi]:
        command = [sys.executable, "-c", code, str(tmp_path / "data")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."})
        assert process.stdout is not None
        endpoint, token = process.stdout.readline().split()
        return process, HfApi(endpoint=endpoint, token=token)

    process, api = start()
    api.create_repo(REPO)
    commit = api.create_commit(REPO, additions({"m.safetensors": shard(1)}), commit_message="One")
    process.kill()
    process.communicate()
    process, api = start()
    assert api.model_info(REPO).sha == commit.oid
    assert Path(api.hf_hub_download(REPO, "m.safetensors")).read_bytes() == shard(1)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode != 0, "the interrupt is passed on to whoever started the server"


def test_second_hub_on_the_same_folder_or_port_is_refused(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "data") as hub:
        with pytest.raises(HubError, match="another rehearsal Hub uses this folder"), RehearsalHub(tmp_path / "data"):
            pass
        port = int(hub.endpoint.rsplit(":", 1)[1])
        with pytest.raises(HubError, match=rf"127.0.0.1:{port}: cannot listen"), RehearsalHub(tmp_path / "b", port):
            pass
    with RehearsalHub(tmp_path / "data", port):
        pass


def test_server_stops_when_its_block_raises(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RehearsalHub(tmp_path / "data") as hub:
        raise ZeroDivisionError
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(hub.endpoint)


def test_token_is_readable_by_its_owner_only(hub: RehearsalHub) -> None:
    for name in ("token", "secret", "accounts.json"):
        assert (hub.data / name).stat().st_mode & 0o077 == 0, name
    assert hub.token not in (hub.data / "accounts.json").read_text()


def test_whoami_says_who_and_with_which_rights(hub: RehearsalHub) -> None:
    accounts = hub.hub.accounts
    accounts.add_user("ann")
    accounts.add_org("lab", {"ann": "write"})
    me = HfApi(endpoint=hub.endpoint, token=accounts.add_token("ann", "read")).whoami()
    assert me["name"] == "ann" and me["auth"]["accessToken"]["role"] == "read"
    assert [(org["name"], org["roleInOrg"]) for org in me["orgs"]] == [("lab", "write")]


def test_writes_need_a_token_with_the_right(hub: RehearsalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    accounts = hub.hub.accounts
    accounts.add_user("ann")
    accounts.add_org("lab", {"ann": "write"})
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    reader = HfApi(endpoint=hub.endpoint, token=accounts.add_token("ann", "read"))
    writer = HfApi(endpoint=hub.endpoint, token=accounts.add_token("ann", "write"))
    for client, status in ((nobody, 401), (reader, 403), (writer, 403)):
        with pytest.raises(HfHubHTTPError) as refused:
            client.create_commit(REPO, additions({"a.txt": b"a"}), commit_message="Not mine")
        assert status_of(refused) == status
        with pytest.raises(HfHubHTTPError) as refused:
            client.auth_check(REPO, write=True)
        assert status_of(refused) == status
    writer.create_repo("lab/model")
    writer.create_repo("ann/model")
    writer.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id="lab/model")
    with pytest.raises(HfHubHTTPError) as refused:
        writer.create_repo("other/model")
    assert status_of(refused) == 403
    accounts.revoke(str(writer.token))
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        writer.model_info(REPO)
    assert status_of(refused) == 401


def test_private_repo_does_not_exist_for_others(hub: RehearsalHub, api: HfApi) -> None:
    api.create_repo(REPO, private=True)
    hub.hub.accounts.add_user("ann")
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    other = HfApi(endpoint=hub.endpoint, token=hub.hub.accounts.add_token("ann", "write"))
    for client, status in ((nobody, 401), (other, 404)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            client.model_info(REPO)
        assert status_of(refused) == status
        with pytest.raises(RepositoryNotFoundError):
            client.hf_hub_download(REPO, ".gitattributes")
        with pytest.raises(RepositoryNotFoundError):
            client.create_commit(REPO, additions({"a.txt": b"a"}), commit_message="Not mine")
    api.update_repo_settings(REPO, private=False)
    assert nobody.model_info(REPO).private is False


def test_paths_that_leave_the_repo_are_refused(hub: RehearsalHub, api: HfApi, http: httpx2.Client) -> None:
    api.create_repo(REPO)
    for path in ("../outside", "a/../../outside", "/etc/passwd", "a//b", "./a", ".git/config", "a\\b", "a\0b", ""):
        line = {"key": "file", "value": {"path": path, "content": "x", "encoding": "utf-8"}}
        lines = [{"key": "header", "value": {"summary": "Escape"}}, line]
        answer = http.post(f"/api/models/{REPO}/commit/main", content="\n".join(map(json.dumps, lines)))
        assert answer.status_code == 400 and "Invalid path" in answer.json()["error"], path
    for name in ("..", "a/..%2F..", "%2e%2e", ".hidden"):
        answer = http.post("/api/repos/create", json={"name": name, "organization": "someone"})
        assert answer.status_code == 400, name
    (hub.data / "secret.txt").write_text("secret")
    for address in ("/someone/model/resolve/main/../../../../secret.txt", "/..%2F../secret.txt/resolve/main/x"):
        assert raw_request(hub, f"GET {address} HTTP/1.1")[9:12] in (b"401", b"404"), address


def test_oversized_requests_are_refused(api: HfApi, http: httpx2.Client) -> None:
    api.create_repo(REPO)
    answer = http.post("/api/validate-yaml", content=b'{"content": "' + b"a" * 9_000_000 + b'"}')
    assert answer.status_code == 413
    line = b'{"key": "file", "value": {"path": "a", "content": "' + b"a" * (16 << 20)
    assert http.post(f"/api/models/{REPO}/commit/main", content=line).status_code == 413


def test_bodies_that_cannot_be_read_are_refused_with_the_place(http: httpx2.Client) -> None:
    answer = http.post("/api/repos/create", json={"name": 5})
    assert answer.status_code == 400 and "`$.name`" in answer.json()["error"]
    assert http.post("/api/repos/create", content=b"{").status_code == 400


def test_requests_for_another_host_name_are_refused(hub: RehearsalHub) -> None:
    assert httpx2.get(f"{hub.endpoint}/api/whoami-v2", headers={"host": "attacker.example"}).status_code == 400


def test_it_listens_on_loopback_only(hub: RehearsalHub) -> None:
    assert hub.endpoint.startswith("http://127.0.0.1:")
    assert hub._socket.getsockname()[0] == "127.0.0.1"


def test_upload_that_is_cut_off_leaves_nothing(hub: RehearsalHub, api: HfApi, http: httpx2.Client) -> None:
    api.create_repo(REPO)
    content = shard(1)
    objects = [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]
    body = {"operation": "upload", "objects": objects}
    answer = http.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()
    address = answer["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    head = f"PUT {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + content[:1000])
    while list(hub.data.glob("blobs/incoming/*")):
        time.sleep(0.01)
    assert not list(hub.data.glob("blobs/sha256/*/*"))
    assert "actions" in http.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()["objects"][0]


def test_private_quota_is_kept(hub: RehearsalHub, api: HfApi) -> None:
    hub.hub.accounts.add_user("someone", private_quota=200_000)
    api.create_repo(REPO, private=True)
    api.create_commit(REPO, additions({"1.safetensors": shard(1)}), commit_message="Fits")
    with pytest.raises(HfHubHTTPError, match="Private repository storage limit reached") as refused:
        api.create_commit(REPO, additions({"2.safetensors": shard(2)}), commit_message="Does not fit")
    assert status_of(refused) == 403
    api.update_repo_settings(REPO, private=False)
    api.create_commit(REPO, additions({"2.safetensors": shard(2)}), commit_message="Public repos have no such limit")


def test_discarding_hub_keeps_hashes_sizes_and_headers_only(tmp_path: Path) -> None:
    content = shard(5, rows=2000)
    with RehearsalHub(tmp_path / "data", discard=True) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO)
        files = {"model.safetensors": content, "vocabulary.bin": b"\0words" * 100}
        api.create_commit(REPO, additions(files), commit_message="Large")
    with RehearsalHub(tmp_path / "data", discard=True) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert sum(path.stat().st_size for path in hub.data.rglob("*") if path.is_file()) < 150_000
        siblings = {sibling.rfilename: sibling for sibling in api.model_info(REPO, files_metadata=True).siblings or []}
        lfs = siblings["model.safetensors"].lfs
        assert lfs is not None and (lfs.sha256, lfs.size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert api.get_safetensors_metadata(REPO).parameter_count == {"U32": 512_000, "F32": 512_000}
        assert Path(api.hf_hub_download(REPO, "vocabulary.bin")).read_bytes() == files["vocabulary.bin"]
        address = f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors"
        head = httpx2.get(address, headers={"range": "bytes=8-131071"})
        assert head.status_code == 206 and head.content == content[8:131072]
        assert httpx2.get(address, headers={"range": "bytes=8-131072"}).status_code == 410
        assert httpx2.get(address, headers={"range": f"bytes={len(content)}-"}).status_code == 416
        assert httpx2.head(address).headers["content-length"] == str(len(content))


def raw_request(hub: RehearsalHub, line: str) -> bytes:
    """The first bytes of the answer to a request line that no client would send."""
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"{line}\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(100)
