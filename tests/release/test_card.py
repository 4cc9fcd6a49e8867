"""`hubtool card` on folders and on repos: regenerate, compare, check, push, preview."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubtool.checkpoint.source import LocalSource
from hubtool.errors import HubError
from hubtool.hub.destination import Destination
from hubtool.record import (
    DERIVED_FILES,
    PROVENANCE_FILE,
    RECORD_FILE,
    TEST_RESULT_FILE,
    Record,
    encode_record,
    read_record,
)
from hubtool.rehearsal import RehearsalHub
from hubtool.release import card as cards
from tests.card.records import LOAD, with_evidence
from tests.checkpoints import copied, edit_json, file_bytes
from tests.fixtures import CommandLine, Conversions, Samples
from tests.publisher import upload

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "rehearsal/V4"
NOTES = "<!-- hubtool:prose notes -->\n"


@pytest.fixture
def folder(converted: Conversions, tmp_path: Path) -> Path:
    """A finished folder with its card."""
    made = copied(converted("mini", "mixed_3_6").folder, tmp_path / "V4")
    cards.write_card(cards.open_card(str(made)), cards.make_card(cards.open_card(str(made))))
    return made


@pytest.fixture
def repo(folder: Path, hub_api: HfApi, rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The Hub on which the folder is published."""
    monkeypatch.setenv("HF_ENDPOINT", rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", rehearsal.token)
    set_record(folder, msgspec.structs.replace(stored(folder), repo=REPO))
    cards.write_card(cards.open_card(str(folder)), cards.make_card(cards.open_card(str(folder))))
    upload(hub_api, folder, stored(folder), Destination(REPO))
    return hub_api


def stored(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None
    return record


def set_record(folder: Path, record: Record) -> None:
    (folder / RECORD_FILE).write_bytes(encode_record(record))


def edit(folder: Path, before: str, after: str) -> None:
    card = (folder / "README.md").read_text()
    assert before in card
    (folder / "README.md").write_text(card.replace(before, after, 1))


def pushed_card(api: HfApi) -> str:
    return Path(api.hf_hub_download(REPO, "README.md")).read_text()


def test_a_fresh_card_checks_and_is_made_again_byte_for_byte(folder: Path, hubtool: CommandLine) -> None:
    before = file_bytes(folder)
    assert hubtool("card", folder, "--check").code == 0
    assert hubtool("card", folder, "--json").document == {"target": str(folder), "changed": []}
    assert hubtool("card", folder, "--diff").stdout == "no change\n"
    assert file_bytes(folder) == before


def test_prose_is_kept_and_a_wrong_figure_named_and_mended(folder: Path, hubtool: CommandLine) -> None:
    edit(folder, NOTES, f"{NOTES}My **own** words, 99 of them.\n")
    right = (folder / "README.md").read_text()
    assert hubtool("card", folder, "--check").code == 0
    edit(folder, "| Shards | 1 |", "| Shards | 2 |")
    checked = hubtool("card", folder, "--check")
    assert checked.code == 1
    assert checked.stdout.endswith(": 'Shards: 2', the record says '1'\n")
    assert "-| Shards | 2 |\n+| Shards | 1 |" in hubtool("card", folder, "--diff").stdout
    assert hubtool("card", folder).code == 0
    assert (folder / "README.md").read_text() == right


def test_a_card_that_is_true_to_a_false_record_is_found(folder: Path, hubtool: CommandLine) -> None:
    measured = msgspec.structs.replace(stored(folder).measured, parameters=1)
    set_record(folder, msgspec.structs.replace(stored(folder), measured=measured))
    assert hubtool("card", folder).code == 0
    checked = hubtool("card", folder, "--check", "--json")
    assert checked.code == 1
    assert any("parameters is 1, measured" in problem for problem in checked.document["problems"])


def test_a_file_that_was_changed_is_found(folder: Path, hubtool: CommandLine) -> None:
    edit_json(folder / "config.json", lambda config: config.update(sliding_window=3))
    checked = hubtool("card", folder, "--check")
    assert checked.code == 1
    assert "config.json: sha256" in checked.stdout


def test_a_changed_statement_is_found(folder: Path, hubtool: CommandLine) -> None:
    edit_json(folder / PROVENANCE_FILE, lambda statement: statement["subject"].pop())
    checked = hubtool("card", folder, "--check")
    assert (checked.code, checked.stdout) == (1, f"{PROVENANCE_FILE}: not what the record says\n")


def test_provenance_that_was_removed_is_found(folder: Path, hubtool: CommandLine) -> None:
    (folder / PROVENANCE_FILE).unlink()
    checked = hubtool("card", folder, "--check")
    assert (checked.code, checked.stdout) == (1, f"{PROVENANCE_FILE}: missing\n")


def test_a_diff_with_pictures_writes_none(folder: Path, hubtool: CommandLine) -> None:
    pytest.importorskip("matplotlib")
    before = file_bytes(folder)
    change = hubtool("card", folder, "--plots", "--diff")
    assert (change.code, "+![Bytes by component](assets/bytes.png)" in change.stdout) == (0, True)
    assert file_bytes(folder) == before
    assert hubtool("card", folder, "--plots", "--check").code == 2
    assert hubtool("card", folder, "--plots").code == 0
    assert (folder / "assets" / "bytes.png").is_file()
    assert hubtool("card", folder, "--check").code == 0


def test_no_card_is_a_problem(folder: Path, hubtool: CommandLine) -> None:
    (folder / "README.md").unlink()
    checked = hubtool("card", folder, "--check")
    assert (checked.code, checked.stdout) == (1, "README.md: missing\n")


def test_templates_of_ones_own_are_used(folder: Path, hubtool: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "notes.md.jinja").write_text("## Remarks\n\n{{ prose.notes }}\n")
    assert hubtool("card", folder, "--template-dir", tmp_path).code == 0
    assert "## Remarks" in (folder / "README.md").read_text()
    assert hubtool("card", folder, "--template-dir", tmp_path, "--check").code == 0
    checked = hubtool("card", folder, "--check")
    assert (checked.code, "'## Remarks' is not what hubtool writes" in checked.stdout) == (1, True)
    assert "compared fact by fact: other templates made it" in checked.stdout
    (tmp_path / "notes.md.jinja").write_text("{{ inventd }}")
    refused = hubtool("card", folder, "--template-dir", tmp_path)
    assert refused.code == 2
    assert "'inventd' is undefined" in refused.stderr


def test_a_checkpoint_that_hubtool_did_not_make_gets_what_can_be_measured(
    sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    source = copied(sample("mini"), tmp_path / "theirs")
    before = file_bytes(source)
    card = hubtool("card", source).stdout
    assert file_bytes(source) == before
    assert card.startswith("---\nlicense: mit\n")
    assert "| Recipe | not recorded |" in card
    assert "| Source revision | not recorded |" in card
    assert "DeepseekV4ForCausalLM" in card


def test_a_foreign_card_says_no_more_than_is_measured_or_was_said(
    sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    source = copied(sample("mini"), tmp_path / "theirs")
    front = (
        "license: mit\npipeline_tag: image-text-to-text\nbase_model:\n- a/one\n- b/two\nbase_model_relation: merge\n"
    )
    (source / "README.md").write_text(f"---\n{front}---\n# Theirs\n")
    edit_json(source / "config.json", lambda config: config.update(model_file="theirs.py"))
    card = hubtool("card", source).stdout
    assert card.startswith(f"---\n{front}---\n")
    assert "[a/one](https://huggingface.co/a/one), [b/two](https://huggingface.co/b/two) (stated by the card)" in card
    (source / "README.md").write_text("# Theirs\n")
    assert "text-generation" not in hubtool("card", source).stdout


def test_packed_fp4_counts_two_in_a_byte(sample: Samples, converted: Conversions, hubtool: CommandLine) -> None:
    card = hubtool("card", sample("mini")).stdout
    headers = LocalSource(sample("mini")).tensors.values()
    packed = sum(tensor.spec.size for tensor in headers if tensor.spec.dtype == "I8")
    assert f"| fp4, two in a byte, group 32 | {2 * packed:,} |" in card
    assert "i8" not in card


def test_the_model_file_that_a_foreign_config_names_is_shown(
    converted: Conversions, hubtool: CommandLine, tmp_path: Path
) -> None:
    theirs = copied(converted("mini", "mixed_3_6").folder, tmp_path / "theirs")
    (theirs / RECORD_FILE).unlink()
    edit_json(theirs / "config.json", lambda config: config.update(model_file="theirs.py"))
    card = hubtool("card", theirs).stdout
    assert "as\n> `theirs.py`." in card
    assert "deepseek_v4.py" not in card


def test_the_preview_is_a_page_of_its_own(folder: Path, hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = Path(hubtool("card", folder, "--preview", "--json").document["page"])
    try:
        html = page.read_text()
        assert opened == [page.as_uri()]
        assert "<h2>Validation</h2>" in html
        assert "hubtool:prose" not in html
    finally:
        page.unlink()


def test_a_repos_card_is_printed_without_its_weights(repo: HfApi, hubtool: CommandLine, folder: Path) -> None:
    printed = hubtool("card", REPO)
    assert printed.stdout == (folder / "README.md").read_text()
    assert hubtool("card", REPO, "--check").code == 0


def test_a_wrong_claim_on_the_hub_is_found_and_mended_in_one_commit(repo: HfApi, hubtool: CommandLine) -> None:
    right = pushed_card(repo)
    wrong = right.replace("not generation-qualified", "generation-qualified").replace(NOTES, f"{NOTES}Kept.\n")
    head = commit(repo, wrong)
    checked = hubtool("card", REPO, "--check")
    assert checked.code == 1
    assert "generation-qualified" in checked.stdout
    document = hubtool("card", REPO, "--push", "--json").document
    assert document["changed"] == ["README.md"]
    assert pushed_card(repo) == right.replace(NOTES, f"{NOTES}Kept.\n")
    history = [each.commit_id for each in repo.list_repo_commits(REPO)]
    assert history[:2] == [document["commit"], head]
    again = hubtool("card", REPO, "--push", "--json").document
    assert again == {"repo": REPO, "commit": history[0], "changed": [], "dry_run": False}


def commit(api: HfApi, card: str) -> str:
    operation = CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card.encode())
    return api.create_commit(REPO, operations=[operation], commit_message="By hand").oid


def test_new_evidence_goes_up_with_card_record_and_statement(repo: HfApi, folder: Path, hubtool: CommandLine) -> None:
    commit(repo, pushed_card(repo).replace(NOTES, f"{NOTES}Written on the page.\n"))
    set_record(folder, with_evidence(stored(folder), LOAD))
    document = hubtool("card", folder, "--push", "--json").document
    assert {"README.md", RECORD_FILE, TEST_RESULT_FILE} <= set(document["changed"]) <= set(DERIVED_FILES)
    card = pushed_card(repo)
    assert "load-validated" in card
    assert "Written on the page." in card
    assert hubtool("card", REPO, "--check").code == 0


def test_provenance_that_was_changed_on_the_hub_is_mended(repo: HfApi, hubtool: CommandLine) -> None:
    right = Path(repo.hf_hub_download(REPO, PROVENANCE_FILE)).read_bytes()
    changed = right.replace(b"slsa.dev", b"evil.dev")
    operation = CommitOperationAdd(path_in_repo=PROVENANCE_FILE, path_or_fileobj=changed)
    repo.create_commit(REPO, operations=[operation], commit_message="By hand")
    assert hubtool("card", REPO, "--check").code == 1
    assert hubtool("card", REPO, "--push", "--json").document["changed"] == [PROVENANCE_FILE]
    assert Path(repo.hf_hub_download(REPO, PROVENANCE_FILE)).read_bytes() == right


def test_a_card_of_a_record_that_is_false_is_not_pushed(repo: HfApi, folder: Path, hubtool: CommandLine) -> None:
    measured = msgspec.structs.replace(stored(folder).measured, parameters=1)
    false = msgspec.structs.replace(stored(folder), measured=measured)
    operation = CommitOperationAdd(path_in_repo=RECORD_FILE, path_or_fileobj=encode_record(false))
    head = repo.create_commit(REPO, operations=[operation], commit_message="By hand").oid
    refused = hubtool("card", REPO, "--push")
    assert refused.code == 1
    assert "record and bytes disagree: found hubtool.json: parameters is 1, measured" in refused.stderr
    assert repo.model_info(REPO).sha == head


def test_a_copy_of_another_repo_is_found_and_not_pushed(repo: HfApi, folder: Path, hubtool: CommandLine) -> None:
    upload(repo, folder, stored(folder), Destination("rehearsal/Copy"))
    said = f"hubtool.json: published as {REPO}, but this is rehearsal/Copy"
    checked = hubtool("card", "rehearsal/Copy", "--check")
    assert (checked.code, checked.stdout) == (1, f"{said}\n")
    refused = hubtool("card", "rehearsal/Copy", "--push")
    assert (refused.code, said in refused.stderr) == (1, True)


def test_damage_of_the_folder_is_not_told_of_the_repo(repo: HfApi, folder: Path, hubtool: CommandLine) -> None:
    (shard,) = folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert hubtool("validate", folder, "--integrity").code == 1
    head = repo.model_info(REPO).sha
    refused = hubtool("card", folder, "--push")
    assert (refused.code, "record and bytes disagree" in refused.stderr) == (1, True)
    assert repo.model_info(REPO).sha == head


def test_a_folder_with_other_files_than_the_repo_pushes_nothing(
    repo: HfApi, folder: Path, hubtool: CommandLine
) -> None:
    record = stored(folder)
    first, *rest = record.files
    set_record(folder, msgspec.structs.replace(record, files=(msgspec.structs.replace(first, sha256="0" * 64), *rest)))
    refused = hubtool("card", folder, "--push")
    assert refused.code == 1
    assert "the repo holds other files than the folder" in refused.stderr
    assert len(repo.list_repo_commits(REPO)) == 2


def test_different_prose_here_and_there_is_refused(repo: HfApi, folder: Path, hubtool: CommandLine) -> None:
    commit(repo, pushed_card(repo).replace(NOTES, f"{NOTES}There.\n"))
    edit(folder, NOTES, f"{NOTES}Here.\n")
    refused = hubtool("card", folder, "--push")
    assert refused.code == 1
    assert "different prose in the section notes" in refused.stderr


def test_a_card_that_tells_of_the_publishers_machine_is_not_pushed(
    repo: HfApi, folder: Path, hubtool: CommandLine
) -> None:
    head = commit(repo, pushed_card(repo).replace("| Shards | 1 |", "| Shards | 2 |"))
    edit(folder, NOTES, f"{NOTES}Made in /Users/annabell/V4.\n")
    refused = hubtool("card", folder, "--push")
    assert refused.code == 1
    assert "path '/Users/annabell/V4.'" in refused.stderr
    assert repo.model_info(REPO).sha == head


def test_a_card_that_someone_else_has_just_changed_is_not_overwritten(
    repo: HfApi, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_record(folder, with_evidence(stored(folder), LOAD))
    opened = cards.open_card(REPO, repo)
    theirs = commit(repo, f"{pushed_card(repo)}\nTheirs.\n")
    mine = msgspec.structs.replace(opened.record, siblings=())
    mine = with_evidence(mine, LOAD)
    with pytest.raises(HubError, match="someone else has committed"):
        cards.push_card(repo, replace(opened, subject=mine))
    assert repo.model_info(REPO).sha == theirs
