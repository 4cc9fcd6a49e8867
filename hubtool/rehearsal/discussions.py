"""Discussions and pull requests of a repo, numbered together from 1, in discussions.json beside its refs.

A pull request is the ref `refs/pr/N`; commits to it move that ref and nothing else until it is merged.
"""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from hubtool.hub.rules import DISCUSSION_TITLE_LENGTHS
from hubtool.rehearsal import disk
from hubtool.rehearsal.repos import File, Message, Repo
from hubtool.rehearsal.wire import Refusal

Status = Literal["open", "closed", "merged", "draft"]


EventType = Literal["comment", "commit", "status-change", "title-change"]


class Event(msgspec.Struct):
    """Something that happened."""

    id: str
    type: EventType
    author: str
    date: datetime
    data: dict[str, object]


class Discussion(msgspec.Struct):
    """A discussion; a pull request if `base_ref` is set.

    Attributes:
        num: Number within the repo.
        base_ref: Full name of the ref that it is to be merged into.
        base_oid: The commit it started from.
        merge_oid: The commit it was merged as.
    """

    num: int
    title: str
    author: str
    created: datetime
    status: Status
    events: list[Event] = []
    base_ref: str | None = None
    base_oid: str | None = None
    merge_oid: str | None = None

    @property
    def ref(self) -> str:
        """Where its commits go, if it is a pull request."""
        return f"refs/pr/{self.num}"


class Discussions:
    """The discussions of one repo."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._all = disk.read(self._path, list[Discussion]) if self._path.is_file() else []

    @property
    def _path(self) -> Path:
        return self._repo.folder / "discussions.json"

    def __iter__(self) -> Iterator[Discussion]:
        return iter(self._all)

    def get(self, num: int) -> Discussion:
        """The discussion with this number.

        Raises:
            Refusal: 404.
        """
        if not 1 <= num <= len(self._all):
            raise Refusal(404, f"Discussion {num} not found")
        return self._all[num - 1]

    def of_ref(self, ref: str) -> Discussion | None:
        """The pull request whose commits go to this ref, or None."""
        return next((item for item in self._all if item.base_ref is not None and item.ref == ref), None)

    def open(self, title: str, description: str, author: str) -> Discussion:
        """A new discussion.

        Raises:
            Refusal: 400, the title is too short or too long.
        """
        if len(title) not in DISCUSSION_TITLE_LENGTHS:
            raise Refusal(400, "the title of a discussion has 3 to 200 characters")
        discussion = Discussion(len(self._all) + 1, title, author, datetime.now(UTC), "open")
        self._all.append(discussion)
        self.comment(discussion, author, description)
        return discussion

    def open_pull_request(self, message: Message, base_ref: str, status: Status) -> Discussion:
        """A new pull request, its ref at the head of `base_ref`."""
        discussion = self.open(message.title, message.description, message.author)
        discussion.status, discussion.base_ref = status, base_ref
        discussion.base_oid = self._repo.refs[base_ref]
        self._repo.set_ref(discussion.ref, discussion.base_oid)
        self.save()
        return discussion

    def comment(self, discussion: Discussion, author: str, text: str) -> Event:
        """The new comment."""
        return self._add(discussion, "comment", author, {"edited": False, "hidden": False, "latest": {"raw": text}})

    def note_commit(self, discussion: Discussion, author: str, title: str, oid: str) -> Event:
        """The note of a commit to the pull request."""
        return self._add(discussion, "commit", author, {"subject": title, "oid": oid})

    def set_title(self, discussion: Discussion, author: str, title: str) -> Event:
        """The note of the new title."""
        data: dict[str, object] = {"from": discussion.title, "to": title}
        discussion.title = title
        return self._add(discussion, "title-change", author, data)

    def set_status(self, discussion: Discussion, author: str, status: Status) -> Event:
        """The note of the new status."""
        discussion.status = status
        return self._add(discussion, "status-change", author, {"status": status})

    def conflicts(self, discussion: Discussion) -> list[str]:
        """The paths that both the pull request and its base have changed since it started, differently."""
        base, theirs, ours = self._three_ways(discussion)
        changed = {path for path in base | theirs if base.get(path) != theirs.get(path)}
        return sorted(p for p in changed if base.get(p) != ours.get(p) and ours.get(p) != theirs.get(p))

    def merge(self, discussion: Discussion, author: str) -> str:
        """The id of the commit by which the pull request was merged.

        Raises:
            Refusal: 400 if it is not one, or not open; 409 on conflicts.
        """
        if discussion.base_ref is None or discussion.status not in ("open", "draft"):
            raise Refusal(400, f"discussion {discussion.num} cannot be merged: it is no open pull request")
        conflicts = self.conflicts(discussion)
        if conflicts:
            raise Refusal(409, f"the pull request has conflicts in {', '.join(conflicts)}")
        base, theirs, ours = self._three_ways(discussion)
        changed = [path for path in base | theirs if base.get(path) != theirs.get(path)]
        files = {path: file for path, file in ours.items() if path not in changed}
        files |= {path: theirs[path] for path in changed if path in theirs}
        parents = [self._repo.refs[discussion.base_ref], self._repo.refs[discussion.ref]]
        message = Message(f"{discussion.title} (#{discussion.num})", "", author)
        discussion.merge_oid = self._repo.add_commit(discussion.base_ref, files, message, parents).oid
        self.set_status(discussion, author, "merged")
        return discussion.merge_oid

    def save(self) -> None:
        """Writes all discussions."""
        disk.write(self._path, self._all)

    def _three_ways(self, discussion: Discussion) -> tuple[dict[str, File], dict[str, File], dict[str, File]]:
        """The files where the pull request started, as it has them, and as its base has them now."""
        if discussion.base_ref is None or discussion.base_oid is None:
            return {}, {}, {}
        oids = (discussion.base_oid, self._repo.refs[discussion.ref], self._repo.refs[discussion.base_ref])
        base, theirs, ours = (self._repo.commit(oid).files for oid in oids)
        return base, theirs, ours

    def _add(self, discussion: Discussion, kind: EventType, author: str, data: dict[str, object]) -> Event:
        event = Event(secrets.token_hex(12), kind, author, datetime.now(UTC), data)
        discussion.events.append(event)
        self.save()
        return event
