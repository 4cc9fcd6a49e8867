"""Calibration end to end: a source reads a text, conversions are fitted to it, and an ended run changes no byte."""

import json
from pathlib import Path

import numpy as np
import pytest

from hubtool.checkpoint.statistics import Statistics
from hubtool.files.read import file_sha256
from hubtool.plan import parts
from hubtool.worker import layers
from hubtool.worker.calibrate import calibrate
from hubtool.worker.events import CalibrateTask, Event, LayerDone, TaskText
from tests.fixtures import CommandLine, Samples


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join("".join(rng.choice(list("abcdefghijklmnop"), 4)) for _ in range(400)))
    return path


@pytest.mark.slow
def test_calibrated_fitted_converted_and_validated(
    sample: Samples, text: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    statistics, out = tmp_path / "s.safetensors", tmp_path / "out"
    options = ("--tokens", 96, "--context", 32, "--memory-limit", "2GB", "--sensitivity", "--json")
    outcome = hubtool("calibrate", sample("mini"), "--text", f"{text}=2", "--text", text, "--out", statistics, *options)
    assert outcome.code == 0, outcome.stderr
    known = Statistics(statistics)
    assert outcome.document["sha256"] == known.digest
    assert outcome.document["tokens"] == known.calibration.tokens == 96
    assert [each.tokens for each in known.calibration.texts] == [64, 32]
    assert {each.sha256 for each in known.calibration.texts} == {file_sha256(text)}
    assert known.inputs["lm_head"].count == (96,)
    experts = known.inputs["model.layers.1.ffn.switch_mlp.down_proj"]
    config = json.loads((sample("mini") / "config.json").read_bytes())
    assert sum(experts.count) == 96 * config["num_experts_per_tok"]
    assert len(known.inputs["model.layers.1.attn.wo_a"].count) == config["o_groups"]
    again = hubtool("calibrate", sample("mini"), "--text", text, "--out", statistics, *options)
    assert (again.code, "a file is in the way" in again.stderr) == (1, True)
    made = hubtool("convert", sample("mini"), "--fit", "6bits", "--statistics", statistics, "--out", out)
    assert made.code == 0, made.stderr
    assert hubtool("validate", out, "--memory-limit", "2GB").code == 0
    assert json.loads((out / "hubtool.json").read_bytes())["fit"]["statistics"] == known.digest
    assert not list((tmp_path / ".hubtool").glob("calibrate-*/journal.json"))


class Ended(Exception):
    """The run was ended here."""


@pytest.mark.slow
def test_a_calibration_that_was_ended_goes_on_to_the_same_bytes(
    sample: Samples, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(parts, "CANDIDATES", (parts.affine(4, 64),))
    monkeypatch.setattr(parts, "LAST_RESORT", ())

    def task(name: str) -> CalibrateTask:
        whole = TaskText(path=str(text), tokens=96, name="text.txt", commit=None, sha256="0" * 64)
        out, state = str(tmp_path / name), str(tmp_path / f"{name}-state")
        return CalibrateTask(str(sample("mini")), None, [whole], 32, 1, state, 1 << 30, out, sensitivity=32)

    calibrate(task("whole"), lambda event: None)
    seen: list[int] = []

    def end(event: Event) -> None:
        if isinstance(event, LayerDone) and event.number not in seen:
            seen.append(event.number)
            raise Ended

    for _ in range(10):
        try:
            calibrate(task("ended"), end)
        except Ended:
            continue
        break
    assert seen == [0, 1, 2, 3]
    assert (tmp_path / "ended").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_cannot_be_calibrated_is_said(sample: Samples, text: Path, hubtool: CommandLine, tmp_path: Path) -> None:
    arguments = ("calibrate", sample("mini"), "--out", tmp_path / "s", "--context", 32)
    for options, code, sentence in (
        (("--text", text, "--tokens", 16), 2, "fewer tokens than a window has"),
        (("--text", f"{text}=x"), 2, "not a share"),
        (("--text", f"{text}=-1"), 2, "not a share"),
        (("--text", tmp_path / "no.txt"), 2, "no such file"),
        (("--text", text, "--memory-limit", "10MB"), 2, "too little memory"),
    ):
        refused = hubtool(*arguments, *options)
        assert (refused.code, sentence in refused.stderr) == (code, True), refused.stderr
    assert not (tmp_path / "s").exists()
