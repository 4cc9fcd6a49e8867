"""Every destination under every command: what becomes of each file and key that was there.

A cell says `kept` (all of the page's keys, tags and text outside the blocks are still there), `refused` (exit 1, and
the repo is as it was), or `replaced`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubtool.hub.rules import read_metadata
from hubtool.record import RECORD_FILE, decode_record, encode_record
from hubtool.rehearsal import RehearsalHub
from tests.checkpoints import copied
from tests.fixtures import CommandLine, Conversions, Outcome

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]

REPO = "rehearsal/A"
GATED = "extra_gated_prompt: You agree.\nextra_gated_fields:\n  Company: text\n"
OWN = f"{GATED}thumbnail: a.png\n"
OUTSIDE = "Written by hand.\n\n"
HAND = f"---\nlicense: apache-2.0\ntags: [chess]\n{OWN}---\n# By hand\n\n{OUTSIDE}"
THEIRS = {"paper.pdf": b"%PDF", "notes/more.txt": b"More."}


@dataclass
class Table:
    """A finished folder, its Hub, and the command line."""

    folder: Path
    source: Path
    api: HfApi
    hubtool: CommandLine
    tmp: Path

    def put(self, files: Mapping[str, bytes]) -> None:
        self.api.create_repo(REPO, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        self.api.create_commit(REPO, operations, commit_message="By hand")

    def read(self, name: str, revision: str | None = None) -> bytes:
        return Path(self.api.hf_hub_download(REPO, name, revision=revision)).read_bytes()

    def names(self, revision: str | None = None) -> set[str]:
        return set(self.api.list_repo_files(REPO, revision=revision))


def ours(table: Table) -> None:
    published = table.hubtool("upload", table.folder, "--to", REPO)
    assert published.code == 0, published.stderr
    table.put(THEIRS)


def edited(table: Table) -> None:
    ours(table)
    card = table.read("README.md").decode().replace("tags:\n", f"{OWN}tags:\n- chess\n", 1)
    table.put({"README.md": card.replace("\n## Limits\n", f"\n{OUTSIDE}## Limits\n").encode()})


def by_hand(table: Table) -> None:
    ours(table)
    table.put({"README.md": HAND.encode()})


def other_model(table: Table) -> None:
    edited(table)
    record = decode_record(table.read(RECORD_FILE))
    recipe = msgspec.structs.replace(record.recipe, name="another")
    written = table.read("README.md").decode().replace("mixed_3_6", "another")
    card = written.replace("hubtool:prose notes -->\n", "hubtool:prose notes -->\nLossless.\n")
    table.put({RECORD_FILE: encode_record(msgspec.structs.replace(record, recipe=recipe)), "README.md": card.encode()})


def foreign_weights(table: Table) -> None:
    ours(table)
    table.put({"model.safetensors": b"\x08\0\0\0\0\0\0\0{}      "})


def withdrawn(table: Table) -> None:
    edited(table)
    assert table.hubtool("withdraw", REPO, "--reason", "Layer 3 was wrong.").code == 0


def gated(table: Table) -> None:
    ours(table)
    card = table.read("README.md").decode().replace("tags:\n", f"{GATED}tags:\n", 1)
    table.put({"README.md": card.encode()})


def empty(table: Table) -> None:
    table.api.create_repo(REPO)


DESTINATIONS: Mapping[str, Callable[[Table], None]] = {
    "empty": empty,
    "ours": ours,
    "edited": edited,
    "by hand": by_hand,
    "other model": other_model,
    "foreign weights": foreign_weights,
    "withdrawn": withdrawn,
    "gated": gated,
}

RELEASE = """
source = "{source}"
validate = "none"
base_model = "someone/DeepSeek-V4-sample"
[[variant]]
recipe = "mixed_3_6"
repo = "{repo}"
"""


def run(table: Table, command: str, *more: str) -> Outcome:
    base = ("--base-model", "someone/DeepSeek-V4-sample")
    new = ("publish", table.source, "--recipe", "mixed_3_6", "--validate", "none", "--to", REPO, *base)
    if command == "release.toml":
        (table.tmp / "release.toml").write_text(RELEASE.format(source=table.source, repo=REPO))
    commands: Mapping[str, tuple[object, ...]] = {
        "upload": ("upload", table.folder, "--to", REPO),
        "publish": (*new, "--out", table.tmp / "publish"),
        "--stream": (*new, "--out", table.tmp / "stream", "--stream"),
        "release.toml": ("publish", table.tmp / "release.toml"),
        "card --push": ("card", REPO, "--push"),
        "withdraw": ("withdraw", REPO, "--reason", "Wrong tokenizer."),
        "--pr": ("upload", table.folder, "--to", REPO, "--pr"),
    }
    return table.hubtool(*commands[command], *more)


PUBLISHING = ("upload", "publish", "--stream", "release.toml", "--pr")
SMALL = ("card --push", "withdraw")

CELLS: Mapping[tuple[str, str], str] = {
    **{("empty", command): "published" for command in PUBLISHING},
    **{("empty", command): "refused" for command in SMALL},
    **{(place, command): "kept" for place in ("ours", "edited", "gated") for command in (*PUBLISHING, *SMALL)},
    **{("by hand", command): "refused" for command in (*PUBLISHING, "card --push")},
    ("by hand", "withdraw"): "kept",
    **{("other model", command): "refused" for command in PUBLISHING},
    **{("other model", command): "kept" for command in SMALL},
    **{("foreign weights", command): "refused" for command in PUBLISHING},
    **{("foreign weights", command): "kept" for command in SMALL},
    **{("withdrawn", command): "refused" for command in PUBLISHING},
    **{("withdrawn", command): "kept" for command in SMALL},
}

ALLOWED = {"by hand": "--replace-card", "other model": "--replace", "foreign weights": "--delete-foreign"}


@pytest.fixture
def table(
    converted: Conversions,
    rehearsal: RehearsalHub,
    hub_api: HfApi,
    hubtool: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Table:
    monkeypatch.setenv("HF_ENDPOINT", rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", rehearsal.token)
    monkeypatch.chdir(tmp_path)
    made = converted("mini", "mixed_3_6")
    return Table(copied(made.folder, tmp_path / "A"), made.source, hub_api, hubtool, tmp_path)


@pytest.mark.parametrize(("destination", "command"), CELLS)
def test_what_becomes_of_what_was_there(destination: str, command: str, table: Table) -> None:
    DESTINATIONS[destination](table)
    cell = CELLS[destination, command]
    names, head = table.names(), table.api.model_info(REPO).sha
    before = {name: table.read(name) for name in names}
    outcome = run(table, command)
    assert outcome.code == (1 if cell == "refused" else 0), outcome.stderr
    if cell == "refused":
        assert table.api.model_info(REPO).sha == head, "the repo is as it was"
        assert destination not in ALLOWED or ALLOWED[destination] in outcome.stderr, outcome.stderr
        return
    revision = (
        "refs/pr/1"
        if command == "--pr" and outcome.stdout.count("pr") and table.api.model_info(REPO).sha == head
        else None
    )
    revision = (
        revision
        if revision
        and revision
        in {pr.ref for pr in table.api.list_repo_refs(REPO, include_pull_requests=True).pull_requests or []}
        else None
    )
    assert names <= table.names(revision), "no file is gone"
    assert all(table.read(name, revision) == before[name] for name in THEIRS if name in names)
    if "README.md" in names:
        was, now = (
            read_metadata(before["README.md"].decode()),
            read_metadata(table.read("README.md", revision).decode()),
        )
        own = {key for key in was if key.startswith("extra_gated") or key == "thumbnail"}
        assert {key: was[key] for key in own} == {key: now[key] for key in own}
        assert ("chess" in str(was["tags"])) <= ("chess" in str(now["tags"]))
        assert (OUTSIDE in before["README.md"].decode()) <= (OUTSIDE in table.read("README.md", revision).decode())
    if command == "withdraw":
        assert "Wrong tokenizer." in table.read("README.md").decode()


@pytest.mark.parametrize("command", PUBLISHING)
@pytest.mark.parametrize("destination", ALLOWED)
def test_what_is_allowed_is_done_in_one_commit(destination: str, command: str, table: Table) -> None:
    DESTINATIONS[destination](table)
    names, head = table.names(), table.api.model_info(REPO).sha
    outcome = run(table, command, ALLOWED[destination])
    assert outcome.code == 0, outcome.stderr
    revision = "refs/pr/1" if command == "--pr" else None
    commits = [each.commit_id for each in table.api.list_repo_commits(REPO, revision=revision)]
    assert commits.index(head or "") == 1
    card = table.read("README.md", revision).decode()
    gone = {"model.safetensors"} if destination == "foreign weights" else set()
    assert names - table.names(revision) == gone
    assert all(table.read(name, revision) == content for name, content in THEIRS.items())
    if destination != "foreign weights":
        assert read_metadata(card)["extra_gated_prompt"] == "You agree.", "who may read it is not undone"
    if destination == "other model":
        assert "Lossless." not in card and OUTSIDE not in card and "thumbnail" not in card
        assert "Lossless." not in (table.folder / "README.md").read_text()


@pytest.mark.parametrize(
    "place", ["model.safetensors", "model-00007-of-00007.safetensors", "other.safetensors.index.json"]
)
def test_verify_fails_on_weights_of_others(place: str, table: Table) -> None:
    ours(table)
    assert table.hubtool("verify", REPO).code == 0
    table.put({place: b"\x08\0\0\0\0\0\0\0{}      "})
    found = table.hubtool("verify", REPO)
    assert (found.code, f"{place}: weights that are not the record's" in found.stdout + found.stderr) == (1, True)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        *[("--tag", name) for name in ("v 1", "v..1", "a:b", "-", ".v", "v1.lock")],
        *[("--revision", name) for name in ("fea ture", "a//b", "x~1")],
        ("--collection", "no slug"),
    ],
)
@pytest.mark.parametrize("command", ["upload", "publish"])
def test_names_that_the_hub_refuses_are_refused_before_the_work(
    option: str, name: str, command: str, table: Table
) -> None:
    outcome = run(table, command, option, name)
    assert outcome.code == 2 or name == "-", outcome.stderr
    assert not table.api.repo_exists(REPO) or name == "-"
    assert not (table.tmp / "publish").exists() or name == "-"


def test_a_collection_that_is_not_there_is_missed_before_the_work(table: Table) -> None:
    outcome = run(table, "publish", "--collection", "me/none-0123456789abcdef01234567")
    assert (outcome.code, "no such collection" in outcome.stderr) == (1, True), outcome.stderr
    assert not table.api.repo_exists(REPO) and not list((table.tmp / "publish").glob("*.safetensors"))
