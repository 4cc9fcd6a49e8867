"""Publishes a finished folder: all large contents first, then one commit that names every file.

Readers see the old state or the whole new one, and a run that was cut off is simply run again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationDelete

from hubtool.errors import HubError, OutputError
from hubtool.files.read import file_sha256
from hubtool.hub.blobs import Blobs, choose_large, chosen_addition, require_unchanged, stored_addition
from hubtool.hub.client import HubFile, git_sha1, list_files
from hubtool.hub.commit import Operation, card_refused, commit_once
from hubtool.hub.destination import Destination, Place, Proposal, check_rights, find_place, make_place
from hubtool.hub.patience import BAD_REQUEST, PatientHub, refused_status
from hubtool.hub.private import UploadInfo
from hubtool.hub.reader import has_record
from hubtool.hub.rules import REGULAR_LIMIT_NBYTES, check_metadata
from hubtool.hub.standing import Standing, read_earlier, require_standing, wanted_of
from hubtool.hub.state import Blob, State
from hubtool.progress import UNWATCHED, Advance, Watch
from hubtool.record import (
    CARD_FILE,
    DERIVED_FILES,
    RECORD_FILE,
    FileRecord,
    Record,
    asset_names,
    encode_record,
    is_derived,
)
from hubtool.units import GB, format_nbytes

ATTRIBUTES_FILE = ".gitattributes"
"""The Hub's own file in every repo."""

FILE_LIMIT_NBYTES = 200 * GB
"""Advised at most (huggingface.co/docs/hub/storage-limits)."""

DIGEST_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A repo as an upload left it.

    Attributes:
        repo: `org/name`.
        commit: The commit that has every file.
        url: Its page.
        files: How many files of the release it has.
        nbytes: Their bytes.
        changed: False if everything stood there already.
        deleted: Files of an earlier release that this commit has removed.
        foreign: Files that are not hubtool's, which were left alone.
        pull_request: The number of the pull request, if it is one.
    """

    repo: str
    commit: str
    url: str
    files: int
    nbytes: int
    changed: bool
    deleted: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    pull_request: int | None = None


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """What an upload would do, after all checks.

    Attributes:
        place: Where to, as it stands.
        send: Names of the files that the commit will have, because the Hub has none or others of that name.
        keep: Names of the files that stand there already.
        delete: Names of files of an earlier release, which are no longer part of it, and of weights of others.
        foreign: Names of files that are not hubtool's and stay.
        nbytes: Bytes of `send`.
    """

    place: Place
    send: tuple[str, ...]
    keep: tuple[str, ...]
    delete: tuple[str, ...]
    foreign: tuple[str, ...]
    nbytes: int


def published_names(record: Record, folder: Path | None = None) -> tuple[str, ...]:
    """Every file that is uploaded: those of the record, and what is made of the record. Nothing else ever is.

    Args:
        record: The record.
        folder: Where it lies: the pictures and statements in it are published too.
    """
    names = {*(file.name for file in record.files), RECORD_FILE, CARD_FILE}
    if folder is not None:
        beside = [path.name for path in folder.glob("*") if path.is_file()]
        names |= {name for name in (*beside, *asset_names(folder)) if is_derived(name)}
    return tuple(sorted(names))


def release_title(recipe: str, plan: str) -> str:
    """The title of a pull request, by which it is found again: the recipe and the start of the plan's digest."""
    return f"Publish {recipe} ({plan[:DIGEST_LENGTH]}) with hubtool"


def record_digest(record: Record) -> str:
    """The start of the SHA-256 of hubtool.json, which names a release."""
    return hashlib.sha256(encode_record(record)).hexdigest()[:DIGEST_LENGTH]


class Upload:
    """One folder on its way to one destination.

    Args:
        hub: The Hub.
        folder: A finished folder, or one that lacks only what is in `sent`.
        record: Its record.
        to: Where to.
        sent: Contents that the Hub has already, by file name; they need not lie in the folder.
    """

    def __init__(
        self,
        hub: PatientHub,
        folder: Path,
        record: Record,
        to: Destination,
        sent: Mapping[str, Blob] | None = None,
    ) -> None:
        self._hub = hub
        self._folder = folder
        self._record = record
        self._to = to
        self._sent = dict(sent or {})
        self._known: Place | None = None
        self._names = published_names(record, folder)
        self._hashes = record.hashes()
        self._planned: UploadPlan | None = None
        self._standing = Standing()
        self._read: dict[str, Record | None] = {}
        self._state = State(folder, hub.api.endpoint, to.key)
        self._title = release_title(record.recipe.name, record.plan.digest)

    def find(self, known: Place | None = None) -> Place:
        """The destination as it stands now: what is decided of it, and the commit, go by this.

        Args:
            known: As it stood when the rights to it were checked, if they were: they are not checked again.

        Raises:
            HubError: The Hub refused, or could not be reached.
        """
        self._known = known
        return find_place(self._hub, self._to, self._state, self._title, known)

    def require_standing(self, place: Place) -> Standing:
        """What stands at the destination, if it may be published over: see `require_standing`.

        Raises:
            HubError: Another model, or weights of somebody else, and that is not allowed.
        """
        self._standing = require_standing(self._hub, self._to, place, wanted_of(self._record), self._earlier(place))
        return self._standing

    def _earlier(self, place: Place) -> Record | None:
        """The record at the destination, read once of each commit; None if there is none that can be read."""
        if RECORD_FILE not in place.files or place.head is None:
            return None
        if place.head not in self._read:
            same = self._is_there(RECORD_FILE, place.files[RECORD_FILE])
            self._read[place.head] = self._record if same else read_earlier(self._hub, self._to, place)
        return self._read[place.head]

    def plan(self, place: Place | None = None) -> UploadPlan:
        """What `run` would do; all checks are made, and nothing is written.

        Args:
            place: The destination as `find` has just found it.

        Raises:
            OutputError: A file of the record is not in the folder, or the Hub would refuse the card.
            HubError: The Hub refused, or could not be reached; the tag is taken; the repo was withdrawn.
        """
        self._check_folder()
        place = place or self.find()
        self.require_standing(place)
        planned = self._compare(place)
        if self._known is None or self._known.exists != planned.place.exists:
            check_rights(self._hub, self._to, planned.place, planned.nbytes)
        self._check_withdrawal(planned)
        if CARD_FILE in planned.send:
            self._check_card()
        self._check_tag(planned)
        self._tell_visibility(planned.place)
        self._planned = planned
        return planned

    def run(self, watch: Watch = UNWATCHED) -> Uploaded:
        """Publish what was planned, and look whether an answer that was lost did not come of a commit that landed.

        Raises:
            OutputError: A file of the record is not in the folder, or has changed, or the Hub would refuse the card.
            HubError: The Hub refused, could not be reached, or someone else has committed since `find`; what was sent
                stays sent.
        """
        planned = self._planned or self.plan()
        stands = planned.place.made or self._to.pull_request  # one that would propose nothing is not opened
        if stands and planned.place.head is not None and not planned.send and not planned.delete:
            return self._uploaded(planned, planned.place.head)
        planned = self._made(planned)
        assert planned.place.head is not None
        if not planned.send and not planned.delete:
            return self._uploaded(planned, planned.place.head)
        total = sum(self._nbytes(name) for name in planned.send if name not in self._sent)
        with watch.stage("send", total) as advance:
            operations = self._operations(planned, advance)
        with watch.stage("commit"):
            commit = self._commit(planned, operations)
        return self._uploaded(planned, commit)

    def _made(self, planned: UploadPlan) -> UploadPlan:
        """The plan for the destination that was made, if it had to be."""
        description = f"{format_nbytes(sum(file.nbytes for file in self._record.files))} in {len(self._names)} files"
        found = planned.place
        place = make_place(self._hub, self._to, self._state, Proposal(self._title, description), found)
        return replace(planned, place=place) if place.files is found.files else self._compare(place)

    def _uploaded(self, planned: UploadPlan, commit: str) -> Uploaded:
        return Uploaded(
            repo=self._to.repo,
            commit=commit,
            url=self._url(commit, planned.place),
            files=len(self._names),
            nbytes=sum(self._nbytes(name) for name in self._names),
            changed=commit != planned.place.head,
            deleted=planned.delete,
            foreign=planned.foreign,
            pull_request=planned.place.pull_request,
        )

    def _tell_visibility(self, place: Place) -> None:
        if place.exists and place.private != self._to.private and not self._to.public_after_verify:
            self._hub.say(f"{self._to.repo} is {'private' if place.private else 'public'} already, and stays so")

    def _check_folder(self) -> None:
        """Raise OutputError if a file is not there, or has changed since it was recorded."""
        recorded = {file.name: file for file in self._record.files}
        for name in self._names:
            if name not in self._sent:
                _check_file(self._folder / name, recorded.get(name))

    def _check_card(self) -> None:
        """Raise OutputError if the Hub would refuse the card, by its own word and by what is known of it."""
        text = (self._folder / CARD_FILE).read_bytes().decode("utf-8", errors="replace")
        problems = [problem.message for problem in check_metadata(text) if problem.fatal]
        if not problems:
            body = {"content": text, "repoType": "model"}
            try:
                answer = self._hub.ask("POST", "/api/validate-yaml", f"{self._to.repo}: {CARD_FILE}", json=body)
            except HubError as error:
                if refused_status(error) != BAD_REQUEST:
                    raise
                raise card_refused(self._folder / CARD_FILE, error.found) from error
            problems = [problem["message"] for problem in answer.get("errors", [])]
        if problems:
            raise card_refused(self._folder / CARD_FILE, "; ".join(problems))

    def _check_withdrawal(self, planned: UploadPlan) -> None:
        """Raise HubError if the commit would take back, without a word, that these very weights were withdrawn."""
        place = planned.place
        if RECORD_FILE not in planned.send or RECORD_FILE not in place.files or place.head is None:
            return
        earlier = self._earlier(place)
        if earlier is None:
            return  # `_compare` has said so
        if earlier.withdrawn and not self._record.withdrawn and earlier.subject == self._record.subject:
            raise HubError(
                "was withdrawn, and would no longer say so",
                where=self._to.repo,
                found=f"withdrawn on {earlier.withdrawn.date[:10]}: {earlier.withdrawn.reason}",
                expected="other weights",
                remedy="convert again, or publish it as another repo",
            )

    def _check_tag(self, planned: UploadPlan) -> None:
        """Raise HubError if the tag that was asked for is that of another release."""
        if self._to.tag is None or not planned.place.exists:
            return
        taken = find_tag(self._hub, self._to.repo, self._to.tag)
        if taken is not None and not has_record(self._hub, self._to.repo, taken, self._record):
            raise HubError(
                "the tag names another commit",
                where=f"{self._to.repo}: {self._to.tag}",
                found=taken,
                remedy="choose another --tag, or delete that one",
            )

    def _compare(self, place: Place) -> UploadPlan:
        send = tuple(name for name in self._names if not self._is_there(name, place.files.get(name)))
        ours = set(self._earlier_names(place))
        gone = {name for name in ours & place.files.keys() if name not in self._names}
        delete = tuple(sorted(gone | set(self._standing.delete)))
        known = {*self._names, *delete, ATTRIBUTES_FILE}
        return UploadPlan(
            place=place,
            send=send,
            keep=tuple(name for name in self._names if name not in send),
            delete=delete,
            foreign=tuple(sorted(name for name in place.files if name not in known)),
            nbytes=sum(self._nbytes(name) for name in send),
        )

    def _earlier_names(self, place: Place) -> Sequence[str]:
        """The files at the destination that an earlier release has put there."""
        if RECORD_FILE not in place.files or place.head is None:
            return ()
        if self._is_there(RECORD_FILE, place.files[RECORD_FILE]):
            return [*self._hashes, *DERIVED_FILES]
        earlier = self._earlier(place)
        if earlier is None:
            self._hub.say(f"{self._to.repo}: its record cannot be read, so no file is deleted")
            return ()
        return [*(file.name for file in earlier.files), *DERIVED_FILES]

    def _nbytes(self, name: str) -> int:
        return self._sent[name].nbytes if name in self._sent else (self._folder / name).stat().st_size

    def _is_there(self, name: str, there: HubFile | None) -> bool:
        """Whether the Hub has a file as it is here, by the Hub's own hash."""
        if there is None or there.nbytes != self._nbytes(name):
            return False
        path = self._folder / name
        if there.sha256 is not None:
            return there.sha256 == (self._hashes.get(name) or file_sha256(path))
        return name not in self._sent and there.git_sha1 == git_sha1(path.read_bytes())

    def _operations(self, planned: UploadPlan, advance: Advance) -> Callable[[], Sequence[Operation]]:
        """Send every large content; a function that gives fresh commit operations for each try."""
        blobs = Blobs(self._hub, self._to.repo, planned.place.revision, self._state)
        sent = {**blobs.held(), **self._sent}
        sent = {name: blob for name, blob in sent.items() if blob.sha256 == self._hashes.get(name)}
        infos = {name: UploadInfo.from_path(str(self._folder / name)) for name in planned.send if name not in sent}
        large = choose_large(self._hub, self._to.repo, planned.place.revision, infos)
        regular = {name: self._content(name) for name in planned.send if name not in sent and name not in large}
        for name in planned.send:
            if name in large:
                sent[name] = blobs.send_file(name, self._folder / name, self._hashes.get(name), advance)
            elif name not in self._sent:
                advance(self._nbytes(name), name, found=name in sent)

        def make() -> Sequence[Operation]:
            stored = [stored_addition(name, sent[name]) for name in planned.send if name not in regular]
            small = [chosen_addition(name, content, large=False) for name, content in regular.items()]
            return [*stored, *small, *(CommitOperationDelete(name, is_folder=False) for name in planned.delete)]

        return make

    def _content(self, name: str) -> bytes:
        """The bytes of a small file, which are the recorded ones if it is recorded."""
        path = self._folder / name
        content = path.read_bytes()
        require_unchanged(path, self._hashes.get(name), hashlib.sha256(content).hexdigest())
        return content

    def _commit(self, planned: UploadPlan, operations: Callable[[], Sequence[Operation]]) -> str:
        """Commit all at once to what was looked at; the commit's id.

        A commit whose answer was lost has landed if its branch has moved on and now lacks nothing.
        """
        repo, place = self._to.repo, planned.place

        def send() -> CommitInfo:
            return self._hub.api.create_commit(
                repo,
                operations=operations(),
                commit_message=f"Publish {self._record.recipe.name} with hubtool {self._record.versions['hubtool']}",
                revision=place.revision,
                parent_commit=place.head,
            )

        def landed() -> str | None:
            head = self._hub.attempt(repo, lambda: self._hub.api.model_info(repo, revision=place.revision).sha)
            if head is None or head == place.head:
                return None
            there = self._hub.attempt(repo, lambda: list_files(self._hub.api, repo, head))
            whole = all(self._is_there(name, there.get(name)) for name in self._names)
            return head if whole and not set(planned.delete) & there.keys() else None

        return commit_once(self._hub, repo, send, landed)

    def _url(self, commit: str, place: Place) -> str:
        endpoint = f"{self._hub.api.endpoint}/{self._to.repo}"
        return f"{endpoint}/discussions/{place.pull_request}" if place.pull_request else f"{endpoint}/tree/{commit}"


def _check_file(path: Path, recorded: FileRecord | None) -> None:
    """Raise OutputError if a file is not there, or not the recorded one; a large one is hashed while it is sent."""
    if not path.is_file():
        raise OutputError("missing file", where=path, remedy="convert again")
    found = path.stat().st_size
    if found > FILE_LIMIT_NBYTES:
        raise OutputError(
            "too large for the Hub",
            where=path,
            found=format_nbytes(found),
            expected=f"at most {format_nbytes(FILE_LIMIT_NBYTES)}",
            remedy="convert again, in more shards",
        )
    if recorded is None:
        return
    if found != recorded.nbytes:
        raise OutputError(
            "another size than was recorded",
            where=path,
            found=format_nbytes(found),
            expected=format_nbytes(recorded.nbytes),
            remedy="convert again",
        )
    if found <= REGULAR_LIMIT_NBYTES:
        require_unchanged(path, recorded.sha256, file_sha256(path))


def plan_before(
    hub: PatientHub, folder: Path, to: Destination, sizes: Mapping[str, int], title: str = ""
) -> UploadPlan:
    """What an upload would do with files of which only names and sizes are known, after the rights were checked.

    Args:
        hub: The Hub.
        folder: Where they will lie.
        to: Where to.
        sizes: Bytes by name.
        title: See `release_title`.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    place = find_place(hub, to, State(folder, hub.api.endpoint, to.key), title)
    check_rights(hub, to, place, sum(sizes.values()))
    return UploadPlan(place, tuple(sizes), (), (), (), sum(sizes.values()))


def find_tag(hub: PatientHub, repo: str, tag: str) -> str | None:
    """The commit that a tag names, None if there is no such tag."""
    refs = hub.attempt(repo, lambda: hub.api.list_repo_refs(repo))
    return next((each.target_commit for each in refs.tags if each.name == tag), None)
