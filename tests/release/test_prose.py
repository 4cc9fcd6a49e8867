"""The publisher's prose, edited in the folder and on the Hub's page: what is published next keeps both."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd

from hubtool.convert.convert import Converted
from hubtool.errors import OutputError
from hubtool.hub.destination import Destination
from hubtool.release.folder import plan_folder
from tests.fixtures import QUIET
from tests.publisher import REPO, Publisher

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def put(card: str, section: str, prose: str) -> str:
    """The card with a line of prose at the beginning of a section's."""
    mark = f"<!-- hubtool:prose {section} -->\n"
    assert mark in card
    return card.replace(mark, f"{mark}{prose}\n")


def edit_folder(publisher: Publisher, section: str, prose: str) -> None:
    path = publisher.folder / "README.md"
    path.write_text(put(path.read_text(), section, prose))


def page(publisher: Publisher) -> str:
    return Path(publisher.api.hf_hub_download(REPO, "README.md")).read_text()


def edit_page(publisher: Publisher, section: str, prose: str) -> None:
    content = put(page(publisher), section, prose).encode()
    publisher.api.create_commit(REPO, [CommitOperationAdd("README.md", content)], commit_message="Update README.md")


def test_what_was_written_on_the_page_is_kept_by_the_next_upload(publisher: Publisher) -> None:
    publisher.publish()
    edit_page(publisher, "notes", "Written on the page.")
    edit_folder(publisher, "limits", "Written here.")
    publisher.publish()
    for card in (page(publisher), (publisher.folder / "README.md").read_text()):
        assert "Written on the page." in card
        assert "Written here." in card


def test_what_was_edited_here_replaces_what_was_published_from_here(publisher: Publisher) -> None:
    edit_folder(publisher, "notes", "First.")
    publisher.publish()
    path = publisher.folder / "README.md"
    path.write_text(path.read_text().replace("First.", "Second."))
    publisher.publish()
    assert "Second." in page(publisher)
    assert "First." not in page(publisher)


def test_one_section_edited_here_and_there_is_refused_by_its_name(publisher: Publisher) -> None:
    publisher.publish()
    head = publisher.api.model_info(REPO).sha
    edit_page(publisher, "notes", "There.")
    edit_folder(publisher, "notes", "Here.")
    converted = Converted(publisher.folder, publisher.record, fresh=False)
    with pytest.raises(OutputError, match="different prose in the section notes: found 'Here.' and 'There.'"):
        plan_folder(publisher.api, converted, Destination(REPO), QUIET)
    with pytest.raises(OutputError, match="different prose in the section notes"):
        publisher.publish()
    assert "There." in page(publisher)
    assert head != publisher.api.model_info(REPO).sha


def test_looking_changes_neither_folder_nor_page(publisher: Publisher) -> None:
    publisher.publish()
    edit_page(publisher, "notes", "There.")
    plan_folder(publisher.api, Converted(publisher.folder, publisher.record, fresh=False), Destination(REPO), QUIET)
    assert "There." not in (publisher.folder / "README.md").read_text()
