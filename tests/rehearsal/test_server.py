"""The server itself: where it listens, who it listens to, what it refuses, and that its state survives it."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

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


def test_state_that_cannot_be_read_is_an_error_that_says_where(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "data") as hub:
        HfApi(endpoint=hub.endpoint, token=hub.token).create_repo(REPO)
    (tmp_path / "data" / "repos" / REPO / "refs.json").write_text('{"refs/heads/main": 5}')
    with pytest.raises(HubError, match="state cannot be read.*another folder"), RehearsalHub(tmp_path / "data"):
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
    accounts = hub.accounts
    accounts.add_user("ann")
    accounts.add_org("lab", {"ann": "write"})
    me = HfApi(endpoint=hub.endpoint, token=accounts.add_token("ann", "read")).whoami()
    assert me["name"] == "ann" and me["auth"]["accessToken"]["role"] == "read"
    assert [(org["name"], org["roleInOrg"]) for org in me["orgs"]] == [("lab", "write")]


def test_writes_need_a_token_with_the_right(hub: RehearsalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    accounts = hub.accounts
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
    hub.accounts.add_user("ann")
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    other = HfApi(endpoint=hub.endpoint, token=hub.accounts.add_token("ann", "write"))
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
    port = int(hub.endpoint.rsplit(":", 1)[1])
    listening = [each.laddr for each in psutil.Process().net_connections() if each.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]


def test_upload_that_is_cut_off_leaves_nothing(
    hub: RehearsalHub, api: HfApi, http: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert caplog.messages == []
    assert "actions" in http.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()["objects"][0]


def test_private_quota_is_kept(hub: RehearsalHub, api: HfApi) -> None:
    hub.accounts.add_user("someone", private_quota=200_000)
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
        assert sum(path.stat().st_size for path in hub.data.rglob("*") if path.is_file()) < 600_000
        siblings = {sibling.rfilename: sibling for sibling in api.model_info(REPO, files_metadata=True).siblings or []}
        lfs = siblings["model.safetensors"].lfs
        assert lfs is not None and (lfs.sha256, lfs.size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert api.get_safetensors_metadata(REPO).parameter_count == {"U32": 512_000, "F32": 512_000}
        assert Path(api.hf_hub_download(REPO, "vocabulary.bin")).read_bytes() == files["vocabulary.bin"]
        address = f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors"
        head = httpx2.get(address, headers={"range": "bytes=8-524287"})
        assert head.status_code == 206 and head.content == content[8:524288]
        assert httpx2.get(address, headers={"range": "bytes=8-524288"}).status_code == 410
        assert httpx2.get(address, headers={"range": f"bytes={len(content)}-"}).status_code == 416
        assert httpx2.head(address).headers["content-length"] == str(len(content))


def raw_request(hub: RehearsalHub, line: str) -> bytes:
    """The first bytes of the answer to a request line that no client would send."""
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"{line}\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(100)


def test_gated_files_are_for_members_only(hub: RehearsalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    api.update_repo_settings(REPO, gated="manual")
    hub.accounts.add_user("ann")
    ann = HfApi(endpoint=hub.endpoint, token=hub.accounts.add_token("ann", "write"))
    assert ann.model_info(REPO).gated == "manual"
    for client in (ann, HfApi(endpoint=hub.endpoint, token=False)):
        with pytest.raises(GatedRepoError):
            client.hf_hub_download(REPO, ".gitattributes")
    assert Path(api.hf_hub_download(REPO, ".gitattributes")).is_file()


def test_models_are_listed_for_those_who_may_see_them(hub: RehearsalHub, api: HfApi) -> None:
    for name in ("someone/a", "someone/b", "other/a"):
        api.create_repo(name, private=name == "someone/b")
    assert {model.id for model in api.list_models(author="someone")} == {"someone/a", "someone/b"}
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    assert {model.id for model in nobody.list_models(search="/A")} == {"someone/a", "other/a"}
    assert [model.id for model in nobody.list_models(author="someone")] == ["someone/a"]


def test_password_of_a_browser_changes_nothing(hub: RehearsalHub, api: HfApi) -> None:
    body = {"name": "model", "organization": "someone"}
    refused = httpx2.post(f"{hub.endpoint}/api/repos/create", json=body, auth=("anyone", hub.token))
    assert refused.status_code == 401 and not api.repo_exists("someone/model")


def test_of_two_commits_on_one_parent_one_is_refused(hub: RehearsalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    parent = api.model_info(REPO).sha

    def commit(number: int) -> int:
        try:
            api.create_commit(REPO, additions({"n.txt": b"%d" % number}), commit_message="N", parent_commit=parent)
        except HfHubHTTPError as error:
            return int(error.response.status_code)
        return 200

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(commit, range(8)))
    assert statuses == [200] + [412] * 7
    assert len(api.list_repo_commits(REPO)) == 2


@pytest.mark.parametrize("xet", ["on", "off"])
def test_unmodified_client_in_a_process_of_its_own_publishes(hub: RehearsalHub, tmp_path: Path, xet: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "m.safetensors").write_bytes(shard(1, rows=900))
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\n")
    code = (
        "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo(sys.argv[1])\n"
        "api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])\n"
        "print(api.verify_repo_checksums(sys.argv[1], local_dir=sys.argv[2]).checked_count)"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        **{"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "home")},
        **({"HF_HUB_DISABLE_XET": "1"} if xet == "off" else {}),
    }
    command = [sys.executable, "-c", code, REPO, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
    assert (hub.data / "xet" / REPO / "xet").is_dir() == (xet == "on")


def test_accounts_are_made_over_http_by_the_owner_only(hub: RehearsalHub, http: httpx2.Client) -> None:
    body = {
        "users": [{"name": "ann", "private_quota": 1000}],
        "orgs": [{"name": "lab", "members": {"ann": "admin"}}],
        "tokens": [{"user": "ann", "role": "write"}, {"user": "ann", "role": "read"}],
    }
    writer, reader = http.post("/rehearsal/accounts", json=body).json()["tokens"]
    HfApi(endpoint=hub.endpoint, token=writer).create_repo("lab/model")
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(endpoint=hub.endpoint, token=reader).create_repo("lab/other")
    assert status_of(refused) == 403
    others = {"authorization": f"Bearer {writer}"}
    assert httpx2.post(f"{hub.endpoint}/rehearsal/accounts", json={}, headers=others).status_code == 403
    assert http.post("/rehearsal/accounts", json={"tokens": [{"user": "bob", "role": "read"}]}).status_code == 404
    assert http.post("/rehearsal/accounts", json={"users": [{"name": "x", "private_quota": -1}]}).status_code == 400


def test_owner_belongs_to_every_namespace(hub: RehearsalHub, api: HfApi) -> None:
    hub.accounts.add_org("lab", {})
    api.create_repo(REPO)
    assert {org["name"] for org in api.whoami()["orgs"]} == {"lab", "someone"}


def test_half_made_and_half_deleted_repos_are_gone_after_a_restart(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "data") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO)
        shutil.copytree(hub.data / "repos" / REPO, hub.data / "repos" / "someone" / ".half.0123")
        api.create_repo("someone/deleted")
        api.delete_repo("someone/deleted")
        assert [path.name for path in (hub.data / "repos" / "someone").iterdir()].count("deleted") == 0
    with RehearsalHub(tmp_path / "data") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert [model.id for model in api.list_models()] == [REPO]
        assert [path.name for path in (hub.data / "repos" / "someone").iterdir()] == ["model"]
