"""Finished folders: what the run that goes on keeps, notices and says."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import LocalSource
from hubtool.convert.convert import convert_sources
from hubtool.convert.job import Effort, Job
from hubtool.errors import OutputError
from hubtool.plan.plan import Plan, plan_source
from hubtool.progress import Advance, uncounted
from hubtool.record import read_record
from tests.checkpoints import copied, edit_json, file_bytes
from tests.convert.passes import convert
from tests.fixtures import QUIET, CommandLine, Samples

RECIPE = "mixed_3_6"


@dataclass
class Listener:
    """A watch that keeps what it is told, and does something at the first step."""

    act: Callable[[], object] = lambda: None
    said: list[str] = field(default_factory=list)
    acted: bool = False

    def say(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Advance]:
        """A stage at whose first step it acts."""

        def advance(nbytes: int, label: str = "", *, found: bool = False) -> None:
            if not self.acted:
                self.acted = True
                self.act()

        yield advance


def plan_of(source: Path) -> Plan:
    (plan,) = plan_source(open_source(str(source)), [RECIPE])
    return plan


def begin(source: Path, folder: Path, error_rows: int = 64, steps: int = 30) -> Path:
    """A folder in which some pieces were made."""
    with closing(convert(open_source(str(source)), [Job(plan_of(source), folder)], 2, error_rows)) as advances:
        for _, _ in zip(range(steps), advances, strict=False):
            pass
    return folder


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


@pytest.mark.parametrize("file", ["model-00002-of-00006.safetensors", "config.json"])
def test_source_that_changes_during_the_run_is_noticed_before_it_is_recorded(
    file: str, sample: Samples, tmp_path: Path
) -> None:
    source, out = copied(sample("mini"), tmp_path / "source"), tmp_path / "out"

    def change() -> None:
        path = source / file
        touch(path) if path.suffix == ".safetensors" else edit_json(path, lambda config: config.update(note=1))

    with pytest.raises(OutputError, match="begun with something else: found the source's files have changed"):
        convert_sources(open_source(str(source)), [Job(plan_of(source), out)], Effort(), Listener(change))
    assert read_record(out) is None


class Intruder(Listener):
    """A watch that tries to take the folder's lock at every stage."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.lock = folder / ".hubtool" / "lock"
        self.kept_out: list[str] = []

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Advance]:
        """A stage at whose beginning it tries."""
        with self.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.kept_out.append(name)
        yield uncounted


def test_folder_is_held_until_its_record_is_written(sample: Samples, tmp_path: Path) -> None:
    source, out = sample("mini"), tmp_path / "out"
    intruder = Intruder(out)
    convert_sources(open_source(str(source)), [Job(plan_of(source), out)], Effort(), intruder)
    assert intruder.kept_out == ["convert", "measure"]


def test_error_is_measured_and_recorded_as_the_run_did_that_began(sample: Samples, tmp_path: Path) -> None:
    source, out, whole = sample("mini"), begin(sample("mini"), tmp_path / "out"), tmp_path / "whole"
    listener = Listener()
    job = Job(plan_of(source), out)
    convert_sources(open_source(str(source)), [job], Effort(error_rows=1), listener)
    convert_sources(open_source(str(source)), [Job(plan_of(source), whole)], Effort(), QUIET)
    assert "the error is measured as the run did that began here: on one row in 64" in listener.said
    assert file_bytes(out) == file_bytes(whole)


def test_measuring_can_be_given_up_in_a_folder_that_was_begun_with_it(sample: Samples, tmp_path: Path) -> None:
    job = Job(plan_of(sample("mini")), begin(sample("mini"), tmp_path / "out"))
    (made,) = convert_sources(open_source(str(sample("mini"))), [job], Effort(error_rows=0), QUIET)
    assert made.record.weight_error is None
    assert all(component.error is None for component in made.record.plan.components)


def test_folders_begun_with_different_samples_are_refused_together(sample: Samples, tmp_path: Path) -> None:
    folders = [begin(sample("mini"), tmp_path / f"{rows}", rows) for rows in (0, 1)]
    work = [Job(plan_of(sample("mini")), folder) for folder in folders]
    with pytest.raises(OutputError, match="begun with different --measure-error; convert them one at a time"):
        convert_sources(open_source(str(sample("mini"))), work, Effort(), QUIET)


def test_another_mlx_is_refused_until_the_folder_is_finished(sample: Samples, tmp_path: Path) -> None:
    source, out = sample("mini"), begin(sample("mini"), tmp_path / "out")
    origin = out / ".hubtool" / "plan.json"
    now = json.loads(origin.read_bytes())
    origin.write_text(json.dumps(now | {"mlx": "0.1"}))
    work = [Job(plan_of(source), out)]
    with pytest.raises(OutputError, match=r"found MLX was 0\.1 and is .*, which may round differently"):
        convert_sources(open_source(str(source)), work, Effort(), QUIET)
    origin.write_text(json.dumps(now))
    convert_sources(open_source(str(source)), work, Effort(), QUIET)
    origin.write_text(json.dumps(now | {"mlx": "0.1"}))
    (again,) = convert_sources(open_source(str(source)), work, Effort(), QUIET)
    assert not again.fresh


@pytest.mark.parametrize("finished", [False, True], ids=["begun", "finished"])
def test_base_model_that_is_told_later_is_recorded(
    finished: bool, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out, commit = tmp_path / "out", "1" * 40
    arguments = ("convert", sample("mini"), "--recipe", RECIPE, "--out", out)
    if finished:
        assert hubtool(*arguments).code == 0
    else:
        begin(sample("mini"), out)
    later = hubtool(*arguments, "--base-model", f"someone/base@{commit}", "--json")
    assert (later.code, later.document["converted"]) == (0, not finished)
    record = read_record(out)
    assert record is not None
    assert (record.source.repo, record.source.repo_known) == ("someone/base", "stated")
    assert (record.source.commit, record.source.commit_known) == (commit, "stated")
    assert "someone/base" in (out / "README.md").read_text()
    assert commit in (out / "provenance.intoto.json").read_text()
    before = file_bytes(out)
    assert hubtool(*arguments).code == 0
    assert file_bytes(out) == before


def finished_folder(source: Path, out: Path) -> dict[str, str]:
    """The hash of every file of a finished folder."""
    convert_sources(open_source(str(source)), [Job(plan_of(source), out)], Effort(), QUIET)
    return file_bytes(out)


def again(source: Path, out: Path) -> tuple[bool, list[str]]:
    """Whether another run made anything, and what it said."""
    listener = Listener()
    (converted,) = convert_sources(open_source(str(source)), [Job(plan_of(source), out)], Effort(), listener)
    return converted.fresh, listener.said


SHARD = "model-00001-of-00001.safetensors"


def flip(path: Path) -> None:
    """Change the last byte of a file in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_finished_folder_with_a_damaged_shard_is_not_called_finished(sample: Samples, tmp_path: Path) -> None:
    before = finished_folder(sample("mini"), tmp_path / "out")
    flip(tmp_path / "out" / SHARD)
    fresh, said = again(sample("mini"), tmp_path / "out")
    assert fresh
    assert f"{tmp_path / 'out' / SHARD} is not what was written, and is made again" in said
    assert file_bytes(tmp_path / "out") == before


def test_touched_shard_is_hashed_and_kept(sample: Samples, tmp_path: Path) -> None:
    before = finished_folder(sample("mini"), tmp_path / "out")
    inode = (tmp_path / "out" / SHARD).stat().st_ino
    touch(tmp_path / "out" / SHARD)
    assert again(sample("mini"), tmp_path / "out") == (True, [])
    assert (tmp_path / "out" / SHARD).stat().st_ino == inode
    assert file_bytes(tmp_path / "out") == before
    assert not again(sample("mini"), tmp_path / "out")[0]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md", "provenance.intoto.json"])
def test_damaged_or_lost_document_is_made_again(name: str, sample: Samples, tmp_path: Path) -> None:
    before = finished_folder(sample("mini"), tmp_path / "out")
    if name in ("config.json", "tokenizer.json"):
        flip(tmp_path / "out" / name)
    else:
        (tmp_path / "out" / name).unlink()
    assert again(sample("mini"), tmp_path / "out")[0]
    assert file_bytes(tmp_path / "out") == before


def test_lost_shard_and_damaged_pieces_are_said(sample: Samples, tmp_path: Path) -> None:
    finished_folder(sample("mini"), tmp_path / "lost")
    (tmp_path / "lost" / SHARD).unlink()
    assert f"{tmp_path / 'lost' / SHARD} is gone, and is made again" in again(sample("mini"), tmp_path / "lost")[1]
    out = begin(sample("mini"), tmp_path / "out")
    os.truncate(out / ".hubtool" / "partial" / SHARD, 0)
    said = again(sample("mini"), out)[1]
    assert any(text.startswith(f"{out}: ") and f" pieces of {SHARD} are damaged, and are made" in text for text in said)


def test_recipe_of_another_name_is_recorded(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.toml").write_text('summary = "as it is"\n[[rule]]\nmatch = "**"\nmode = "repack"\n')
        arguments = ("convert", sample("mini"), "--recipe", tmp_path / f"{name}.toml", "--out", tmp_path / "out")
        assert hubtool(*arguments).code == 0
        record = read_record(tmp_path / "out")
        assert record is not None and record.recipe.name == name


def test_source_files_are_needed_in_the_order_of_the_pieces_left_in_all_folders(
    sample: Samples, tmp_path: Path
) -> None:
    source = open_source(str(sample("mini")))
    plans = plan_source(source, ["mixed_3_6", "float32"])
    work = [Job(plan, tmp_path / plan.recipe.name) for plan in plans]
    begin(sample("mini"), work[0].folder, steps=120)
    prepared: list[str] = []

    class Watched(LocalSource):
        def prepare(self, files: Sequence[str]) -> None:
            prepared.extend(files)

    watched = Watched(sample("mini"))
    for _ in convert(watched, work, 2):
        pass
    parts = [
        part
        for piece in plans[0].pieces()
        for part in plans[0].steps[piece.step].parameter.parts[piece.first_part : piece.first_part + piece.parts]
    ]
    names = [name for part in parts for name in (part.weight, part.scale) if name is not None]
    assert prepared == list(dict.fromkeys(source.tensors[name].file for name in names))
