"""Failures on demand, as the stock client meets them."""

import re
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import (
    COMMIT_IN_PROGRESS,
    EXPIRED_ADDRESS,
    EXPIRED_TOKEN,
    QUOTA_REACHED,
    RATE_LIMITED,
    RATE_WINDOW_FULL,
    STAGES,
    UNAVAILABLE,
    Answer,
    Fault,
)
from tests.rehearsal.content import REPO, additions, shard

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that the client would have made; they are not made."""
    waits: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)
    return waits


def publish(api: HfApi, tmp_path: Path) -> str:
    """The id of the commit by which one large and one small file were published."""
    file = tmp_path / "m.safetensors"
    file.write_bytes(shard(1))
    operations = [CommitOperationAdd("m.safetensors", file), *additions({"a.txt": b"a"})]
    return str(api.create_commit(REPO, operations, commit_message="Publish").oid)


@pytest.mark.parametrize("stage", ["preupload", "batch", "put", "verify"])
@pytest.mark.parametrize("answer", [RATE_LIMITED, RATE_WINDOW_FULL, UNAVAILABLE, Answer(500), Answer(502), Answer(504)])
def test_the_client_gets_over_what_may_be_repeated(
    hub: RehearsalHub, api: HfApi, tmp_path: Path, patience: list[float], stage: str, answer: Answer
) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault(stage, answer=answer, times=2))
    oid = publish(api, tmp_path)
    assert api.list_repo_commits(REPO)[0].commit_id == oid
    assert hub.faults.calls[stage] == 3
    assert patience == ([2, 2] if answer.status == 429 else [1, 2])


@pytest.mark.parametrize("nbytes", [0, 1000, 100_000])
def test_put_that_is_reset_is_sent_again_from_its_start(
    hub: RehearsalHub, api: HfApi, tmp_path: Path, nbytes: int
) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault("put", "reset", nbytes=nbytes, times=3))
    publish(api, tmp_path)
    assert hub.faults.calls["put"] == 4
    assert Path(api.hf_hub_download(REPO, "m.safetensors")).read_bytes() == shard(1)


@pytest.mark.parametrize(
    ("stage", "answer", "status"),
    [
        ("preupload", QUOTA_REACHED, 403),
        ("batch", QUOTA_REACHED, 403),
        ("commit", QUOTA_REACHED, 403),
        ("commit", COMMIT_IN_PROGRESS, 409),
        ("commit", Answer(500), 500),
        ("preupload", EXPIRED_TOKEN, 401),
    ],
)
def test_what_is_not_repeated_reaches_the_caller_with_its_reason(
    hub: RehearsalHub, api: HfApi, tmp_path: Path, stage: str, answer: Answer, status: int
) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault(stage, answer=answer))
    with pytest.raises(HfHubHTTPError, match=re.escape(answer.message)) as failed:
        publish(api, tmp_path)
    assert failed.value.response.status_code == status
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["initial commit"]
    publish(api, tmp_path)


def test_expired_upload_address_ends_the_upload(hub: RehearsalHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault("put", answer=EXPIRED_ADDRESS))
    with pytest.raises(RuntimeError, match="Error while uploading") as failed:
        publish(api, tmp_path)
    assert "Request has expired" in str(failed.value.__cause__)
    publish(api, tmp_path)


def test_joining_parts_may_be_asked_for_again(hub: RehearsalHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault("complete", "reset-after"), Fault("put", "reset", nbytes=1000, skip=1))
    file = tmp_path / "m.safetensors"
    file.write_bytes(shard(1, rows=1500))
    api.upload_file(path_or_fileobj=file, path_in_repo="m.safetensors", repo_id=REPO)
    assert hub.faults.calls["complete"] == 2
    assert Path(api.hf_hub_download(REPO, "m.safetensors")).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("effect", ["reset-after", "answer-after"])
def test_commit_may_have_landed_though_its_answer_was_lost(
    hub: RehearsalHub, api: HfApi, tmp_path: Path, effect: str
) -> None:
    api.create_repo(REPO)
    hub.faults.add(Fault("commit", "reset-after" if effect == "reset-after" else "answer-after"))
    with pytest.raises((HfHubHTTPError, httpx2.TransportError)):
        publish(api, tmp_path)
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["Publish", "initial commit"]


def test_download_that_is_cut_off_is_gone_on_with(hub: RehearsalHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    publish(api, tmp_path)
    hub.faults.add(Fault("resolve", "cut", nbytes=50_000, skip=1))
    assert Path(api.hf_hub_download(REPO, "m.safetensors")).read_bytes() == shard(1)
    assert hub.faults.calls["resolve"] == 3


def test_hang_lasts_until_the_client_gives_up(hub: RehearsalHub) -> None:
    hub.faults.add(Fault("whoami", "hang"))
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(f"{hub.endpoint}/api/whoami-v2", timeout=0.2)
    assert httpx2.get(f"{hub.endpoint}/api/whoami-v2", timeout=30).status_code == 401


def test_faults_strike_at_the_chosen_call_only(hub: RehearsalHub, api: HfApi) -> None:
    hub.faults.add(Fault("whoami", answer=Answer(400, "third"), skip=2))
    assert [api.whoami()["name"] for _ in range(2)] == ["rehearsal", "rehearsal"]
    with pytest.raises(HfHubHTTPError, match="third"):
        api.whoami()
    api.whoami()


def test_faults_are_added_over_http_by_the_owner_only(hub: RehearsalHub, api: HfApi, http: httpx2.Client) -> None:
    fault = {"stage": "whoami", "effect": "answer", "answer": {"status": 400, "message": "not today"}}
    assert http.post("/rehearsal/faults", json=[fault]).json()["faults"][0]["struck"] == 0
    with pytest.raises(HfHubHTTPError, match="not today"):
        api.whoami()
    state = http.get("/rehearsal/faults").json()
    assert state["faults"][0]["struck"] == 1 and state["calls"]["whoami"] == 1
    assert http.post("/rehearsal/faults", json=[{"stage": "nowhere"}]).status_code == 400
    assert http.delete("/rehearsal/faults").json() == {"faults": [], "calls": {}}
    hub.accounts.add_user("ann")
    other = {"authorization": f"Bearer {hub.accounts.add_token('ann', 'write')}"}
    assert httpx2.post(f"{hub.endpoint}/rehearsal/faults", json=[fault], headers=other).status_code == 403
    assert httpx2.post(f"{hub.endpoint}/rehearsal/faults", json=[fault]).status_code == 401


def test_every_stage_of_a_publication_is_known(hub: RehearsalHub, api: HfApi, tmp_path: Path) -> None:
    api.whoami()
    api.create_repo(REPO)
    operations = additions({"README.md": b"---\nlicense: mit\n---\n", "m.safetensors": shard(1, rows=800)})
    api.create_commit(REPO, operations, commit_message="All")
    api.update_repo_settings(REPO, private=True)
    api.auth_check(REPO)
    api.create_branch(REPO, branch="b")
    api.create_tag(REPO, tag="t")
    api.list_repo_refs(REPO)
    api.list_repo_commits(REPO)
    api.create_discussion(REPO, "Title")
    api.get_paths_info(REPO, "m.safetensors")
    api.snapshot_download(REPO, local_dir=tmp_path / "read")
    assert list(api.list_collections(owner="someone")) == []
    assert set(STAGES) - set(hub.faults.calls) == {"xet-token", "xet-store"}
