"""Releases of several variants from one file: made in one pass, linked, collected, gone on with, withdrawn."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubtool.errors import UsageError
from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import Answer, Fault
from hubtool.releases import load_release
from tests.fixtures import CommandLine, Samples

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPOS = ("someone/V4-mixed_3_6", "someone/V4-native")
RELEASE = """
source = "{source}"
repo = "someone/V4-{{recipe}}"
out = "work"
validate = ["integrity"]

[collection]
title = "V4 for MLX"

[[variant]]
recipe = "mixed_3_6"
notes = "Fits a smaller machine."

[[variant]]
recipe = "native"
"""


@pytest.fixture
def endpoint(rehearsal: RehearsalHub, hub_api: HfApi, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """A rehearsal Hub as the one that the environment names, without real waits."""
    monkeypatch.setenv("HF_ENDPOINT", rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", rehearsal.token)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return hub_api


def write_release(folder: Path, source: Path, text: str = RELEASE) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "release.toml"
    path.write_text(text.format(source=source))
    return path


def hub_state(api: HfApi) -> dict[str, Any]:
    """What readers see of the release, but for what no two runs have alike: dates of evidence, ids of commits."""
    cards = {}
    for repo in REPOS:
        files = {file.path: file for file in api.list_repo_tree(repo, recursive=True)}
        made = {name for name in files if name.endswith((".md", ".json", ".gitattributes"))}
        weights = {name: file.blob_id for name, file in files.items() if name not in made}  # type: ignore[union-attr]
        record = json.loads(Path(api.hf_hub_download(repo, "hubtool.json")).read_bytes())
        for evidence in record["evidence"]:
            del evidence["started"], evidence["seconds"], evidence["figures"], evidence["command"]
        card = Path(api.hf_hub_download(repo, "README.md")).read_text()
        notes = card.partition("<!-- hubtool:prose notes -->")[2].partition("<!--")[0]
        commits = [commit.title for commit in api.list_repo_commits(repo)]
        cards[repo] = (sorted(made), weights, record, notes, commits, len(api.list_repo_refs(repo).tags))
    collected = [
        item.item_id for each in api.list_collections(owner="someone") for item in api.get_collection(each.slug).items
    ]
    return {**cards, "collected": collected}


def test_release_cut_off_twice_ends_as_one_that_was_not(
    endpoint: HfApi, rehearsal: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    path = write_release(tmp_path / "one", sample("mini"))
    done = hubtool("publish", path, "--json")
    assert done.code == 0, done.stderr
    assert [each["verified"] for each in done.document["variants"]] == [True, True]
    undisturbed = hub_state(endpoint)
    for repo in REPOS:
        endpoint.delete_repo(repo)
    (collection,) = endpoint.list_collections(owner="someone")
    endpoint.delete_collection(collection.slug)

    path = write_release(tmp_path / "two", sample("mini"))
    for cut in (Fault("commit", answer=Answer(403, "Cut")), Fault("tag", answer=Answer(403, "Cut"), skip=1)):
        rehearsal.faults.add(cut)
        outcome = hubtool("publish", path)
        assert (outcome.code, cut.struck) == (1, 1), outcome.stderr
        assert hubtool("status", path).code == 1
    again = hubtool("publish", path, "--json")
    assert again.code == 0, again.stderr
    assert [each["converted"] for each in again.document["variants"]] == [False, False]
    assert hub_state(endpoint) == undisturbed


def test_variants_name_each_other_and_are_collected(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    path = write_release(tmp_path / "one", sample("mini"))
    before = hubtool("status", path, "--json")
    assert (before.code, before.document["done"]) == (1, False)
    assert hubtool("publish", path).code == 0
    for repo, other in (REPOS, REPOS[::-1]):
        card = Path(endpoint.hf_hub_download(repo, "README.md")).read_text()
        assert f"](https://huggingface.co/{other})" in card
        assert ("Fits a smaller machine." in card) is (repo == REPOS[0])
        assert hubtool("verify", repo).code == 0
    (collection,) = endpoint.list_collections(owner="someone")
    items = endpoint.get_collection(collection.slug).items
    assert (collection.title, [item.item_id for item in items]) == ("V4 for MLX", list(REPOS))
    after = hubtool("status", path, "--json")
    assert (after.code, after.document["done"]) == (0, True)
    assert {each["published"] for each in after.document["variants"]} == {
        endpoint.model_info(repo).sha for repo in REPOS
    }


def test_a_rung_that_was_only_stated_to_pass_is_climbed(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    path = write_release(tmp_path / "one", sample("mini"))
    folder = path.parent / "work" / "V4-native"
    assert hubtool("convert", sample("mini"), "--recipe", "native", "--out", folder).code == 0
    stated = ("--check", "integrity", "--outcome", "passed", "--detail", "looks fine")
    assert hubtool("evidence", "add", folder, *stated).code == 0
    assert hubtool("publish", path).code == 0
    record = json.loads((folder / "hubtool.json").read_bytes())
    assert [each["kind"] for each in record["evidence"]] == ["stated", "measured"]


def test_withdrawn_repo_says_so_and_keeps_everything(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert hubtool("publish", sample("mini"), "--recipe", "native", "--to", REPOS[1], "--out", out).code == 0
    before = set(endpoint.list_repo_files(REPOS[1]))
    arguments = ("withdraw", REPOS[1], "--reason", "Layer 3 was *wrong*.", "--new-version", REPOS[0], "--json")
    first, second = hubtool(*arguments), hubtool(*arguments)
    assert (first.code, second.code) == (0, 0), first.stderr
    assert first.document["commit"] == second.document["commit"] == endpoint.model_info(REPOS[1]).sha
    assert set(endpoint.list_repo_files(REPOS[1])) == before
    info = endpoint.model_info(REPOS[1])
    assert info.card_data is not None and info.card_data["new_version"] == REPOS[0]
    card = Path(endpoint.hf_hub_download(REPOS[1], "README.md")).read_text()
    assert "Withdrawn on 20" in card and "Layer 3 was \\*wrong\\*." in card
    assert hubtool("verify", REPOS[1]).code == 0
    assert hubtool("card", REPOS[1], "--check").code == 0


def test_a_reason_that_tells_of_the_publishers_machine_is_not_published(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert hubtool("publish", sample("mini"), "--recipe", "native", "--to", REPOS[1], "--out", out).code == 0
    head = endpoint.model_info(REPOS[1]).sha
    refused = hubtool("withdraw", REPOS[1], "--reason", "See /home/annabell/why.txt")
    assert refused.code == 1
    assert "path '/home/annabell/why.txt'" in refused.stderr
    assert endpoint.model_info(REPOS[1]).sha == head


def test_what_hubtool_did_not_publish_cannot_be_withdrawn(endpoint: HfApi, hubtool: CommandLine) -> None:
    endpoint.create_repo("someone/other")
    outcome = hubtool("withdraw", "someone/other", "--reason", "Because.")
    assert (outcome.code, len(endpoint.list_repo_commits("someone/other"))) == (1, 1)
    assert "has no record" in outcome.stderr


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("[[variant]]", "[[variants]]"), "variant"),
        (('recipe = "native"', 'recipe = "native"\nbits = 4'), "bits"),
        (('repo = "someone/V4-{{recipe}}"', 'repo = "someone/V4"'), "a repo of its own each"),
        (('repo = "someone/V4-{{recipe}}"', ""), "no name that the Hub allows"),
        (('validate = ["integrity"]', 'validate = ["luck"]'), "luck"),
        (('out = "work"', "out = work"), "not a release"),
        (("[collection]", '[card]\ntemplates = "none"\n[collection]'), "card.templates: no such folder"),
    ],
    ids=["unknown table", "unknown key", "one repo twice", "no repo", "unknown rung", "not TOML", "no templates"],
)
def test_release_file_that_cannot_be_meant_is_refused(change: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    assert change[0] in RELEASE
    path = write_release(tmp_path / "one", tmp_path, RELEASE.replace(*change))
    with pytest.raises(UsageError, match=sentence):
        load_release(path)


@pytest.mark.parametrize(
    ("notes", "found"),
    [
        ("<script>x</script>", "notes, line 1: cannot stand in a card: found HTML that the Hub removes, <script>"),
        ("Fine.\n\n```\nopen", "notes, line 3: cannot stand in a card: found a block of code that is not closed"),
        ("Fine.\n<!-- /hubtool:prose -->\nMore.", "notes, line 2: .*found a comment that marks where prose stands"),
        ("<!-- hubtool:prose limits -->", "notes, line 1: .*found a comment that marks where prose stands"),
    ],
)
def test_notes_that_would_break_the_card_are_refused_before_anything_is_made(
    notes: str, found: str, tmp_path: Path
) -> None:
    text = RELEASE.replace('"Fits a smaller machine."', f"'''{notes}'''")
    with pytest.raises(UsageError, match=found):
        load_release(write_release(tmp_path / "one", tmp_path, text))


def test_source_and_recipes_are_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "mine.toml").write_text("")
    text = 'source = "checkpoint"\n[[variant]]\nrecipe = "mine.toml"\nrepo = "someone/{{recipe}}"\n'
    release = load_release(write_release(tmp_path, tmp_path, text))
    (variant,) = release.variants
    assert release.source == str(tmp_path / "checkpoint")
    assert (variant.recipe, variant.destination.repo) == (str(tmp_path / "mine.toml"), "someone/mine")
    assert variant.folder == tmp_path / "release" / "mine"


def test_other_options_beside_a_release_are_refused(hubtool: CommandLine, tmp_path: Path) -> None:
    assert hubtool("publish", tmp_path / "release.toml", "--recipe", "native").code == 2
    assert hubtool("publish", tmp_path).code == 2
