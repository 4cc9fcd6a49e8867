"""Pull requests and discussions through the stock client."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationDelete, DiscussionComment, HfApi
from huggingface_hub.community import DiscussionCommit, DiscussionStatusChange
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from hubtool.rehearsal import RehearsalHub
from tests.rehearsal.content import REPO, additions, shard

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def guest(hub: RehearsalHub, api: HfApi) -> HfApi:
    """The client of a user who may read the repo, but not write to it."""
    api.create_repo(REPO)
    api.create_commit(REPO, additions({"a.txt": b"a", "b.txt": b"b"}), commit_message="Start")
    hub.accounts.add_user("guest")
    return HfApi(endpoint=hub.endpoint, token=hub.accounts.add_token("guest", "write"))


def test_commit_as_a_pull_request_changes_nothing_until_it_is_merged(api: HfApi, guest: HfApi) -> None:
    files = {"m.safetensors": shard(1), "a.txt": b"changed"}
    info = guest.create_commit(REPO, additions(files), commit_message="Better", create_pr=True)
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert not api.file_exists(REPO, "m.safetensors")
    assert api.model_info(REPO, revision="refs/pr/1").sha == info.oid
    details = api.get_discussion_details(REPO, 1)
    assert (details.title, details.status, details.author, details.is_pull_request) == ("Better", "open", "guest", True)
    assert details.target_branch == "refs/heads/main" and details.conflicting_files == []
    assert details.diff == "M\ta.txt\nA\tm.safetensors\n"
    with pytest.raises(HfHubHTTPError) as refused:
        guest.merge_pull_request(REPO, 1)
    assert refused.value.response.status_code == 403
    api.merge_pull_request(REPO, 1)
    assert Path(api.hf_hub_download(REPO, "m.safetensors")).read_bytes() == files["m.safetensors"]
    assert Path(api.hf_hub_download(REPO, "b.txt")).read_bytes() == b"b"
    details = api.get_discussion_details(REPO, 1)
    assert details.status == "merged" and details.merge_commit_oid == api.list_repo_commits(REPO)[0].commit_id
    assert isinstance(details.events[-1], DiscussionStatusChange)


def test_pull_request_is_gone_on_with_by_naming_its_revision(api: HfApi, guest: HfApi) -> None:
    request = guest.create_pull_request(REPO, "In two commits")
    assert request.status == "draft" and request.git_reference == "refs/pr/1"
    for name in ("c.txt", "d.txt"):
        guest.create_commit(REPO, additions({name: b"new"}), commit_message=f"Add {name}", revision="refs/pr/1")
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert refs.pull_requests is not None and [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    events = api.get_discussion_details(REPO, 1).events
    assert [event.summary for event in events if isinstance(event, DiscussionCommit)] == ["Add c.txt", "Add d.txt"]
    assert len(list(api.get_repo_discussions(REPO, discussion_type="pull_request", discussion_status="open"))) == 1
    assert list(api.get_repo_discussions(REPO, author="nobody")) == []


def test_others_may_not_write_to_main_or_to_a_foreign_pull_request(hub: RehearsalHub, api: HfApi, guest: HfApi) -> None:
    api.create_pull_request(REPO, "The owner's")
    for revision in ("main", "refs/pr/1"):
        with pytest.raises(HfHubHTTPError) as refused:
            guest.create_commit(REPO, additions({"c.txt": b"c"}), commit_message="No", revision=revision)
        assert refused.value.response.status_code == 403
    reader = HfApi(endpoint=hub.endpoint, token=hub.accounts.add_token("guest", "read"))
    with pytest.raises(HfHubHTTPError) as refused:
        reader.create_commit(REPO, additions({"c.txt": b"c"}), commit_message="No", create_pr=True)
    assert refused.value.response.status_code == 403


def test_conflicts_are_named_and_not_merged(api: HfApi, guest: HfApi) -> None:
    guest.create_commit(REPO, additions({"a.txt": b"theirs"}), commit_message="Theirs", create_pr=True)
    api.create_commit(REPO, [CommitOperationDelete("a.txt")], commit_message="Ours")
    assert api.get_discussion_details(REPO, 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match="conflicts in a.txt"):
        api.merge_pull_request(REPO, 1)
    api.change_discussion_status(REPO, 1, "closed", comment="Not now")
    with pytest.raises(BadRequestError, match="is closed"):
        guest.create_commit(REPO, additions({"c.txt": b"c"}), commit_message="Late", revision="refs/pr/1")


def test_discussions_are_kept_over_a_restart(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "data") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO)
        num = api.create_discussion(REPO, "A question", description="Why?").num
        api.comment_discussion(REPO, num, "Because")
        api.rename_discussion(REPO, num, "An answered question")
        with pytest.raises(BadRequestError, match="3 to 200 characters"):
            api.create_discussion(REPO, "ab")
    with RehearsalHub(tmp_path / "data") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        details = api.get_discussion_details(REPO, num)
        assert details.title == "An answered question"
        comments = [event.content for event in details.events if isinstance(event, DiscussionComment)]
        assert comments == ["Why?", "Because"]
