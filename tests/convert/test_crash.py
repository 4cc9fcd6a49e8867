"""What a conversion survives: kills, power cuts, full and failing disks, damaged state, and a second process."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hubtool.checkpoint.open import open_source
from hubtool.convert.job import Job
from hubtool.convert.journal import Journal
from hubtool.convert.origin import check_folder
from hubtool.errors import OutputError, SourceError
from hubtool.files.lock import locked
from hubtool.files.read import HASH_BLOCK_NBYTES
from hubtool.plan.plan import Piece, Plan, make_plan, plan_source
from tests.convert.passes import convert
from tests.faults import Disk, PowerCut
from tests.fixtures import Samples

pytestmark = pytest.mark.slow

JOBS = 2


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def run(source: Path, plan: Plan, folder: Path) -> int:
    return sum(advance.nbytes for advance in convert(open_source(str(source)), [Job(plan, folder)], JOBS))


def pieces_written(folder: Path) -> Counter[int]:
    """How often the journal says that each piece was written, in lines that are whole."""
    lines = [line.partition(b" ") for line in (folder / ".hubtool" / "journal").read_bytes().split(b"\n")]
    whole = [json.loads(body) for checksum, _, body in lines if checksum == b"%08x" % zlib.crc32(body)]
    return Counter(line[1] for line in whole if line[0] == "piece")


@pytest.fixture(scope="module")
def undisturbed(
    sample: Samples, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Plan, dict[str, bytes]]]:
    """The source, a plan in several shards, and the bytes that it comes to."""
    source = sample("mini")
    (whole,) = plan_source(open_source(str(source)), ["mixed_3_6"])
    plan = make_plan(whole.model, whole.recipe, whole.nbytes // 4)
    assert len(plan.shards) >= 4
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(source, plan, folder) == plan.nbytes
    yield source, plan, shard_bytes(folder)


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True], ids=["before the line", "within the line"])
def test_a_power_cut_at_every_journal_write_costs_nothing_but_time(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path, torn: bool
) -> None:
    source, plan, expected = undisturbed
    pieces = sum(1 for _ in plan.pieces())
    cuts = 0
    for write in range(1, 10_000):
        folder = tmp_path / str(write)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, folder / ".hubtool" / "journal")
            disk.cut_at, disk.torn = write, torn
            try:
                run(source, plan, folder)
            except PowerCut:
                cuts += 1
        if not disk.off:
            break
        for name, content in shard_bytes(folder).items():
            assert content == expected[name], f"{name} has its name and is not whole after write {write}"
        assert run(source, plan, folder) == plan.nbytes
        assert shard_bytes(folder) == expected
        assert max(pieces_written(folder).values()) == 1, "a piece that was written down was made again"
        shutil.rmtree(folder)
    assert cuts >= pieces + len(plan.shards)


@pytest.mark.slow
def test_killed_at_twenty_random_instants_it_goes_on_to_the_same_bytes(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], sample: Samples, tmp_path: Path
) -> None:
    source, plan, _ = undisturbed
    command = [sys.executable, "-m", "hubtool", "convert", str(source), "--recipe", "mixed_3_6", "--out"]
    reference = tmp_path / "reference"
    begun = time.monotonic()
    subprocess.run([*command, str(reference)], check=True, capture_output=True)
    seconds = time.monotonic() - begun
    expected = shard_bytes(reference)
    chance = random.Random(0)
    folder = tmp_path / "killed"
    kills = 0
    for _ in range(20):
        process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds * chance.uniform(0.2, 1))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        for name, content in shard_bytes(folder).items():
            assert content == expected[name]
        if kills % 5 == 0:
            shutil.rmtree(folder, ignore_errors=True)
    assert kills >= 5
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert shard_bytes(folder) == expected


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_disk_that_fills_up_stops_the_run_with_a_reason_and_loses_nothing(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path, share: float
) -> None:
    source, plan, expected = undisturbed
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, tmp_path / "out" / ".hubtool" / "journal")
        disk.room = int(plan.nbytes * share)
        with pytest.raises(OutputError, match=r"cannot be written: found No space left .* run it again"):
            run(source, plan, tmp_path / "out")
    run(source, plan, tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == expected


@pytest.mark.parametrize("reads", [0, 7, 60])
def test_a_source_disk_that_goes_away_stops_the_run_with_a_reason_and_loses_nothing(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path, reads: int
) -> None:
    source, plan, expected = undisturbed
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, tmp_path / "out" / ".hubtool" / "journal")
        disk.unreadable_after = reads
        with pytest.raises(SourceError, match=r"safetensors: cannot be read: found Input/output error; check the"):
            run(source, plan, tmp_path / "out")
    run(source, plan, tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == expected


def interrupted(source: Path, plan: Plan, folder: Path) -> Path:
    """A folder in which a third of the work was done."""
    done = 0
    steps = convert(open_source(str(source)), [Job(plan, folder)], JOBS)
    for advance in steps:
        done += advance.nbytes
        if done > plan.nbytes // 3:
            break
    steps.close()
    return folder


@pytest.mark.parametrize("begun", [False, True], ids=["while it is hashed", "when the run goes on"])
def test_an_output_that_cannot_be_read_is_not_taken_for_the_source(
    begun: bool, undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, plan, expected = undisturbed
    folder = tmp_path / "out"
    if begun:
        interrupted(source, plan, folder)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, folder / ".hubtool" / "journal")
        disk.unreadable = folder / ".hubtool" / "partial"
        with pytest.raises(OutputError, match=r"cannot be read: found Input/output.*check the output's disk"):
            run(source, plan, folder)
    run(source, plan, folder)
    assert shard_bytes(folder) == expected


def test_a_shard_that_could_not_be_synced_is_made_again(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, plan, expected = undisturbed
    folder = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, folder / ".hubtool" / "journal")
        disk.unsyncable = folder / ".hubtool" / "partial"
        with pytest.raises(OutputError, match=r"safetensors: cannot be written: found Input/output error") as failure:
            run(source, plan, folder)
    assert failure.value.where is not None
    assert not Path(failure.value.where).exists(), "what Linux believes to be written may be read back, and never come"
    run(source, plan, folder)
    assert shard_bytes(folder) == expected


def test_a_run_killed_before_it_made_anything_does_not_lock_its_user_out(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, plan, expected = undisturbed
    state = tmp_path / "out" / ".hubtool"
    state.mkdir(parents=True)
    (state / "lock").write_text("1\n")
    (state / ".plan.json.new").write_text("{")
    run(source, plan, tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == expected


def test_a_file_managers_notes_do_no_harm(undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path) -> None:
    source, plan, expected = undisturbed
    folder = interrupted(source, plan, tmp_path / "out")
    (folder / ".hubtool" / "partial" / ".DS_Store").write_bytes(b"notes")
    run(source, plan, folder)
    assert shard_bytes(folder) == expected
    assert not (folder / ".hubtool" / "partial").exists()


def test_a_file_in_the_way_of_the_folder_is_named(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, plan, _ = undisturbed
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/out: cannot be written: found Not a directory"):
        run(source, plan, tmp_path / "file" / "out")


def test_many_threads_write_whole_lines_even_if_the_disk_takes_little_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:7]))
    with locked(tmp_path):
        journal = Journal(tmp_path)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: journal.piece_done(number, (number,) * 9, (0.5, 1.5)), range(400)))
        journal.close()
    assert Journal(tmp_path).load().pieces == {number: (number,) * 9 for number in range(400)}


def test_a_damaged_partial_file_is_noticed_and_only_its_piece_is_made_again(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, plan, expected = undisturbed
    folder = interrupted(source, plan, tmp_path / "out")
    number, checksums = next(
        (number, sums)
        for number, sums in Journal(folder).load().pieces.items()
        if (Journal(folder).partial / plan.shards[plan.steps[_piece(plan, number).step].outputs[0].shard].file).exists()
    )
    assert checksums
    piece = _piece(plan, number)
    step = plan.steps[piece.step]
    offset, _ = step.output_range(step.outputs[0], piece)
    partial = Journal(folder).partial / plan.shards[step.outputs[0].shard].file
    content = bytearray(partial.read_bytes())
    content[offset] ^= 1
    partial.write_bytes(content)
    run(source, plan, folder)
    assert shard_bytes(folder) == expected
    assert {piece for piece, times in pieces_written(folder).items() if times > 1} == {number}


def _piece(plan: Plan, number: int) -> Piece:
    return list(plan.pieces())[number]


def test_a_finished_shard_that_was_changed_since_is_made_again(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, plan, expected = undisturbed
    run(source, plan, tmp_path / "out")
    shard = tmp_path / "out" / plan.shards[1].file
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    run(source, plan, tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == expected


def test_a_source_that_changed_meanwhile_is_refused(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, plan, _ = undisturbed
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    interrupted(copy, plan, tmp_path / "out")
    shard = next(copy.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes())
    with pytest.raises(OutputError, match=r"begun with something else: found the source's files have changed"):
        run(copy, plan, tmp_path / "out")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_with_130_and_say_how_to_go_on(
    sample: Samples, tmp_path: Path, kind: signal.Signals
) -> None:
    source, folder = sample("other"), tmp_path / "out"
    command = [sys.executable, "-m", "hubtool", "convert", str(source), "--recipe", "float32", "--out", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = folder / ".hubtool" / "journal"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.001)
    process.send_signal(kind)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the conversion was over before the signal came")
    assert process.returncode == 130
    assert "run the same command again and it goes on" in said
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_run_that_is_given_up_does_not_wait_until_a_shard_is_hashed(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = undisturbed
    (whole,) = plan_source(open_source(str(source)), ["float32"])
    assert whole.shards[0].nbytes > 8 * HASH_BLOCK_NBYTES
    steps = convert(open_source(str(source)), [Job(whole, tmp_path / "out")], JOBS)
    read = os.preadv

    def read_slowly(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if len(buffers[0]) == HASH_BLOCK_NBYTES:
            time.sleep(0.1)
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", read_slowly)
    for advance in steps:
        if advance.label == "hashing what was written":
            break
    begun = time.monotonic()
    steps.close()
    assert time.monotonic() - begun < 2


def test_one_pass_for_several_recipes_gives_the_bytes_of_single_runs(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, _, _ = undisturbed
    opened = open_source(str(source))
    plans = plan_source(opened, ["mixed_3_6", "mixed_2_6", "native", "compact_4bit", "float32"])
    together = [Job(plan, tmp_path / "together" / plan.recipe.name) for plan in plans]
    assert sum(advance.nbytes for advance in convert(opened, together, JOBS)) == sum(plan.nbytes for plan in plans)
    for job in together:
        alone = tmp_path / "alone" / job.plan.recipe.name
        run(source, job.plan, alone)
        assert shard_bytes(alone) == shard_bytes(job.folder)
        assert Journal(alone).load().errors == Journal(job.folder).load().errors


def test_a_folder_begun_on_another_backend_is_refused_until_it_is_finished(
    undisturbed: tuple[Path, Plan, dict[str, bytes]], tmp_path: Path
) -> None:
    source, plan, _ = undisturbed
    folder = interrupted(source, plan, tmp_path / "out")
    origin = folder / ".hubtool" / "plan.json"
    begun = json.loads(origin.read_bytes())
    origin.write_text(json.dumps(begun | {"backend": "another"}))
    with pytest.raises(OutputError, match="begun with something else: found MLX's backend was another"):
        run(source, plan, folder)
    (folder / "hubtool.json").write_bytes(b"{}")
    check_folder(Job(plan, folder), open_source(str(source)))
