from pathlib import Path

import pytest

from hubtool.record import MachineRecord, read_record
from tests.checkpoints import copied
from tests.fixtures import CommandLine, Conversions


@pytest.fixture
def folder(converted: Conversions, tmp_path: Path) -> Path:
    return copied(converted("mini", "mixed_3_6").folder, tmp_path / "folder")


ABORTED = (
    *("--check", "smoke", "--outcome", "aborted_by_guard"),
    *("--detail", "the first token was stopped by hand when the machine began to swap"),
)
MACHINE = ("--model", "Mac Studio", "--chip", "Apple M2 Ultra", "--memory", "128GiB", "--system", "macOS 15.4")


def test_what_a_publisher_states_is_recorded_and_shown_as_stated(folder: Path, hubtool: CommandLine) -> None:
    done = hubtool(
        *("evidence", "add", folder, *ABORTED, *MACHINE),
        *("--figure", "peak_nbytes=126GB", "--figure", "tokens_per_second=4.65", "--version", "mlx-lm=0.32.2"),
        *("--command", "mlx_lm.generate --max-tokens 1", "--started", "2026-05-01T10:00:00+02:00", "--seconds", "90"),
    )
    assert done.code == 0, done.stderr
    record = read_record(folder)
    assert record is not None
    (evidence,) = record.evidence
    assert evidence.kind == "stated"
    assert evidence.subject == record.subject
    assert evidence.machine == MachineRecord(
        model="Mac Studio", chip="Apple M2 Ultra", memory_nbytes=128 << 30, system="macOS 15.4"
    )
    assert evidence.figures == {"peak_nbytes": 126_000_000_000, "tokens_per_second": 4.65}
    assert evidence.versions == {"mlx-lm": "0.32.2"}
    assert (evidence.started, evidence.seconds) == ("2026-05-01T08:00:00+00:00", 90.0)
    card = (folder / "README.md").read_text()
    assert "stated by the publisher" in card
    assert "began to swap" in card
    assert "not generation-qualified" in card


def test_a_command_may_name_a_repo(folder: Path, hubtool: CommandLine) -> None:
    command = "mlx_lm.generate --model=someone/V4 --draft hub:other/V4@main"
    assert hubtool("evidence", "add", folder, *ABORTED, "--command", command).code == 0


def test_evidence_is_added_to_what_is_there(folder: Path, hubtool: CommandLine) -> None:
    for check in ("load", "smoke"):
        added = hubtool("evidence", "add", folder, "--check", check, "--outcome", "passed", "--detail", "it did")
        assert added.code == 0
    listed = hubtool("evidence", "list", folder, "--json").document
    assert [(each["check"], each["kind"], each["current"]) for each in listed] == [
        ("load", "stated", True),
        ("smoke", "stated", True),
    ]


def test_a_stated_generation_does_not_qualify_the_artifact(folder: Path, hubtool: CommandLine) -> None:
    stated = ("--check", "smoke", "--outcome", "passed", "--detail", "it talked")
    added = hubtool("evidence", "add", folder, *stated, *MACHINE)
    assert added.code == 0
    assert "not generation-qualified" in (folder / "README.md").read_text()


def test_the_publishers_prose_survives_new_evidence(folder: Path, hubtool: CommandLine) -> None:
    card = folder / "README.md"
    begin = "<!-- hubtool:prose notes -->\n"
    assert begin in card.read_text()
    card.write_text(card.read_text().replace(begin, f"{begin}Mind the gap.\n"))
    assert hubtool("evidence", "add", folder, *ABORTED).code == 0
    assert "Mind the gap." in card.read_text()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--detail", "see /Users/someone/log.txt"], "/Users/someone/log.txt"),
        (["--detail", "see ~/log.txt"], "~/log.txt"),
        (["--command", "mlx_lm.generate --model /models/v4"], "--command"),
        (["--command", "mlx_lm.generate --model=/models/alice/v4"], "--command"),
        (["--command", "mlx_lm.generate --model Models/alice/v4"], "--command"),
        (["--figure", "log=/tmp/log"], "/tmp/log"),
        (["--figure", "peak"], "--figure"),
        (["--figure", "peak_nbytes=much"], "--figure peak_nbytes"),
        (["--figure", "tokens_per_second=nan"], "--figure tokens_per_second"),
        (["--figure", f"tokens={10**30}"], "--figure tokens"),
        (["--seconds", "nan"], "--seconds"),
        (["--seconds", "inf"], "--seconds"),
        (["--started", "yesterday"], "--started"),
        (["--started", "0001-01-01T00:00:00+14:00"], "--started"),
    ],
)
def test_statements_with_paths_or_nonsense_are_refused(
    folder: Path, hubtool: CommandLine, options: list[str], found: str
) -> None:
    before = (folder / "hubtool.json").read_bytes(), (folder / "README.md").read_bytes()
    done = hubtool("evidence", "add", folder, *ABORTED, *options)
    assert done.code == 2
    assert found in done.stderr
    assert before == ((folder / "hubtool.json").read_bytes(), (folder / "README.md").read_bytes())


@pytest.mark.parametrize("check", ["perplexity", "kl-divergence", "benchmark"])
def test_stated_quality_is_quality_and_no_generation(
    check: str, converted: Conversions, hubtool: CommandLine, tmp_path: Path
) -> None:
    folder = copied(converted("mini", "mixed_3_6").folder, tmp_path / "made")
    stated = ("--check", check, "--outcome", "passed", "--detail", "5.2 on my text.", "--figure", "ppl=5.2")
    assert hubtool("evidence", "add", folder, *stated).code == 0
    card = (folder / "README.md").read_text()
    assert f"| Quality, {check.replace('kl-d', 'KL d')} | passed, stated by the publisher | 5\\.2 on my text." in card
    assert "not generation-qualified" in card and "Generation was not run." in card
    assert "Quality was not measured: what is said of it under Validation is stated by the publisher" in card
    assert hubtool("card", folder, "--check").code == 0
