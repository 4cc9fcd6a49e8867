"""Budgets on the command line: kept, written as a recipe, and the same bytes from that recipe again."""

import json
from pathlib import Path

import numpy as np
import pytest

from hubtool import units
from hubtool.checkpoint.open import open_source
from hubtool.models import architecture_of
from hubtool.plan.parts import parts_of
from hubtool.plan.plan import plan_source
from tests.checkpoints import file_bytes
from tests.fixtures import CommandLine, Samples
from tests.statistics import random_statistics


@pytest.fixture(scope="module")
def statistics(sample: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With costs, of the `mini` sample."""
    (plan,) = plan_source(open_source(str(sample("mini"))), ["mixed_3_6"])
    random = np.random.default_rng(0)
    costs = {
        (part.name, candidate.name): float(4.0**-candidate.bits * np.exp(random.standard_normal()))
        for part in parts_of(plan.model)
        for candidate in part.candidates(last_resort=True)
    }
    return random_statistics(tmp_path_factory.mktemp("statistics") / "s.safetensors", plan.model, costs=costs)


def test_a_recipe_that_was_made_for_bits_gives_the_same_bytes_again(
    sample: Samples, statistics: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    given = ("--statistics", statistics)
    planned = hubtool(
        "plan", sample("mini"), *given, "--fit", "5.2bits", "--write-recipe", tmp_path / "my.toml", "--json"
    )
    assert planned.code == 0, planned.stderr
    assert 5.0 < planned.document["effective_bits"] <= 5.2
    assert planned.document["recipe"]["name"] == "fit_5.2bits"
    for name, choice in (("a", ("--fit", "5.2bits")), ("b", ("--recipe", tmp_path / "my.toml"))):
        made = hubtool("convert", sample("mini"), *given, *choice, "--out", tmp_path / name)
        assert made.code == 0, made.stderr
    shards = [
        {name: sha256 for name, sha256 in file_bytes(tmp_path / each).items() if name.endswith(".safetensors")}
        for each in ("a", "b")
    ]
    assert shards[0] == shards[1]
    recorded = json.loads((tmp_path / "a" / "hubtool.json").read_bytes())["recipe"]
    assert recorded["text"] == (tmp_path / "my.toml").read_text()
    assert hubtool("card", tmp_path / "a", "--check").code == 0


def test_a_machine_leaves_room_for_the_cache(sample: Samples, statistics: Path, hubtool: CommandLine) -> None:
    fitted = hubtool("plan", sample("mini"), "--statistics", statistics, "--fit-mac", 1, "--context", 65536, "--json")
    config = json.loads((sample("mini") / "config.json").read_bytes())
    cache = architecture_of(config).cache_nbytes(config, 65536, 2)
    assert cache is not None
    assert fitted.document["nbytes"] + cache <= units.usable_nbytes(1)
    assert fitted.document["recipe"]["name"] == "fit_mac1_64k"


def test_floors_hold_and_what_cannot_be_is_refused(sample: Samples, statistics: Path, hubtool: CommandLine) -> None:
    arguments = ("plan", sample("mini"), "--statistics", statistics, "--json")
    held = hubtool(*arguments, "--fit", "7bits", "--floor", "attention=8")
    shares = {each["name"]: each["formats"] for each in held.document["components"]}
    assert shares["attention"] == ["affine 8-bit, group 64, fitted"]
    for options, sentence in (
        (("--fit", "1bits"), "expected at least"),
        (("--fit", "many"), "neither a size nor bits"),
        (("--fit", "5bits", "--recipe", "native"), "needs a recipe or a budget"),
        ((), "needs a recipe or a budget"),
        (("--fit", "5bits", "--fit-mac", "64"), "two budgets"),
        (("--fit", "5bits", "--floor", "attention"), "is not COMPONENT=BITS"),
        (("--fit", "5bits", "--floor", "routed experts=5"), "a floor that no format reaches"),
    ):
        refused = hubtool(*arguments, *options)
        assert refused.code == 2
        assert sentence in refused.stderr
    for given in ((), ("--statistics", random_statistics_without_costs(sample, statistics))):
        refused = hubtool("plan", sample("mini"), *given, "--fit", "5bits")
        assert refused.code == 2
        assert "calibrate --sensitivity" in refused.stderr


def random_statistics_without_costs(sample: Samples, statistics: Path) -> Path:
    (plan,) = plan_source(open_source(str(sample("mini"))), ["mixed_3_6"])
    return random_statistics(statistics.with_name("without.safetensors"), plan.model)
