r"""Object ids as git computes them, so that every id the rehearsal Hub shows could be checked with git itself.

A git object id is the sha1 of `<kind> <size>\0` and the object's bytes. Objects are not kept: only their ids are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
"""The file that git holds in place of an LFS object (git-lfs, docs/spec.md)."""


def blob_oid(content: bytes) -> str:
    """The id of a file with this content, 40 hexadecimal digits."""
    return _oid("blob", content)


def lfs_pointer(sha256: str, nbytes: int) -> bytes:
    """The pointer file that stands in git for an LFS object."""
    return LFS_POINTER.format(sha256=sha256, size=nbytes).encode()


def tree_oids(files: Mapping[str, str]) -> dict[str, str]:
    """The tree id of every folder ("" is the root), from the blob id of every file.

    Args:
        files: Path from the root, with `/` between its parts -> blob id.
    """
    folders: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, oid in files.items():
        folder, _, name = path.rpartition("/")
        for ancestor in _ancestors(folder):
            folders.setdefault(ancestor, {})
        folders[folder][name] = ("100644", oid)
    oids: dict[str, str] = {}
    for folder in sorted(folders, key=lambda path: path.count("/") + bool(path), reverse=True):
        oids[folder] = _tree_oid(folders[folder])
        if folder:
            parent, _, name = folder.rpartition("/")
            folders[parent][name] = ("40000", oids[folder])
    return oids


def commit_oid(tree: str, parents: Sequence[str], author: str, date: datetime, message: str) -> str:
    """The id of a commit whose author and committer are the same.

    Args:
        tree: The id of the root tree.
        parents: Commit ids.
        author: `Name <address>`.
        date: With a time zone; git keeps whole seconds.
        message: Title, and after an empty line the description.
    """
    who = f"{author} {int(date.timestamp())} +0000"
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {who}", f"committer {who}"]
    return _oid("commit", ("\n".join(lines) + f"\n\n{message}\n").encode())


def _ancestors(folder: str) -> list[str]:
    """`a/b/c` -> `a`, `a/b`, `a/b/c`."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _tree_oid(entries: Mapping[str, tuple[str, str]]) -> str:
    # Git sorts a folder as if its name ended in a slash.
    ordered = sorted(entries.items(), key=lambda item: (item[0] + "/" * (item[1][0] == "40000")).encode())
    return _oid("tree", b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, (mode, oid) in ordered))


def _oid(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
