"""The ladder on real folders: stock mlx-lm in real child processes, each under the guard."""

import getpass
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest

from hubtool.card import current_evidence, render_card
from hubtool.checkpoint.measure import measure
from hubtool.checkpoint.open import open_source
from hubtool.cli.console import Console
from hubtool.files.lock import held, locked
from hubtool.guard.guard import Limits
from hubtool.plan.plan import plan_source
from hubtool.record import RECORD_FILE, TEST_RESULT_FILE, Evidence, Record, encode_record, is_derived, read_record
from hubtool.sample import TINY, write_sample
from hubtool.units import GB, MB
from hubtool.validate.finding import without_paths
from hubtool.validate.ladder import Request, validate
from tests.checkpoints import Tensor, copied, edit_json, edit_tensors
from tests.fixtures import CommandLine, Conversions, convert_source

pytestmark = pytest.mark.slow

TOKENS = 3

SHARD = "model-00001-of-00001.safetensors"

MEDIUM = replace(
    TINY,
    hidden_size=512,
    moe_intermediate_size=512,
    num_hidden_layers=4,
    compress_ratios=(0, 4, 128, 4, 0),
    num_hash_layers=1,
    n_routed_experts=128,
)
"""Some 220 MB, nearly all of it experts: several times what one layer and an interpreter take."""

MEDIUM_LIMIT = 250 * MB


@pytest.fixture
def folder(converted: Conversions, tmp_path: Path) -> Path:
    return copied(converted("mini", "mixed_3_6").folder, tmp_path / "folder")


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("medium")
    source = open_source(str(write_sample(root / "source", MEDIUM)))
    (plan,) = plan_source(source, ["native"])
    convert_source(source, plan, root / "folder")
    return root / "folder"


def record_of(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None
    return record


def climb(folder: Path, *named: str, limit: int = 2 * GB, **options: object) -> dict[str, Evidence]:
    request = Request(Limits(limit), frozenset(named), TOKENS, **options)  # type: ignore[arg-type]
    evidence = list(validate(folder, record_of(folder), request, Console(quiet=True)))
    assert psutil.Process().children(recursive=True) == []
    return {each.check: each for each in evidence}


def outcomes(evidence: dict[str, Evidence]) -> dict[str, str]:
    return {check: each.outcome for check, each in evidence.items()}


def rerecord(folder: Path) -> Path:
    """The folder with a record of what it now holds, as if it had been converted so."""
    measurement = measure(folder, None)
    files = tuple(file for file in measurement.files if not is_derived(file.name))
    record = msgspec.structs.replace(record_of(folder), measured=measurement.facts, files=files)
    (folder / RECORD_FILE).write_bytes(encode_record(record))
    return folder


@contextmanager
def watched_from_outside() -> Iterator[list[int]]:
    """Proportional memory of all children of this process together, in bytes, many times a second."""
    samples: list[int] = [0]
    over = threading.Event()
    mine = psutil.Process().cmdline()

    def sample() -> None:
        while not over.wait(0.01):
            try:
                children = psutil.Process().children(recursive=True)
                # Until it has become another program, a child shows the memory of this process as its own.
                begun = [child for child in children if child.cmdline() != mine]
                samples.append(sum(child.memory_full_info().pss for child in begun))
            except psutil.Error:
                continue

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_every_rung_of_an_intact_folder_passes_with_the_same_tokens(folder: Path) -> None:
    record = record_of(folder)
    evidence = climb(folder)
    assert outcomes(evidence) == dict.fromkeys(("integrity", "load", "smoke", "smoke-streamed"), "passed")
    smoke, streamed = evidence["smoke"], evidence["smoke-streamed"]
    assert smoke.figures["tokens"] == streamed.figures["tokens"] == TOKENS
    assert smoke.figures["tokens_digest"] == streamed.figures["tokens_digest"]
    assert streamed.detail.endswith("the same tokens as the resident run")
    assert smoke.figures["swap_limit_nbytes"] == 1 * GB
    assert evidence["load"].figures["parameters"] == record.measured.tensors
    for each in evidence.values():
        assert each.subject == record.subject
        assert each.machine.memory_nbytes > 0
        assert each.command == "hubtool validate --tokens 3 --memory-limit 2GB"
    for each in (smoke, streamed):
        assert 10 * MB < int(each.figures["peak_nbytes"]) < 2 * GB
        assert {"hubtool", "mlx", "mlx-lm", "python"} <= each.versions.keys()


@pytest.mark.slow
def test_streamed_tokens_are_the_resident_ones_whatever_the_formats(converted: Conversions, tmp_path: Path) -> None:
    folder = copied(converted("other", "native").folder, tmp_path / "folder")
    evidence = climb(folder, "smoke", "smoke-streamed")
    assert outcomes(evidence) == {"integrity": "passed", "smoke": "passed", "smoke-streamed": "passed"}
    assert evidence["smoke-streamed"].detail.endswith("the same tokens as the resident run")


@pytest.mark.slow
def test_a_resident_run_is_held_against_an_earlier_streamed_one(folder: Path, hubtool: CommandLine) -> None:
    limits = ("--tokens", "2", "--memory-limit", "1GB")
    assert hubtool("validate", folder, "--streamed", *limits).code == 0
    assert hubtool("validate", folder, "--smoke", *limits).code == 0
    *_, streamed, smoke = record_of(folder).evidence
    assert smoke.detail.endswith("and the same tokens as the streamed run")
    other = msgspec.structs.replace(streamed, figures={**streamed.figures, "tokens_digest": "0" * 16})
    (folder / RECORD_FILE).write_bytes(encode_record(msgspec.structs.replace(record_of(folder), evidence=(other,))))
    assert hubtool("validate", folder, "--smoke", *limits).code == 1
    assert record_of(folder).evidence[-1].detail == "the tokens are not those of the streamed run"


@pytest.mark.slow
def test_a_streamed_run_of_one_token_says_nothing_of_one_to_the_next(medium: Path) -> None:
    def figures(tokens: int) -> dict[str, int | float | str]:
        request = Request(Limits(MEDIUM_LIMIT), frozenset(["smoke-streamed"]), tokens)
        evidence = list(validate(medium, record_of(medium), request, Console(quiet=True)))
        assert evidence[-1].outcome == "passed", evidence[-1].detail
        return evidence[-1].figures

    one, three = figures(1), figures(3)
    assert {"read_per_token_nbytes", "seconds_per_token"}.isdisjoint(one)
    # What is read after the first token is for the two that follow it, and no more.
    assert int(three["read_nbytes"]) - int(one["read_nbytes"]) in (
        2 * int(three["read_per_token_nbytes"]),
        2 * int(three["read_per_token_nbytes"]) + 1,
    )


@pytest.mark.slow
def test_a_streamed_run_that_was_over_its_limit_between_samples_does_not_pass(folder: Path) -> None:
    limit = 200 * MB
    with (folder / "deepseek_v4.py").open("a") as file:
        file.write(f"\nheld = bytearray(b'x' * {limit})\ndel held\n")
    request = Request(Limits(limit, interval=60.0), frozenset(["smoke-streamed"]), 1, trust_remote_code=True)
    evidence = list(validate(folder, record_of(rerecord(folder)), request, Console(quiet=True)))[-1]
    assert evidence.outcome == "failed"
    assert evidence.detail.endswith("over the limit of 200 MB")
    assert int(evidence.figures["peak_nbytes"]) > limit


def test_the_command_names_every_threshold_that_is_not_the_usual_one() -> None:
    request = Request(Limits(96 * GB, swap_growth_nbytes=2 * GB, pressure=0.4, grace=10.0))
    assert request.command == (
        "hubtool validate --memory-limit 96GB --max-swap-growth 2GB --max-pressure 0.4 --grace 10"
    )


def test_a_load_that_has_no_room_is_refused_before_it_begins(folder: Path, hubtool: CommandLine) -> None:
    assert hubtool("validate", folder, "--memory-limit", "60MB").code == 0
    assert [each.outcome for each in record_of(folder).evidence] == ["passed", *["refused_preflight"] * 3]
    assert hubtool("validate", folder, "--load", "--memory-limit", "60MB").code == 1


@pytest.mark.slow
def test_a_streamed_run_reads_only_the_experts_that_were_chosen(medium: Path) -> None:
    figures = climb(medium, "smoke-streamed", limit=MEDIUM_LIMIT)["smoke-streamed"].figures
    nbytes = record_of(medium).measured.nbytes
    # Of the routed experts, three of 128 are read for a token; all else is a twentieth of this model.
    assert 0 < int(figures["read_per_token_nbytes"]) < nbytes / 8


@pytest.mark.slow
def test_a_model_beyond_the_limit_is_refused_resident_and_runs_streamed(medium: Path) -> None:
    refused = climb(medium, "smoke", limit=MEDIUM_LIMIT)["smoke"]
    assert refused.outcome == "refused_preflight"
    assert refused.detail.endswith("and the memory limit is 250 MB")
    with watched_from_outside() as samples:
        stopped = climb(medium, "smoke", limit=MEDIUM_LIMIT, force=True)["smoke"]
    assert stopped.outcome == "aborted_by_guard"
    assert stopped.figures["tokens"] == 0
    assert max(samples) < 1.5 * MEDIUM_LIMIT
    with watched_from_outside() as samples:
        streamed = climb(medium, "smoke-streamed", limit=MEDIUM_LIMIT)["smoke-streamed"]
    assert streamed.outcome == "passed"
    assert 10 * MB < max(samples) < MEDIUM_LIMIT
    resident = climb(medium, "smoke")["smoke"]
    assert resident.outcome == "passed"
    assert resident.figures["tokens_digest"] == streamed.figures["tokens_digest"]


def test_a_streamed_run_that_has_no_room_is_refused_too(folder: Path) -> None:
    evidence = climb(folder, "smoke-streamed", limit=50 * MB)["smoke-streamed"]
    assert evidence.outcome == "refused_preflight"
    assert int(evidence.figures["needed_nbytes"]) > 50 * MB


def test_nothing_runs_on_bytes_that_are_not_those_of_the_record(folder: Path) -> None:
    subject = record_of(folder).subject
    edit_json(folder / "config.json", lambda config: config.update(rope_theta=5))
    evidence = climb(folder)
    assert outcomes(evidence) == {
        "integrity": "failed",
        **dict.fromkeys(("load", "smoke", "smoke-streamed"), "not_run"),
    }
    assert "config.json" in evidence["integrity"].detail
    assert subject not in {each.subject for each in evidence.values()}


@pytest.mark.parametrize(
    ("library", "says"),
    [("mlx_lm", "raise ImportError('mlx_lm needs libfoo.so, see /opt/alice/lib/libfoo.so')"), ("mlx", "1 / 0")],
)
def test_an_environment_that_cannot_run_anything_is_no_fault_of_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, says: str
) -> None:
    broken = tmp_path / "broken" / library
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(says)
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    evidence = climb(folder, "load", "smoke")
    assert outcomes(evidence) == {"integrity": "passed", "load": "not_run", "smoke": "not_run"}
    if library == "mlx_lm":
        assert evidence["load"].detail == "ImportError: mlx_lm needs libfoo.so, see libfoo.so"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("cannot open '/Users/al ice/v 4/x.bin'", "cannot open 'x.bin'"),
        ("no /opt/alice/lib/x.so: 3 tokens/s", "no x.so: 3 tokens/s"),
        ("see ~/log.txt, file:///tmp/a/b.txt or https://hf.co/a/b/c", "see log.txt, b.txt or https://hf.co/a/b/c"),
        ("/models/it's/folder: [2, 4] / 3, org/name", "folder: [2, 4] / 3, org/name"),
    ],
)
def test_of_a_path_only_the_last_part_is_told(text: str, kept: str) -> None:
    assert without_paths(text, "/models/it's/folder") == kept


def drop_a_norm(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.attn_norm.weight"))


def swap_projections_of_other_shapes(folder: Path) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        one, other = "model.layers.1.attn_norm.weight", "model.layers.1.attn.kv_norm.weight"
        tensors[one], tensors[other] = tensors[other], tensors[one]

    edit_tensors(folder, swap)


@pytest.mark.parametrize(
    ("corrupt", "named"),
    [
        (drop_a_norm, "model.layers.1.attn_norm.weight"),
        (swap_projections_of_other_shapes, "model.layers.1.attn"),
    ],
)
def test_loading_notices_what_the_files_agree_on(folder: Path, corrupt: Callable[[Path], None], named: str) -> None:
    corrupt(folder)
    edit_json(folder / "model.safetensors.index.json", lambda index: index.pop("metadata"))
    evidence = climb(rerecord(folder), "load", "smoke")
    assert outcomes(evidence) == {"integrity": "passed", "load": "failed", "smoke": "not_run"}
    assert named in evidence["load"].detail
    assert str(folder) not in evidence["load"].detail


@pytest.mark.slow
def test_generating_notices_what_loads_and_is_not_finite(folder: Path) -> None:
    def overflow(tensors: dict[str, Tensor]) -> None:
        name = "model.layers.0.attn_norm.weight"
        tensors[name] = replace(tensors[name], data=b"\x7f\x7f" * (len(tensors[name].data) // 2))  # 3.4e38, finite

    edit_tensors(folder, overflow)
    evidence = climb(rerecord(folder), "load", "smoke")
    assert outcomes(evidence) == {"integrity": "passed", "load": "passed", "smoke": "failed"}
    assert "not finite" in evidence["smoke"].detail


def test_model_code_that_is_not_hubtools_runs_only_when_trusted(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with (folder / "deepseek_v4.py").open("a") as file:
        file.write(f"\nopen({str(ran)!r}, 'w').close()\n")
    rerecord(folder)
    evidence = climb(folder, "load")
    assert evidence["load"].outcome == "refused_preflight"
    assert not ran.exists()
    assert climb(folder, "load", trust_remote_code=True)["load"].outcome == "passed"
    assert ran.exists()


@pytest.mark.slow
def test_the_command_writes_evidence_and_card_and_leaves_the_subject(folder: Path, hubtool: CommandLine) -> None:
    before = record_of(folder)
    done = hubtool("validate", folder, "--load", "--memory-limit", "1GB", "--json")
    record = record_of(folder)
    assert done.code == 0
    assert [each["check"] for each in done.document["evidence"]] == ["integrity", "load"]
    assert record.subject == before.subject
    assert [each.outcome for each in current_evidence(record)] == ["passed", "passed"]
    assert msgspec.structs.replace(record, evidence=()) == msgspec.structs.replace(before, evidence=())
    card = (folder / "README.md").read_text()
    assert "load-validated" in card
    assert "not generation-qualified" in card
    written = (folder / RECORD_FILE).read_text() + card
    for private in (str(folder), str(Path.home()), platform.node(), getpass.getuser()):
        assert len(private) < 5 or private not in written
    assert "hubtool validate --load --memory-limit 1GB" in written
    assert [each["check"] for each in hubtool("validate", folder, "--load", "--json").document["evidence"]] == ["load"]


@pytest.mark.parametrize(
    ("options", "code", "outcome"),
    [
        (["--smoke", "--memory-limit", "100MB"], 1, "refused_preflight"),
        (["--smoke", "--memory-limit", "30MB", "--force"], 75, "aborted_by_guard"),
        (["--memory-limit", "100MB", "--tokens", "1"], 0, "refused_preflight"),
    ],
)
def test_exit_code_tells_what_became_of_a_generation(
    folder: Path, hubtool: CommandLine, options: list[str], code: int, outcome: str
) -> None:
    done = hubtool("validate", folder, *options)
    assert done.code == code
    assert record_of(folder).evidence[-1].outcome == outcome


def test_evidence_of_other_bytes_is_not_on_the_card(folder: Path, hubtool: CommandLine) -> None:
    assert hubtool("validate", folder, "--load").code == 0
    assert "load-validated" in render_card(record_of(folder))
    (folder / "LICENSE").write_bytes((folder / "LICENSE").read_bytes() + b"\n")
    card = render_card(record_of(rerecord(folder)))
    assert "load-validated" not in card
    listed = hubtool("evidence", "list", folder, "--json").document
    assert [each["current"] for each in listed] == [False, False]


def test_one_changed_byte_takes_all_evidence_off_the_card(folder: Path, hubtool: CommandLine) -> None:
    assert hubtool("validate", folder, "--load").code == 0
    assert hubtool("card", folder, "--check").code == 0
    shard = folder / SHARD
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    touched = f"{SHARD} was touched since the validation"
    checked = hubtool("card", folder, "--check")
    assert (checked.code, touched in checked.stdout) == (1, True)
    assert touched in hubtool("card", folder).stderr
    listed = hubtool("evidence", "list", folder, "--json")
    assert [each["current"] for each in listed.document] == [False, False]
    added = hubtool("evidence", "add", folder, "--check", "load", "--outcome", "passed", "--detail", "it did")
    assert (added.code, touched in added.stderr) == (1, True)

    assert hubtool("validate", folder).code == 1
    card = (folder / "README.md").read_text()
    assert "load-validated" not in card
    assert "converted, not generation-qualified" in card
    assert "The files are no longer those recorded" in card
    assert "| Integrity | passed |" not in card
    assert "| Integrity | failed |" in card
    assert not (folder / TEST_RESULT_FILE).exists()
    assert hubtool("card", folder, "--check").code == 0
    assert not any(each["current"] for each in hubtool("evidence", "list", folder, "--json").document)

    shard.write_bytes(intact)
    assert hubtool("validate", folder, "--integrity").code == 0
    assert "load-validated" in (folder / "README.md").read_text()


def test_a_refusal_does_not_take_back_what_passed(folder: Path, hubtool: CommandLine) -> None:
    assert hubtool("validate", folder, "--smoke", "--tokens", "1").code == 0
    assert hubtool("validate", folder, "--smoke", "--memory-limit", "100MB").code == 1
    assert record_of(folder).evidence[-1].outcome == "refused_preflight"
    assert "not generation-qualified" not in (folder / "README.md").read_text()


def test_a_file_that_is_touched_while_a_rung_runs_leaves_it_without_a_verdict(folder: Path, tmp_path: Path) -> None:
    with (folder / "deepseek_v4.py").open("a") as file:
        file.write(f"\nimport os\nos.utime({str(folder / SHARD)!r})\n")
    evidence = climb(rerecord(folder), "load", trust_remote_code=True)["load"]
    assert evidence.outcome == "not_run"
    assert evidence.detail.startswith(f"{SHARD} was touched while it ran")


def test_a_folder_that_another_process_holds_is_not_begun_with(folder: Path, hubtool: CommandLine) -> None:
    with held(folder / ".hubtool" / "lock", folder):
        done = hubtool("validate", folder, "--integrity")
    assert (done.code, "another hubtool is working in this folder" in done.stderr) == (1, True)
    assert not (folder / ".hubtool" / "integrity.json").exists()


@pytest.mark.slow
def test_evidence_waits_for_a_folder_that_was_taken_meanwhile(folder: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with (folder / "deepseek_v4.py").open("a") as file:
        file.write(f"\nimport pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(1)\n")
    rerecord(folder)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "hubtool", "validate", str(folder), "--load", "--trust-remote-code"]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not begun.exists() and running.poll() is None:
        time.sleep(0.01)
    with locked(folder):
        time.sleep(3)
        assert running.poll() is None
    output, errors = running.communicate()
    assert running.returncode == 0, errors
    assert [each.outcome for each in record_of(folder).evidence] == ["passed", "passed"], output


def test_damage_that_no_header_survives_is_recorded_too(folder: Path, hubtool: CommandLine) -> None:
    shard = folder / SHARD
    shard.write_bytes(shard.read_bytes()[:-8])
    done = hubtool("validate", folder)
    assert done.code == 1
    assert "truncated" in done.stdout
    record = record_of(folder)
    assert [each.outcome for each in record.evidence] == ["failed", "not_run", "not_run", "not_run"]
    assert current_evidence(record) == ()


def test_a_terminated_validation_leaves_no_process(folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "hubtool", "validate", str(folder), "--smoke", "--tokens", "1000000", "--quiet"]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    process = psutil.Process(running.pid)
    children: list[psutil.Process] = []
    while not children and running.poll() is None:
        children = process.children(recursive=True)
    running.terminate()
    _, errors = running.communicate()
    assert running.returncode == 130
    assert "interrupted" in errors
    assert children
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []


def test_a_folder_without_a_record_cannot_be_validated(tmp_path: Path, hubtool: CommandLine) -> None:
    done = hubtool("validate", tmp_path)
    assert (done.code, done.stdout) == (1, "")
    assert "hubtool.json" in done.stderr
