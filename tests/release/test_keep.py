"""What stands on a page and in a folder's card is kept by every command that writes a card, or named first."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubtool.hub.rules import read_metadata
from hubtool.rehearsal import RehearsalHub
from tests.fixtures import CommandLine, Outcome, Samples

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]

REPO = "rehearsal/V4"
GATE = "extra_gated_prompt: You agree.\nthumbnail: a.png\nmodel-index:\n- name: x\n  results: []\n"
OUTSIDE = "Written between two sections.\n\n"


@pytest.fixture
def endpoint(rehearsal: RehearsalHub, hub_api: HfApi, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The Hub that the commands write to."""
    monkeypatch.setenv("HF_ENDPOINT", rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", rehearsal.token)
    return hub_api


@pytest.fixture
def folder(endpoint: HfApi, sample: Samples, hubtool: CommandLine, tmp_path: Path) -> Path:
    """A finished folder that is published."""
    made = tmp_path / "A"
    assert (
        hubtool("publish", sample("mini"), "--recipe", "native", "--validate", "none", "--to", REPO, "--out", made).code
        == 0
    )
    return made


def page(api: HfApi) -> str:
    return Path(api.hf_hub_download(REPO, "README.md")).read_text()


def edited(card: str) -> str:
    """A card with keys, a tag, and text outside the blocks, as somebody writes them."""
    assert "\n## Limits\n" in card
    card = card.replace("tags:\n", f"{GATE}tags:\n- chess\n", 1)
    return card.replace("\n## Limits\n", f"\n{OUTSIDE}## Limits\n").rstrip("\n") + "\n\nAt the end.\n"


def edit_page(api: HfApi, change: Callable[[str], str]) -> str:
    card = change(page(api))
    operation = CommitOperationAdd("README.md", card.encode())
    return api.create_commit(REPO, [operation], commit_message="Update README.md").oid


def is_kept(card: str) -> bool:
    own = read_metadata(f"---\n{GATE}---\n")
    data = read_metadata(card)
    tags = data["tags"]
    assert isinstance(tags, list)
    return own.items() <= data.items() and "chess" in tags and OUTSIDE in card and "At the end." in card


@pytest.mark.parametrize("command", ["upload", "publish", "push folder", "push repo", "withdraw"])
def test_what_was_written_on_the_page_stays(
    command: str, folder: Path, endpoint: HfApi, sample: Samples, hubtool: CommandLine
) -> None:
    edit_page(endpoint, edited)
    endpoint.create_repo("a/b")
    evidence = ("--check", "load", "--outcome", "passed", "--detail", "It loads.")
    assert hubtool("evidence", "add", folder, *evidence).code == 0
    commands = {
        "upload": ("upload", folder, "--to", REPO),
        "publish": (
            "publish",
            sample("mini"),
            "--recipe",
            "native",
            "--validate",
            "none",
            "--to",
            REPO,
            "--out",
            folder,
        ),
        "push folder": ("card", folder, "--push"),
        "push repo": ("card", REPO, "--push"),
        "withdraw": ("withdraw", REPO, "--reason", "Wrong.", "--new-version", "a/b"),
    }
    outcome = hubtool(*commands[command])
    assert outcome.code == 0, outcome.stderr
    assert is_kept(page(endpoint))
    assert ("load-validated" in page(endpoint)) == (command in ("upload", "publish", "push folder"))
    if command == "withdraw":
        assert ("Withdrawn on" in page(endpoint), read_metadata(page(endpoint))["new_version"]) == (True, "a/b")
    again = hubtool(*commands[command])
    assert again.code == 0, again.stderr
    assert page(endpoint).count("At the end.") == 1


def test_what_was_written_in_the_folder_stays_and_goes_to_the_page(
    folder: Path, endpoint: HfApi, hubtool: CommandLine
) -> None:
    path = folder / "README.md"
    path.write_text(edited(path.read_text()))
    written = path.read_text()
    assert hubtool("card", folder).code == 0
    assert is_kept(path.read_text()) and sorted(path.read_text().split("\n")) == sorted(written.split("\n"))
    assert hubtool("upload", folder, "--to", REPO).code == 0
    assert is_kept(page(endpoint))
    # Deleted on the page since, it is deleted here too.
    edit_page(endpoint, lambda card: card.replace(OUTSIDE, "").replace("- chess\n", ""))
    assert hubtool("upload", folder, "--to", REPO).code == 0
    for card in (page(endpoint), path.read_text()):
        assert OUTSIDE not in card and "chess" not in card and "At the end." in card


HAND = """---
license: apache-2.0
tags: [chess]
extra_gated_prompt: Agree.
---
# By hand

| Elo |
| --- |
| 2000 |
"""


def by_hand(_card: str) -> str:
    return HAND


@pytest.mark.parametrize("command", ["upload", "push folder", "push repo"])
def test_a_card_by_hand_is_replaced_only_if_that_is_allowed(
    command: str, folder: Path, endpoint: HfApi, hubtool: CommandLine
) -> None:
    commands = {
        "upload": ("upload", folder, "--to", REPO),
        "push folder": ("card", folder, "--push"),
        "push repo": ("card", REPO, "--push"),
    }
    head = edit_page(endpoint, by_hand)
    for more in ((), ("--dry-run",)):
        refused = hubtool(*commands[command], *more)
        assert refused.code == 1, refused.stderr
        assert "license: apache-2.0" in refused.stderr and "--replace-card" in refused.stderr
    assert (endpoint.model_info(REPO).sha, page(endpoint)) == (head, HAND)
    allowed: Outcome = hubtool(*commands[command], "--replace-card")
    assert allowed.code == 0, allowed.stderr
    data = read_metadata(page(endpoint))
    assert (data["license"], data["extra_gated_prompt"]) == ("mit", "Agree.")
    assert data["tags"] == ["mlx", "conversational", "chess"]


def test_a_withdrawal_adds_to_a_card_by_hand(folder: Path, endpoint: HfApi, hubtool: CommandLine) -> None:
    edit_page(endpoint, by_hand)
    endpoint.create_repo("a/b")
    outcome = hubtool("withdraw", REPO, "--reason", "Wrong.", "--new-version", "a/b")
    assert outcome.code == 0, outcome.stderr
    card = page(endpoint)
    assert read_metadata(card) == {**read_metadata(HAND), "new_version": "a/b"}
    assert "**Withdrawn on" in card and HAND.partition("---\n# ")[2] in card


def test_a_folders_card_by_hand_is_replaced_only_if_that_is_allowed(folder: Path, hubtool: CommandLine) -> None:
    path = folder / "README.md"
    path.write_text(HAND)
    assert "-# By hand" in hubtool("card", folder, "--diff").stdout
    refused = hubtool("card", folder)
    assert (refused.code, path.read_text()) == (1, HAND)
    evidence = hubtool("evidence", "add", folder, "--check", "load", "--outcome", "passed", "--detail", "It loads.")
    assert (evidence.code, path.read_text()) == (1, HAND)
    assert "It loads." in (folder / "hubtool.json").read_text(), (
        "what was seen is kept although the card is not written"
    )
    assert hubtool("card", folder, "--replace-card").code == 0
    assert "load-validated" in path.read_text() and "extra_gated_prompt: Agree." in path.read_text()


def test_text_that_is_not_utf_8_is_named_and_left(folder: Path, endpoint: HfApi, hubtool: CommandLine) -> None:
    path = folder / "README.md"
    content = path.read_bytes() + "für alle\n".encode("latin-1")
    path.write_bytes(content)
    line = content.count(b"\n")
    for command in (("card", folder), ("upload", folder, "--to", REPO), ("card", folder, "--push")):
        refused = hubtool(*command)
        assert (refused.code, f"line {line}" in refused.stderr) == (1, True), refused.stderr
    assert path.read_bytes() == content


def test_own_templates_are_remembered_for_what_is_uploaded(
    folder: Path, endpoint: HfApi, hubtool: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.md.jinja").write_text("## Remarks\n\n{{ prose.notes }}\n")
    assert hubtool("card", folder, "--template-dir", tmp_path / "own").code == 0
    (tmp_path / "own" / "notes.md.jinja").unlink()
    assert hubtool("upload", folder, "--to", REPO).code == 0
    assert "## Remarks" in page(endpoint)
    assert hubtool("evidence", "add", folder, "--check", "load", "--outcome", "passed", "--detail", "Ok.").code == 0
    assert "## Remarks" in (folder / "README.md").read_text()
    assert hubtool("card", folder, "--template-dir", tmp_path / "own").code == 0, "a folder without templates"
    assert "## Remarks" not in (folder / "README.md").read_text()


def test_a_check_says_so_whatever_else_is_asked(folder: Path, hubtool: CommandLine) -> None:
    assert hubtool("card", folder, "--check", "--diff").code == 0
    path = folder / "README.md"
    path.write_text(path.read_text().replace("| Shards | 1 |", "| Shards | 2 |"))
    for more in (("--diff",), ("--diff", "--json"), ("--push",), ("--push", "--dry-run"), ("--dry-run",), ("-q",)):
        assert hubtool("card", folder, "--check", *more).code == 1, more
        assert hubtool("card", folder, *reversed(more), "--check").code == 1, more
