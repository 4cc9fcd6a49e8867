"""Runs hubtool's commands in this process on hostile files, and notes every way in which one may not end."""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hubtool.cli import run
from hubtool.resources import recipes_dir
from tests.fuzz.mutations import mutate, mutate_shard

LONG_SECONDS = 5.0
GIVEN_UP_SECONDS = 20
TOKEN = "hf_" + "NobodyMayEverReadThis" + "0123456789abc"
"""The token of every run: in no output may it stand."""

RELEASE = """\
source = "source"
repo = "someone/V4-{recipe}"
out = "work"
validate = ["integrity"]
tag = "v1"

[card]
templates = "templates"

[[variant]]
recipe = "mixed_3_6"
notes = "Fits."
"""


class GivenUp(BaseException):
    """A run took so long that it was stopped."""


@dataclass
class Outcome:
    """How one run ended.

    Attributes:
        command: What was run.
        problems: What may not be: `traceback ...`, `N s`, `token`, `wrote FILE`.
        trace: The traceback, if there is one.
        code: The exit code.
    """

    command: list[str]
    problems: list[str] = field(default_factory=list)
    trace: str = ""
    code: int | None = None


@dataclass(frozen=True)
class Target:
    """One file that is made hostile, and the commands that read it.

    Attributes:
        name: For the counts.
        path: The file, in the workbench's folder.
        commands: Each a command line.
        change: Makes a hostile variant of its bytes.
    """

    name: str
    path: str
    commands: tuple[tuple[str, ...], ...]
    change: Callable[[random.Random, bytes], bytes] = mutate


_PLAN = ("plan", "source", "--recipe", "mixed_3_6")
_OWN = ("plan", "source", "--recipe", "own.toml")
_CONVERT = ("convert", "kept", "--recipe", "mixed_3_6", "--out", "done")
_INSPECT = ("inspect", "done", "--json")
_CARD = ("card", "done", "--diff")
_CHECK = ("card", "done", "--check")
FIRST = "model-00001-of-00011.safetensors"
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"

TARGETS = (
    Target("source config", "source/config.json", (_PLAN, ("inspect", "source"))),
    Target("source index", f"source/{INDEX}", (_PLAN, ("inspect", "source"))),
    Target("source header", f"source/{FIRST}", (_PLAN,), mutate_shard),
    Target("source card", "source/README.md", (_PLAN, ("card", "source", "--diff"))),
    Target("recipe", "own.toml", (_OWN,)),
    Target("record", "done/hubtool.json", (_INSPECT, _CARD, _CHECK)),
    Target("config", "done/config.json", (_INSPECT, _CARD, ("card", "stranger"))),
    Target("index", f"done/{INDEX}", (_INSPECT, _CHECK)),
    Target("header", f"done/{SHARD}", (_INSPECT, _CARD), mutate_shard),
    Target("card", "done/README.md", (_CARD, _CHECK)),
    Target("provenance", "done/provenance.intoto.json", (_CHECK,)),
    Target("tokenizer", "done/tokenizer_config.json", (_INSPECT, _CHECK)),
    Target("plan.json", "done/.hubtool/plan.json", (_CONVERT, _CHECK)),
    Target("journal", "done/.hubtool/journal", (_CONVERT,)),
    Target("source.json", "done/.hubtool/source.json", (_CONVERT,)),
    Target("integrity.json", "done/.hubtool/integrity.json", (_CHECK, ("card", "done", "--diff", "--check"))),
    Target("release", "release.toml", (("status", "release.toml"),)),
)


@dataclass
class Workbench:
    """A folder with a source, a folder that was converted from it, a recipe and a release.

    Attributes:
        folder: Everything lies in it, and it is the working directory.
        counts: How many inputs each target has had.
        codes: How they ended.
        secrets: Tokens that may stand in no output.
        found: Every run that ended as none may, by what is wrong with it.
    """

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    secrets: list[str] = field(default_factory=lambda: [TOKEN])
    found: dict[str, tuple[Outcome, bytes]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the good files that hostile variants are made of."""
        (self.folder / "templates").mkdir(parents=True)
        (self.folder / "release.toml").write_text(RELEASE)
        (self.folder / "home").mkdir()
        os.chdir(self.folder)
        os.environ |= {"HOME": str(self.folder / "home"), "HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}
        assert self.run(["sample", "source", "--size", "tiny"]).code == 0
        shutil.copytree("source", "kept")  # the times of whose files stay as they are
        shutil.copyfile(recipes_dir() / "compact_4bit.toml", "own.toml")
        assert self.run(list(_OWN)).code == 0
        assert self.run(list(_CONVERT)).code == 0
        shutil.copytree("done", "stranger", ignore=shutil.ignore_patterns("hubtool.json", ".hubtool"))
        for target in TARGETS:
            (self.folder / target.path).parent.mkdir(exist_ok=True)
        self._good = {name: path.read_bytes() for name, path in self._files() if (self.folder / name).is_file()}
        self._stamps = {name: _stamp(self.folder / name) for name in self._good}
        self._names = set(self._everything())

    def _files(self) -> Iterator[tuple[str, Path]]:
        for name in {target.path for target in TARGETS}:
            yield name, self.folder / name

    def _everything(self) -> Iterator[str]:
        for root, _, names in os.walk(self.folder):
            yield from (str(Path(root, name).relative_to(self.folder)) for name in names)

    def try_one(self, chance: random.Random, target: Target) -> Outcome | None:
        """One hostile variant of a target's file, read by one of its commands; what is wrong is noted."""
        path = self.folder / target.path
        hostile = target.change(chance, self._good.get(target.path, b"{}"))
        return self.try_bytes(target, list(chance.choice(target.commands)), path, hostile)

    def try_bytes(self, target: Target, command: list[str], path: Path, hostile: bytes) -> Outcome:
        """A command with these bytes in place of a good file; afterwards the good files are there again."""
        path.write_bytes(hostile)
        outcome = self.run(command)
        self.counts[target.name] += 1
        self.codes[target.name, outcome.code] += 1
        for name in set(self._everything()) - self._names:
            if not name.startswith(("done/", "work/", "home/.cache")):
                outcome.problems.append(f"wrote {name}")
            (self.folder / name).unlink(missing_ok=True)
        for name, content in self._good.items():
            file = self.folder / name
            if _stamp(file) != self._stamps[name]:
                file.write_bytes(content)
                self._stamps[name] = _stamp(file)
        for problem in outcome.problems:
            self.found.setdefault(f"{target.name}: {problem}", (outcome, hostile))
        return outcome

    def run(self, command: list[str]) -> Outcome:
        """A command's outcome, within this process."""
        outcome, said = Outcome(command), io.StringIO()
        begun = time.monotonic()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _at_most(GIVEN_UP_SECONDS):
            try:
                outcome.code = run(command)
            except GivenUp:
                outcome.trace = traceback.format_exc()
            except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
                outcome.trace = traceback.format_exc()
                last = traceback.extract_tb(error.__traceback__)[-1]
                own = [each for each in traceback.extract_tb(error.__traceback__) if "/hubtool/" in each.filename]
                at = own[-1] if own else last
                outcome.problems.append(f"traceback {type(error).__name__} at {Path(at.filename).name}:{at.lineno}")
        seconds = time.monotonic() - begun
        if seconds > LONG_SECONDS:
            outcome.problems.append(f"more than {LONG_SECONDS:.0f} s")
            outcome.trace = outcome.trace or f"{seconds:.1f} s\n"
        if any(secret in said.getvalue() for secret in self.secrets):
            outcome.problems.append("token in the output")
        try:
            said.getvalue().encode()
        except UnicodeEncodeError:
            outcome.problems.append("output that cannot be written")
        return outcome


def _stamp(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_mtime_ns, path.stat().st_ino) if path.is_file() else None


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise GivenUp in what takes longer."""

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise GivenUp

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_nbytes() -> int:
    """The most memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
