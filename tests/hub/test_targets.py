"""The places that a release goes to: new and existing repos, branches, pull requests, visibility, collections."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from hubtool.errors import HubError, UsageError
from hubtool.hub.client import make_api
from hubtool.hub.destination import Destination
from hubtool.hub.finish import commit_documents
from hubtool.record import RECORD_FILE, encode_record
from hubtool.rehearsal.faults import Answer, Fault
from tests.checkpoints import edit_json, file_bytes
from tests.fixtures import CommandLine, Samples
from tests.publisher import PATHS, REPO, Publisher

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]

PR = Destination(REPO, pull_request=True)
IN_COLLECTION = Destination(REPO, collection="someone/v4-0123456789ab")


@pytest.fixture
def path() -> str:
    """What happens to files before the commit is the same for every target: tests/hub/test_faults.py has both ways."""
    return "xet"


@pytest.fixture
def endpoint(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal Hub as the one that the environment names."""
    monkeypatch.setenv("HF_ENDPOINT", publisher.rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", publisher.rehearsal.token)


def files_at(publisher: Publisher, revision: str = "main") -> set[str]:
    return set(publisher.api.list_repo_files(REPO, revision=revision)) - {".gitattributes"}


def ann(publisher: Publisher) -> HfApi:
    """Someone who may read the repo and propose changes to it."""
    publisher.rehearsal.accounts.add_user("ann")
    token = publisher.rehearsal.accounts.add_token("ann", "write")
    return make_api(publisher.rehearsal.endpoint, token)


def edit_card(folder: Path, remark: str) -> None:
    """Write something where the publisher may."""
    card, mark = folder / "README.md", "<!-- hubtool:prose notes -->\n"
    assert mark in card.read_text()
    card.write_text(card.read_text().replace(mark, f"{mark}{remark}\n"))


def test_new_repo_is_private_unless_it_is_to_be_public(publisher: Publisher) -> None:
    publisher.publish()
    assert publisher.api.model_info(REPO).private
    publisher.publish(Destination("someone/open", private=False))
    assert not publisher.api.model_info("someone/open").private


def test_repo_becomes_public_only_when_it_is_verified(publisher: Publisher) -> None:
    to = Destination(REPO, public_after_verify=True)
    publisher.rehearsal.faults.add(Fault("tree", answer=Answer(403, "No"), skip=1, times=100))
    with pytest.raises(HubError, match="No"):
        publisher.publish(to)
    assert publisher.api.model_info(REPO).private and publisher.commits()
    publisher.rehearsal.faults.clear()
    publisher.publish(to)
    assert not publisher.api.model_info(REPO).private


def test_foreign_files_stay_and_are_named(publisher: Publisher) -> None:
    publisher.api.create_repo(REPO)
    foreign = {"paper.pdf": b"%PDF", "README.md": b"---\nlicense: mit\n---\n", "old.safetensors": b"12345678"}
    publisher.api.create_commit(REPO, [CommitOperationAdd(*item) for item in foreign.items()], commit_message="Mine")
    release = publisher.publish()
    assert (release.uploaded.foreign, release.uploaded.deleted) == (("old.safetensors", "paper.pdf"), ())
    assert files_at(publisher) == {*file_bytes(publisher.folder), "old.safetensors", "paper.pdf"}
    assert Path(publisher.api.hf_hub_download(REPO, "README.md")).read_bytes() != foreign["README.md"]


@pytest.mark.parametrize("path", PATHS)
def test_what_the_repo_ignores_is_published_all_the_same(publisher: Publisher) -> None:
    """The Hub tells the client what `.gitignore` names, and the stock client leaves it out without a word."""
    publisher.api.create_repo(REPO)
    ignore = b"config.json\nLICENSE\nREADME.md\n*.safetensors\ntokenizer*\nbits.png\n"
    publisher.api.create_commit(REPO, [CommitOperationAdd(".gitignore", ignore)], commit_message="Ignore")
    assert publisher.publish().uploaded.foreign == (".gitignore",)
    assert files_at(publisher) == {*file_bytes(publisher.folder), ".gitignore"}
    documents = {"README.md": (publisher.folder / "README.md").read_bytes() + b"More.\n", "assets/bits.png": b"\0PNG"}
    head = publisher.api.model_info(REPO).sha
    assert head is not None
    commit_documents(publisher.api, REPO, documents, head, "Card")
    there = {name: Path(publisher.api.hf_hub_download(REPO, name)).read_bytes() for name in documents}
    assert there == documents


def test_files_of_an_earlier_release_go_in_the_same_commit(publisher: Publisher) -> None:
    publisher.publish()
    earlier = publisher.folder / "hubtool.json"
    gone = {"name": "model-00009-of-00009.safetensors", "sha256": "0" * 64, "nbytes": 8}
    edit_json(earlier, lambda record: record["files"].append(gone))
    additions = [CommitOperationAdd("hubtool.json", earlier), CommitOperationAdd(str(gone["name"]), b"12345678")]
    additions += [CommitOperationAdd("assets/bits.png", b"\x89PNG"), CommitOperationAdd("notes.txt", b"mine")]
    additions += [CommitOperationAdd("assets/logo.png", b"\x89PNG, mine")]
    publisher.api.create_commit(REPO, additions, commit_message="As an earlier hubtool had left it")
    edit_json(earlier, lambda record: record["files"].remove(gone))
    release = publisher.publish()
    assert release.uploaded.deleted == ("assets/bits.png", str(gone["name"]))
    assert release.uploaded.foreign == ("assets/logo.png", "notes.txt")
    assert len(publisher.commits()) == 3
    assert files_at(publisher) == {*file_bytes(publisher.folder), "assets/logo.png", "notes.txt"}


def test_branch_is_made_and_main_stays(publisher: Publisher) -> None:
    to = Destination(REPO, revision="next")
    release = publisher.publish(to)
    assert files_at(publisher) == set()
    assert files_at(publisher, "next") == set(file_bytes(publisher.folder))
    assert not publisher.publish(to).uploaded.changed
    assert release.tag is not None


def test_branch_is_made_although_main_has_every_file(
    publisher: Publisher, endpoint: None, hubtool: CommandLine
) -> None:
    published = publisher.publish().uploaded
    asked = ("upload", publisher.folder, "--to", REPO, "--revision", "next", "--dry-run")
    assert (hubtool(*asked, "--json").document["exists"], hubtool(*asked, "--json").document["made"]) == (True, False)
    assert "branch next (to be made in the repo that is there, private)" in hubtool(*asked).stdout
    assert not publisher.publish(Destination(REPO, revision="next")).uploaded.changed
    branches = {branch.name: branch.target_commit for branch in publisher.api.list_repo_refs(REPO).branches}
    assert branches == {"main": published.commit, "next": published.commit}
    assert "branch next (there, private)" in hubtool(*asked).stdout


@pytest.mark.parametrize("lost", [False, True], ids=["answered", "answer lost"])
def test_pull_request_is_opened_once_by_who_may_only_propose(publisher: Publisher, lost: bool) -> None:
    publisher.api.create_repo(REPO, private=False)
    other = ann(publisher)
    if lost:
        publisher.rehearsal.faults.add(Fault("discussions", "reset-after", skip=1))
    release = publisher.publish(PR, other)
    assert (release.uploaded.pull_request, release.tag) == (1, None)
    assert files_at(publisher) == set()
    assert files_at(publisher, "refs/pr/1") == set(file_bytes(publisher.folder))
    (opened,) = publisher.api.get_repo_discussions(REPO)
    assert (opened.status, opened.author, opened.is_pull_request) == ("open", "ann", True)
    publisher.api.merge_pull_request(REPO, 1)
    assert files_at(publisher) == set(file_bytes(publisher.folder))


@pytest.mark.parametrize("state", ["kept", "lost"])
def test_pull_request_is_gone_on_with_after_a_failure(publisher: Publisher, state: str) -> None:
    publisher.api.create_repo(REPO, private=False)
    other = ann(publisher)
    publisher.rehearsal.faults.add(Fault("commit", answer=Answer(403, "Not now")))
    with pytest.raises(HubError, match="Not now"):
        publisher.publish(PR, other)
    if state == "lost":
        for path in (publisher.folder / ".hubtool" / "hub").iterdir():
            path.unlink()
    assert publisher.publish(PR, other).uploaded.changed
    assert not publisher.publish(PR, other).uploaded.changed
    assert len(list(publisher.api.get_repo_discussions(REPO))) == 1
    assert len(publisher.commits("refs/pr/1")) == 1


@pytest.mark.parametrize("there", ["nothing", "discussion", "pull request of someone else"])
def test_number_of_a_pull_request_on_another_hub_is_not_relied_on(publisher: Publisher, there: str) -> None:
    """Every Hub on loopback has the same state, and so has a repo that was deleted and made anew."""
    publisher.api.create_repo(REPO, private=False)
    other = ann(publisher)
    publisher.publish(PR, other)
    publisher.api.delete_repo(REPO)
    publisher.api.create_repo(REPO, private=False)
    if there == "discussion":
        other.create_discussion(REPO, "A question")
    elif there != "nothing":
        publisher.api.create_pull_request(REPO, "Something else")
    release = publisher.publish(PR, other)
    assert release.uploaded.pull_request == (1 if there == "nothing" else 2)
    assert files_at(publisher, f"refs/pr/{release.uploaded.pull_request}") == set(file_bytes(publisher.folder))
    if there == "pull request of someone else":
        assert publisher.commits("refs/pr/1") == []


def test_merged_pull_request_is_not_opened_again(publisher: Publisher) -> None:
    publisher.api.create_repo(REPO, private=False)
    other = ann(publisher)
    publisher.publish(PR, other)
    publisher.api.merge_pull_request(REPO, 1)
    again = publisher.publish(PR, other)
    assert (again.uploaded.changed, again.tag) == (False, None)
    assert publisher.api.list_repo_refs(REPO).tags == [], "the repo is someone else's"
    assert len(list(publisher.api.get_repo_discussions(REPO))) == 1


def test_closed_pull_request_is_told(publisher: Publisher) -> None:
    publisher.api.create_repo(REPO)
    publisher.publish(PR)
    publisher.api.change_discussion_status(REPO, 1, "closed")
    with pytest.raises(HubError, match="#1: the pull request was closed; reopen it"):
        publisher.publish(PR)
    assert len(list(publisher.api.get_repo_discussions(REPO))) == 1


def test_pull_request_to_a_repo_that_is_not_there_is_refused(publisher: Publisher) -> None:
    with pytest.raises(HubError, match="no such repo"):
        publisher.publish(PR)
    with pytest.raises(RepositoryNotFoundError):
        publisher.api.model_info(REPO)


@pytest.mark.parametrize("other", [Destination(REPO, tag="v1"), Destination(REPO, revision="v1"), IN_COLLECTION])
def test_pull_request_has_no_tag_no_branch_and_no_collection(other: Destination) -> None:
    with pytest.raises(UsageError, match="--pr.*--revision, --tag, .*--collection"):
        replace(other, pull_request=True)


NOT_MINE: dict[str, tuple[str, Literal["read"] | None]] = {
    "user": ("bob", None),
    "reader": ("lab", "read"),
    "stranger": ("lab", None),
    "absent": ("nobody", None),
}


@pytest.mark.parametrize("whose", NOT_MINE)
@pytest.mark.parametrize("option", [(), ("--stream",), ("--pr",), ("--dry-run",)], ids=lambda option: "".join(option))
def test_repo_that_may_not_be_made_is_refused_before_anything_is_converted(
    whose: str,
    option: tuple[str, ...],
    publisher: Publisher,
    endpoint: None,
    sample: Samples,
    hubtool: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    namespace, role = NOT_MINE[whose]
    monkeypatch.setenv("HF_TOKEN", str(ann(publisher).token))
    publisher.rehearsal.accounts.add_user("bob")
    publisher.rehearsal.accounts.add_org("lab", {"ann": role} if role else {})
    to = f"{namespace}/V4"
    arguments = (
        "publish",
        sample("mini"),
        "--recipe",
        "native",
        "--validate",
        "none",
        "--to",
        to,
        "--out",
        tmp_path / "out",
        *option,
    )
    outcome = hubtool(*arguments)
    assert (outcome.code, f"{to}: no such repo" in outcome.stderr) == (1, True), outcome.stderr
    assert publisher.rehearsal.faults.calls["create"] == 0
    assert list((tmp_path / "out").rglob("*.safetensors")) == []


@pytest.mark.parametrize("role", ["write", "admin"])
def test_repo_is_made_in_an_organization_of_mine(publisher: Publisher, role: Literal["write", "admin"]) -> None:
    other = ann(publisher)
    publisher.rehearsal.accounts.add_org("lab", {"ann": role})
    assert publisher.publish(Destination("lab/V4"), other).uploaded.changed
    assert publisher.publish(Destination("ann/V4"), other).uploaded.changed


def test_pull_request_has_no_tag_and_no_branch() -> None:
    with pytest.raises(UsageError, match="--pr"):
        Destination(REPO, pull_request=True, tag="v1")


def test_repo_is_added_to_the_collection_once(publisher: Publisher) -> None:
    slug = publisher.api.create_collection("V4", namespace="someone").slug
    for _ in range(2):
        publisher.publish(Destination(REPO, collection=slug))
    assert [item.item_id for item in publisher.api.get_collection(slug).items] == [REPO]


def test_dry_run_says_what_would_be_done_and_does_nothing(
    publisher: Publisher, endpoint: None, hubtool: CommandLine
) -> None:
    told = hubtool("upload", publisher.folder, "--to", REPO, "--dry-run", "--json")
    assert (told.code, told.document["exists"], told.document["head"]) == (0, False, None)
    assert set(told.document["send"]) == set(file_bytes(publisher.folder))
    assert not publisher.api.repo_exists(REPO)
    text = hubtool("upload", publisher.folder, "--to", REPO, "--revision", "next", "--dry-run").stdout
    assert f"{REPO}, branch next (to be made, private)" in text and "nothing was written" in text


def test_upload_command_tells_tag_and_pull_request(publisher: Publisher, endpoint: None, hubtool: CommandLine) -> None:
    first = hubtool("upload", publisher.folder, "--to", REPO, "--tag", "v1", "--public", "--json")
    assert (first.code, first.document["tag"], first.document["verified"]) == (0, "v1", True)
    assert not publisher.api.model_info(REPO).private
    edit_card(publisher.folder, "A remark.")
    second = hubtool("upload", publisher.folder, "--to", REPO, "--pr", "--json")
    assert (second.code, second.document["pull_request"]) == (0, 1), second.stderr


@pytest.mark.filterwarnings("default::UserWarning")
def test_warning_of_the_stock_client_is_a_json_line_too(
    publisher: Publisher, endpoint: None, hubtool: CommandLine
) -> None:
    publisher.publish()
    source = msgspec.structs.replace(publisher.record.source, metadata={"license": "other"})
    record = msgspec.structs.replace(publisher.record, source=source)
    (publisher.folder / RECORD_FILE).write_bytes(encode_record(record))
    assert hubtool("card", publisher.folder).code == 0
    done = hubtool("upload", publisher.folder, "--to", REPO, "--json")
    assert done.code == 0, done.stderr
    said = [json.loads(line).get("say", "") for line in done.stderr.splitlines()]
    assert any("should come with" in each for each in said), said


def test_publish_foretells_before_anything_is_converted(
    publisher: Publisher, endpoint: None, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("publish", sample("mini"), "--recipe", "native", "--validate", "none", "--to", REPO, "--out", out)
    told = hubtool(*arguments, "--dry-run", "--json")
    assert (told.code, told.document["converted"], told.document["exists"]) == (0, False, False), told.stderr
    assert {"model-00001-of-00001.safetensors", "tokenizer.json", "README.md"} <= set(told.document["send"])
    assert not out.exists() and not publisher.api.repo_exists(REPO)
    done = hubtool(*arguments, "--public-after-verify", "--tag", "v1", "--json")
    assert (done.code, done.document["tag"], done.document["uploaded_nbytes"] > told.document["nbytes"]) == (
        0,
        "v1",
        True,
    )
    assert not publisher.api.model_info(REPO).private
    again = hubtool(*arguments, "--dry-run", "--json")
    assert (again.document["converted"], again.document["send"]) == (True, [])


def test_publish_proposes_to_a_repo_of_someone_else(
    publisher: Publisher,
    endpoint: None,
    sample: Samples,
    hubtool: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher.api.create_repo(REPO, private=False)
    monkeypatch.setenv("HF_TOKEN", str(ann(publisher).token))
    arguments = (
        "publish",
        sample("mini"),
        "--recipe",
        "native",
        "--validate",
        "none",
        "--to",
        REPO,
        "--out",
        tmp_path / "out",
    )
    refused = hubtool(*arguments)
    assert (refused.code, "take a token that has this right" in refused.stderr) == (1, True)
    assert not (tmp_path / "out").exists(), "nothing is converted that could not be published"
    done = hubtool(*arguments, "--pr", "--json")
    assert (done.code, done.document["pull_request"], done.document["tag"]) == (0, 1, None), done.stderr
