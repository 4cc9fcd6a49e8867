"""A checkpoint on the Hub: planned, inspected and converted by the stock client from a rehearsal Hub."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from hubtool.checkpoint.identity import Identity
from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.remote import HEAD_NBYTES, HubSource
from hubtool.checkpoint.source import INDEX_FILE, LocalSource, parse_spec
from hubtool.checkpoint.tensors import TensorSpec, encode_header
from hubtool.convert.job import Job
from hubtool.convert.journal import Journal
from hubtool.errors import HubError, SourceError, UsageError
from hubtool.plan.plan import make_plan, plan_source
from hubtool.plan.recipe import load_recipe
from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import Answer, Fault, Faults
from tests.checkpoint.repo import FINISHED, REPO, read_shard, shard_sizes
from tests.checkpoints import file_bytes
from tests.convert.passes import convert
from tests.fixtures import CommandLine, Conversions, convert_source

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("client"),
    pytest.mark.slow,
]

# What a source is


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("org/name", ("org/name", None)),
        ("hub:org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("hub:org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("./org/name", None),
        ("/org/name", None),
        ("name", None),
        ("a/b/c", None),
        ("org/name@", None),
    ],
)
def test_spec_names_a_repo_and_a_revision(spec: str, parsed: tuple[str, str | None] | None) -> None:
    assert parse_spec(spec) == parsed


def test_path_that_exists_wins_and_the_prefix_forces_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_source(REPO), HubSource)
    Path(REPO).parent.mkdir()
    Path(REPO).symlink_to(folder)
    assert isinstance(open_source(REPO), LocalSource)
    assert isinstance(open_source(f"hub:{REPO}"), HubSource)


def test_revision_is_resolved_to_a_commit(api: HfApi) -> None:
    head = api.model_info(REPO).sha
    first = api.list_repo_commits(REPO)[-1].commit_id
    api.create_branch(REPO, branch="side", exist_ok=True)
    for revision, commit in ((None, head), ("side", head), (head, head), (first, first)):
        assert HubSource(REPO, revision).identity == Identity(REPO, "observed", commit, "observed")


def test_statement_that_contradicts_the_hub_is_refused() -> None:
    with pytest.raises(UsageError, match=f"--base-model: contradicts .* found other/name, expected {REPO}"):
        open_source(REPO, "other/name")


# Planning and inspecting


def test_plan_from_the_hub_is_the_folders(folder: Path, hubtool: CommandLine) -> None:
    remote = hubtool("plan", REPO, "--recipe", "mixed_3_6", "--json").document
    local = hubtool("plan", folder, "--recipe", "mixed_3_6", "--json").document
    assert remote.pop("source")["repo_known"] == "observed"
    del local["source"]
    assert remote == local


def test_plan_asks_once_a_shard_and_takes_no_weights(folder: Path, faults: Faults) -> None:
    source = HubSource(REPO)
    plan_source(source, ["mixed_3_6"])
    shards = len(shard_sizes(folder))
    assert dict(faults.calls) == {"info": 1, "tree": 1, "resolve": shards + len(["config.json", INDEX_FILE])}


def test_header_longer_than_the_first_read_is_read_to_its_end(api: HfApi, faults: Faults) -> None:
    raw = encode_header([TensorSpec("a", "F32", (2,))], {"note": "x" * HEAD_NBYTES}) + bytes(8)
    api.create_repo("someone/long", exist_ok=True)
    for name, content in (("model.safetensors", raw), ("config.json", b"{}")):
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="someone/long")
    faults.clear()
    source = HubSource("someone/long")
    assert source.tensors["a"].offset == len(raw) - 8
    assert faults.calls["resolve"] == 2


def test_files_are_those_of_the_folder(folder: Path) -> None:
    remote, local = HubSource(REPO), LocalSource(folder)
    assert remote.files == local.files
    assert remote.shards == local.shards
    for name in (*local.files, *local.shards):
        assert (remote.nbytes(name), remote.sha256(name)) == (local.nbytes(name), local.sha256(name))
    assert all(remote.read_file(name) == local.read_file(name) for name in local.files)


def test_inspect_of_a_repo_is_that_of_the_folder(
    converted: Conversions, hubtool: CommandLine, faults: Faults, tmp_path: Path
) -> None:
    made = converted("mini", "mixed_3_6").folder
    local = hubtool("inspect", made, "--json")
    remote = hubtool("inspect", FINISHED, "--json")
    assert (remote.code, remote.document) == (0, local.document)
    assert faults.calls["resolve"] <= 2 * len(file_bytes(made))


def test_inspect_names_what_a_repo_contradicts_itself_in(
    converted: Conversions, api: HfApi, hubtool: CommandLine
) -> None:
    made = converted("mini", "mixed_3_6").folder
    index = json.loads((made / INDEX_FILE).read_bytes())
    index["metadata"]["total_size"] += 1
    repo = "someone/contradicting"
    api.create_repo(repo, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=made, ignore_patterns=".hubtool/**")
    api.upload_file(path_or_fileobj=json.dumps(index).encode(), path_in_repo=INDEX_FILE, repo_id=repo)
    outcome = hubtool("inspect", repo, "--json")
    assert outcome.code == 1
    size = index["metadata"]["total_size"]
    problems = outcome.document["disagreements"]
    assert f"{INDEX_FILE}: total_size is {size}, the headers say {size - 1}" in problems
    assert any(problem.startswith(f"{INDEX_FILE}: sha256 ") for problem in problems)


# Converting


def _convert(source: HubSource | LocalSource, out: Path, shard_nbytes: int) -> dict[str, str]:
    """Hashes of the shards that a conversion makes, each of the output's at most so large."""
    model = plan_source(source, ["mixed_3_6"])[0].model
    plan = make_plan(model, load_recipe("mixed_3_6"), shard_nbytes)
    assert sum(len(shard.tensors) for shard in plan.shards) == plan.tensors
    convert_source(source, plan, out)
    return {name: sha256 for name, sha256 in file_bytes(out).items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("shard_nbytes", [200_000, 5 << 30], ids=["many shards", "one shard"])
@pytest.mark.parametrize("files", [1, 2, None])
def test_conversion_within_a_limit_is_that_of_the_folder(
    files: int | None, shard_nbytes: int, folder: Path, tmp_path: Path
) -> None:
    limit = files and files * max(shard_sizes(folder).values())
    assert limit is None or limit < sum(shard_sizes(folder).values())
    source = open_source(REPO, out=tmp_path / "remote", disk_limit=limit)
    assert isinstance(source, HubSource)
    remote = _convert(source, tmp_path / "remote", shard_nbytes)
    assert remote == _convert(LocalSource(folder), tmp_path / "local", shard_nbytes)
    assert source.traffic.most_held_nbytes <= source.disk_nbytes
    assert not (tmp_path / "remote" / ".hubtool" / "source").exists()
    source.close()


def test_convert_command_keeps_what_it_fetched_if_told_to(
    folder: Path, tmp_path: Path, hubtool: CommandLine, api: HfApi
) -> None:
    out = tmp_path / "out"
    outcome = hubtool("convert", REPO, "--recipe", "mixed_3_6", "--out", out, "--keep-source", "--json")
    assert outcome.code == 0, outcome.stderr
    kept = out / ".hubtool" / "source"
    needed = {name for name in shard_sizes(folder) if (kept / name).exists()}
    assert {name: file_bytes(folder)[name] for name in needed} == file_bytes(kept)
    assert LocalSource(kept).identity.commit == api.model_info(REPO).sha
    record = json.loads((out / "hubtool.json").read_bytes())
    assert record["source"]["repo_known"] == record["source"]["commit_known"] == "observed"
    hashes = {file["name"]: file["sha256"] for file in record["source"]["files"]}
    assert hashes == {name: file_bytes(folder)[name] for name in hashes}


def test_rehearsing_changes_the_target_and_not_the_source(
    tmp_path: Path, hubtool: CommandLine, filled_hub: RehearsalHub
) -> None:
    outcome = hubtool(
        "publish",
        REPO,
        "--recipe",
        "mixed_3_6",
        "--validate",
        "none",
        "--to",
        "someone/new",
        "--rehearse",
        "--out",
        tmp_path / "new",
    )
    assert outcome.code == 0, outcome.stderr
    assert filled_hub.hub.repos.get("someone/new") is None


# What people are told


def test_missing_repo_is_named_with_its_hub(filled_hub: RehearsalHub, hubtool: CommandLine) -> None:
    outcome = hubtool("plan", "someone/absent", "--recipe", "mixed_3_6")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == (
        f"Error: someone/absent on {filled_hub.endpoint}: no such repo, or the token may not see it; "
        "check the name, and log in\n"
    )


def test_missing_revision_is_named() -> None:
    with pytest.raises(HubError, match=f"{REPO}@v9 on .*: no such revision.*; check the revision"):
        HubSource(REPO, "v9")


def test_unreachable_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=f"{REPO} on http://127.0.0.1:9: the Hub cannot be reached.*check the network"):
        HubSource(REPO)


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on; unset HF_HUB_OFFLINE"):
        HubSource(REPO)


def test_private_repo_is_not_seen_without_the_right(
    filled_hub: RehearsalHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.create_repo("someone/private", private=True, exist_ok=True)
    filled_hub.hub.accounts.add_user("stranger")
    stranger = filled_hub.hub.accounts.add_token("stranger", "read")
    monkeypatch.setenv("HF_TOKEN", stranger)
    with pytest.raises(HubError, match="no such repo, or the token may not see it"):
        HubSource("someone/private")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="no such repo, or the token may not see it"):
        HubSource("someone/private")


def test_token_that_the_hub_does_not_know_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"hf_{'a' * 34}")
    with pytest.raises(HubError, match="the Hub refused.*log in with `hf auth login`, or set HF_TOKEN") as error:
        HubSource(REPO)
    assert "aaaa" not in str(error.value)


def test_gated_repo_is_named(faults: Faults) -> None:
    # The Hub shows a gated repo's files to everyone, and refuses their content.
    message = "Access to model is restricted. You must have access to it and be authenticated to access it."
    faults.add(Fault("resolve", "answer", Answer(403, message, {"X-Error-Code": "GatedRepo"})))
    with pytest.raises(HubError, match=r"the repo is gated: found Access to model .*; accept its terms on its page"):
        _ = HubSource(REPO).config


def test_missing_shard_is_named(folder: Path, api: HfApi) -> None:
    repo, name = "someone/lacking", min(shard_sizes(folder))
    api.create_repo(repo, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=name)
    commit = api.model_info(repo).sha
    with pytest.raises(SourceError, match=f"{name}: missing file: found nothing in {repo} at {commit}"):
        plan_source(HubSource(repo), ["mixed_3_6"])


def test_folder_that_cannot_be_written_is_named(tmp_path: Path, opened: Callable[..., HubSource], folder: Path) -> None:
    (tmp_path / "shards").write_bytes(b"in the way")
    source = opened()
    source.prepare([min(shard_sizes(folder))])
    with pytest.raises(SourceError, match=r"shards: cannot be fetched to: found .+; free some space"):
        read_shard(source, min(shard_sizes(folder)))


def test_hash_that_was_not_checked_is_not_claimed(folder: Path, tmp_path: Path, hubtool: CommandLine) -> None:
    limit = max(shard_sizes(folder).values())
    arguments = ("convert", REPO, "--recipe", "mixed_3_6", "--out")
    tight = hubtool(*arguments, tmp_path / "tight", "--disk-limit", limit)
    assert (tight.code, hubtool(*arguments, tmp_path / "roomy", "--keep-source").code) == (0, 0)
    assert "read straight from the Hub for want of room" in tight.stderr
    records = [json.loads((tmp_path / name / "hubtool.json").read_bytes()) for name in ("tight", "roomy")]
    unverified = set(records[0]["source"]["unverified"])
    assert unverified and unverified <= set(shard_sizes(folder))
    assert records[1]["source"]["unverified"] == []
    statement = json.loads((tmp_path / "tight" / "provenance.intoto.json").read_bytes())
    files = statement["predicate"]["buildDefinition"]["resolvedDependencies"][1:]
    assert {file["name"] for file in files if "not checked" in str(file.get("annotations"))} == unverified


def test_hash_that_was_not_checked_is_not_claimed_by_the_run_that_goes_on(folder: Path, tmp_path: Path) -> None:
    limit = max(shard_sizes(folder).values())
    out = tmp_path / "out"
    source = open_source(REPO, out=out, disk_limit=limit)
    (plan,) = plan_source(source, ["mixed_3_6"])
    with closing(convert(source, [Job(plan, out)], 2)) as steps:
        while not source.unverified:
            next(steps)
    source.close()
    before = Journal(out).load().unverified
    again = open_source(REPO, out=out)
    record = convert_source(again, plan, out).record
    again.close()
    assert before and before <= set(record.source.unverified)


def test_part_of_another_place_is_refused(folder: Path, faults: Faults) -> None:
    name = min(shard_sizes(folder))
    source = HubSource(REPO)
    buffer = memoryview(bytearray(len(json.dumps({"error": "x"}))))
    for place in ({"Content-Range": f"bytes 1-{len(buffer)}/*"}, {}):
        faults.add(Fault("resolve", "answer", Answer(206, "x", place)))
        with pytest.raises(HubError, match=f"{name}: the Hub sent another part than was asked for"):
            source.read_into(name, 0, buffer)


def _begin(source: HubSource | LocalSource, out: Path) -> None:
    (plan,) = plan_source(source, ["mixed_3_6"])
    with closing(convert(source, [Job(plan, out)], 2)) as steps:
        for _, _ in zip(range(20), steps, strict=False):
            pass
    source.close()


def test_conversion_goes_on_when_main_moves_and_the_weights_do_not(
    folder: Path, tmp_path: Path, api: HfApi, hubtool: CommandLine
) -> None:
    repo, out = "someone/moving", tmp_path / "out"
    api.create_repo(repo)
    api.upload_folder(repo_id=repo, folder_path=folder)
    source = open_source(repo, out=out)
    begun = source.identity.commit
    assert isinstance(source, HubSource)
    _begin(source, out)
    api.upload_file(path_or_fileobj=b"a note", path_in_repo="NOTE.md", repo_id=repo)
    moved = api.model_info(repo).sha
    assert begun != moved
    outcome = hubtool("convert", repo, "--recipe", "mixed_3_6", "--out", out)
    assert outcome.code == 0, outcome.stderr
    assert json.loads((out / "hubtool.json").read_bytes())["source"]["commit"] == moved


def test_conversion_names_both_commits_when_the_weights_have_changed(
    folder: Path, tmp_path: Path, api: HfApi, hubtool: CommandLine
) -> None:
    repo, out, name = "someone/changing", tmp_path / "out", max(shard_sizes(folder))
    api.create_repo(repo)
    api.upload_folder(repo_id=repo, folder_path=folder)
    source = open_source(repo, out=out)
    assert isinstance(source, HubSource)
    _begin(source, out)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    api.upload_file(path_or_fileobj=bytes(content), path_in_repo=name, repo_id=repo)
    begun, now = source.identity.commit, api.model_info(repo).sha
    arguments = ("--recipe", "mixed_3_6", "--out", out)
    outcome = hubtool("convert", repo, *arguments)
    assert outcome.code == 1
    assert f"the source's files have changed between commit {begun} and {now}" in outcome.stderr
    assert f"go on with {repo}@{begun}, give another --out" in outcome.stderr
    assert hubtool("convert", f"{repo}@{begun}", *arguments).code == 0
