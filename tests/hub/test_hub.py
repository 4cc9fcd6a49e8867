"""Publishing with the stock client to a rehearsal Hub: one commit, verified, and read back."""

import json
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from hubtool.errors import HubError, OutputError, VerificationError
from hubtool.hub.client import make_api
from hubtool.hub.destination import Destination
from hubtool.hub.patience import PatientHub
from hubtool.hub.reader import read_hub_record
from hubtool.hub.upload import Uploaded
from hubtool.hub.verify import verify
from hubtool.record import Record, read_record
from hubtool.rehearsal import RehearsalHub
from tests.checkpoints import copied, edit_json, file_bytes
from tests.fixtures import Conversion, Conversions, Counting
from tests.publisher import upload

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "someone/DeepSeek-V4-sample-mixed_3_6"
TO = Destination(REPO)


@pytest.fixture
def made(converted: Conversions, tmp_path: Path) -> Conversion:
    """A finished folder to publish, and perhaps to change."""
    original = converted("mini", "mixed_3_6")
    folder = copied(original.folder, tmp_path / "made")
    return Conversion(original.source, folder, original.plan, original.record)


@pytest.fixture
def published(hub_api: HfApi, made: Conversion) -> Uploaded:
    """What was published of it."""
    return upload(hub_api, made.folder, made.record, TO)


def test_everything_is_published_in_one_commit(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    assert published.changed
    assert published.files == len(file_bytes(made.folder))
    assert published.nbytes == sum((made.folder / name).stat().st_size for name in file_bytes(made.folder))
    initial, commit = reversed(hub_api.list_repo_commits(REPO))
    assert commit.commit_id == published.commit
    assert set(hub_api.list_repo_files(REPO)) == {*file_bytes(made.folder), ".gitattributes"}
    assert set(hub_api.list_repo_files(REPO, revision=initial.commit_id)) == {".gitattributes"}


def test_new_repo_is_private_unless_it_is_to_be_public(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    assert hub_api.model_info(REPO).private
    upload(hub_api, made.folder, made.record, Destination("someone/public", private=False))
    assert not hub_api.model_info("someone/public").private


def test_progress_is_told_for_every_file(hub_api: HfApi, made: Conversion) -> None:
    watch = Counting()
    upload(hub_api, made.folder, made.record, TO, watch)
    sizes = {name: (made.folder / name).stat().st_size for name in file_bytes(made.folder)}
    assert watch.counted("send") == sizes
    assert watch.stages == [("send", sum(sizes.values())), ("commit", 0)]


def test_stock_client_reads_the_repo_back(
    hub_api: HfApi, made: Conversion, published: Uploaded, tmp_path: Path
) -> None:
    snapshot = Path(snapshot_download(REPO, endpoint=hub_api.endpoint, token=hub_api.token))
    there = {name: sha256 for name, sha256 in file_bytes(snapshot).items() if name != ".gitattributes"}
    assert there == file_bytes(made.folder)
    assert hub_api.verify_repo_checksums(REPO, local_dir=made.folder).mismatches == []
    metadata = hub_api.get_safetensors_metadata(REPO)
    tensors = {name: info for file in metadata.files_metadata.values() for name, info in file.tensors.items()}
    assert {name: (info.dtype, tuple(info.shape)) for name, info in tensors.items()} == {
        tensor.spec.name: (tensor.spec.dtype, tensor.spec.shape)
        for shard in made.plan.shards
        for tensor in shard.tensors
    }
    assert metadata.weight_map == {t.spec.name: shard.file for shard in made.plan.shards for t in shard.tensors}


def test_second_upload_changes_nothing(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    again = upload(hub_api, made.folder, made.record, TO)
    assert (again.commit, again.changed) == (published.commit, False)
    assert len(hub_api.list_repo_commits(REPO)) == 2


def test_only_what_differs_is_uploaded(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    (made.folder / "README.md").write_text((made.folder / "README.md").read_text() + "\nMore.\n")
    watch = Counting()
    again = upload(hub_api, made.folder, made.record, TO, watch)
    assert again.changed and list(watch.counted("send")) == ["README.md"]


def test_only_files_of_the_record_are_uploaded(hub_api: HfApi, made: Conversion) -> None:
    (made.folder / "secrets.env").write_text("TOKEN=1")
    (made.folder / ".env").write_text("TOKEN=1")
    upload(hub_api, made.folder, made.record, TO)
    names = hub_api.list_repo_files(REPO)
    assert not [name for name in names if "env" in name or name.startswith(".hubtool")]


def test_missing_file_is_refused_before_the_repo_is_made(hub_api: HfApi, made: Conversion) -> None:
    (made.folder / "tokenizer.json").unlink()
    with pytest.raises(OutputError) as caught:
        upload(hub_api, made.folder, made.record, TO)
    assert (caught.value.what, caught.value.where) == ("missing file", str(made.folder / "tokenizer.json"))
    assert not hub_api.repo_exists(REPO)


def test_published_repo_is_verified(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    for folder in (None, made.folder):
        verification = verify(hub_api, REPO, folder=folder)
        assert verification.problems == ()
        assert (verification.commit, verification.files) == (published.commit, published.files)


def _problems(api: HfApi, folder: Path | None = None) -> tuple[str, ...]:
    return verify(api, REPO, folder=folder).problems


def test_changed_weights_on_the_hub_are_found(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    shard = made.plan.shards[0].file
    content = bytearray((made.folder / shard).read_bytes())
    content[-1] ^= 1
    hub_api.create_commit(REPO, [CommitOperationAdd(shard, bytes(content))], commit_message="Change")
    assert [problem.partition(": ")[0] for problem in _problems(hub_api)] == [shard]
    assert "the Hub has sha256" in _problems(hub_api, made.folder)[0]


def test_changed_config_on_the_hub_is_found(hub_api: HfApi, published: Uploaded) -> None:
    hub_api.create_commit(REPO, [CommitOperationAdd("config.json", b"{}")], commit_message="Change")
    assert {problem.partition(": ")[0] for problem in _problems(hub_api)} == {"config.json"}


def test_deleted_file_on_the_hub_is_found(hub_api: HfApi, published: Uploaded) -> None:
    hub_api.create_commit(REPO, [CommitOperationDelete("tokenizer.json")], commit_message="Delete")
    assert _problems(hub_api) == ("tokenizer.json: not in the repo",)


def test_changed_folder_is_found(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    (made.folder / "LICENSE").write_text("mine")
    assert _problems(hub_api) == ()
    assert {problem.partition(": ")[0] for problem in _problems(hub_api, made.folder)} == {"LICENSE"}


def test_earlier_revision_is_verified_by_its_commit(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    hub_api.create_commit(REPO, [CommitOperationAdd("config.json", b"{}")], commit_message="Change")
    assert verify(hub_api, REPO, revision=published.commit).problems == ()


def test_repo_without_a_record_cannot_be_verified(hub_api: HfApi) -> None:
    hub_api.create_repo(REPO)
    with pytest.raises(VerificationError) as caught:
        verify(hub_api, REPO)
    assert (caught.value.where, caught.value.expected) == (REPO, "hubtool.json")


def test_absent_repo_is_an_error_for_people(hub_api: HfApi) -> None:
    with pytest.raises(HubError) as caught:
        verify(hub_api, "someone/absent")
    assert caught.value.where == "someone/absent"
    assert caught.value.remedy


def test_absent_revision_is_an_error_for_people(hub_api: HfApi, published: Uploaded) -> None:
    with pytest.raises(HubError, match="no such revision"):
        verify(hub_api, REPO, revision="absent")


@pytest.mark.parametrize("token", [None, "hf_" + "a" * 34], ids=["none", "wrong"])
def test_token_that_may_not_write_is_refused(
    token: str | None, rehearsal: RehearsalHub, hub_api: HfApi, made: Conversion
) -> None:
    with pytest.raises(HubError) as caught:
        upload(make_api(rehearsal.endpoint, token, xet=False), made.folder, made.record, TO)
    assert caught.value.remedy and caught.value.where == REPO
    assert "aaaa" not in str(caught.value)
    assert not hub_api.repo_exists(REPO)


def test_hub_that_is_not_there_is_an_error_for_people(stock_client: None, made: Conversion) -> None:
    with pytest.raises(HubError) as caught:
        upload(make_api("http://127.0.0.1:9", "hf_" + "a" * 34, xet=False), made.folder, made.record, TO)
    assert caught.value.what == "the Hub cannot be reached"
    assert caught.value.remedy


def test_record_on_the_hub_is_that_of_the_folder(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    record: Record = read_hub_record(PatientHub(hub_api), REPO, published.commit)
    assert record == read_record(made.folder)


def test_published_sample_keeps_no_state_in_the_repo(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    text = json.dumps(hub_api.list_repo_files(REPO))
    assert ".hubtool" not in text
    assert (made.folder / ".hubtool").is_dir()


def test_false_record_is_not_believed(hub_api: HfApi, made: Conversion, published: Uploaded) -> None:
    """A record that names other hashes than the Hub has is a problem, not the truth."""
    folder = edit_json(made.folder / "hubtool.json", lambda record: record["files"][0].update(sha256="0" * 64))
    hub_api.create_commit(
        REPO, [CommitOperationAdd("hubtool.json", folder / "hubtool.json")], commit_message="Another record"
    )
    assert [problem for problem in _problems(hub_api) if "the record " + "0" * 64 in problem]
