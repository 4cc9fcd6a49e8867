"""What `publish` validates before it sends anything, and what becomes of a failure."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi

from hubtool.rehearsal import RehearsalHub
from tests.checkpoints import Tensor, copied, edit_tensors
from tests.fixtures import CommandLine, Samples

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")]

REPO = "someone/V4-native"


@pytest.fixture(autouse=True)
def endpoint(rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """A rehearsal Hub as the one that the environment names."""
    monkeypatch.setenv("HF_ENDPOINT", rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", rehearsal.token)
    return rehearsal.endpoint


def _publish(source: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("publish", source, "--recipe", "native", "--to", REPO, "--out", out, "--json", *more)


def _evidence(out: Path) -> list[tuple[str, str]]:
    record = json.loads((out / "hubtool.json").read_bytes())
    return [(each["check"], each["outcome"]) for each in record.get("evidence", [])]


def _page(api: HfApi, tmp_path: Path) -> str:
    return Path(api.hf_hub_download(REPO, "README.md", local_dir=tmp_path / "page")).read_text("utf-8")


def test_files_are_validated_once_before_they_are_published(
    sample: Samples, hubtool: CommandLine, hub_api: HfApi, tmp_path: Path
) -> None:
    arguments = _publish(sample("mini"), tmp_path / "out")
    first = hubtool(*arguments)
    assert first.code == 0, first.stderr
    passed = [("integrity", "passed"), ("load", "passed"), ("smoke", "passed")]
    assert _evidence(tmp_path / "out") == passed
    page = _page(hub_api, tmp_path)
    assert "load-validated and generation-qualified on" in page and "not generation-qualified" not in page
    again = hubtool(*arguments)
    assert (again.code, again.document["changed"]) == (0, False)
    assert _evidence(tmp_path / "out") == passed


def test_a_byte_that_was_changed_stops_it(
    sample: Samples, hubtool: CommandLine, hub_api: HfApi, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert hubtool("convert", sample("mini"), "--recipe", "native", "--out", out).code == 0
    shard = next(out.glob("*.safetensors"))
    stat, raw = shard.stat(), bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    refused = hubtool(*_publish(sample("mini"), out))
    assert refused.code == 1
    assert "integrity: failed" in refused.stderr and "nothing is sent" in refused.stderr
    assert shard.read_bytes() == raw
    assert not hub_api.repo_exists(REPO)
    assert hubtool(*_publish(sample("mini"), out, "--allow-failed")).code == 1
    assert not hub_api.repo_exists(REPO) or not list(hub_api.list_repo_tree(REPO, recursive=True))[1:]


def test_a_model_that_cannot_generate_stops_it_unless_that_is_allowed(
    sample: Samples, hubtool: CommandLine, hub_api: HfApi, tmp_path: Path
) -> None:
    """Its final norm is finite, and overflows whatever it is multiplied with."""
    source = edit_tensors(copied(sample("mini"), tmp_path / "source"), _overflow)
    out = tmp_path / "out"
    refused = hubtool(*_publish(source, out))
    assert refused.code == 1, refused.stderr
    assert "smoke: failed" in refused.stderr and "--allow-failed" in refused.stderr
    assert not hub_api.repo_exists(REPO)
    assert list(out.glob("*.safetensors"))
    allowed = hubtool(*_publish(source, out, "--allow-failed"))
    assert allowed.code == 0, allowed.stderr
    headline = _page(hub_api, tmp_path).partition("## ")[0]
    assert "not generation-qualified (" in headline and " failed)" in headline
    known = _evidence(out)
    again = hubtool(*_publish(source, out, "--allow-failed"))
    assert (again.code, again.document["changed"]) == (0, False) and _evidence(out) == known


@pytest.mark.parametrize("option", [("--validate", "none"), ("--stream",)])
def test_nothing_is_run_and_the_card_says_so(
    sample: Samples, hubtool: CommandLine, hub_api: HfApi, tmp_path: Path, option: tuple[str, ...]
) -> None:
    done = hubtool(*_publish(sample("mini"), tmp_path / "out", *option))
    assert done.code == 0, done.stderr
    assert {outcome for _, outcome in _evidence(tmp_path / "out")} <= {"not_run"}
    page = _page(hub_api, tmp_path)
    assert "**" in page and "; converted, not generation-qualified" in page.partition("## ")[0]
    assert "Generation was not run." in page


def test_rungs_are_chosen_with_commas_or_one_by_one(
    sample: Samples, hubtool: CommandLine, hub_api: HfApi, tmp_path: Path
) -> None:
    chosen = ("--validate", "load,integrity")
    assert hubtool(*_publish(sample("mini"), tmp_path / "out", *chosen)).code == 0
    assert _evidence(tmp_path / "out") == [("integrity", "passed"), ("load", "passed")]
    assert hubtool(*_publish(sample("mini"), tmp_path / "x", "--validate", "none", *chosen)).code == 2
    assert hubtool(*_publish(sample("mini"), tmp_path / "x", "--validate", "load,luck")).code == 2


def _overflow(tensors: dict[str, Tensor]) -> None:
    norm = tensors["norm.weight"]
    assert norm.dtype == "BF16"
    most = np.full(len(norm.data) // 2, 0x7F7F, np.uint16)
    tensors["norm.weight"] = replace(norm, data=most.tobytes())
