"""What changes with a file's bytes, at no cost: kept of a folder whose bytes were read, to notice a touched file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from hubtool.errors import OutputError
from hubtool.files.formats import decode_json
from hubtool.files.whole import STATE_DIR, write_beside
from hubtool.record import Record, is_derived

STAMPS_FILE = "integrity.json"


class Stamp(msgspec.Struct, frozen=True):
    """A file as the file system sees it; `changed_ns` is what copying with times (`cp -p`) cannot set back."""

    nbytes: int
    modified_ns: int
    changed_ns: int
    inode: int


class _Passed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of a folder when they were found to be those of a record."""

    subject: str
    stamps: dict[str, Stamp]


def take_stamps(folder: Path) -> Mapping[str, Stamp]:
    """A stamp of each file of a folder that a record lists, by name; derived and hidden ones are left out."""
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return {name: _stamp(folder / name) for name in names if not is_derived(name)}


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def compare_stamps(before: Mapping[str, Stamp], after: Mapping[str, Stamp]) -> tuple[str, ...]:
    """Names of the files that came, went, or were touched."""
    return tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))


def remember(folder: Path, record: Record, stamps: Mapping[str, Stamp]) -> None:
    """Write down that the files with these stamps are those of the record."""
    (folder / STATE_DIR).mkdir(exist_ok=True)
    passed = _Passed(record.subject, dict(stamps))
    write_beside(folder / STATE_DIR / STAMPS_FILE, msgspec.json.encode(passed))


def forget(folder: Path) -> None:
    """Take back what `remember` wrote."""
    (folder / STATE_DIR / STAMPS_FILE).unlink(missing_ok=True)


def find_touched(folder: Path, record: Record) -> tuple[str, ...] | None:
    """Names of the files that were touched since they were found to be the record's; None if they never were."""
    path = folder / STATE_DIR / STAMPS_FILE
    if not path.is_file():
        return None
    try:
        passed = decode_json(path.read_bytes(), _Passed, path, error=OutputError)
    except OutputError:
        return None
    return compare_stamps(passed.stamps, take_stamps(folder)) if passed.subject == record.subject else None


def is_unchanged(folder: Path, record: Record) -> bool:
    """Whether the files were found to be the record's, and none was touched since."""
    return find_touched(folder, record) == ()


def describe_touched(names: Iterable[str]) -> str:
    """`a.safetensors and 2 more files were touched`."""
    first, *rest = names
    more = f" and {len(rest)} more {'files were' if len(rest) > 1 else 'file was'}" if rest else " was"
    return f"{first}{more} touched"
