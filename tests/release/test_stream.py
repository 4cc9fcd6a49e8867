"""Shards that are sent while they are made: the same bytes as converted ones, and none of them on this disk."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import INDEX_FILE, Source
from hubtool.checkpoint.tensors import TensorSpec, encode_header
from hubtool.convert.convert import convert_sources
from hubtool.convert.job import Effort, Job
from hubtool.errors import HubError, VerificationError
from hubtool.hub.blobs import Blobs
from hubtool.hub.destination import Destination
from hubtool.hub.patience import Patience, PatientHub, TransferError
from hubtool.hub.state import Blob, State
from hubtool.plan.plan import Plan, make_plan, plan_source
from hubtool.progress import Advance, Unwatched, Watch
from hubtool.record import read_record
from hubtool.rehearsal.faults import UNAVAILABLE, Answer, Fault
from hubtool.rehearsal.repos import File
from hubtool.release.folder import PATIENCE, Published
from hubtool.release.publish import OpenRelease, publish
from hubtool.release.release import Release, Variant
from hubtool.units import GIB
from tests.checkpoints import copied, edit_json, file_bytes
from tests.fixtures import QUIET, CommandLine, Samples
from tests.publisher import REPO, Publisher

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]


@dataclass
class DiskWatch:
    """Looks at every step which shards lie under a folder, and how many bytes all files there have."""

    folder: Path
    shards: set[str] = field(default_factory=set)
    most_nbytes: int = 0
    told: int = 0

    def say(self, text: str) -> None:
        """Nobody listens."""

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Advance]:
        """A stage at each step of which the disk is looked at."""

        def advance(nbytes: int, label: str = "", *, found: bool = False) -> None:
            nbytes_by_path = dict(_sizes(self.folder))
            self.shards |= {path.name for path in nbytes_by_path if path.name.endswith(".safetensors")}
            self.most_nbytes = max(self.most_nbytes, sum(nbytes_by_path.values()))
            self.told += nbytes if name == "stream" else 0

        yield advance


def _sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every file under a folder and its bytes; other threads rename some meanwhile."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.stat().st_size


@dataclass
class Stream:
    """One streamed release in several shards."""

    publisher: Publisher
    source: Source
    plan: Plan
    folder: Path
    watch: DiskWatch

    def publish(self) -> Published:
        """Stream it, without really waiting."""
        job = Job(self.plan, self.folder)
        return publish_stream(
            self.publisher.api, self.source, job, self.watch, Patience(sleep=self.publisher.waits.append)
        )


def publish_stream(api: HfApi, source: Source, job: Job, watch: Watch, patience: Patience = PATIENCE) -> Published:
    """What `publish --stream` does with a plan of one's own."""
    variant = Variant(job.plan.recipe.name, Destination(REPO), job.folder)
    release = Release(source.name, (variant,), job.folder, whole=False, stream=True)
    (published,) = publish(api, OpenRelease(release, source, (job,)), Effort(), watch, patience)
    return published


@pytest.fixture
def stream(publisher: Publisher, sample: Samples, tmp_path: Path) -> Stream:
    """A plan in several shards, in which a module's tensors lie in two of them."""
    source = open_source(str(sample("mini")), "someone/DeepSeek-V4-sample")
    (whole,) = plan_source(source, ["mixed_3_6"])
    plans = [make_plan(whole.model, whole.recipe, whole.nbytes // parts) for parts in range(4, 40)]
    plan = next(plan for plan in plans if _splits_a_module(plan))
    folder = tmp_path / "streamed"
    return Stream(publisher, source, plan, folder, DiskWatch(folder))


def _splits_a_module(plan: Plan) -> bool:
    return any(len({output.shard for output in step.outputs}) > 1 for step in plan.steps)


def shard_hashes(publisher: Publisher) -> dict[str, str]:
    tree = publisher.api.list_repo_tree(REPO)
    return {file.path: file.lfs.sha256 for file in tree if file.path.endswith(".safetensors")}  # type: ignore[union-attr]


def test_streamed_bytes_are_the_converted_ones_and_never_lie_on_the_disk(stream: Stream, tmp_path: Path) -> None:
    release = stream.publish()
    (converted,) = convert_sources(stream.source, [Job(stream.plan, tmp_path / "converted")], Effort(), QUIET)
    expected = {name: sha256 for name, sha256 in file_bytes(converted.folder).items() if name.endswith(".safetensors")}
    assert shard_hashes(stream.publisher) == expected
    assert release.converted.record.weight_error == converted.record.weight_error
    assert release.converted.record.measured == converted.record.measured
    assert stream.watch.told == stream.plan.disk_nbytes
    one = max(shard.nbytes for shard in stream.plan.shards)
    if stream.publisher.path == "xet":
        assert stream.watch.shards == set()
    assert stream.watch.most_nbytes < one + 1_000_000
    assert list(stream.folder.rglob("*.safetensors")) == []
    assert len(stream.publisher.commits()) == 1


def test_card_says_what_streaming_leaves_unvalidated(stream: Stream) -> None:
    stream.publish()
    card = (stream.folder / "README.md").read_text()
    assert "no value was read back" in card
    record = read_record(stream.folder)
    assert record is not None
    assert [(each.check, each.outcome) for each in record.evidence] == [("integrity", "not_run")]


@pytest.mark.parametrize("name", ["README.md", "provenance.intoto.json", "hubtool.json"])
def test_file_that_the_record_does_not_name_is_verified_too(
    stream: Stream, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub stores other bytes of it than it was sent, which still make sense."""
    store = stream.publisher.rehearsal.hub.put_regular

    def store_other(content: bytes) -> File:
        own = stream.folder / name
        return store(content + b"\n" if own.is_file() and content == own.read_bytes() else content)

    monkeypatch.setattr(stream.publisher.rehearsal.hub, "put_regular", store_other)
    with pytest.raises(VerificationError, match=rf"{name}: the Hub has git sha1 \w+, the folder"):
        stream.publish()
    assert stream.publisher.api.list_repo_refs(REPO).tags == []


def test_restart_makes_and_sends_only_what_was_not_sent(stream: Stream) -> None:
    faults = stream.publisher.rehearsal.faults
    stage = {"xet": "xet-token", "lfs": "put"}[stream.publisher.path]
    faults.add(Fault(stage, answer=Answer(400, "Cut"), skip=2))
    with pytest.raises(HubError, match="Cut"):
        stream.publish()
    assert stream.publisher.commits() == []
    done = sum(shard.nbytes for shard in stream.plan.shards[:2])
    stream.watch.told = 0
    faults.clear()
    stream.publish()
    if stream.publisher.path == "xet":
        assert stream.watch.told == stream.plan.disk_nbytes - done
    assert faults.calls[stage] >= len(stream.plan.shards) - 2
    record = read_record(stream.folder)
    assert record is not None and record.weight_error is not None
    quantized = [step.parameter.path for step in stream.plan.steps if step.how == "quantize"]
    assert set(record.weight_error.tensors) == set(quantized)
    assert len(stream.publisher.commits()) == 1


def test_streaming_again_changes_nothing(stream: Stream) -> None:
    first = stream.publish()
    stream.publisher.rehearsal.faults.clear()
    again = stream.publish()
    assert (again.uploaded.changed, again.uploaded.commit) == (False, first.uploaded.commit)
    calls = stream.publisher.rehearsal.faults.calls
    assert (calls["xet-token"], calls["put"], calls["commit"]) == (0, 0, 0)


def test_shard_whose_sending_broke_off_is_made_again(stream: Stream) -> None:
    stage, times = {"xet": ("xet-token", 4), "lfs": ("batch", 8)}[stream.publisher.path]
    stream.publisher.rehearsal.faults.add(
        Fault(stage, answer=UNAVAILABLE, times=times), Fault("commit", "reset-after"), Fault("preupload", "reset")
    )
    stream.publish()
    assert len(stream.publisher.commits()) == 1
    assert not stream.publish().uploaded.changed


LONG_FILE, LONG_NBYTES = "model-long.safetensors", 24 * GIB


@pytest.fixture
def long_source(sample: Samples, tmp_path: Path) -> Iterator[tuple[Source, Plan]]:
    """A source whose hashing takes long: a shard of it, which the plan drops, has no end, nearly."""
    folder = copied(sample("mini"), tmp_path / "source")
    spec = TensorSpec("mtp.9.long.weight", "I8", (1, LONG_NBYTES))
    with (folder / LONG_FILE).open("wb") as file:
        header = encode_header([spec], {})
        file.write(header)
        file.truncate(len(header) + LONG_NBYTES)
    edit_json(folder / INDEX_FILE, lambda index: index["weight_map"].update({spec.name: LONG_FILE}))
    source = open_source(str(folder), "someone/DeepSeek-V4-sample")
    (plan,) = plan_source(source, ["mixed_3_6"])
    yield source, plan
    (folder / LONG_FILE).unlink()


def hashed(folder: Path) -> set[str]:
    """The files of the source that were hashed by now."""
    found = folder / ".hubtool" / "source.json"
    return set(json.loads(found.read_bytes())) if found.is_file() else set()


class WhileHashing(Unwatched):
    """A watch that holds up the pieces of a folder until the source is being hashed, then perhaps interrupts."""

    def __init__(self, folder: Path, *, interrupt: bool) -> None:
        self.folder = folder
        self.interrupt = interrupt

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Advance]:
        """A stage whose steps wait for what is hashed before the long file."""

        def advance(nbytes: int, label: str = "", *, found: bool = False) -> None:
            while "config.json" not in hashed(self.folder):
                time.sleep(0.01)
            if self.interrupt:
                raise KeyboardInterrupt

        if name == "stream":
            advance(0)
        yield advance


@pytest.mark.parametrize("path", ["xet"])
def test_refusal_does_not_wait_until_the_source_is_hashed(
    publisher: Publisher, long_source: tuple[Source, Plan], tmp_path: Path
) -> None:
    source, plan = long_source
    publisher.rehearsal.faults.add(Fault("xet-token", answer=Answer(400, "Cut")))
    job = Job(plan, tmp_path / "streamed")
    with pytest.raises(HubError, match="Cut"):
        publish_stream(publisher.api, source, job, WhileHashing(job.folder, interrupt=False))
    assert "config.json" in hashed(job.folder) and LONG_FILE not in hashed(job.folder)


def test_interrupt_does_not_wait_until_the_source_is_hashed(long_source: tuple[Source, Plan], tmp_path: Path) -> None:
    source, plan = long_source
    job = Job(plan, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        convert_sources(source, [job], Effort(), WhileHashing(job.folder, interrupt=True))
    assert "config.json" in hashed(job.folder) and LONG_FILE not in hashed(job.folder)


@pytest.mark.parametrize("path", ["xet"])
def test_stream_that_breaks_in_the_middle_is_sent_again_from_its_start(publisher: Publisher, tmp_path: Path) -> None:
    """As hf_xet breaks off: what was written before is not registered, and the bytes are asked for again."""
    publisher.api.create_repo(REPO)
    content = os.urandom(3_000_000)
    tries: list[int] = []

    def chunks() -> Iterator[bytes]:
        tries.append(len(tries))
        for start in range(0, len(content), 100_000):
            if len(tries) < 3 and start > 1_000_000:
                raise TransferError("cut", repeatable=True)
            yield content[start : start + 100_000]

    hub = PatientHub(publisher.api, Patience(sleep=publisher.waits.append))
    state = State(tmp_path / "out", publisher.rehearsal.endpoint, REPO)
    blob = Blobs(hub, REPO, "main", state).send_stream("a.safetensors", chunks)
    assert (tries, publisher.waits) == ([0, 1, 2], [5, 15])
    assert blob == Blob(hashlib.sha256(content).hexdigest(), len(content))
    assert Blobs(hub, REPO, "main", state).held() == {"a.safetensors": blob}


def test_publish_command_streams_to_a_rehearsal_that_discards(
    sample: Samples, hubtool: CommandLine, tmp_path: Path, stock_client: None
) -> None:
    arguments = ("publish", sample("mini"), "--recipe", "native", "--to", REPO, "--out", tmp_path / "out", "--stream")
    done = hubtool(*arguments, "--rehearse", "--rehearsal-discard", "--json")
    assert done.code == 0, done.stderr
    assert (done.document["verified"], done.document["changed"]) == (True, True)
    kept = sum(path.stat().st_size for path in (tmp_path / "rehearsal" / "blobs").rglob("*") if path.is_file())
    assert kept < done.document["nbytes"] / 3
