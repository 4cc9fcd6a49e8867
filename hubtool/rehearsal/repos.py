"""Model repos on disk: settings, commits and refs, each a JSON file written beside and renamed.

    repos/NAMESPACE/NAME/repo.json          settings
    repos/NAMESPACE/NAME/refs.json          full ref name -> commit id
    repos/NAMESPACE/NAME/objects.json       sha256 of every LFS object uploaded to this repo -> bytes
    repos/NAMESPACE/NAME/commits/ID.json    one commit with the complete list of its files

A commit becomes visible when refs.json is renamed into place, so readers see all of it or nothing.
"""

import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from hubtool.hub.rules import is_repo_id
from hubtool.rehearsal import disk, git
from hubtool.rehearsal.wire import Refusal

MAIN = "refs/heads/main"
INITIAL_ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in (
        *("*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gz", "*.h5", "*.joblib", "*.lfs.*", "*.mlmodel"),
        *("*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl"),
        *("*.pt", "*.pth", "*.rar", "*.safetensors", "saved_model/**/*", "*.tar.*", "*.tar", "*.tflite", "*.tgz"),
        *("*.wasm", "*.xz", "*.zip", "*.zst", "*tfevents*"),
    )
)
"""What the Hub puts into `.gitattributes` of a new model repo."""


class File(msgspec.Struct, frozen=True):
    """One file of a commit.

    Attributes:
        oid: Git blob id: of the content, or of the pointer where the content is an LFS object.
        nbytes: Size of the content.
        sha256: Of the content, for an LFS object only.
    """

    oid: str
    nbytes: int
    sha256: str | None = None

    @property
    def digest(self) -> str:
        """What the client compares its own file with: sha256 of an LFS object, else the git blob id."""
        return self.sha256 or self.oid


class Message(msgspec.Struct, frozen=True):
    """What a commit says of itself, and the user who made it."""

    title: str
    description: str
    author: str


class Commit(msgspec.Struct, frozen=True):
    """One commit; `files` is everything in the repo at that commit, by path."""

    oid: str
    parents: list[str]
    message: Message
    date: datetime
    files: dict[str, File]


class Settings(msgspec.Struct):
    """What a repo is, apart from its content."""

    name: str
    created: datetime
    private: bool = False
    gated: bool | str = False


class Repo:
    """One repo. Every change is on disk when the method returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = disk.read(folder / "repo.json", Settings)
        self.refs = disk.read(folder / "refs.json", dict[str, str])
        self.objects = disk.read(folder / "objects.json", dict[str, int])
        self._commits: dict[str, Commit] = {}

    @property
    def name(self) -> str:
        """`NAMESPACE/NAME`."""
        return self.settings.name

    @property
    def namespace(self) -> str:
        """The user or organization it belongs to."""
        return self.settings.name.split("/")[0]

    @property
    def used_nbytes(self) -> int:
        """Bytes of all LFS objects uploaded to it."""
        return sum(self.objects.values())

    def save_settings(self) -> None:
        """Writes `settings` after a change."""
        disk.write(self.folder / "repo.json", self.settings)

    def add_object(self, sha256: str, nbytes: int) -> None:
        """Notes that an LFS object was uploaded to this repo; only such may be committed."""
        if sha256 not in self.objects:
            self.objects[sha256] = nbytes
            disk.write(self.folder / "objects.json", self.objects)

    def commit(self, oid: str) -> Commit:
        """The commit with this full id, which must exist."""
        if oid not in self._commits:
            self._commits[oid] = disk.read(self.folder / "commits" / f"{oid}.json", Commit)
        return self._commits[oid]

    def find_ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or other ref, or None."""
        candidates = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((ref for ref in candidates if ref in self.refs), None)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, full ref, or (abbreviated) commit id means.

        Raises:
            Refusal: 404 RevisionNotFound.
        """
        if ref := self.find_ref(revision):
            return self.commit(self.refs[ref])
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = list((self.folder / "commits").glob(f"{revision}*.json"))
            if len(found) == 1:
                return self.commit(found[0].stem)
        raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def history(self, start: Commit) -> Iterator[Commit]:
        """A commit and its first parents, newest first."""
        yield start
        while start.parents:
            start = self.commit(start.parents[0])
            yield start

    def set_ref(self, ref: str, oid: str) -> None:
        """Points a ref at a commit."""
        self.refs[ref] = oid
        disk.write(self.folder / "refs.json", self.refs)

    def delete_ref(self, ref: str) -> None:
        """Forgets a ref; its commits stay."""
        del self.refs[ref]
        disk.write(self.folder / "refs.json", self.refs)

    def add_commit(self, ref: str, files: Mapping[str, File], message: Message, parents: Sequence[str]) -> Commit:
        """The new commit, to which `ref` now points.

        Args:
            ref: Full name; made if it does not exist.
            files: All files of the commit, by path.
            message: What it says, and who says it.
            parents: Commit ids.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        tree = git.tree_oids({path: file.oid for path, file in files.items()})[""]
        text = f"{message.title}\n\n{message.description}" if message.description else message.title
        oid = git.commit_oid(tree, parents, f"{message.author} <{message.author}@users.noreply.rehearsal>", now, text)
        commit = Commit(oid, list(parents), message, now, dict(sorted(files.items())))
        disk.write(self.folder / "commits" / f"{oid}.json", commit)
        self._commits[oid] = commit
        self.set_ref(ref, oid)
        return commit


class Repos:
    """All repos under one folder. A repo is made and deleted as a whole: by a rename."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, Repo] = {}
        for settings in root.glob("*/*/repo.json"):
            if settings.parent.name.startswith("."):
                # What a server that was killed had not finished making or deleting.
                shutil.rmtree(settings.parent)
            else:
                repo = Repo(settings.parent)
                self._known[repo.name] = repo

    def __iter__(self) -> Iterator[Repo]:
        return iter(sorted(self._known.values(), key=lambda repo: repo.name))

    def get(self, name: str) -> Repo | None:
        """The repo `NAMESPACE/NAME`, or None. Like the Hub's, names differ by more than their case."""
        return self._known.get(name) or next((r for n, r in self._known.items() if n.lower() == name.lower()), None)

    def create(self, name: str, author: str, attributes: File, *, private: bool) -> Repo:
        """The new repo, with the Hub's initial commit of a `.gitattributes`.

        Raises:
            Refusal: 400, the name is not one the Hub would take.
        """
        if not is_repo_id(name):
            raise Refusal(400, f"Invalid repo name: {name}")
        folder = self.root / name
        beside = _beside(folder)
        disk.write(beside / "refs.json", {})
        disk.write(beside / "objects.json", {})
        disk.write(beside / "repo.json", Settings(name, datetime.now(UTC), private))
        Repo(beside).add_commit(MAIN, {".gitattributes": attributes}, Message("initial commit", "", author), [])
        beside.rename(folder)
        self._known[name] = Repo(folder)
        return self._known[name]

    def delete(self, repo: Repo) -> None:
        """Forgets a repo and its history; objects that others may share stay."""
        del self._known[repo.name]
        beside = _beside(repo.folder)
        repo.folder.rename(beside)
        shutil.rmtree(beside)


def _beside(folder: Path) -> Path:
    """A folder that no repo can be, next to one that is."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
