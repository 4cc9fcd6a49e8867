"""The record: true of the folder that it lies in, and read strictly."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubtool.errors import RecordError
from hubtool.plan.recipe import load_recipe
from hubtool.record import decode_record, encode_record, read_record
from tests.checkpoints import copied, edit_json, file_bytes
from tests.fixtures import CommandLine, Conversions, Samples

COMMIT = "6e763230a9d263eca2023f1d4a5ce1bfe126cf48"


def _read(folder: Path) -> Any:
    return json.loads((folder / "hubtool.json").read_bytes())


def test_files_and_hashes_are_those_of_the_folder(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    recorded = {file["name"]: file["sha256"] for file in _read(made.folder)["files"]}
    there = file_bytes(made.folder)
    derived = ("hubtool.json", "README.md", "provenance.intoto.json")
    assert recorded == {name: sha256 for name, sha256 in there.items() if name not in derived}
    for file in _read(made.folder)["files"]:
        assert file["nbytes"] == (made.folder / file["name"]).stat().st_size


def test_files_of_the_source_are_recorded_with_their_hashes(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    recorded = {file["name"]: file["sha256"] for file in _read(made.folder)["source"]["files"]}
    assert recorded == file_bytes(made.source)


def test_recipe_is_recorded_whole(converted: Conversions) -> None:
    recorded = _read(converted("tiny", "mixed_3_6").folder)["recipe"]
    text = load_recipe("mixed_3_6").text.encode()
    assert recorded["name"] == "mixed_3_6"
    assert recorded["text"].encode() == text
    assert recorded["sha256"] == hashlib.sha256(text).hexdigest()


def test_plan_and_measurement_agree(converted: Conversions) -> None:
    record = _read(converted("tiny", "mixed_3_6").folder)
    for key in ("nbytes", "parameters", "tensors", "shards", "dtypes"):
        assert record["plan"][key] == record["measured"][key]


def test_dropped_tensors_are_recorded(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    (dropped,) = _read(made.folder)["source"]["dropped"]
    (planned,) = made.plan.model.dropped
    assert (dropped["names"], dropped["tensors"], dropped["nbytes"]) == (planned.names, planned.tensors, planned.nbytes)


def test_statement_is_recorded_as_one(converted: Conversions) -> None:
    source = _read(converted("tiny", "mixed_3_6").folder)["source"]
    assert (source["repo"], source["repo_known"]) == ("someone/DeepSeek-V4-sample", "stated")
    assert (source["commit"], source["commit_known"]) == (None, None)


def test_snapshot_of_the_hubs_cache_is_recorded_as_observed(
    sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--deepseek-ai--DeepSeek-V4-Flash" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    copied(sample("mini"), snapshot)
    assert hubtool("convert", snapshot, "--recipe", "native", "--out", tmp_path / "out").code == 0
    source = _read(tmp_path / "out")["source"]
    assert (source["repo"], source["repo_known"]) == ("deepseek-ai/DeepSeek-V4-Flash", "observed")
    assert (source["commit"], source["commit_known"]) == (COMMIT, "observed")


def test_no_path_of_this_machine_is_published(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    for name in ("hubtool.json", "README.md", "config.json", "model.safetensors.index.json"):
        text = (made.folder / name).read_text()
        for path in (made.folder, made.source, Path.cwd(), Path.home()):
            assert str(path) == "/" or f"{path}/" not in text, (name, path)


def test_record_is_read_as_it_was_written(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    raw = (made.folder / "hubtool.json").read_bytes()
    assert decode_record(raw) == made.record == read_record(made.folder)
    assert encode_record(decode_record(raw)) == raw


def test_folder_without_a_record_has_none(sample: Samples) -> None:
    assert read_record(sample("mini")) is None


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "another schema": (lambda record: record.update(schema=99), "written by another hubtool", "update hubtool"),
    "an older schema": (lambda record: record.update(schema=0), "written by another hubtool", "convert again"),
    "unknown field": (lambda record: record.update(extra=1), "cannot be read", "restore the file"),
    "unknown field inside": (lambda record: record["plan"].update(extra=1), "cannot be read", "restore the file"),
    "missing field": (lambda record: record.pop("recipe"), "cannot be read", "restore the file"),
    "wrong type": (lambda record: record["measured"].update(nbytes="1"), "cannot be read", "restore the file"),
    "negative size": (lambda record: record["files"][0].update(nbytes=-1), "cannot be read", "restore the file"),
    "no hash": (lambda record: record["files"][0].update(sha256="abc"), "cannot be read", "restore the file"),
}


@pytest.mark.parametrize(("change", "what", "remedy"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_record_is_refused(
    change: Callable[[dict[str, Any]], object],
    what: str,
    remedy: str,
    converted: Conversions,
    hubtool: CommandLine,
    tmp_path: Path,
) -> None:
    folder = copied(converted("tiny", "native").folder, tmp_path / "folder")
    edit_json(folder / "hubtool.json", change)
    with pytest.raises(RecordError) as caught:
        read_record(folder)
    assert (caught.value.what, caught.value.where, caught.value.remedy) == (what, "hubtool.json", remedy)
    assert caught.value.found
    outcome = hubtool("inspect", folder)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == f"Error: {caught.value}\n"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"schema": "1"}', b"\xff", b"[" * 100_000])
def test_file_that_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordError, match="hubtool.json: (cannot be read|not JSON): found "):
        decode_record(raw)
