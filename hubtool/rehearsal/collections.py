"""Collections: lists of repos that a user or organization shows together, in collections.json."""

import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from hubtool.hub.rules import COLLECTION_DESCRIPTION_LENGTH, COLLECTION_NOTE_LENGTH
from hubtool.rehearsal import disk
from hubtool.rehearsal.wire import Refusal


class Item(msgspec.Struct):
    """Something in a collection; `object_id` is its own, `id` is what it points to."""

    object_id: str
    id: str
    type: str
    note: str | None = None


class Collection(msgspec.Struct):
    """A collection; its slug is the owner, the title, and an id that stays when the title changes."""

    id: str
    owner: str
    title: str
    updated: datetime
    description: str | None = None
    private: bool = False
    theme: str = "orange"
    position: int = 0
    items: list[Item] = []

    @property
    def slug(self) -> str:
        """`OWNER/title-0123456789abcdef01234567`."""
        words = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        return f"{self.owner}/{words}-{self.id}"


class Collections:
    """All collections, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._all = disk.read(path, list[Collection]) if path.is_file() else []

    def __iter__(self) -> Iterator[Collection]:
        return iter(self._all)

    def get(self, slug: str) -> Collection:
        """The collection with this slug; only the id at its end counts, as a title may have changed.

        Raises:
            Refusal: 404.
        """
        found = next((item for item in self._all if item.id == slug.rsplit("-", 1)[-1]), None)
        if found is None:
            raise Refusal(404, f"Collection not found: {slug}")
        return found

    def create(self, owner: str, title: str, description: str | None, *, private: bool) -> Collection:
        """A new collection.

        Raises:
            Refusal: 400 for a title or description the Hub would not take; 409, with the slug, if the owner has one
                with this title.
        """
        same = next((item for item in self._all if (item.owner, item.title) == (owner, title)), None)
        if same is not None:
            raise Refusal(409, "This collection already exists", extra={"slug": same.slug})
        made = Collection(secrets.token_hex(12), owner, title, datetime.now(UTC), description, private)
        self.check(made)
        self._all.append(made)
        self.save(made)
        return made

    def delete(self, collection: Collection) -> None:
        """Forgets a collection."""
        self._all.remove(collection)
        disk.write(self._path, self._all)

    def add_item(self, collection: Collection, item: Item) -> None:
        """Puts something at the end of a collection.

        Raises:
            Refusal: 409 if it is there; 400 for a note that is too long.
        """
        if any((item.id, item.type) == (old.id, old.type) for old in collection.items):
            raise Refusal(409, f"{item.id} is in this collection already")
        self.check_note(item.note)
        collection.items.append(item)
        self.save(collection)

    def item(self, collection: Collection, object_id: str) -> Item:
        """One item of a collection.

        Raises:
            Refusal: 404.
        """
        found = next((item for item in collection.items if item.object_id == object_id), None)
        if found is None:
            raise Refusal(404, f"{collection.slug} has no item {object_id}")
        return found

    def save(self, collection: Collection) -> None:
        """Writes a change of one collection."""
        collection.updated = datetime.now(UTC)
        disk.write(self._path, self._all)

    def check(self, collection: Collection) -> None:
        """Refuses, with 400, a title or description that the Hub would not take."""
        if not collection.title.strip():
            raise Refusal(400, "a collection needs a title")
        if len(collection.description or "") > COLLECTION_DESCRIPTION_LENGTH:
            raise Refusal(
                400, f"the description of a collection has at most {COLLECTION_DESCRIPTION_LENGTH} characters"
            )

    def check_note(self, note: str | None) -> None:
        """Refuses, with 400, a note that the Hub would not take."""
        if len(note or "") > COLLECTION_NOTE_LENGTH:
            raise Refusal(400, f"the note of an item has at most {COLLECTION_NOTE_LENGTH} characters")
