"""Releases of several variants from one file: made in one pass, linked, collected, gone on with, withdrawn."""

import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubtool.errors import UsageError
from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import Answer, Fault
from hubtool.release.file import load_release
from tests.checkpoints import edit_json
from tests.fixtures import CommandLine, Outcome, Samples

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]

CHECKOUT = Path(__file__).resolve().parents[2]
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


@pytest.mark.slow
def test_quality_of_all_variants_is_measured_in_one_run_and_stands_on_their_cards(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    measured = '[quality]\ntext = "text.txt"\ntokens = 64\ncontext = 32\n\n[collection]'
    path = write_release(tmp_path / "r", sample("mini"), RELEASE.replace("[collection]", measured))
    (path.parent / "text.txt").write_text(" ".join(f"word{number % 97}" for number in range(400)))
    outcome = hubtool("publish", path, "--yes")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count("quality: ") == 1
    for repo, other in zip(REPOS, reversed(REPOS), strict=True):
        card = Path(endpoint.hf_hub_download(repo, "README.md")).read_text()
        section = card[card.index("## Quality") : card.index("## Validation")]
        assert "| this variant, `" in section
        assert f"`{other.removeprefix('someone/V4-')}`" in section or f"[{other}]" in section
        assert "| the source itself, in bfloat16 |" in section
    again = hubtool("publish", path, "--yes")
    assert (again.code, "quality: " in again.stderr) == (0, False)


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


def left(path: Path, hubtool: CommandLine) -> tuple[int, list[list[str]]]:
    """The exit code of `hubtool status`, and what it says is left of each variant."""
    outcome = hubtool("status", path, "--json")
    return outcome.code, [each["problems"] for each in outcome.document["variants"]]


def test_status_tells_of_collection_and_visibility(
    endpoint: HfApi, rehearsal: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    text = RELEASE.replace("out =", "public_after_verify = true\nout =")
    path = write_release(tmp_path / "one", sample("mini"), text)
    rehearsal.faults.add(Fault("settings", answer=Answer(403, "Not now")))
    assert hubtool("publish", path).code == 1
    uncollected = "not in the collection V4 for MLX"
    assert left(path, hubtool) == (1, [["still private", uncollected], ["not published"]])
    rehearsal.faults.add(Fault("collections", answer=Answer(403, "Not now")))
    assert hubtool("publish", path).code == 1
    assert left(path, hubtool) == (1, [[uncollected], [uncollected]])
    assert hubtool("publish", path).code == 0
    assert left(path, hubtool) == (0, [[], []])


@pytest.mark.parametrize("tag", ["", 'tag = "v1.0"\n'], ids=["default", "named"])
def test_release_is_done_whose_tag_names_an_earlier_commit_of_it(
    tag: str, endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    path = write_release(tmp_path / "one", sample("mini"), RELEASE.replace("out =", f"{tag}out ="))
    assert hubtool("publish", path).code == 0
    card = path.parent / "work" / "V4-native" / "README.md"
    mark = "<!-- hubtool:prose notes -->\n"
    card.write_text(card.read_text().replace(mark, f"{mark}A remark.\n"))
    endpoint.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=REPOS[0])
    done = hubtool("publish", path)
    assert (done.code, "the same record; it is left there" in done.stderr) == (0, True), done.stderr
    assert left(path, hubtool) == (0, [[], []])


def test_tag_of_another_release_is_not_done(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    path = write_release(tmp_path / "one", sample("mini"), RELEASE.replace("out =", 'tag = "v1.0"\nout ='))
    assert hubtool("publish", path).code == 0
    first = endpoint.list_repo_commits(REPOS[0])[-1].commit_id
    endpoint.delete_tag(REPOS[0], tag="v1.0")
    endpoint.create_tag(REPOS[0], tag="v1.0", revision=first)
    outcome = hubtool("status", path, "--json")
    assert (outcome.code, [each["tagged"] for each in outcome.document["variants"]]) == (1, [False, True])
    refused = hubtool("publish", path)
    assert (refused.code, "v1.0: the tag names another commit" in refused.stderr) == (1, True)


def test_status_needs_no_weights_here(endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path) -> None:
    path = write_release(tmp_path / "one", sample("mini"))
    assert hubtool("publish", path).code == 0
    for shard in (path.parent / "work").rglob("*.safetensors"):
        shard.unlink()
    assert left(path, hubtool) == (0, [[], []])


def test_release_of_the_readme_works(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (CHECKOUT / "README.md").read_text().partition("## Releases of many variants\n")[2]
    block = section[section.index("    source =") : section.index("\nBeside")]
    (tmp_path / "release.toml").write_text(textwrap.dedent(block))
    (tmp_path / "source").symlink_to(sample("mini"))
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"^    \$ hubtool (.*)$", section.partition("\n## ")[0], re.MULTILINE):
        outcome = hubtool(*(word for word in shlex.split(line) if word != "--rehearse"))
        assert outcome.code == 0, f"{line}: {outcome.stderr}"


def test_withdrawn_repo_says_so_and_keeps_everything(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert (
        hubtool(
            "publish", sample("mini"), "--recipe", "native", "--validate", "none", "--to", REPOS[1], "--out", out
        ).code
        == 0
    )
    before = set(endpoint.list_repo_files(REPOS[1]))
    new = ("--new-version", REPOS[0])
    missed = hubtool("withdraw", REPOS[1], "--reason", "Wrong.", *new, "--dry-run")
    assert (missed.code, f"no such repo, or the token may not see it: found {REPOS[0]}" in missed.stderr) == (1, True)
    assert hubtool("withdraw", REPOS[1], "--reason", "Wrong.", "--new-version", REPOS[1]).code == 2
    endpoint.create_repo(REPOS[0])
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
    assert (
        hubtool(
            "publish", sample("mini"), "--recipe", "native", "--validate", "none", "--to", REPOS[1], "--out", out
        ).code
        == 0
    )
    head = endpoint.model_info(REPOS[1]).sha
    refused = hubtool("withdraw", REPOS[1], "--reason", "See /home/annabell/why.txt")
    assert refused.code == 1
    assert "path '/home/annabell/why.txt'" in refused.stderr
    assert endpoint.model_info(REPOS[1]).sha == head


def test_publishing_again_does_not_take_a_withdrawal_back(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    def publish(*more: object) -> Outcome:
        recipe = ("--recipe", "native", "--to", REPOS[1], "--out", tmp_path / "out")
        return hubtool("publish", sample("mini"), "--validate", "none", *recipe, *more)

    assert publish().code == 0
    assert hubtool("withdraw", REPOS[1], "--reason", "Layer 3 was wrong.").code == 0
    withdrawn = endpoint.model_info(REPOS[1]).sha
    for more in ((), ("--dry-run",)):
        again = publish(*more)
        assert (again.code, "found withdrawn on 20" in again.stderr) == (1, True), again.stderr
        assert "Layer 3 was wrong." in again.stderr
    assert endpoint.model_info(REPOS[1]).sha == withdrawn
    other = (
        "publish",
        sample("mini"),
        "--recipe",
        "bf16",
        "--validate",
        "none",
        "--to",
        REPOS[1],
        "--out",
        tmp_path / "other",
    )
    assert hubtool(*other).code == 1
    assert hubtool(*other, "--replace").code == 0, "other weights are published over it"


def test_dry_run_of_a_release_checks_everything_and_writes_nothing(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    path = write_release(tmp_path / "one", sample("mini"))
    told = hubtool("publish", path, "--dry-run", "--json")
    assert told.code == 0, told.stderr
    variants = told.document["variants"]
    assert [(each["repo"], each["converted"], each["exists"]) for each in variants] == [
        (repo, False, False) for repo in REPOS
    ]
    assert not (path.parent / "work").exists() and not any(endpoint.repo_exists(repo) for repo in REPOS)
    assert hubtool("publish", path).code == 0
    again = hubtool("publish", path, "--dry-run", "--json").document["variants"]
    assert [(each["converted"], each["send"]) for each in again] == [(True, []), (True, [])]
    text = hubtool("publish", path, "--dry-run").stdout
    assert all(f"destination {repo}, branch main (there, private)" in text for repo in REPOS)


def test_dry_runs_of_small_commits_tell_what_they_would_change(
    endpoint: HfApi, rehearsal: RehearsalHub, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert (
        hubtool(
            "publish", sample("mini"), "--recipe", "native", "--validate", "none", "--to", REPOS[1], "--out", out
        ).code
        == 0
    )
    head = endpoint.model_info(REPOS[1]).sha
    told = hubtool("withdraw", REPOS[1], "--reason", "Wrong.", "--dry-run", "--json")
    assert (told.code, told.document["commit"], told.document["dry_run"]) == (0, head, True), told.stderr
    assert {"README.md", "hubtool.json"} <= set(told.document["changed"])
    (out / "README.md").unlink()
    edit_json(out / "hubtool.json", lambda record: record.update(withdrawn={"reason": "Wrong.", "date": "2026-11-24"}))
    (out / "README.md").write_text("")
    pushed = hubtool("card", out, "--push", "--dry-run", "--json")
    assert (pushed.code, pushed.document["commit"], "README.md" in pushed.document["changed"]) == (0, head, True)
    assert endpoint.model_info(REPOS[1]).sha == head
    assert "nothing was written" in hubtool("card", out, "--push", "--dry-run").stdout
    assert hubtool("card", out, "--dry-run").code == 2


def test_dry_run_of_a_withdrawal_notices_a_token_that_may_not_write(
    endpoint: HfApi,
    rehearsal: RehearsalHub,
    sample: Samples,
    hubtool: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--recipe", "native", "--to", REPOS[1], "--public", "--out", tmp_path / "out")
    assert hubtool("publish", sample("mini"), "--validate", "none", *arguments).code == 0
    rehearsal.accounts.add_user("ann")
    monkeypatch.setenv("HF_TOKEN", rehearsal.accounts.add_token("ann", "write"))
    refused = hubtool("withdraw", REPOS[1], "--reason", "Wrong.", "--dry-run")
    assert (refused.code, "take a token that has this right" in refused.stderr) == (1, True), refused.stderr


def test_status_says_what_it_knows_and_what_it_does_not(
    endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_release(tmp_path / "one", sample("mini"))

    def states() -> list[tuple[str, str]]:
        done = hubtool("status", path, "--json")
        assert done.code == (0 if done.document["done"] else 1)
        return [(each["state"], "; ".join(each["problems"])) for each in done.document["variants"]]

    assert states() == [("no", "not converted")] * 2
    assert hubtool("publish", path).code == 0
    assert states() == [("yes", "")] * 2
    assert hubtool("withdraw", REPOS[0], "--reason", "Layer 3 was wrong.").code == 0
    (state, why), other = states()
    assert (state, other) == ("withdrawn", ("yes", ""))
    assert why.startswith("withdrawn on 20") and why.endswith(": Layer 3 was wrong.")
    endpoint.delete_repo(REPOS[0])
    endpoint.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=REPOS[1])
    (state, _), (differs, _) = states()
    assert (state, differs) == ("no", "differs")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert [(state, "there is no token" in why) for state, why in states()] == [("unknown", True)] * 2
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert [(state, "could not be asked" in why) for state, why in states()] == [("unknown", True)] * 2


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
        (('repo = "someone/V4-{{recipe}}"', 'repo = "someone/V4"'), "two variants publish to the same repo"),
        (('repo = "someone/V4-{{recipe}}"', ""), "not a name that the Hub allows"),
        (('validate = ["integrity"]', 'validate = ["luck"]'), "luck"),
        (('out = "work"', "out = work"), "not TOML"),
        (("[collection]", '[card]\ntemplates = "none"\n[collection]'), "card.templates: no such folder"),
        (('out = "work"', 'disk_limit = "much"'), "disk_limit: no size"),
    ],
    ids=[
        "unknown table",
        "unknown key",
        "one repo twice",
        "no repo",
        "unknown rung",
        "not TOML",
        "no templates",
        "no size",
    ],
)
def test_release_file_that_cannot_be_meant_is_refused(change: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    assert change[0] in RELEASE
    path = write_release(tmp_path / "one", tmp_path, RELEASE.replace(*change))
    with pytest.raises(UsageError, match=sentence):
        load_release(path)


@pytest.mark.parametrize(
    ("notes", "found"),
    [
        ("<script>x</script>", "notes, line 1: not allowed in a card: found HTML that the Hub removes, <script>"),
        ("Fine.\n\n```\nopen", "notes, line 3: not allowed in a card: found a block of code that is not closed"),
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


OTHER_OPTIONS = (
    ("--recipe", "native"),
    ("--to", REPOS[0]),
    ("--revision", "main"),
    ("--tag", "v1"),
    ("--public",),
    ("--private",),
    ("--public-after-verify",),
    ("--collection", "v4-1"),
    ("--base-model", "someone/V4"),
    ("--disk-limit", "20GB"),
    ("--keep-source",),
    ("--out", "out"),
)


@pytest.mark.parametrize("option", OTHER_OPTIONS, ids=lambda option: option[0])
def test_option_that_a_release_says_itself_is_refused_by_name(
    option: tuple[str, ...], endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    path = write_release(tmp_path / "one", sample("mini"))
    outcome = hubtool("publish", path, *option)
    assert (outcome.code, option[0] in outcome.stderr) == (2, True), outcome.stderr
    assert not (path.parent / "work").exists()


def test_what_is_neither_a_release_nor_has_a_recipe_is_refused(hubtool: CommandLine, tmp_path: Path) -> None:
    assert hubtool("publish", tmp_path).code == 2


def test_source_of_a_release_is_fetched_as_its_file_says(tmp_path: Path) -> None:
    release = load_release(
        write_release(tmp_path, tmp_path, RELEASE.replace("out =", 'disk_limit = "20GB"\nkeep_source = true\nout ='))
    )
    assert (release.disk_limit, release.keep_source) == (20 * 10**9, True)
