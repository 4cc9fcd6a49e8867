"""One way to the Hub: options and a file make the same release, and what is found there is asked for once."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import OTHER
from tests.fixtures import CommandLine, Outcome, Samples

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]

REPO = "someone/V4-native"
MOST_REQUESTS = 14
MOST_REQUESTS_AGAIN = 9


@pytest.fixture
def endpoint(rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch) -> RehearsalHub:
    """A rehearsal Hub as the one that the environment names, by the client's own way."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_ENDPOINT", rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", rehearsal.token)
    return rehearsal


class Locks:
    """Counts how often this process asks the system for a lock on a file."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.count = 0
        sys.addaudithook(self._hear)

    @contextmanager
    def on(self, path: Path) -> Iterator[None]:
        """Count for the time of a `with`; an audit hook itself cannot be taken away again."""
        self.path, self.count = path, 0
        yield
        self.path = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "fcntl.flock" and self.path is not None and self.path.exists():
            self.count += os.path.samestat(os.fstat(arguments[0]), self.path.stat())


LOCKS = Locks()


@pytest.fixture
def disk_checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths whose free disk space the system was asked for."""
    asked: list[Path] = []
    ask: Callable[[Any], Any] = shutil.disk_usage

    def heard(path: Any) -> Any:
        asked.append(Path(path))
        return ask(path)

    monkeypatch.setattr(shutil, "disk_usage", heard)
    return asked


def unvalidated(more: tuple[object, ...]) -> tuple[str, ...]:
    """The option that leaves validation out, unless some is asked for."""
    return () if "--validate" in more else ("--validate", "none")


def publish(hubtool: CommandLine, source: Path, out: Path, *more: object) -> Outcome:
    return hubtool(
        "publish", source, "--recipe", "mixed_3_6", *unvalidated(more), "--to", REPO, "--out", out, "--json", *more
    )


def test_one_publish_asks_the_hub_locks_and_looks_at_the_disk_as_little_as_can_be(
    endpoint: RehearsalHub,
    disk_checks: list[Path],
    sample: Samples,
    hubtool: CommandLine,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Counted where it arrives: at the rehearsal Hub, and at the system."""
    out = tmp_path / "out"
    counts = []
    for most in (MOST_REQUESTS, MOST_REQUESTS_AGAIN):
        endpoint.faults.clear()
        disk_checks.clear()
        with LOCKS.on(out / ".hubtool" / "lock"):
            done = publish(hubtool, sample("mini"), out)
        assert (done.code, done.document["verified"]) == (0, True), done.stderr
        requests = dict(endpoint.faults.calls)
        checks = [path for path in disk_checks if path in (out, *out.parents)]
        counts.append((sum(requests.values()), LOCKS.count, len(checks)))
        shown = f"{sum(requests.values())} requests {requests}, {LOCKS.count} lock, {len(checks)} disk check"
        with capsys.disabled():
            sys.stdout.write(f"\n{shown}")
        assert done.document["shards"] == 1
        assert requests.get(OTHER, 0) == 0
        assert sum(requests.values()) <= most
    (_, *first), (_, *second) = counts
    assert (first, second) == ([1, 1], [1, 0])


def test_place_that_was_changed_while_the_folder_was_made_is_looked_at_again(
    endpoint: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone writes on the page between the first look and the upload: what they wrote is kept."""
    api, out = HfApi(endpoint=endpoint.endpoint, token=endpoint.token), tmp_path / "out"
    assert publish(hubtool, sample("mini"), out).code == 0
    shutil.rmtree(out)
    ask: Callable[[Any], Any] = shutil.disk_usage
    mark = "<!-- hubtool:prose notes -->\n"

    def edit(path: Any) -> Any:
        if Path(path) in (out, *out.parents):  # the folder's disk is checked after the first look
            card = Path(api.hf_hub_download(REPO, "README.md")).read_text()
            content = card.replace(mark, f"{mark}Written meanwhile.\n").encode()
            api.upload_file(path_or_fileobj=content, path_in_repo="README.md", repo_id=REPO)
        return ask(path)

    monkeypatch.setattr(shutil, "disk_usage", edit)
    again = publish(hubtool, sample("mini"), out)
    assert again.code == 0, again.stderr
    assert "Written meanwhile." in (out / "README.md").read_text()
    assert "Written meanwhile." in Path(api.hf_hub_download(REPO, "README.md")).read_text()


def by_options(folder: Path, source: Path, *more: object, notes: str) -> tuple[object, ...]:
    """The command line for one variant."""
    return (
        "publish",
        source,
        "--recipe",
        "native",
        *unvalidated(more),
        "--to",
        REPO,
        "--out",
        folder,
        "--notes",
        notes,
        *more,
    )


def by_file(folder: Path, source: Path, *more: object, notes: str) -> tuple[object, ...]:
    """The same in a file."""
    folder.parent.mkdir(exist_ok=True)
    path = folder.parent / "release.toml"
    variant = f'[[variant]]\nrecipe = "native"\nrepo = "{REPO}"\nnotes = "{notes}"\n'
    path.write_text(f'source = "{source}"\nvalidate = "none"\nout = "."\n{variant}')
    return ("publish", path, *more)


WAYS = {"options": by_options, "file": by_file}


def variant_of(done: Outcome) -> dict[str, Any]:
    """The facts of the only variant."""
    assert done.code == 0, done.stderr
    document: dict[str, Any] = done.document
    return document["variants"][0] if "variants" in document else document


@pytest.mark.parametrize("way", WAYS)
def test_notes_and_rungs_work_either_way(
    way: str, endpoint: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "work" / "V4-native"
    arguments = WAYS[way](folder, sample("mini"), "--validate", "integrity", "--json", notes="Fits a small machine.")
    first = variant_of(hubtool(*arguments))
    assert (first["repo"], first["verified"]) == (REPO, True)
    record = json.loads((folder / "hubtool.json").read_bytes())
    assert [(each["check"], each["outcome"]) for each in record["evidence"]] == [("integrity", "passed")]
    assert "Fits a small machine." in (folder / "README.md").read_text()
    assert not variant_of(hubtool(*arguments))["changed"]
    assert len(json.loads((folder / "hubtool.json").read_bytes())["evidence"]) == 1


@pytest.mark.parametrize("way", WAYS)
def test_rung_that_is_not_passed_stops_either_way(
    way: str, endpoint: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "work" / "V4-native"
    assert hubtool("convert", sample("mini"), "--recipe", "native", "--out", folder).code == 0
    shard = folder / "model-00001-of-00001.safetensors"
    stat, content = shard.stat(), bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    refused = hubtool(*WAYS[way](folder, sample("mini"), "--validate", "integrity", notes=""))
    assert refused.code == 1
    assert "everything is kept: found integrity: failed" in refused.stderr
    assert not HfApi(endpoint=endpoint.endpoint, token=endpoint.token).repo_exists(REPO)


@pytest.mark.parametrize("way", WAYS)
def test_stream_and_pull_request_work_either_way(
    way: str, endpoint: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    api, folder = HfApi(endpoint=endpoint.endpoint, token=endpoint.token), tmp_path / "work" / "V4-native"
    api.create_repo(REPO, private=True)
    arguments = WAYS[way](folder, sample("mini"), "--stream", "--pr", "--json", notes="Proposed.")
    first = variant_of(hubtool(*arguments))
    assert (first["pull_request"], first["verified"], first["tag"]) == (1, True, None)
    assert list(folder.rglob("*.safetensors")) == []
    assert "model-00001-of-00001.safetensors" in api.list_repo_files(REPO, revision="refs/pr/1")
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert "Proposed." in (folder / "README.md").read_text()
    again = variant_of(hubtool(*arguments))
    assert (again["changed"], again["converted"], again["commit"]) == (False, False, first["commit"])


@pytest.mark.parametrize("way", WAYS)
def test_finished_folder_is_published_as_it_is_although_it_may_be_streamed(
    way: str, endpoint: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "work" / "V4-native"
    assert hubtool("convert", sample("mini"), "--recipe", "native", "--out", folder).code == 0
    done = variant_of(hubtool(*WAYS[way](folder, sample("mini"), "--stream", "--json", notes="")))
    assert (done["converted"], done["changed"], done["verified"]) == (False, True, True)
    assert json.loads((folder / "hubtool.json").read_bytes())["evidence"] == []


@pytest.mark.parametrize("more", [("--validate", "integrity"), ("--sign",)], ids=["validate", "sign"])
@pytest.mark.parametrize("way", WAYS)
def test_what_needs_the_shards_here_is_refused_with_stream(
    way: str, more: tuple[str, ...], sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    key = tmp_path / "mine.key"
    key.write_text("")
    folder = tmp_path / "work" / "V4-native"
    options = (*more, key) if more == ("--sign",) else more
    refused = hubtool(*WAYS[way](folder, sample("mini"), "--stream", *options, notes=""))
    assert (refused.code, more[0] in refused.stderr) == (2, True), refused.stderr
    assert not folder.exists()


def test_file_may_ask_for_what_options_do(
    endpoint: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    api = HfApi(endpoint=endpoint.endpoint, token=endpoint.token)
    repos = ("someone/V4-mixed_3_6", REPO)
    for repo in repos:
        api.create_repo(repo, private=True)
    (tmp_path / "release.toml").write_text(
        f'source = "{sample("mini")}"\nrepo = "someone/V4-{{recipe}}"\nstream = true\npull_request = true\n'
        '[[variant]]\nrecipe = "mixed_3_6"\n[[variant]]\nrecipe = "native"\n'
    )
    done = hubtool("publish", tmp_path / "release.toml", "--json")
    assert done.code == 0, done.stderr
    assert [each["pull_request"] for each in done.document["variants"]] == [1, 1]
    for repo, other in (repos, repos[::-1]):
        card = (tmp_path / "release" / repo.partition("/")[2] / "README.md").read_text()
        assert f"](https://huggingface.co/{other})" in card
    assert list((tmp_path / "release").rglob("*.safetensors")) == []


@pytest.mark.parametrize("way", WAYS)
def test_signature_is_made_once_either_way(
    way: str, endpoint: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing.signing")
    from tests.release.test_signing import make_keys

    private, public = make_keys(tmp_path, "mine")
    folder = tmp_path / "work" / "V4-native"
    arguments = WAYS[way](folder, sample("mini"), "--sign", private, "--json", notes="")
    assert variant_of(hubtool(*arguments))["verified"]
    assert hubtool("verify", REPO, folder, "--public-key", public).code == 0
    assert not variant_of(hubtool(*arguments))["changed"]


def test_rehearsal_is_served_once(
    sample: Samples, hubtool: CommandLine, tmp_path: Path, stock_client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One publish locks the rehearsal's folder once: its server starts once."""
    with LOCKS.on(tmp_path / "rehearsal" / "lock"):
        assert publish(hubtool, sample("mini"), tmp_path / "out", "--rehearse").code == 0
    assert LOCKS.count == 1
