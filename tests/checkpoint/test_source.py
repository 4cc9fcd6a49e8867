"""A checkpoint's files, its index, and which repo and commit it is."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubtool.checkpoint.identity import Identity, merge_identity, observe_identity, parse_base_model
from hubtool.checkpoint.source import LocalSource
from hubtool.errors import SourceError, UsageError
from hubtool.files.read import file_sha256
from tests.checkpoints import INDEX_FILE, copied, edit_json, edit_tensors, file_bytes, read_tensors, write_shard
from tests.fixtures import CommandLine, Refusal, Samples

SHARD = "model-00003-of-00006.safetensors"
NORM = "layers.1.attn_norm.weight"
COMMIT = "6e763230a9d263eca2023f1d4a5ce1bfe126cf48"
OTHER_COMMIT = "0" * 40

AGAIN = "fetch the checkpoint again"
ABSENT = "found nothing, expected the folder of a checkpoint, or ORG/NAME on the Hub; check the path of the checkpoint"


@pytest.fixture
def source(sample: Samples, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return copied(sample("mini"), tmp_path / "source")


def _place(name: str, file: str) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["weight_map"].update({name: file})


def test_absent_folder_is_refused(tmp_path: Path, hubtool: CommandLine) -> None:
    outcome = hubtool("plan", tmp_path / "absent", "--recipe", "native")
    assert outcome.code == 1
    assert outcome.stderr == f"Error: {tmp_path / 'absent'}: no such folder: {ABSENT}\n"


def test_missing_shard_is_refused(source: Path, assert_refused: Refusal) -> None:
    (source / SHARD).unlink()
    assert_refused(source, f"{SHARD}: missing file: found nothing in source, expected a file; {AGAIN}")


def test_missing_config_is_refused(source: Path, assert_refused: Refusal) -> None:
    (source / "config.json").unlink()
    assert_refused(source, f"config.json: missing file: found nothing in source, expected a file; {AGAIN}")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000], ids=["cut", "a list", "deep"])
def test_config_that_is_no_json_object_is_refused(text: str, source: Path, assert_refused: Refusal) -> None:
    (source / "config.json").write_text(text)
    assert_refused(
        source,
        re.compile(
            r"config\.json: not (JSON: found .+, expected JSON|a JSON object: found list, expected an object); fetch .+"
        ),
    )


@pytest.mark.parametrize(
    ("field", "found"),
    [('"hidden_size": 256, "hidden_size": 128', "hidden_size"), ('"rms_norm_eps": NaN', "NaN is not a number of JSON")],
)
def test_config_that_says_a_thing_twice_or_no_number_is_refused(
    field: str, found: str, source: Path, assert_refused: Refusal
) -> None:
    path = source / "config.json"
    path.write_text(f"{path.read_text().rstrip().removesuffix('}')}, {field}}}")
    assert_refused(source, re.compile(rf"config\.json: .+: found {found}, expected .+; {AGAIN}"))


def test_config_with_a_number_beyond_all_bounds_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / "config.json", lambda config: config.update(bos_token_id=0))
    text = (source / "config.json").read_text()
    (source / "config.json").write_text(text.replace('"bos_token_id": 0', f'"bos_token_id": {"9" * 5000}'))
    assert_refused(source, re.compile(rf"config\.json: not JSON: found .+, expected JSON; {AGAIN}"))


def test_name_that_stands_twice_in_the_index_is_refused(source: Path, assert_refused: Refusal) -> None:
    path = source / INDEX_FILE
    path.write_text(path.read_text().replace('"weight_map": {', f'"weight_map": {{"{NORM}": "{SHARD}", ', 1))
    assert_refused(source, f"{INDEX_FILE}: a name stands twice: found {NORM}, expected each name once; {AGAIN}")


def test_file_name_that_no_system_takes_is_a_missing_file(source: Path, assert_refused: Refusal) -> None:
    name = f"{'x' * 300}.safetensors"
    edit_json(source / INDEX_FILE, _place(NORM, name))
    assert_refused(source, f"{name}: missing file: found nothing in source, expected a file; {AGAIN}")


def test_index_that_is_none_is_refused(source: Path, assert_refused: Refusal) -> None:
    (source / INDEX_FILE).write_text('{"weight_map": {"a": 1}}')
    assert_refused(
        source,
        re.compile(rf"{INDEX_FILE}: not a safetensors index: found .+; {AGAIN}"),
    )


def test_index_that_names_an_absent_file_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / INDEX_FILE, _place(NORM, "model-00099-of-00006.safetensors"))
    assert_refused(
        source,
        f"model-00099-of-00006.safetensors: missing file: found nothing in source, expected a file; {AGAIN}",
    )


@pytest.mark.parametrize("file", ["../outside.safetensors", "/outside.safetensors", "..", "", "a/b", "a\\b", "a/../b"])
def test_index_that_points_outside_its_folder_is_refused(file: str, source: Path, assert_refused: Refusal) -> None:
    secret = source.parent / "outside.safetensors"
    secret.write_bytes((source / SHARD).read_bytes())
    edit_json(source / INDEX_FILE, _place(NORM, file))
    found = f"found {file or 'an empty name'}, "
    assert_refused(
        source,
        f"{INDEX_FILE}: names a file outside its folder: {found}expected a plain file name; "
        "do not use this checkpoint: its index is not one that the Hub's tools write",
    )


def test_index_that_names_the_wrong_shard_is_refused(source: Path, assert_refused: Refusal) -> None:
    other = "model-00001-of-00006.safetensors"
    edit_json(source / INDEX_FILE, _place(NORM, other))
    assert_refused(
        source,
        f"{NORM}: is not where the index says: found {SHARD}, expected {other}; {AGAIN}",
    )


def test_index_that_names_an_absent_tensor_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / INDEX_FILE, _place("layers.9.norm.weight", SHARD))
    assert_refused(
        source,
        f"layers.9.norm.weight: is not where the index says: found no such tensor, expected {SHARD}; {AGAIN}",
    )


def test_tensor_that_the_index_lacks_is_refused(source: Path, assert_refused: Refusal) -> None:
    edit_json(source / INDEX_FILE, lambda index: index["weight_map"].pop(NORM))
    assert_refused(source, f"{NORM}: is not in the index: found in {SHARD}, expected in {INDEX_FILE}; {AGAIN}")


def test_name_in_two_shards_is_refused(source: Path, assert_refused: Refusal) -> None:
    first = "model-00001-of-00006.safetensors"
    tensors = read_tensors(source)
    write_shard(
        source / first,
        {name: tensor for name, tensor in tensors.items() if tensor.file == first} | {NORM: tensors[NORM]},
    )
    assert_refused(source, f"{NORM}: is in two shards: found {first} and {SHARD}, expected one; {AGAIN}")


def test_single_file_without_an_index_is_a_checkpoint(source: Path, hubtool: CommandLine) -> None:
    sharded = hubtool("plan", source, "--recipe", "native", "--json").document
    tensors = read_tensors(source)
    for path in source.glob("*.safetensors*"):
        path.unlink()
    write_shard(source / "model.safetensors", tensors)
    single = hubtool("plan", source, "--recipe", "native", "--json").document
    assert single == sharded


def test_shards_beside_the_index_are_not_read(source: Path, hubtool: CommandLine) -> None:
    (source / "consolidated.safetensors").write_bytes(b"another format of the same weights")
    assert hubtool("plan", source, "--recipe", "native").code == 0


def test_reading_past_the_end_says_where(source: Path) -> None:
    local = LocalSource(source)
    nbytes = (source / SHARD).stat().st_size
    with pytest.raises(SourceError) as caught:
        local.read_into(SHARD, nbytes - 10, memoryview(bytearray(20)))
    local.close()
    assert (caught.value.what, caught.value.where) == ("file ends early", SHARD)
    assert (caught.value.found, caught.value.expected) == (f"{nbytes} bytes", f"at least {nbytes + 10}")


def test_snapshot_of_the_hubs_cache_tells_its_repo_and_commit(source: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--deepseek-ai--DeepSeek-V4-Flash" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    assert observe_identity(snapshot) == Identity("deepseek-ai/DeepSeek-V4-Flash", "observed", COMMIT, "observed")
    (tmp_path / "link").symlink_to(snapshot)
    assert observe_identity(tmp_path / "link") == observe_identity(snapshot)


def _leave_metadata(source: Path, commits: dict[str, str]) -> None:
    """What `hf download --local-dir` leaves beside the files."""
    for name, commit in commits.items():
        path = source / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{commit}\n{'a' * 40}\n1763900000.0\n")


def test_local_dir_tells_its_commit_and_not_its_repo(source: Path) -> None:
    _leave_metadata(source, dict.fromkeys(["config.json", SHARD], COMMIT))
    assert observe_identity(source) == Identity(commit=COMMIT, commit_known="observed")


def test_local_dir_of_two_commits_tells_none(source: Path) -> None:
    _leave_metadata(source, {"config.json": COMMIT, SHARD: OTHER_COMMIT})
    assert observe_identity(source) == Identity()


def test_local_dir_with_a_damaged_commit_tells_none(source: Path) -> None:
    _leave_metadata(source, {"config.json": "main"})
    assert observe_identity(source) == Identity()


def test_plain_folder_tells_nothing(source: Path) -> None:
    assert observe_identity(source) == Identity()


def test_base_model_is_stated_where_the_files_do_not_tell(source: Path, hubtool: CommandLine) -> None:
    base_model = f"deepseek-ai/DeepSeek-V4-Flash@{COMMIT}"
    document = hubtool("plan", source, "--recipe", "native", "--base-model", base_model, "--json").document
    assert document["source"] == {
        "name": "source",
        "repo": "deepseek-ai/DeepSeek-V4-Flash",
        "repo_known": "stated",
        "commit": COMMIT,
        "commit_known": "stated",
    }


def test_statement_completes_an_observation(source: Path, hubtool: CommandLine) -> None:
    _leave_metadata(source, {"config.json": COMMIT})
    document = hubtool("plan", source, "--recipe", "native", "--base-model", "org/name", "--json").document
    assert document["source"]["repo_known"] == "stated"
    assert (document["source"]["commit"], document["source"]["commit_known"]) == (COMMIT, "observed")


def test_statement_that_contradicts_the_files_is_refused(source: Path, tmp_path: Path, hubtool: CommandLine) -> None:
    _leave_metadata(source, {"config.json": COMMIT})
    before = file_bytes(source)
    for command in (["plan"], ["convert", "--out", tmp_path / "out"]):
        outcome = hubtool(*command, source, "--recipe", "native", "--base-model", f"org/name@{OTHER_COMMIT}")
        assert outcome.code == 2
        assert outcome.stderr == (
            "Error: --base-model: contradicts what is known of the source: "
            f"found {OTHER_COMMIT}, expected {COMMIT}; leave the option out, or take the right folder\n"
        )
    assert not (tmp_path / "out").exists()
    assert file_bytes(source) == before


def test_statement_of_another_repo_is_refused() -> None:
    observed = Identity("org/name", "observed", COMMIT, "observed")
    assert merge_identity(observed, parse_base_model(f"org/name@{COMMIT}")) == observed
    with pytest.raises(UsageError, match="contradicts"):
        merge_identity(observed, parse_base_model("org/other"))


@pytest.mark.parametrize(
    "text", ["name", "org/name/more", "org/name@", "org/name@main", f"org/name@{'A' * 40}", "/name"]
)
def test_base_model_that_is_none_is_refused(text: str, sample: Samples, hubtool: CommandLine) -> None:
    outcome = hubtool("plan", sample("mini"), "--recipe", "native", "--base-model", text)
    assert outcome.code == 2
    assert outcome.stderr == (
        f"Error: --base-model: not a base model: found {text}, "
        "expected ORG/NAME or ORG/NAME@COMMIT, the commit in 40 hexadecimal digits; write it so\n"
    )


def test_planning_reads_no_weights(source: Path, hubtool: CommandLine) -> None:
    """With the data of every shard overwritten, and lengths kept, the plan is the same."""
    foretold = hubtool("plan", source, "--recipe", "mixed_3_6", "--json").document

    def blank(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = type(tensor)(tensor.dtype, tensor.shape, bytes(len(tensor.data)), tensor.file)

    edit_tensors(source, blank)
    assert hubtool("plan", source, "--recipe", "mixed_3_6", "--json").document == foretold
    assert json.loads((source / INDEX_FILE).read_bytes())["weight_map"]


def test_file_that_cannot_be_hashed_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot be read: found Is a directory; check its disk, then run it again"):
        file_sha256(tmp_path)


def test_link_out_of_the_source_is_not_followed(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("nobody may read this")
    (source / "LICENSE-key").symlink_to(secret)
    (source / "NOTICE").symlink_to("LICENSE")
    read = LocalSource(source)
    assert read.read_file("NOTICE") == read.read_file("LICENSE")
    with pytest.raises(SourceError, match="LICENSE-key: a link out of the source"):
        read.read_file("LICENSE-key")


def test_links_of_a_snapshot_lead_into_the_blobs_of_its_repo(source: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(repo / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    (tmp_path / "secret").write_text("nobody may read this")
    (snapshot / "NOTICE").symlink_to(tmp_path / "secret")
    read = LocalSource(snapshot)
    assert read.tensors and read.config and read.sha256(read.shard_names[0])
    with pytest.raises(SourceError, match="NOTICE: a link out of the source"):
        read.read_file("NOTICE")
