"""What follows when a repo's files are verified: a tag, visibility, a collection; and small commits later on."""

from collections.abc import Mapping

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hubtool.errors import HubError
from hubtool.hub.blobs import choose_large, chosen_addition
from hubtool.hub.client import git_sha1, list_files
from hubtool.hub.commit import commit_once
from hubtool.hub.destination import MAIN, Destination
from hubtool.hub.patience import PatientHub
from hubtool.hub.private import UploadInfo
from hubtool.hub.reader import has_record
from hubtool.hub.upload import Uploaded, find_tag, record_digest
from hubtool.record import Record

CONFLICT = 409


def finish(hub: PatientHub, to: Destination, record: Record, uploaded: Uploaded) -> str | None:
    """The tag that the verified commit now has, None for a pull request.

    A pull request is opened for review; a repo is made public and added to a collection, if that is wanted. All of it
    may be done again.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    if to.pull_request:
        if uploaded.pull_request is not None:  # it is not, if all of it was merged
            _open_for_review(hub, to.repo, uploaded.pull_request)
        return None
    tag = _tag(hub, to, record, uploaded.commit)
    if to.public_after_verify:
        hub.attempt(to.repo, lambda: hub.api.update_repo_settings(to.repo, private=False))
    if to.collection is not None:
        add_to_collection(hub, to.collection, to.repo)
    return tag


def add_to_collection(hub: PatientHub, slug: str, repo: str, note: str | None = None) -> None:
    """Add a repo to a collection, if it is not in it.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    hub.attempt(
        f"collection {slug}",
        lambda: hub.api.add_collection_item(slug, repo, "model", note=note, exists_ok=True),
    )


def _open_for_review(hub: PatientHub, repo: str, number: int) -> None:
    details = hub.attempt(repo, lambda: hub.api.get_discussion_details(repo, number))
    if details.status == "draft":
        hub.attempt(f"{repo} #{number}", lambda: hub.api.change_discussion_status(repo, number, "open"))


def default_tag(record: Record) -> str:
    """The tag of a release that was given none."""
    return f"hubtool-{record_digest(record)}"


def _tag(hub: PatientHub, to: Destination, record: Record, commit: str) -> str:
    tag = to.tag or default_tag(record)

    def create() -> str | None:
        try:
            hub.api.create_tag(to.repo, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != CONFLICT:
                raise
            return find_tag(hub, to.repo, tag)
        return commit

    named = hub.attempt(f"{to.repo}: tag {tag}", create, landed=lambda: find_tag(hub, to.repo, tag))
    if named == commit:
        return tag
    if named is None or not has_record(hub, to.repo, named, record):
        raise HubError(
            "the tag names another commit",
            where=f"{to.repo}: {tag}",
            found=named,
            expected=commit,
            remedy="choose another --tag, or delete that one",
        )
    hub.say(f"{to.repo}: {tag} names {named}, which has the same record; it is left there")
    return tag


def commit_documents(
    api: HfApi | PatientHub, repo: str, documents: Mapping[str, bytes], parent: str, message: str
) -> str:
    """The commit that gives a repo these small files and nothing else, if it still stands at `parent`.

    Raises:
        OutputError: The Hub refuses the card.
        HubError: The Hub refused, someone else has committed meanwhile, or it could not be reached.
    """
    hub = api if isinstance(api, PatientHub) else PatientHub(api)

    infos = {name: UploadInfo.from_bytes(content) for name, content in documents.items()}
    large = choose_large(hub, repo, MAIN, infos)

    def send() -> CommitInfo:
        operations = [chosen_addition(name, content, large=name in large) for name, content in documents.items()]
        return hub.api.create_commit(repo, operations=operations, commit_message=message, parent_commit=parent)

    def landed() -> str | None:
        head = hub.attempt(repo, lambda: hub.api.model_info(repo).sha)
        if head is None or head == parent:
            return None
        there = hub.attempt(repo, lambda: list_files(hub.api, repo, head))
        same = (name in there and there[name].git_sha1 == git_sha1(content) for name, content in documents.items())
        return head if all(same) else None

    return commit_once(hub, repo, send, landed)
