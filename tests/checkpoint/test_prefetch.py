"""Shards of a repo on their way: fetched ahead, within a limit, through interruptions."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hubtool import units
from hubtool.checkpoint import prefetch
from hubtool.checkpoint.remote import HubSource
from hubtool.checkpoint.source import INDEX_FILE
from hubtool.errors import HubError, SourceError, UsageError
from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import Answer, Fault, Faults
from tests.checkpoint.repo import REPO, read_shard, shard_sizes
from tests.checkpoints import file_bytes
from tests.fixtures import CommandLine

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("client"),
    pytest.mark.slow,
]

# Shards on their way


def test_prepared_shards_are_read_from_the_disk_and_dropped_when_released(
    folder: Path, tmp_path: Path, opened: Callable[..., HubSource], faults: Faults
) -> None:
    source = opened()
    names = sorted(shard_sizes(folder))[:3]
    faults.clear()
    source.prepare(names)
    for name in names:
        assert read_shard(source, name) == (folder / name).read_bytes()
    assert faults.calls["resolve"] == len(names)
    assert shard_sizes(tmp_path / "shards") == {name: shard_sizes(folder)[name] for name in names}
    source.release(names[0])
    assert set(shard_sizes(tmp_path / "shards")) == set(names[1:])
    for name in names[1:]:
        source.release(name)
    assert not (tmp_path / "shards").exists()
    assert (source.traffic.nbytes, source.traffic.held_nbytes) == (sum(map(source.nbytes, names)), 0)


def test_shard_without_room_is_read_directly_and_the_next_has_room_after_a_release(
    folder: Path, opened: Callable[..., HubSource]
) -> None:
    sizes = shard_sizes(folder)
    first, second, third = sorted(sizes)[:3]
    source = opened(max(sizes.values()))
    source.prepare([first, second, third])
    for name in (first, second):
        assert read_shard(source, name) == (folder / name).read_bytes()
    assert (source.traffic.direct_reads, source.traffic.direct_nbytes) == (2, sizes[second])
    source.release(first)
    assert read_shard(source, third) == (folder / third).read_bytes()
    assert source.traffic.direct_reads == 2
    assert source.traffic.most_held_nbytes <= max(sizes.values())


def test_released_shard_is_fetched_again_in_another_pass(folder: Path, opened: Callable[..., HubSource]) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    for _ in range(2):
        source.prepare([name])
        assert read_shard(source, name) == (folder / name).read_bytes()
        source.release(name)
    assert source.traffic.direct_reads == 0


def test_many_threads_wait_for_one_shard(folder: Path, opened: Callable[..., HubSource]) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    source.prepare([name])
    read: list[bytes] = []
    threads = [threading.Thread(target=lambda: read.append(read_shard(source, name))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [(folder / name).read_bytes()] * 6


def test_reader_that_waits_is_told_of_a_stop(opened: Callable[..., HubSource], folder: Path, faults: Faults) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    faults.add(Fault("resolve", "hang", seconds=2))
    source.prepare([name])
    threading.Timer(0.1, source.stop).start()
    with pytest.raises(HubError, match=f"{name}: reading was stopped; run it again and it goes on"):
        read_shard(source, name)


def test_nothing_is_read_between_a_stop_and_the_next_pass(opened: Callable[..., HubSource], folder: Path) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    assert read_shard(source, name) == (folder / name).read_bytes()
    source.stop()
    with pytest.raises(HubError, match=f"{name}: reading was stopped"):
        read_shard(source, name)
    source.prepare([name])
    assert read_shard(source, name) == (folder / name).read_bytes()


@pytest.mark.parametrize("keep", [False, True])
def test_limit_that_is_too_small_is_refused_before_anything_is_fetched(
    keep: bool, folder: Path, opened: Callable[..., HubSource], faults: Faults
) -> None:
    sizes = shard_sizes(folder).values()
    needed = sum(sizes) if keep else max(sizes)
    with pytest.raises(UsageError, match=f"--disk-limit: has no room .* expected at least {needed:,} bytes"):
        opened(needed - 1, keep=keep)
    assert "resolve" not in faults.calls
    assert opened(needed, keep=keep).disk_nbytes == needed


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("20GB", 20 * 10**9), ("1.5 GiB", 3 << 29), ("100mb", 10**8), ("12345", 12345), ("7 B", 7), ("2TiB", 2 << 40)],
)
def test_size_is_written_in_any_unit(text: str, nbytes: int) -> None:
    assert units.parse_nbytes(text) == nbytes


def test_size_options_are_read_and_refused(hubtool: CommandLine, tmp_path: Path) -> None:
    arguments = ("convert", REPO, "--recipe", "mixed_3_6", "--out", tmp_path / "out", "--disk-limit")
    assert hubtool(*arguments, "20 parsecs").code == 2
    outcome = hubtool(*arguments, "1kB")
    assert (outcome.code, "--disk-limit: has no room for a single shard: found 1,000 bytes" in outcome.stderr) == (
        2,
        True,
    )
    assert not (tmp_path / "out").exists()


# Interruptions


def test_broken_connection_goes_on_where_it_broke(
    folder: Path, opened: Callable[..., HubSource], faults: Faults
) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    faults.add(Fault("resolve", "cut", nbytes=50_000, times=8))
    source.prepare([name])
    assert read_shard(source, name) == (folder / name).read_bytes()
    # Eight connections brought bytes each: more than are tried in a row without any.
    assert faults.calls["resolve"] == 9
    assert source.traffic.nbytes == source.nbytes(name)


def test_interrupted_download_goes_on_in_the_next_run(
    folder: Path, tmp_path: Path, opened: Callable[..., HubSource], faults: Faults
) -> None:
    name = min(shard_sizes(folder))
    nbytes = shard_sizes(folder)[name]
    source = opened()
    faults.add(Fault("resolve", "cut", nbytes=50_000), Fault("resolve", "reset", times=99))
    source.prepare([name])
    with pytest.raises(HubError, match=f"{REPO}: {name}: the Hub cannot be reached"):
        read_shard(source, name)
    source.close()
    (partial,) = (tmp_path / "shards").rglob("*.incomplete")
    assert 0 < partial.stat().st_size < nbytes
    assert shard_sizes(tmp_path / "shards") == {}
    faults.clear()
    # A second run gets no more than what is lacking: an answer with more would be cut.
    faults.add(Fault("resolve", "cut", nbytes=nbytes - partial.stat().st_size + 1))
    again = opened()
    again.prepare([name])
    assert read_shard(again, name) == (folder / name).read_bytes()
    assert faults.calls["resolve"] == 1


def test_finished_download_is_not_fetched_again(
    folder: Path, opened: Callable[..., HubSource], faults: Faults, tmp_path: Path
) -> None:
    names = sorted(shard_sizes(folder))[:2]
    source = opened()
    source.prepare(names)
    for name in names:
        read_shard(source, name)
    source.close()
    faults.clear()
    again = opened()
    again.prepare(names[1:])
    assert read_shard(again, names[1]) == (folder / names[1]).read_bytes()
    assert "resolve" not in faults.calls
    assert set(shard_sizes(tmp_path / "shards")) == {names[1]}


def test_what_an_earlier_run_left_and_nothing_needs_is_removed(
    folder: Path, tmp_path: Path, opened: Callable[..., HubSource]
) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    source.prepare([name])
    read_shard(source, name)
    source.close()
    assert (tmp_path / "shards" / name).is_file()
    opened().prepare([])
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("damage", ["changed", "too long"])
def test_damaged_partial_file_is_fetched_anew(
    damage: str, folder: Path, tmp_path: Path, opened: Callable[..., HubSource], faults: Faults
) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    faults.add(Fault("resolve", "cut", nbytes=50_000), Fault("resolve", "answer", Answer(404)))
    source.prepare([name])
    with pytest.raises(HubError):
        read_shard(source, name)
    source.close()
    (partial,) = (tmp_path / "shards").rglob("*.incomplete")
    if damage == "changed":
        with partial.open("r+b") as file:
            file.write(b"damage")
    else:
        os.truncate(partial, source.nbytes(name) + 1)
    again = opened()
    again.prepare([name])
    assert read_shard(again, name) == (folder / name).read_bytes()


def test_file_changed_on_the_disk_is_fetched_anew(
    folder: Path, tmp_path: Path, opened: Callable[..., HubSource]
) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    source.prepare([name])
    read_shard(source, name)
    source.close()
    os.truncate(tmp_path / "shards" / name, 7)
    again = opened()
    again.prepare([name])
    assert read_shard(again, name) == (folder / name).read_bytes()


def test_wrong_bytes_are_never_used(
    folder: Path, tmp_path: Path, opened: Callable[..., HubSource], filled_hub: RehearsalHub
) -> None:
    name = min(shard_sizes(folder))
    blob = filled_hub.hub.blobs.get(hashlib.sha256((folder / name).read_bytes()).hexdigest())
    assert blob is not None
    true = blob.path.read_bytes()
    source = opened()
    try:
        blob.path.write_bytes(true[:-1] + bytes([true[-1] ^ 1]))
        source.prepare([name])
        with pytest.raises(HubError, match=f"{REPO}: {name}: came with another hash than the Hub says"):
            read_shard(source, name)
    finally:
        blob.path.write_bytes(true)
    assert [path for path in (tmp_path / "shards").rglob("*") if path.name.startswith("model")] == []


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130), (signal.SIGINT, 130)],
    ids=["kill", "terminate", "interrupt"],
)
def test_conversion_stopped_while_it_waits_for_the_hub_goes_on(
    signum: int, code: int, folder: Path, tmp_path: Path, faults: Faults, hubtool: CommandLine
) -> None:
    before = len(shard_sizes(folder)) + len(["config.json", INDEX_FILE]) + len(["README.md"])
    hang = Fault("resolve", "hang", skip=before + prefetch.PARALLEL, times=99)
    faults.add(hang)
    arguments = ["convert", REPO, "--recipe", "mixed_3_6", "--out", str(tmp_path / "out"), "--disk-limit", "2MB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hubtool", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not hang.struck and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signum)
    stderr = process.communicate(timeout=100)[1]
    assert process.returncode == code, stderr
    faults.clear()
    assert hubtool(*arguments).code == 0
    assert hubtool("convert", folder, *arguments[2:4], "--out", tmp_path / "local").code == 0
    shards = {name for name in file_bytes(tmp_path / "local") if name.endswith(".safetensors")}
    made, expected = file_bytes(tmp_path / "out"), file_bytes(tmp_path / "local")
    assert {name: made[name] for name in shards} == {name: expected[name] for name in shards}
    assert not (tmp_path / "out" / ".hubtool" / "source").exists()


def test_busy_hub_is_asked_again(opened: Callable[..., HubSource], folder: Path, faults: Faults) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    faults.add(Fault("resolve", "answer", Answer(503)))
    source.prepare([name])
    assert read_shard(source, name) == (folder / name).read_bytes()
    assert faults.calls["resolve"] == 2


def test_bytes_that_another_program_adds_to_a_partial_file_are_not_believed(
    folder: Path, tmp_path: Path, opened: Callable[..., HubSource], faults: Faults
) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    hang = Fault("resolve", "hang", seconds=1)
    faults.add(Fault("resolve", "cut", nbytes=50_000), hang)
    source.prepare([name])
    while not hang.struck:
        time.sleep(0.01)
    (partial,) = (tmp_path / "shards").rglob("*.incomplete")
    with partial.open("ab") as other:
        other.write(bytes(1000))
    assert read_shard(source, name) == (folder / name).read_bytes()


def test_file_that_grew_while_it_was_fetched_gets_no_name(
    folder: Path, tmp_path: Path, opened: Callable[..., HubSource], faults: Faults
) -> None:
    name = min(shard_sizes(folder))
    source = opened()
    hang = Fault("resolve", "hang", seconds=1)
    faults.add(Fault("resolve", "cut", nbytes=50_000), hang)
    source.prepare([name])
    while not hang.struck:
        time.sleep(0.01)
    (partial,) = (tmp_path / "shards").rglob("*.incomplete")
    os.truncate(partial, source.nbytes(name) + 1)
    with pytest.raises(SourceError, match="was changed while it was fetched.*no other program fetches into"):
        read_shard(source, name)
    assert not (tmp_path / "shards" / name).exists()


HOLDER = """
import sys
from pathlib import Path
from hubtool.checkpoint.prefetch import Storage
from hubtool.checkpoint.remote import HubSource

source = HubSource(sys.argv[1], storage=Storage(Path(sys.argv[2])))
source.prepare(sys.argv[3:])
print("begun", flush=True)
sys.stdin.readline()
"""


def test_second_run_that_fetches_into_the_same_folder_is_refused(
    folder: Path, tmp_path: Path, hubtool: CommandLine
) -> None:
    root, name = tmp_path / "root", min(shard_sizes(folder))
    place = root / ".hubtool" / "source"
    arguments = ("convert", REPO, "--recipe", "mixed_3_6", "--out-root", root)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, REPO, str(place), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "begun\n"
        second = hubtool(*arguments)
        first.stdin.close()
    assert (second.code, second.stderr) == (
        1,
        f"Error: {place}: another hubtool is working in this folder: found process {first.pid}; "
        "wait until it ends, or stop it\n",
    )
    assert hubtool(*arguments).code == 0


def test_room_that_an_earlier_run_has_filled_is_not_asked_for_again(
    folder: Path, tmp_path: Path, opened: Callable[..., HubSource]
) -> None:
    names = sorted(shard_sizes(folder))[:2]
    source = opened()
    whole = source.disk_nbytes
    source.prepare(names)
    for name in names:
        read_shard(source, name)
    source.close()
    left = opened().disk_nbytes
    assert whole - sum(map(source.nbytes, names)) - units.MIB <= left <= whole - sum(map(source.nbytes, names))
