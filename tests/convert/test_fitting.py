"""Conversions whose scales are fitted to statistics: the right rows by the right inputs, recorded, and never mixed."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.statistics import Statistics, Sums, write_statistics
from hubtool.convert.engine import Task, make, make_task
from hubtool.convert.hints import Hints
from hubtool.convert.piece import PieceMaker
from hubtool.convert.weighted import quantize_weighted
from hubtool.plan.format import Format
from hubtool.plan.plan import Piece, plan_source
from tests.checkpoints import file_bytes, read_tensors
from tests.fixtures import CommandLine, Samples
from tests.reference import Published
from tests.statistics import CALIBRATION, random_statistics


@pytest.fixture(scope="module")
def statistics(sample: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every linear of the `mini` sample but the head."""
    (plan,) = plan_source(open_source(str(sample("mini"))), ["mixed_3_6"])
    return random_statistics(tmp_path_factory.mktemp("statistics") / "a.safetensors", plan.model, without={"lm_head"})


def modules(folder: Path) -> Iterator[tuple[str, Any]]:
    for name, entry in json.loads((folder / "config.json").read_bytes())["quantization"].items():
        if isinstance(entry, dict):
            yield name, entry


def test_every_row_is_fitted_to_the_inputs_that_it_meets(
    sample: Samples, statistics: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (
        "convert",
        sample("mini"),
        "--recipe",
        "mixed_3_6",
        "--statistics",
        statistics,
        "--measure-error",
        "full",
    )
    assert hubtool(*arguments, "--out", out).code == 0
    published, written, known = Published(sample("mini")), read_tensors(out), Statistics(statistics)
    errors = json.loads((out / "hubtool.json").read_bytes())["weight_error"]["weighted"]
    for module, entry in modules(out):
        values, form = published.values(f"{module}.weight"), Format("affine", entry["bits"], entry["group_size"])
        rows = mx.array(values.reshape(-1, values.shape[-1])).astype(mx.bfloat16)
        if module not in known.inputs:
            assert module in ("lm_head", "model.embed_tokens")
            expected = tuple(mx.quantize(rows, group_size=form.group_size, bits=form.bits))
            assert f"{module}.weight" not in errors
        else:
            inputs = known.inputs[module]
            size = len(rows) // len(inputs.count)
            blocks = [
                quantize_weighted(
                    rows[n * size : (n + 1) * size], form, Hints(moments, "experts" in module or "switch" in module)
                )
                for n, moments in enumerate(inputs.moments(0, len(inputs.count)))
            ]
            expected = tuple(mx.concatenate(list(each)) for each in zip(*blocks, strict=True))
            assert 0 < errors[f"{module}.weight"] < 1
        for part, array in zip(("weight", "scales", "biases"), expected, strict=True):
            assert written[f"{module}.{part}"].data == np.array(array.view(mx.uint8)).tobytes(), module


def test_fitting_lowers_every_weighted_error_and_is_recorded(
    sample: Samples, statistics: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    recipe = tmp_path / "plain.toml"
    text = 'summary = "x"\n\n[[rule]]\nmatch = "**"\nmode = "affine"\nbits = 4\ngroup_size = 32\n'
    recipe.write_text(text + 'fit = "nearest"\n')
    fitted = tmp_path / "fitted.toml"
    fitted.write_text(text + 'fit = "weighted"\n\n[[rule]]\nmatch = "**"\nmode = "published"\noptional = true\n')
    recipe.write_text(recipe.read_text() + '\n[[rule]]\nmatch = "**"\nmode = "published"\noptional = true\n')
    for path in (recipe, fitted):
        made = hubtool(
            "convert", sample("mini"), "--recipe", path, "--statistics", statistics, "--out", tmp_path / path.stem
        )
        assert made.code == 0, made.stderr
    before, after = (json.loads((tmp_path / name / "hubtool.json").read_bytes()) for name in ("plain", "fitted"))
    assert before["plan"]["nbytes"] == after["plan"]["nbytes"]
    assert before["weight_error"]["weighted"].keys() == after["weight_error"]["weighted"].keys()
    for name, error in before["weight_error"]["weighted"].items():
        assert after["weight_error"]["weighted"][name] < error, name
    assert "fit" not in before
    fit, known = after["fit"], Statistics(statistics)
    assert (fit["method"], fit["statistics"]) == ("weighted", known.digest)
    assert msgspec.convert(fit["calibration"], type(CALIBRATION)) == CALIBRATION
    counts = [each.count for name, each in known.inputs.items() if "switch_mlp" in name]
    assert fit["unseen"] == sum(count.count(0) for count in counts) > 0
    assert (fit["experts"], fit["nearest"]) == (sum(map(len, counts)), 2)
    card = (tmp_path / "fitted" / "README.md").read_text()
    assert known.digest in card
    assert f"{fit['unseen']} of {fit['experts']} experts' matrices saw no token" in card
    assert "| Weighted error |" in card
    assert hubtool("card", tmp_path / "fitted", "--check").code == 0
    assert hubtool("inspect", tmp_path / "fitted").code == 0


def test_bytes_do_not_depend_on_jobs_and_two_statistics_do_not_share_a_folder(
    sample: Samples, statistics: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    (plan,) = plan_source(open_source(str(sample("mini"))), ["mixed_3_6"])
    other = random_statistics(tmp_path / "other.safetensors", plan.model, seed=1)
    arguments = ("convert", sample("mini"), "--recipe", "mixed_3_6", "--out")
    made = []
    for jobs in (1, 4):
        out = tmp_path / f"out{jobs}"
        assert hubtool(*arguments, out, "--statistics", statistics, "--jobs", jobs).code == 0
        made.append({name: sha256 for name, sha256 in file_bytes(out).items() if name.endswith(".safetensors")})
    assert made[0] == made[1]
    for again in (["--statistics", other], []):
        refused = hubtool(*arguments, tmp_path / "out1", *again)
        assert refused.code == 1
        assert f"scales were fitted to the statistics {Statistics(statistics).digest[:12]}" in refused.stderr
    assert "and are fitted to none" in refused.stderr
    assert hubtool(*arguments, tmp_path / "out1", "--statistics", statistics).code == 0


def test_a_piece_that_is_made_elsewhere_is_fitted_to_the_same_inputs(sample: Samples, statistics: Path) -> None:
    source = open_source(str(sample("mini")))
    (plan,) = plan_source(source, ["mixed_3_6"], statistics)
    index = next(n for n, step in enumerate(plan.steps) if step.parameter.module.endswith("switch_mlp.down_proj"))
    step = plan.steps[index]
    for piece in (Piece(index, 1, 2, 0, step.rows), Piece(index, 3, 1, 32, 64), Piece(index, 0, 4, 0, step.rows)):
        task: Task = pickle.loads(pickle.dumps(make_task(source.spec, piece, [step], 1)))
        (here,) = PieceMaker(source, 1).make(piece, [step])
        (there,) = make(task).steps
        assert there.checksums == here.checksums
        assert there.error == here.error


def test_statistics_that_are_missing_or_of_another_model_are_refused(
    sample: Samples, statistics: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    recipe = tmp_path / "fitted.toml"
    recipe.write_text(
        'summary = "x"\n[[rule]]\nmatch = "**"\nmode = "affine"\nbits = 4\ngroup_size = 32\nfit = "weighted"\n'
    )
    outcome = hubtool("plan", sample("mini"), "--recipe", recipe)
    assert (outcome.code, "give --statistics FILE" in outcome.stderr) == (2, True)
    recipe.write_text(recipe.read_text().replace('"affine"\nbits = 4\ngroup_size = 32', '"bfloat16"'))
    outcome = hubtool("plan", sample("mini"), "--recipe", recipe)
    assert (outcome.code, "a mode that has no scales to fit" in outcome.stderr) == (2, True)
    for count, channels in ((1, 64), (3, 256)):
        wrong = tmp_path / "wrong.safetensors"
        sums = Sums(np.ones(count, np.int64), np.ones((count, channels)))
        write_statistics(wrong, CALIBRATION, {"model.layers.0.attn.wq_a": sums})
        outcome = hubtool("plan", sample("mini"), "--recipe", "mixed_3_6", "--statistics", wrong)
        assert outcome.code == 1
        assert "statistics of another model" in outcome.stderr
    raw = statistics.read_bytes()
    for damaged in (
        raw[:-4],
        raw.replace(b'"inputs"', b'"imputs"', 1),
        raw.replace(b"statistics 1", b"statistics 9", 1),
        b"",
    ):
        wrong.write_bytes(damaged)
        outcome = hubtool("plan", sample("mini"), "--recipe", "mixed_3_6", "--statistics", wrong)
        assert (outcome.code, outcome.stdout) == (1, ""), damaged[:80]


def test_few_tokens_are_mixed_with_the_mean_of_the_stack(tmp_path: Path) -> None:
    squares = np.array([[0.0, 0.0, 0.0], [8.0, 0.0, 4.0], [640.0, 64.0, 0.0]])
    write_statistics(tmp_path / "s", CALIBRATION, {"m": Sums(np.array([0, 4, 60]), squares)})
    inputs = Statistics(tmp_path / "s").inputs["m"]
    mean = np.array([648, 64, 4]) / 64
    expected = [mean, (squares[1] + 64 * mean) / 68, (squares[2] + 64 * mean) / 124]
    assert inputs.moments(0, 3) == pytest.approx(np.array(expected), rel=1e-6)
    assert (inputs.moments(1, 2) == inputs.moments(0, 3)[1:2]).all()
    write_statistics(tmp_path / "t", CALIBRATION, {"m": Sums(np.array([10]), np.array([[10.0, 0.0]]))})
    assert Statistics(tmp_path / "t").inputs["m"].moments(0, 1) == pytest.approx(np.array([[1, 0.5e-6]]))
