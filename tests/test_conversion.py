"""Finished folders: what the run that goes on keeps, notices and says."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hubtool.conversion import Effort, convert_sources
from hubtool.convert import Target, convert
from hubtool.errors import OutputError
from hubtool.plan import Plan
from hubtool.planning import open_source, plan_source
from hubtool.record import read_record
from tests.checkpoints import copied, edit_json, file_bytes
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
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A stage at whose first step it acts."""

        def advance(nbytes: int, label: str) -> None:
            if not self.acted:
                self.acted = True
                self.act()

        yield advance


def plan_of(source: Path) -> Plan:
    (plan,) = plan_source(open_source(str(source)), [RECIPE])
    return plan


def begin(source: Path, folder: Path, error_rows: int = 64, steps: int = 30) -> Path:
    """A folder in which some pieces were made."""
    with closing(convert(open_source(str(source)), [Target(plan_of(source), folder)], 2, error_rows)) as advances:
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
        convert_sources(open_source(str(source)), [Target(plan_of(source), out)], Effort(), Listener(change))
    assert read_record(out) is None


class Intruder(Listener):
    """A watch that tries to take the folder's lock at every stage."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.lock = folder / ".hubtool" / "lock"
        self.kept_out: list[str] = []

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A stage at whose beginning it tries."""
        with self.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.kept_out.append(name)
        yield lambda nbytes, label: None


def test_folder_is_held_until_its_record_is_written(sample: Samples, tmp_path: Path) -> None:
    source, out = sample("mini"), tmp_path / "out"
    intruder = Intruder(out)
    convert_sources(open_source(str(source)), [Target(plan_of(source), out)], Effort(), intruder)
    assert intruder.kept_out == ["convert", "measure"]


def test_error_is_measured_and_recorded_as_the_run_did_that_began(sample: Samples, tmp_path: Path) -> None:
    source, out, whole = sample("mini"), begin(sample("mini"), tmp_path / "out"), tmp_path / "whole"
    listener = Listener()
    target = Target(plan_of(source), out)
    convert_sources(open_source(str(source)), [target], Effort(error_rows=1), listener)
    convert_sources(open_source(str(source)), [Target(plan_of(source), whole)], Effort(), QUIET)
    assert "the error is measured as the run did that began here: on one row in 64" in listener.said
    assert file_bytes(out) == file_bytes(whole)


def test_folders_begun_with_different_samples_are_refused_together(sample: Samples, tmp_path: Path) -> None:
    folders = [begin(sample("mini"), tmp_path / f"{rows}", rows) for rows in (0, 1)]
    targets = [Target(plan_of(sample("mini")), folder) for folder in folders]
    with pytest.raises(OutputError, match="begun with different --measure-error; convert them one at a time"):
        convert_sources(open_source(str(sample("mini"))), targets, Effort(), QUIET)


def test_another_mlx_is_refused_until_the_folder_is_finished(sample: Samples, tmp_path: Path) -> None:
    source, out = sample("mini"), begin(sample("mini"), tmp_path / "out")
    origin = out / ".hubtool" / "plan.json"
    now = json.loads(origin.read_bytes())
    origin.write_text(json.dumps(now | {"mlx": "0.1"}))
    targets = [Target(plan_of(source), out)]
    with pytest.raises(OutputError, match=r"found MLX was 0\.1 and is .*, which may round differently"):
        convert_sources(open_source(str(source)), targets, Effort(), QUIET)
    origin.write_text(json.dumps(now))
    convert_sources(open_source(str(source)), targets, Effort(), QUIET)
    origin.write_text(json.dumps(now | {"mlx": "0.1"}))
    (again,) = convert_sources(open_source(str(source)), targets, Effort(), QUIET)
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
