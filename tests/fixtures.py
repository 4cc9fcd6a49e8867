"""Checkpoints, finished folders, the command line and a Hub, for every test that asks for them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils._http import default_client_factory

from hubtool import cli
from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.source import Source
from hubtool.cli.console import Console
from hubtool.convert.convert import Converted, convert_sources
from hubtool.convert.job import Effort, Job
from hubtool.hub.client import make_api
from hubtool.plan.plan import Plan, plan_source
from hubtool.progress import Advance
from hubtool.record import Record
from hubtool.rehearsal import RehearsalHub
from hubtool.sample import BASE_LIKE, FLASH, OTHER, PRO, PRO_LIKE, R0731_LIKE, TINY, write_sample
from tests.checkpoints import MINI, NARROW, file_bytes, write_sparse_checkpoint

SHAPES = {
    "mini": MINI,
    "narrow": NARROW,
    "tiny": TINY,
    "other": OTHER,
    "pro_like": PRO_LIKE,
    "r0731_like": R0731_LIKE,
    "base_like": BASE_LIKE,
}
PUBLISHED_SHAPES = {"flash": FLASH, "pro": PRO}

QUIET = Console(quiet=True)


def convert_source(source: Source, plan: Plan, folder: Path) -> Converted:
    """The finished folder of one plan."""
    (converted,) = convert_sources(source, [Job(plan, folder)], Effort(), QUIET)
    return converted


class Counting:
    """A Watch that keeps what it is told.

    Attributes:
        stages: Name and bytes of each stage, in order.
        done: Bytes by stage and label.
        found: Of those, the ones that an earlier run had done.
        said: What was said.
    """

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done: Counter[tuple[str, str]] = Counter()
        self.found: Counter[tuple[str, str]] = Counter()
        self.said: list[str] = []

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Advance]:
        """A stage whose steps are added up."""
        self.stages.append((name, total_nbytes))

        def advance(nbytes: int, label: str = "", *, found: bool = False) -> None:
            self.done[name, label] += nbytes
            self.found[name, label] += nbytes if found else 0

        yield advance

    def say(self, text: str) -> None:
        """Keep what was said."""
        self.said.append(text)

    def counted(self, stage: str) -> dict[str, int]:
        """Bytes by label of one stage."""
        return {label: nbytes for (name, label), nbytes in self.done.items() if name == stage}


@dataclass(frozen=True)
class Conversion:
    """A finished folder, and what it was made from."""

    source: Path
    folder: Path
    plan: Plan
    record: Record


Samples = Callable[[str], Path]
Conversions = Callable[[str, str], Conversion]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Checkpoints by the names in SHAPES, written once; tests that change one change a copy."""
    return cache(lambda name: write_sample(tmp_path_factory.mktemp("samples") / name, SHAPES[name]))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Checkpoints of published size without weights, by the names in PUBLISHED_SHAPES."""
    return cache(
        lambda name: write_sparse_checkpoint(tmp_path_factory.mktemp("published") / name, PUBLISHED_SHAPES[name])
    )


@pytest.fixture(scope="session")
def converted(sample: Samples, tmp_path_factory: pytest.TempPathFactory) -> Conversions:
    """Finished folders by sample and recipe, made once; tests that change one change a copy."""

    @cache
    def convert(name: str, recipe: str) -> Conversion:
        source = open_source(str(sample(name)), "someone/DeepSeek-V4-sample")
        (plan,) = plan_source(source, [recipe])
        folder = tmp_path_factory.mktemp("converted") / f"{name}-{Path(recipe).stem}"
        return Conversion(sample(name), folder, plan, convert_source(source, plan, folder).record)

    return convert


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """All of stdout, as the one JSON document that it has to be."""
        return json.loads(self.stdout)


class CommandLine(Protocol):
    """Runs `hubtool` with these arguments, in this process."""

    def __call__(self, *arguments: object) -> Outcome: ...


@pytest.fixture
def hubtool(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


class Refusal(Protocol):
    """Asserts that both `plan` and `convert` refuse a source and leave nothing behind."""

    def __call__(
        self,
        source: Path,
        sentence: str | re.Pattern[str],
        *,
        recipe: object = "mixed_3_6",
        code: int = 1,
        planned: bool = False,
    ) -> None: ...


@pytest.fixture
def assert_refused(hubtool: CommandLine, tmp_path: Path) -> Refusal:
    """See `Refusal`; `planned` means that only `convert` can notice."""

    def check(
        source: Path,
        sentence: str | re.Pattern[str],
        *,
        recipe: object = "mixed_3_6",
        code: int = 1,
        planned: bool = False,
    ) -> None:
        expected = sentence if isinstance(sentence, re.Pattern) else re.compile(re.escape(sentence))
        out, before = tmp_path / "out", file_bytes(source)
        foretold = hubtool("plan", source, "--recipe", recipe)
        made = hubtool("convert", source, "--recipe", recipe, "--out", out)
        if planned:
            assert foretold.code == 0, foretold.stderr
        for outcome in [made] if planned else [foretold, made]:
            assert (outcome.code, outcome.stdout) == (code, "")
            assert expected.fullmatch(outcome.stderr.removeprefix("Error: ").rstrip("\n")), outcome.stderr
        assert [path.name for path in out.glob("*") if path.name != ".hubtool"] == []
        assert planned or not out.exists()
        assert file_bytes(source) == before

    return check


@pytest.fixture
def stock_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The Hub's client with a cache of its own and no token but those given to it, as it was afterwards."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", constants.HF_HUB_DISABLE_XET)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
    huggingface_hub.set_client_factory(default_client_factory)


@pytest.fixture
def rehearsal(stock_client: None, tmp_path: Path) -> Iterator[RehearsalHub]:
    """A fresh rehearsal Hub."""
    with RehearsalHub(tmp_path / "rehearsal") as hub:
        yield hub


@pytest.fixture
def hub_api(rehearsal: RehearsalHub) -> HfApi:
    """hubtool's client of the rehearsal Hub, with the owner's token, on the LFS path."""
    return make_api(rehearsal.endpoint, rehearsal.token, xet=False)
