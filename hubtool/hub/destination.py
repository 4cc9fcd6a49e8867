"""Where to on the Hub: a repo, a branch of it, or a pull request; found, and made where it is not there."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import Discussion
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from hubtool.errors import HubError, UsageError
from hubtool.hub.client import HubFile, list_files
from hubtool.hub.patience import NOT_FOUND, PatientHub, refused_status
from hubtool.hub.private import auth_headers, get_session, hf_raise_for_status
from hubtool.hub.rules import REF_NAME
from hubtool.hub.state import State
from hubtool.units import GB, format_size

MAIN = "main"

COLLECTION_SLUG = re.compile(r"[\w.-]+/[\w.-]+")
"""Of a collection; whether it is there is asked."""

PRIVATE_QUOTA_NBYTES = 100 * GB
"""Private storage of an account that pays nothing (huggingface.co/docs/hub/storage-limits)."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A place to publish to.

    Attributes:
        repo: `org/name`.
        private: Whether it is private if it has to be made.
        revision: The branch; made from `main` if it is not there.
        pull_request: Whether to propose to the repo instead of committing to it.
        tag: The tag of what is verified; by default `hubtool-` and the start of the record's SHA-256.
        public_after_verify: Whether to make the repo public when its files are verified.
        collection: The slug of a collection to add the repo to.
        replace: Whether another model that stands there may be replaced.
        delete_foreign: Whether weights of somebody else that stand there may be deleted.
    """

    repo: str
    private: bool = True
    revision: str = MAIN
    pull_request: bool = False
    tag: str | None = None
    public_after_verify: bool = False
    collection: str | None = None
    replace: bool = False
    delete_foreign: bool = False

    def __post_init__(self) -> None:
        """Refuses what contradicts itself, and names that the Hub would refuse."""
        for option, name in (("--tag", self.tag), ("--revision", self.revision)):
            if name is not None and not REF_NAME.fullmatch(name):
                raise UsageError(
                    "not a name that the Hub allows",
                    where=option,
                    found=repr(name),
                    expected="letters, digits, dots, dashes and underscores, without spaces",
                )
        if self.collection is not None and not COLLECTION_SLUG.fullmatch(self.collection):
            expected = "NAMESPACE/TITLE-ID, as the address of its page ends"
            raise UsageError(
                "not the slug of a collection", where="--collection", found=repr(self.collection), expected=expected
            )
        if self.pull_request and (self.revision != MAIN or self.tag or self.public_after_verify or self.collection):
            raise UsageError(
                "a pull request goes to the main branch, and its repo is someone else's",
                where="--pr",
                remedy="leave --revision, --tag, --public-after-verify and --collection out",
            )

    @property
    def key(self) -> str:
        """What of which repo this is, for its state."""
        return f"{self.repo}@{'pull-request' if self.pull_request else self.revision}"


@dataclass(frozen=True, slots=True)
class Place:
    """A destination as it stands on the Hub.

    Attributes:
        exists: Whether the repo is there.
        private: Whether it is private, or will be.
        revision: The branch, or the pull request's reference.
        head: The commit that `revision` is at; that of main for a branch or pull request yet to be made; None without
            a repo.
        made: Whether `revision` is there.
        files: Every file at `head` by name.
        pull_request: Its number, if it was opened.
    """

    exists: bool
    private: bool
    revision: str
    head: str | None
    made: bool
    files: Mapping[str, HubFile]
    pull_request: int | None = None


def find_place(hub: PatientHub, to: Destination, state: State, title: str, known: Place | None = None) -> Place:
    """The destination as it stands now; nothing is written.

    Args:
        hub: The Hub.
        to: The destination.
        state: What earlier runs have done there.
        title: The title that a pull request of this release has.
        known: The destination as it stood before: its files are not listed again if its commit is the same.

    Raises:
        HubError: The Hub refused, or could not be reached; the pull request was closed.
    """
    info = _find_info(hub, to.repo, None)
    if info is None:
        return Place(exists=False, private=to.private, revision=to.revision, head=None, made=False, files={})
    found, number, revision = info, None, to.revision
    if to.pull_request:
        number = _find_pull_request(hub, to.repo, state, title)
        revision = f"refs/pr/{number}" if number else MAIN
    if revision != MAIN:
        at_revision = _find_info(hub, to.repo, revision)
        made, found = at_revision is not None, at_revision or info
    else:
        made = not to.pull_request
    head = found.sha
    assert head is not None
    same = known is not None and known.head == head
    files = known.files if known and same else hub.attempt(to.repo, lambda: list_files(hub.api, to.repo, head))
    return Place(True, bool(info.private), revision, head, made, files, number)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a pull request says: the title by which it is found again, and a line below it."""

    title: str
    description: str


def make_place(hub: PatientHub, to: Destination, state: State, proposal: Proposal, found: Place) -> Place:
    """The destination, made where it was not there when it was `found`.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    place = found
    if not place.exists:
        _create_repo(hub, to)
        place = find_place(hub, to, state, proposal.title)
    if place.made:
        return place
    if to.pull_request:
        number = _open_pull_request(hub, to.repo, proposal)
        state.pull_request = number
        return replace(place, revision=f"refs/pr/{number}", made=True, pull_request=number)
    hub.attempt(to.repo, lambda: hub.api.create_branch(to.repo, branch=to.revision, exist_ok=True))
    return replace(place, made=True)


def check_rights(hub: PatientHub, to: Destination, place: Place, nbytes: int) -> None:
    """Refuse what the Hub would refuse after hours, as far as it tells beforehand.

    Args:
        hub: The Hub.
        to: The destination.
        place: As it stands.
        nbytes: What is to be sent.

    Raises:
        HubError: There is no token, it may not write there, or not to that namespace.
    """
    me = hub.me(to.repo)
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise HubError("the token may only read", where=to.repo, remedy="make one that may write, and set HF_TOKEN")
    if to.collection is not None:
        require_collection(hub, to.collection)
    if not place.exists:
        _check_creation(to, me)
    elif not to.pull_request:
        _check_write(hub, to.repo)
    if place.private and nbytes > PRIVATE_QUOTA_NBYTES and not me.get("isPro") and me["name"] == _namespace(to.repo):
        hub.say(
            f"{to.repo} is private, and {format_size(nbytes)} are more than the {format_size(PRIVATE_QUOTA_NBYTES)} "
            "that an account has for private repos free of charge; --public avoids that"
        )


def require_collection(hub: PatientHub, slug: str) -> None:
    """Raise HubError if there is no such collection."""
    try:
        hub.attempt(f"collection {slug}", lambda: hub.api.get_collection(slug))
    except HubError as error:
        if refused_status(error) != NOT_FOUND:
            raise
        remedy = "check the slug: the address of its page ends in it"
        raise HubError("no such collection", where=slug, remedy=remedy) from error


def _check_write(hub: PatientHub, repo: str) -> None:
    """Raise HubError if the token may not write to a repo that is there; not every Hub can be asked that."""
    try:
        hub.attempt(repo, lambda: hub.api.auth_check(repo, write=True))
    except HubError as error:
        if refused_status(error) != NOT_FOUND:
            raise


def _check_creation(to: Destination, me: Mapping[str, Any]) -> None:
    """Raise HubError if the repo would have to be made, and cannot be by who `me` is."""
    if to.pull_request:
        raise HubError("no such repo, or the token may not see it", where=to.repo, remedy="check the name")
    # Administrators of a Hub may write in every namespace; a Hub that names no organizations may have others.
    if me.get("auth", {}).get("accessToken", {}).get("role") == "admin" or "orgs" not in me:
        return
    roles = {me["name"]: "admin"} | {org["name"]: org.get("roleInOrg", "") for org in me["orgs"]}
    namespace = _namespace(to.repo)
    if roles.get(namespace, "read") == "read":
        raise HubError(
            "no such repo, and the token may not make it",
            where=to.repo,
            found=f"{me['name']} may only read in {namespace}" if namespace in roles else f"a token of {me['name']}",
            expected=f"one that may write in {namespace}",
            remedy="check the name, or take another token",
        )


def _namespace(repo: str) -> str:
    return repo.partition("/")[0]


def _find_info(hub: PatientHub, repo: str, revision: str | None) -> ModelInfo | None:
    def ask() -> list[ModelInfo]:
        try:
            return [hub.api.model_info(repo, revision=revision)]
        except RepositoryNotFoundError:
            return []
        except RevisionNotFoundError:
            return []

    return next(iter(hub.attempt(repo, ask)), None)


def _create_repo(hub: PatientHub, to: Destination) -> None:
    """Make the repo; the stock client would repeat a 409 of two creations at once without a pause, for ever."""
    organization, name = to.repo.split("/")
    body = {
        "name": name,
        "organization": organization,
        "visibility": "private" if to.private else "public",
        "type": "model",
    }

    def create() -> bool:
        response = get_session().post(f"{hub.api.endpoint}/api/repos/create", headers=auth_headers(hub.api), json=body)
        hf_raise_for_status(response)
        return True

    hub.attempt(to.repo, create, landed=lambda: True if _find_info(hub, to.repo, None) else None)


def _find_pull_request(hub: PatientHub, repo: str, state: State, title: str) -> int | None:
    """The number of the pull request that an earlier run has opened, if it was not merged."""
    me = hub.me(repo)["name"]
    known = _read_pull_request(hub, repo, state.pull_request, me)
    if known is None:
        found = next(iter(_search_pull_requests(hub, repo, me, title)), None)
        if found != state.pull_request:
            state.pull_request = found
        return found
    if known.status == "closed":
        raise HubError(
            "the pull request was closed",
            where=f"{repo} #{known.num}",
            remedy="reopen it on its page, then run it again",
        )
    return None if known.status == "merged" else known.num


def _read_pull_request(hub: PatientHub, repo: str, number: int | None, author: str) -> Discussion | None:
    """The pull request of this number, if it is one, and by this author."""
    if number is None:
        return None
    try:
        found = hub.attempt(repo, lambda: hub.api.get_discussion_details(repo, number))
    except HubError as error:
        if refused_status(error) != NOT_FOUND:
            raise
        return None
    return found if found.is_pull_request and found.author == author else None


def _search_pull_requests(hub: PatientHub, repo: str, author: str, title: str) -> Sequence[int]:
    """The numbers of this author's open pull requests of a title."""

    def search() -> list[Discussion]:
        return list(hub.api.get_repo_discussions(repo, author=author, discussion_type="pull_request"))

    found = hub.attempt(repo, search)
    return [each.num for each in found if each.title == title and each.status in ("open", "draft")]


def _open_pull_request(hub: PatientHub, repo: str, proposal: Proposal) -> int:
    me = hub.me(repo)["name"]

    def landed() -> int | None:
        return next(iter(_search_pull_requests(hub, repo, me, proposal.title)), None)

    return hub.attempt(
        repo,
        lambda: hub.api.create_pull_request(repo, proposal.title, description=proposal.description).num,
        landed=landed,
    )
