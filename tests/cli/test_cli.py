"""The command line itself: help, exit codes, and what it loads."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

import hubtool as package
from hubtool.cli import console
from hubtool.cli.console import Console, table
from hubtool.convert import device
from hubtool.units import MB
from tests.checkpoints import copied, file_bytes
from tests.fixtures import CommandLine, Samples

CHECKOUT = Path(__file__).resolve().parents[2]

HEAVY = ("mlx", "mlx_lm", "transformers", "huggingface_hub", "rich", "numpy", "jinja2", "starlette")

LOADED = f"""
import sys
sys.argv[1:] = sys.argv[1:] or ["--help"]
import hubtool.cli
code = hubtool.cli.run(sys.argv[1:])
print(code, sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)
"""


def _loaded(*arguments: object) -> str:
    """The exit code and the heavy modules of a command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, arguments)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()[-1]


def test_help_loads_nothing_heavy() -> None:
    assert _loaded("--help") == "0 []"


def test_planning_loads_no_model_library(sample: Samples) -> None:
    code, _, modules = _loaded("plan", sample("mini"), "--recipe", "native").partition(" ")
    assert code == "0"
    assert not {"mlx_lm", "transformers"} & set(json.loads(modules.replace("'", '"')))


def test_version_is_the_packages(hubtool: CommandLine) -> None:
    outcome = hubtool("--version")
    assert (outcome.code, outcome.stdout.split()[-1]) == (0, package.__version__)


@pytest.mark.parametrize(
    "arguments",
    [
        ["absent"],
        ["plan"],
        ["plan", "source"],
        ["plan", "source", "--recipe", "native", "--jobs", "0"],
        ["convert", "source", "--recipe", "native"],
        ["sample", "folder", "--size", "huge"],
        ["publish", "source", "--recipe", "native"],
        ["--absent"],
    ],
)
def test_usage_errors_are_2(arguments: list[str], hubtool: CommandLine) -> None:
    outcome = hubtool(*arguments)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr


def test_answer_is_on_stdout_and_the_rest_on_stderr(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    arguments = ("convert", sample("mini"), "--recipe", "native", "--out")
    text = hubtool(*arguments, tmp_path / "text")
    assert text.stdout.startswith(f"{tmp_path / 'text'}: native, ")
    assert "convert: " in text.stderr and "measure: " in text.stderr
    quiet = hubtool(*arguments, tmp_path / "quiet", "-q")
    assert quiet.stderr == "" and quiet.stdout


def test_json_is_one_document_and_progress_is_json_lines(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    outcome = hubtool("convert", sample("mini"), "--recipe", "native", "--out", tmp_path / "out", "--json")
    assert outcome.document["folder"] == str(tmp_path / "out")
    lines = [json.loads(line) for line in outcome.stderr.splitlines()]
    progress = [line for line in lines if line.get("stage") == "convert"]
    assert progress[-1]["nbytes"] == progress[-1]["total_nbytes"] == outcome.document["nbytes"]
    assert [line["done"] for line in lines if "done" in line] == ["convert", "measure"]
    assert all(line["bytes_per_second"] > 0 and line["rss_nbytes"] > 10 * MB for line in progress)
    assert progress[-1]["seconds_left"] == 0


def test_rate_and_time_left_are_of_what_was_made_and_not_of_what_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 100.0, 100.0, *[110.0] * 20])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.0)
    with console.Console(json_mode=True).stage("convert", 1000) as advance:
        advance(500, "a", found=True)
        advance(100, "b")
    found, made = [json.loads(line) for line in capsys.readouterr().err.splitlines()[:2]]
    assert (found["nbytes"], found["bytes_per_second"], found["seconds_left"]) == (500, 0, None)
    assert (made["nbytes"], made["bytes_per_second"], made["seconds_left"]) == (600, 10, 40.0)


def test_jobs_are_as_many_as_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "LINUX_BACKENDS", ())
    monkeypatch.setattr(sys, "platform", "linux")
    for cores, jobs in ((1, 1), (3, 3), (64, device.MOST_JOBS)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False)
        assert device.default_jobs() == jobs


def test_errors_are_json_lines_too(hubtool: CommandLine, tmp_path: Path) -> None:
    outcome = hubtool("plan", tmp_path / "absent", "--recipe", "native", "--json")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert json.loads(outcome.stderr) == {
        "error": f"{tmp_path / 'absent'}: no such folder: found nothing, expected the folder of a checkpoint, "
        "or ORG/NAME on the Hub; check the path of the checkpoint"
    }


def test_wrong_usage_is_a_json_line_too(hubtool: CommandLine) -> None:
    outcome = hubtool("plan", "somewhere", "--json", "--recipes", "native")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "--recipes" in json.loads(outcome.stderr)["error"]


def test_run_log_holds_what_was_done_and_what_failed(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hubtool("convert", sample("mini"), "--recipe", "native", "--out", out, "-q")
    hubtool("convert", sample("mini"), "--recipe", "bf16", "--out", out)
    lines = [json.loads(line) for line in (out / ".hubtool" / "log").read_text().splitlines()]
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    assert [line["done"] for line in lines if "done" in line] == ["convert", "measure"]
    assert [line["error"].partition(": found")[0] for line in lines if "error" in line] == [
        f"{out}: the output folder was begun with something else"
    ]


def test_output_inside_the_source_is_refused(sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    source = copied(sample("mini"), tmp_path / "source")
    before = file_bytes(source)
    for option, folder in (("--out", source / "out"), ("--out-root", source), ("--out", source)):
        outcome = hubtool("convert", source, "--recipe", "native", option, folder)
        assert outcome.code == 2
        assert "the output would lie in the source" in outcome.stderr
    assert file_bytes(source) == before


@pytest.mark.parametrize("name", ["file/sample", "x" * 300])
def test_sample_that_cannot_be_written_says_so(name: str, hubtool: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = hubtool("sample", tmp_path / name)
    assert outcome.code == 1
    assert "cannot be written" in outcome.stderr


def test_reader_that_has_seen_enough_is_no_bug() -> None:
    command = f"{sys.executable} -m hubtool recipes native | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=CHECKOUT)
    assert (done.returncode, done.stderr) in ((0, ""), (1, ""))  # 0 where the pipe took it all in time


def test_sample_is_written_by_its_command(hubtool: CommandLine, tmp_path: Path) -> None:
    outcome = hubtool("sample", tmp_path / "sample", "--json")
    assert outcome.code == 0
    files = sum(path.stat().st_size for path in (tmp_path / "sample").iterdir())
    assert outcome.document == {"folder": str(tmp_path / "sample"), "size": "tiny", "seed": 0, "nbytes": files}
    again = hubtool("sample", tmp_path / "sample")
    assert again.code == 1
    assert "the folder for the sample is not empty" in again.stderr


def test_interrupt_is_130_and_says_how_to_go_on(hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path, *arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hubtool.cli.sample.write_sample", interrupt)
    outcome = hubtool("sample", "anywhere")
    assert outcome.code == 130
    assert outcome.stderr.endswith("run the same command again and it goes on: hubtool sample anywhere\n")


def test_bug_keeps_its_traceback(hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, *arguments: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("hubtool.cli.sample.write_sample", fail)
    with pytest.raises(ValueError, match="a bug"):
        hubtool("sample", "anywhere")


def test_columns_are_aligned() -> None:
    assert table(["name", ">bytes"], [["a", "1"], ["long", "1,000"]]) == (
        "name  bytes\n----  -----\na         1\nlong  1,000"
    )


def test_details_are_for_those_who_ask(capsys: pytest.CaptureFixture[str]) -> None:
    Console().detail("deep")
    Console(verbose=True).detail("deep")
    assert capsys.readouterr().err == "deep\n"
