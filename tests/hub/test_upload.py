"""What an upload sends, and when: checked first, compared with the record, in one commit, seen whole or not at all."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubtool.errors import HubError, OutputError
from hubtool.hub.blobs import stored_addition
from hubtool.hub.destination import Destination
from hubtool.hub.patience import Patience, PatientHub
from hubtool.hub.state import Blob, State
from hubtool.hub.upload import Upload, UploadPlan, record_digest
from hubtool.rehearsal.faults import UNAVAILABLE, Answer, Fault
from tests.checkpoints import edit_json, file_bytes
from tests.fixtures import Counting
from tests.publisher import REPO, Contents, Publisher, Reader

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]


def look(publisher: Publisher, to: Destination | None = None) -> UploadPlan:
    return Upload(PatientHub(publisher.api), publisher.folder, publisher.record, to or Destination(REPO)).plan()


def test_readers_see_nothing_or_everything(publisher: Publisher, reader: Reader) -> None:
    """What a reader is given for every file, not only its name, is that of one release: none, the first or the next."""
    publisher.rehearsal.faults.add(
        Fault("validate", answer=UNAVAILABLE), Fault("commit", "reset-after"), Fault("batch", answer=UNAVAILABLE)
    )
    publisher.publish()
    states = [contents(publisher)]
    (publisher.folder / "LICENSE").write_text("another licence")
    edit_record(publisher, "LICENSE")
    wait_for(lambda: len(reader.seen) >= 1 and states[0] in map(released, reader.seen))
    publisher.publish()
    states.append(contents(publisher))
    wait_for(lambda: states[1] in map(released, reader.seen))
    seen = [released(each) for each in reader.seen]
    assert [each for each in seen if each] == states
    assert seen in (states, [frozenset(), *states])


def contents(publisher: Publisher) -> Contents:
    return frozenset(file_bytes(publisher.folder).items())


def released(seen: Contents) -> Contents:
    """What of it is not the Hub's own."""
    return frozenset(each for each in seen if each[0] != ".gitattributes")


def wait_for(condition: Callable[[], bool]) -> None:
    """Give the reader time to look."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert condition()


def edit_record(publisher: Publisher, *names: str) -> None:
    """Let the record say what some files of the folder now are."""

    def edit(record: dict[str, list[dict[str, object]]]) -> None:
        for entry in record["files"]:
            if entry["name"] in names:
                content = (publisher.folder / str(entry["name"])).read_bytes()
                entry |= {"sha256": hashlib.sha256(content).hexdigest(), "nbytes": len(content)}

    edit_json(publisher.folder / "hubtool.json", edit)


def test_verified_commit_is_tagged_with_the_record_s_digest(publisher: Publisher) -> None:
    release = publisher.publish()
    (tag,) = publisher.api.list_repo_refs(REPO).tags
    assert tag.name == release.tag == f"hubtool-{record_digest(publisher.record)}"
    assert tag.target_commit == release.uploaded.commit


def test_tag_is_the_one_that_was_asked_for(publisher: Publisher) -> None:
    assert publisher.publish(Destination(REPO, tag="v1.0")).tag == "v1.0"
    assert publisher.publish(Destination(REPO, tag="v1.0")).tag == "v1.0"


def test_tag_of_another_commit_is_refused_before_anything_is_sent(publisher: Publisher) -> None:
    publisher.api.create_repo(REPO)
    publisher.api.create_tag(REPO, tag="v1.0")
    with pytest.raises(HubError, match="v1.0: the tag names another commit"):
        publisher.publish(Destination(REPO, tag="v1.0"))
    assert publisher.commits() == []


def change(path: Path, more: bytes = b"") -> None:
    """Flip a bit of a file, and lengthen it."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content + more)


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "LICENSE"])
@pytest.mark.parametrize("more", [b"", b"\0"], ids=["same size", "other size"])
def test_file_that_has_changed_since_it_was_recorded_is_never_published(
    publisher: Publisher, name: str, more: bytes
) -> None:
    change(publisher.folder / name, more)
    with pytest.raises(OutputError, match=f"{name}: (the file has changed since|another size than)"):
        publisher.publish()
    assert not publisher.api.repo_exists(REPO) or publisher.commits() == []


def test_small_file_that_changes_after_the_checks_is_not_published_either(publisher: Publisher) -> None:
    release = Upload(PatientHub(publisher.api), publisher.folder, publisher.record, Destination(REPO))
    release.plan()
    change(publisher.folder / "LICENSE")
    with pytest.raises(OutputError, match="LICENSE: the file has changed since"):
        release.run()
    assert publisher.commits() == []


def test_small_file_that_changes_after_the_release_is_not_published_over_it(publisher: Publisher) -> None:
    publisher.publish()
    change(publisher.folder / "LICENSE")
    with pytest.raises(OutputError, match="LICENSE: the file has changed since"):
        publisher.publish()
    assert len(publisher.commits()) == 1


def test_card_that_the_hub_would_refuse_is_noticed_before_the_repo_is_made(publisher: Publisher) -> None:
    card = publisher.folder / "README.md"
    card.write_text(card.read_text().replace("base_model_relation: quantized", "base_model_relation: shrunk"))
    with pytest.raises(OutputError, match="base_model_relation"):
        look(publisher)
    assert not publisher.api.repo_exists(REPO)
    assert publisher.rehearsal.faults.calls["validate"] == 0


def test_card_that_only_the_hub_refuses_is_noticed_too(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("validate", answer=Answer(400, "no such license today")))
    with pytest.raises(OutputError, match="the Hub refuses the card: found no such license today"):
        look(publisher)
    assert not publisher.api.repo_exists(REPO)


def test_path_of_this_machine_is_never_published(publisher: Publisher) -> None:
    edit_json(publisher.folder / "config.json", lambda config: config.update(_name_or_path="/Users/ada/models"))
    edit_record(publisher, "config.json")
    with pytest.raises(OutputError, match="config.json, line .* path '/Users/ada/models'"):
        publisher.publish()
    assert not publisher.api.repo_exists(REPO)


def test_token_that_may_only_read_is_refused_before_anything_is_sent(publisher: Publisher) -> None:
    accounts = publisher.rehearsal.accounts
    accounts.add_user("ada")
    reading = HfApi(endpoint=publisher.rehearsal.endpoint, token=accounts.add_token("ada", "read"))
    with pytest.raises(HubError, match="the token may only read"):
        publisher.publish(api=reading)
    assert set(publisher.rehearsal.faults.calls) <= {"whoami", "info"}


def test_repo_of_someone_else_is_refused_before_anything_is_sent(publisher: Publisher) -> None:
    publisher.api.create_repo(REPO)
    accounts = publisher.rehearsal.accounts
    accounts.add_user("ada")
    publisher.api.update_repo_settings(REPO, private=False)
    writing = HfApi(endpoint=publisher.rehearsal.endpoint, token=accounts.add_token("ada", "write"))
    with pytest.raises(HubError, match="take a token that has this right"):
        publisher.publish(api=writing)
    assert publisher.commits() == []


def test_dry_look_writes_nothing_and_tells_everything(publisher: Publisher) -> None:
    outlook = look(publisher)
    assert not publisher.api.repo_exists(REPO)
    assert (outlook.place.exists, outlook.place.private, outlook.keep, outlook.delete) == (False, True, (), ())
    assert set(outlook.send) == set(file_bytes(publisher.folder))
    assert outlook.nbytes == sum((publisher.folder / name).stat().st_size for name in outlook.send)
    publisher.publish()
    assert look(publisher).send == ()


def test_progress_comes_to_every_byte_once_although_some_are_sent_again(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("put", "reset", nbytes=1_000_000, times=8), Fault("verify", "reset", times=7))
    watch = Counting()
    hub = PatientHub(publisher.api, Patience(sleep=publisher.waits.append))
    Upload(hub, publisher.folder, publisher.record, Destination(REPO)).run(watch)
    assert watch.counted("send") == {
        name: (publisher.folder / name).stat().st_size for name in file_bytes(publisher.folder)
    }


def test_waits_are_told_without_signatures_and_tokens(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(
        Fault("put", answer=UNAVAILABLE, times=2),
        Fault("xet-token", answer=UNAVAILABLE, times=2),
        Fault("commit", answer=UNAVAILABLE),
    )
    told: list[str] = []
    hub = PatientHub(publisher.api, Patience(sleep=publisher.waits.append), told.append)
    Upload(hub, publisher.folder, publisher.record, Destination(REPO)).run()
    assert any("trying again in 5.0 s" in text and "Service Unavailable" in text for text in told)
    assert any("Retrying in 1s" in text or "xet" in publisher.path for text in told)
    assert not [text for text in told if "signature" in text or publisher.rehearsal.token in text]


def test_what_is_stored_is_committed_without_its_bytes(publisher: Publisher) -> None:
    """Holds huggingface_hub to what `stored_addition` relies on; without its marks, an empty file is committed."""
    publisher.api.create_repo(REPO)
    content = os.urandom(1 << 20)
    addition = CommitOperationAdd("a.safetensors", content)
    publisher.api.preupload_lfs_files(REPO, [addition])
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    publisher.rehearsal.faults.clear()
    publisher.api.create_commit(REPO, [stored_addition("b.safetensors", blob)], commit_message="Stored")
    assert not {"batch", "put", "xet-token"} & set(publisher.rehearsal.faults.calls)
    (info,) = publisher.api.get_paths_info(REPO, "b.safetensors")
    assert info.size == len(content) and info.lfs.sha256 == blob.sha256  # type: ignore[union-attr]


def test_state_that_cannot_be_read_is_no_state(tmp_path: Path) -> None:
    state = State(tmp_path, "https://hub.invalid", REPO)
    state.add_blob("a", Blob("0" * 64, 1))
    (path,) = (tmp_path / ".hubtool" / "hub").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert State(tmp_path, "https://hub.invalid", REPO).blobs == {}
    assert State(tmp_path, "https://hub.invalid", "someone/other").blobs == {}


@pytest.mark.slow
def test_killed_ten_times_during_the_upload_it_ends_with_one_commit_and_right_hashes(publisher: Publisher) -> None:
    publisher.publish()  # the documents say where to, so that every run below has the same files
    publisher.api.delete_repo(REPO)
    faults, chance = publisher.rehearsal.faults, random.Random(publisher.path)
    faults.clear()
    environment = {
        **os.environ,
        "HF_ENDPOINT": publisher.rehearsal.endpoint,
        "HF_TOKEN": publisher.rehearsal.token,
        "HF_HUB_DISABLE_XET": str(int(publisher.path == "lfs")),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    command = [sys.executable, "-m", "hubtool", "upload", str(publisher.folder), "--to", REPO, "--json"]
    kills, tick = 0, threading.Event()
    for _ in range(10):
        faults.clear()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        last = chance.randrange(2, 11)
        while process.poll() is None and faults.calls.total() < last:
            tick.wait(0.002)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if publisher.api.repo_exists(REPO):
            names = set(publisher.api.list_repo_files(REPO))
            assert names in ({".gitattributes"}, {*file_bytes(publisher.folder), ".gitattributes"})
            assert len(publisher.commits()) <= 1
    assert kills >= 5
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert len(publisher.commits()) == 1
    assert publisher.api.verify_repo_checksums(REPO, local_dir=publisher.folder).mismatches == []
