"""Converting: the same bytes however it goes, nothing in the way is touched, and one run at a time."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import pytest

from hubtool.checkpoint.source import LocalSource
from hubtool.convert.job import Job
from hubtool.plan import plan as plan_module
from hubtool.plan.plan import Plan, make_plan, plan_source
from hubtool.plan.recipe import load_recipe
from hubtool.units import MB
from tests.checkpoints import copied, file_bytes
from tests.convert.passes import convert
from tests.fixtures import CommandLine, Conversions, Samples

RECIPE = "mixed_3_6"
CHECKOUT = Path(__file__).resolve().parents[2]


def plan_of(folder: Path, recipe: str = RECIPE, shard_nbytes: int = MB) -> Plan:
    """A plan with several shards."""
    (plan,) = plan_source(LocalSource(folder), [recipe])
    return make_plan(plan.model, load_recipe(recipe), shard_nbytes)


def finish(folder: Path, plan: Plan, out: Path, jobs: int = 2) -> dict[str, str]:
    """Convert to the end; the hash of every file."""
    for _ in convert(LocalSource(folder), [Job(plan, out)], jobs):
        pass
    return file_bytes(out)


def interrupt(folder: Path, plan: Plan, out: Path, steps: int) -> None:
    """Convert some steps, then stop."""
    advances = convert(LocalSource(folder), [Job(plan, out)], 2)
    assert isinstance(advances, Generator)
    with closing(advances):
        for _, _ in zip(range(steps), advances, strict=False):
            pass


@pytest.fixture(scope="module")
def tiny_plan(sample: Samples) -> Plan:
    """A plan of the tiny sample with several shards."""
    return plan_of(sample("tiny"))


@pytest.fixture(scope="module")
def uninterrupted(sample: Samples, tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hash of every file that one run makes of it."""
    return finish(sample("tiny"), tiny_plan, tmp_path_factory.mktemp("uninterrupted") / "out")


def test_several_shards_are_written(tiny_plan: Plan, uninterrupted: dict[str, str]) -> None:
    assert len(tiny_plan.shards) > 5
    assert set(uninterrupted) == {shard.file for shard in tiny_plan.shards}


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_workdo_not_change_the_bytes(
    jobs: int, sample: Samples, tiny_plan: Plan, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    source = file_bytes(sample("tiny"))
    assert finish(sample("tiny"), tiny_plan, tmp_path / "out", jobs) == uninterrupted
    assert file_bytes(sample("tiny")) == source


@pytest.mark.parametrize("size", [1 << 12, 1 << 15, 1 << 30])
def test_size_of_the_pieces_does_not_change_the_bytes(
    size: int,
    sample: Samples,
    tiny_plan: Plan,
    uninterrupted: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = len(list(tiny_plan.pieces()))
    monkeypatch.setattr(plan_module, "PIECE_SIZE", size)
    pieces = len(list(tiny_plan.pieces()))
    assert pieces > usual if size < 1 << 16 else pieces <= usual
    assert finish(sample("tiny"), tiny_plan, tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("steps", [1, 20, 120, 10_000])
def test_interrupted_conversion_goes_on_to_the_same_bytes(
    steps: int, sample: Samples, tiny_plan: Plan, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    interrupt(sample("tiny"), tiny_plan, tmp_path / "out", steps)
    complete = file_bytes(tmp_path / "out")
    assert complete.items() <= uninterrupted.items(), "a name of a shard stands for all of it"
    assert finish(sample("tiny"), tiny_plan, tmp_path / "out") == uninterrupted


def test_often_interrupted_conversion_comes_to_the_same_bytes(
    sample: Samples, tiny_plan: Plan, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    for steps in (3, 40, 90, 150):
        interrupt(sample("tiny"), tiny_plan, tmp_path / "out", steps)
    assert finish(sample("tiny"), tiny_plan, tmp_path / "out") == uninterrupted


def _written_positions(path: Path) -> list[int]:
    """The first, middle and last byte of a partial file that is not zero: somewhere in what was written."""
    content = path.read_bytes()
    written = [position for position, byte in enumerate(content) if byte]
    return [written[0], written[len(written) // 2], written[-1]]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "last"])
def test_damaged_byte_of_a_partial_file_is_noticed(which: int, sample: Samples, tmp_path: Path) -> None:
    plan = plan_of(sample("tiny"), shard_nbytes=1 << 30)
    out, whole = tmp_path / "out", finish(sample("tiny"), plan, tmp_path / "whole")
    interrupt(sample("tiny"), plan, out, 60)
    (partial,) = out.rglob("*.safetensors")
    assert partial.parent != out
    position = _written_positions(partial)[which]
    with partial.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    assert finish(sample("tiny"), plan, out) == whole


def test_lost_partial_file_is_made_again(sample: Samples, tmp_path: Path) -> None:
    plan = plan_of(sample("tiny"), shard_nbytes=1 << 30)
    whole = finish(sample("tiny"), plan, tmp_path / "whole")
    interrupt(sample("tiny"), plan, tmp_path / "out", 60)
    (partial,) = (tmp_path / "out").rglob("*.safetensors")
    partial.unlink()
    assert finish(sample("tiny"), plan, tmp_path / "out") == whole


def test_lost_shard_is_made_again(
    sample: Samples, tiny_plan: Plan, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    finish(sample("tiny"), tiny_plan, tmp_path / "out")
    (tmp_path / "out" / tiny_plan.shards[2].file).unlink()
    assert finish(sample("tiny"), tiny_plan, tmp_path / "out") == uninterrupted


def test_all_bytes_are_reported_whether_made_or_found(sample: Samples, tiny_plan: Plan, tmp_path: Path) -> None:
    source, job = LocalSource(sample("tiny")), Job(tiny_plan, tmp_path / "out")
    interrupt(sample("tiny"), tiny_plan, tmp_path / "out", 50)
    for _ in range(2):
        assert sum(advance.nbytes for advance in convert(source, [job], 2)) == tiny_plan.nbytes


def test_several_recipes_in_one_pass_are_those_of_single_runs(
    sample: Samples, uninterrupted: dict[str, str], tiny_plan: Plan, tmp_path: Path
) -> None:
    plans = {recipe: plan_of(sample("tiny"), recipe) for recipe in ("native", "mixed_2_6", "float32")}
    work = [Job(tiny_plan, tmp_path / RECIPE), *(Job(plan, tmp_path / name) for name, plan in plans.items())]
    interrupt(sample("tiny"), plans["native"], tmp_path / "native", 30)
    for _ in convert(LocalSource(sample("tiny")), work, 2):
        pass
    assert file_bytes(tmp_path / RECIPE) == uninterrupted
    for name, plan in plans.items():
        assert file_bytes(tmp_path / name) == finish(sample("tiny"), plan, tmp_path / f"single-{name}")


def test_whole_folder_is_the_same_when_it_is_made_twice(
    converted: Conversions, hubtool: CommandLine, tmp_path: Path
) -> None:
    first = converted("tiny", RECIPE)
    again = ("--recipe", RECIPE, "--out", tmp_path / "out", "--base-model", "someone/DeepSeek-V4-sample")
    assert hubtool("convert", first.source, *again).code == 0
    assert file_bytes(tmp_path / "out") == file_bytes(first.folder)


def _times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.startswith(".")}


def test_finished_folder_is_left_alone(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    arguments = ("convert", sample("mini"), "--recipe", RECIPE, "--out", tmp_path / "out")
    first = hubtool(*arguments, "--json")
    assert (first.code, first.document["converted"]) == (0, True)
    before, times = file_bytes(tmp_path / "out"), _times(tmp_path / "out")
    second = hubtool(*arguments, "--json")
    assert (second.code, second.document) == (0, first.document | {"converted": False})
    assert f"{tmp_path / 'out'} is finished: nothing to convert" in second.stderr
    assert (file_bytes(tmp_path / "out"), _times(tmp_path / "out")) == (before, times)


def test_lost_document_is_written_again(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    arguments = ("convert", sample("mini"), "--recipe", RECIPE, "--out", tmp_path / "out")
    hubtool(*arguments)
    before = file_bytes(tmp_path / "out")
    for name in ("config.json", "README.md", "hubtool.json", "tokenizer.json"):
        (tmp_path / "out" / name).unlink()
        assert hubtool(*arguments).code == 0
        assert file_bytes(tmp_path / "out") == before


def _change_recipe(source: Path) -> str:
    return "native"


def _touch_a_shard(source: Path) -> str:
    path = source / "model-00002-of-00006.safetensors"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    return RECIPE


@pytest.mark.parametrize("finished", [False, True], ids=["begun", "finished"])
@pytest.mark.parametrize("change", [_change_recipe, _touch_a_shard], ids=["another recipe", "a changed source"])
def test_folder_of_something_else_is_refused(
    finished: bool, change: Callable[[Path], str], sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    source, out = copied(sample("mini"), tmp_path / "source"), tmp_path / "out"
    if finished:
        assert hubtool("convert", source, "--recipe", RECIPE, "--out", out).code == 0
    else:
        (plan,) = plan_source(LocalSource(source), [RECIPE])
        interrupt(source, plan, out, 20)
    recipe = change(source)
    before = file_bytes(out)
    outcome = hubtool("convert", source, "--recipe", recipe, "--out", out)
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"Error: {out}: the output folder was begun with something else: found ")
    assert outcome.stderr.endswith("; give another --out, or remove the folder\n")
    assert file_bytes(out) == before


def test_folder_that_hubtool_has_not_begun_is_refused(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    outcome = hubtool("convert", sample("mini"), "--recipe", RECIPE, "--out", tmp_path)
    assert outcome.code == 1
    assert outcome.stderr == (
        f"Error: {tmp_path}: the output folder is not empty, and hubtool has not begun it; "
        "give another --out, or empty it\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_in_the_way_is_refused(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    assert hubtool("convert", sample("mini"), "--recipe", RECIPE, "--out", tmp_path / "out").code == 2
    assert (tmp_path / "out").read_text() == "years of work"


def test_empty_folder_is_used(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    assert hubtool("convert", sample("mini"), "--recipe", RECIPE, "--out", tmp_path).code == 0
    assert (tmp_path / "README.md").is_file()


Usage = namedtuple("Usage", ["total", "used", "free"])


def test_full_disk_is_refused_before_anything_is_written(
    sample: Samples, hubtool: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 1000, 1000))
    outcome = hubtool("convert", sample("mini"), "--recipe", RECIPE, "--out", tmp_path / "deep" / "out")
    assert outcome.code == 1
    assert outcome.stderr.startswith(
        f"Error: {tmp_path / 'deep' / 'out'}: the disk is too full: found 1,000 bytes free, expected "
    )
    assert outcome.stderr.endswith("; free some space, or give an --out on another disk\n")
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from pathlib import Path
from hubtool.checkpoint.open import open_source
from hubtool.convert.job import Job
from hubtool.plan.plan import plan_source
from tests.convert.passes import convert

source = open_source(sys.argv[1])
(plan,) = plan_source(source, ["mixed_3_6"])
steps = convert(source, [Job(plan, Path(sys.argv[2]))], 1)
next(steps)
print("begun", flush=True)
sys.stdin.readline()
"""


def test_second_run_on_a_folder_is_refused_with_the_process_of_the_first(
    sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("convert", sample("mini"), "--recipe", RECIPE, "--out", out)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(sample("mini")), str(out)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "begun\n"
        second = hubtool(*arguments)
        first.stdin.close()
    assert second.code == 1
    assert second.stderr == (
        f"Error: {out}: another hubtool is working in this folder: found process {first.pid}; "
        "wait until it ends, or stop it\n"
    )
    assert hubtool(*arguments).code == 0
