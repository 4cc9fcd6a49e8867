"""The stages in their order, each skipped if its result holds: the whole way from a checkpoint to a verified repo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, snapshot_download

from hubtool.rehearsal import RehearsalHub
from tests.checkpoints import file_bytes
from tests.fixtures import CommandLine, Samples

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "someone/DeepSeek-V4-mini-mixed_3_6"
CHECKOUT = Path(__file__).resolve().parents[2]


def _publish(source: Path, out: Path) -> tuple[object, ...]:
    return (
        "publish",
        source,
        "--recipe",
        "mixed_3_6",
        "--validate",
        "none",
        "--to",
        REPO,
        "--out",
        out,
        "--rehearse",
        "--json",
    )


def test_sample_is_published_to_a_rehearsal_and_read_back(
    sample: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, with an empty home; the repo is then served again and read by the stock client."""
    out = tmp_path / "out"
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "hubtool", *map(str, _publish(sample("mini"), out))],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(CHECKOUT), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["repo"], document["verified"], document["changed"]) == (REPO, True, True)
    assert all(json.loads(line) for line in done.stderr.splitlines())
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with RehearsalHub(Path(document["rehearsal_data"])) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert api.model_info(REPO).sha == document["commit"]
        snapshot = snapshot_download(
            REPO, endpoint=hub.endpoint, token=hub.token, revision=document["commit"], cache_dir=tmp_path / "cache"
        )
        there = {name: sha256 for name, sha256 in file_bytes(Path(snapshot)).items() if name != ".gitattributes"}
        assert there == file_bytes(out)
        assert api.verify_repo_checksums(REPO, local_dir=out).mismatches == []
        counted = api.get_safetensors_metadata(REPO).parameter_count
        assert set(counted) == {"U32", "BF16", "F32", "I64"}


def test_publishing_again_changes_nothing(
    sample: Samples, hubtool: CommandLine, tmp_path: Path, stock_client: None
) -> None:
    arguments = _publish(sample("mini"), tmp_path / "out")
    first, second = hubtool(*arguments), hubtool(*arguments)
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert first.document["converted"] and first.document["changed"]
    assert not second.document["converted"] and not second.document["changed"]
    assert second.document["commit"] == first.document["commit"]
    assert second.document["verified"]


def test_publishing_goes_on_after_converting(
    sample: Samples, hubtool: CommandLine, tmp_path: Path, stock_client: None
) -> None:
    out = tmp_path / "out"
    assert hubtool("convert", sample("mini"), "--recipe", "mixed_3_6", "--out", out).code == 0
    before = file_bytes(out)
    outcome = hubtool(*_publish(sample("mini"), out))
    assert (outcome.code, outcome.document["converted"], outcome.document["changed"]) == (0, False, True)
    after = file_bytes(out)
    assert {name for name in after if after[name] != before.get(name)} == {
        "README.md",
        "hubtool.json",
    }, "only what says as what it is published"


def test_text_ends_with_the_commit_and_verified(
    sample: Samples, hubtool: CommandLine, tmp_path: Path, stock_client: None
) -> None:
    arguments = [argument for argument in _publish(sample("mini"), tmp_path / "out") if argument != "--json"]
    outcome = hubtool(*arguments)
    record = json.loads((tmp_path / "out" / "hubtool.json").read_bytes())
    assert outcome.code == 0
    for fact in (
        f"{record['measured']['effective_bits']:.3f}",
        f"{record['measured']['nbytes']:,}",
        "commit",
        "verified",
    ):
        assert fact in outcome.stdout


@pytest.fixture
def endpoint(rehearsal: RehearsalHub, hub_api: HfApi, monkeypatch: pytest.MonkeyPatch) -> str:
    """A rehearsal Hub as the one that the environment names."""
    monkeypatch.setenv("HF_ENDPOINT", rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", rehearsal.token)
    return rehearsal.endpoint


def test_folder_is_uploaded_and_verified_by_their_commands(
    endpoint: str, sample: Samples, hubtool: CommandLine, hub_api: HfApi, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert hubtool("convert", sample("mini"), "--recipe", "native", "--out", out).code == 0
    uploaded = hubtool("upload", out, "--to", REPO, "--json")
    assert (uploaded.code, uploaded.document["verified"]) == (0, True)
    verified = hubtool("verify", REPO, out, "--json")
    assert (verified.code, verified.document["verified"], verified.document["problems"]) == (0, True, [])
    assert verified.document["commit"] == uploaded.document["commit"]
    assert "verified" in hubtool("verify", REPO).stdout

    hub_api.delete_file("LICENSE", REPO)
    found = hubtool("verify", REPO, "--json")
    assert (found.code, found.document["verified"]) == (1, False)
    assert found.document["problems"] == ["LICENSE: not in the repo"]


def test_uploading_a_folder_without_a_record_is_refused(
    endpoint: str, sample: Samples, hubtool: CommandLine, hub_api: HfApi
) -> None:
    outcome = hubtool("upload", sample("mini"), "--to", REPO)
    assert outcome.code == 1
    assert outcome.stderr == (
        f"Error: {sample('mini')}: no record: expected hubtool.json; give a folder that hubtool made\n"
    )
    assert not hub_api.repo_exists(REPO)


def test_writing_to_a_hub_that_is_not_on_loopback_needs_consent(
    stock_client: None, sample: Samples, hubtool: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    out = tmp_path / "out"
    outcome = hubtool("publish", sample("mini"), "--recipe", "native", "--validate", "none", "--to", REPO, "--out", out)
    assert outcome.code == 2
    assert outcome.stderr == f"Error: would write to {REPO} on https://hub.invalid; add --yes to allow it\n"
    assert not out.exists()


@pytest.mark.parametrize("repo", ["name", "a/b/c", "org/na me", "org/", "-org/name", "org/name.git"])
def test_repo_that_the_hub_would_refuse_is_refused_first(
    repo: str, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = hubtool(
        "publish", sample("mini"), "--recipe", "native", "--validate", "none", "--to", repo, "--out", out, "--rehearse"
    )
    assert outcome.code == 2
    assert "ORG/NAME" in outcome.stderr
    assert not out.exists()
    assert hubtool("verify", repo).code == 2
