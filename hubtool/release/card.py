"""The card of a folder or of a repo on the Hub: regenerated around the publisher's prose, compared, pushed.

Of a repo only the record, the card and the shards' headers are read, never weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi

import hubtool
from hubtool.card import Unread, Unrecorded, check_card, describe_unrecorded, documents, find_change, render_card
from hubtool.card.consent import Replace, describe_change, never, require_kept
from hubtool.card.documents import Made, Wording, known_generated
from hubtool.card.kept import find_templates, keep_generated, keep_templates, read_generated
from hubtool.card.own import Own, decode_card
from hubtool.card.provenance import check_statements, make_statements, remove_stale
from hubtool.card.unrecorded import find_card_fault
from hubtool.checkpoint.measure import measure_files
from hubtool.checkpoint.remote import HubSource
from hubtool.checkpoint.source import CONFIG_FILE, HUB_PREFIX, LocalSource, parse_spec
from hubtool.checkpoint.tensors import Header, read_header
from hubtool.errors import HubError, OutputError, SourceError, VerificationError
from hubtool.files.formats import parse_object
from hubtool.files.whole import write_beside
from hubtool.hub.client import list_files, make_api
from hubtool.hub.destination import Destination
from hubtool.hub.patience import READING, PatientHub
from hubtool.record import (
    ASSETS_PREFIX,
    CARD_FILE,
    DERIVED_FILES,
    PROVENANCE_FILE,
    RECORD_FILE,
    TEST_RESULT_FILE,
    FileRecord,
    Record,
    asset_names,
    decode_record,
    encode_record,
    read_record,
)
from hubtool.release.commit import Change, commit_documents
from hubtool.release.prose import Base, Page, keep_base, merge_page, read_base
from hubtool.validate.stamps import describe_touched, find_touched


@dataclass(frozen=True)
class Opened:
    """A folder or repo whose card is worked on.

    Attributes:
        name: The folder's path or the repo's name.
        folder: None for a repo.
        commit: The commit that was read, None for a folder.
        subject: Its record, or what could be measured without one.
        card: Its README.md, empty if it has none.
        assets: Names of its pictures.
        statements: Its provenance, by file name.
        disagreements: Where record and bytes contradict each other, or may: a shard was touched since it was hashed.
        mendable: Where the provenance is not what the record says; it can be regenerated, as the card can.
    """

    name: str
    folder: Path | None
    commit: str | None
    subject: Record | Unrecorded
    card: str
    assets: tuple[str, ...]
    statements: Mapping[str, bytes]
    disagreements: tuple[str, ...]
    mendable: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong beside the card."""
        return (*self.disagreements, *self.mendable)

    @property
    def writable(self) -> bool:
        """Whether it is a folder that hubtool made: the card of another is someone else's."""
        return self.folder is not None and isinstance(self.subject, Record)

    @property
    def record(self) -> Record:
        """Its record.

        Raises:
            SourceError: It has none.
        """
        if isinstance(self.subject, Record):
            return self.subject
        raise SourceError("no record", where=self.name, expected=RECORD_FILE, remedy="take what hubtool published")


@dataclass(frozen=True)
class Pushed:
    """What was committed; no names if the repo had it all, and then `commit` is the one that it has."""

    repo: str
    commit: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """Files, wherever they are."""

    name: str
    folder: Path | None
    commit: str | None
    record: Record | None
    files: Sequence[FileRecord]
    assets: Sequence[str]
    headers: Callable[[list[str]], Mapping[str, Header]]
    read: Callable[[str], bytes]


def open_card(spec: str, api: HfApi | None = None) -> Opened:
    """The card of a folder or of `[hub:]ORG/NAME[@REVISION]`; an existing path wins.

    Raises:
        SourceError: There is no such folder, a header cannot be read, or there are no shards.
        RecordError: There is a record that cannot be read.
        HubError: The Hub refused, or could not be reached.
    """
    parsed = parse_spec(spec)
    if parsed is None:
        return _open(_folder(Path(spec)))
    return _open(_repo(*parsed, api or make_api()))


def _folder(folder: Path) -> _Place:
    source = LocalSource(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    # Shards are as large as a disk is slow: `inspect` hashes them, here their sizes and headers are compared.
    record = read_record(folder)
    recorded = record.hashes() if record is not None else {}
    hashes = {name: recorded.get(name) if _is_shard(name) else source.sha256(name) for name in names}
    return _Place(
        name=str(folder),
        folder=folder,
        commit=None,
        record=record,
        files=[
            FileRecord(name=name, sha256=digest or "0" * 64, nbytes=(folder / name).stat().st_size)
            for name, digest in hashes.items()
        ],
        assets=asset_names(folder),
        headers=lambda shards: {name: read_header(folder / name) for name in shards},
        read=lambda name: (folder / name).read_bytes(),
    )


def _repo(repo: str, revision: str | None, api: HfApi) -> _Place:
    source = HubSource(repo, revision, api=api)
    commit = source.identity.commit
    assert commit is not None
    listed = PatientHub(api, READING).attempt(repo, lambda: list_files(api, repo, commit))
    assets = [name for name in listed if name.startswith(ASSETS_PREFIX)]
    names = source.published_files
    record = decode_record(source.read_file(RECORD_FILE)) if RECORD_FILE in names else None
    if record is not None:  # a repo may hold more, which is its owner's
        recorded = record.hashes()
        names = tuple(name for name in names if name in recorded or name in DERIVED_FILES)
    return _Place(
        name=source.name,
        folder=None,
        commit=commit,
        record=record,
        files=[FileRecord(name=name, sha256=source.sha256(name), nbytes=source.nbytes(name)) for name in names],
        assets=sorted(assets),
        headers=source.headers,
        read=source.read_file,
    )


def _is_shard(name: str) -> bool:
    return name.endswith(".safetensors")


def _open(place: _Place) -> Opened:
    names = [file.name for file in place.files]
    headers = place.headers([name for name in names if _is_shard(name)])
    if not headers:
        raise SourceError("no safetensors files", where=place.name, remedy="check the name")
    record = place.record
    raw = place.read(CARD_FILE) if CARD_FILE in names else b""
    card, faults = _foreign_card(raw, place.name) if place.record is None else (decode_card(raw, place.name), ())
    measurement = measure_files(headers, place.files, place.read, record)
    subject: Record | Unrecorded
    if record is not None:
        subject = record
    else:
        unread = Unread(
            name=place.name if place.folder is None else place.folder.resolve().name,
            repo=place.name if place.folder is None else None,
            headers=headers,
            config=parse_object(place.read(CONFIG_FILE), CONFIG_FILE) if CONFIG_FILE in names else {},
            card=card,
        )
        subject = describe_unrecorded(unread, measurement.facts)
    statements = {name: place.read(name) for name in (PROVENANCE_FILE, TEST_RESULT_FILE) if name in names}
    problems = (*measurement.disagreements, *faults)
    mendable: tuple[str, ...] = ()
    if record is not None:
        problems += _misplaced(place, record)
        mendable = check_statements(record, statements)
    if record is not None and place.folder is not None:
        problems += _touched(place.folder, record)
    return Opened(
        name=place.name,
        folder=place.folder,
        commit=place.commit,
        subject=subject,
        card=card,
        assets=tuple(place.assets),
        statements=statements,
        disagreements=problems,
        mendable=mendable,
    )


def _foreign_card(raw: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    """Somebody's card as far as it can be read, and what cannot be read of it."""
    try:
        card = decode_card(raw, name)
    except OutputError as error:
        return raw.decode("utf-8", errors="replace"), (f"{CARD_FILE}: {error}",)
    fault = find_card_fault(card)
    return card, () if fault is None else (fault,)


def _touched(folder: Path, record: Record) -> tuple[str, ...]:
    """That shards may be others than were validated, in a sentence; their hashes would take too long to say."""
    names = [name for name in find_touched(folder, record) or () if _is_shard(name)]
    remedy = "run `hubtool validate --integrity` to see whether their bytes changed"
    return (f"{describe_touched(names)} since the validation; {remedy}",) if names else ()


def _misplaced(place: _Place, record: Record) -> tuple[str, ...]:
    """That a repo has the record of another, where it has: a copy, say, whose commands would fetch the original."""
    if place.folder is not None or record.repo in (None, place.name):
        return ()
    return (f"{RECORD_FILE}: published as {record.repo}, but this is {place.name}",)


def make_card(opened: Opened, templates: Path | None = None, may_replace: Replace = never) -> str:
    """A fresh card around what people wrote in the one that is there.

    Args:
        opened: The folder or repo.
        templates: A folder of templates that go before hubtool's; those that a folder was made with last if None.
        may_replace: Asks whether what people wrote may be replaced where it cannot be kept.

    Raises:
        OutputError: The card cannot be read, or kept, and nobody allows to replace what was written.
        UsageError: A template cannot be used.
    """
    if isinstance(opened.subject, Unrecorded):
        return render_card(opened.subject, templates, assets=opened.assets)
    worded = Wording(find_templates(opened.folder, templates), may_replace=may_replace)
    made = _made(opened, opened.subject, worded)
    where = f"{opened.name}: {CARD_FILE}" if opened.folder is None else str(opened.folder / CARD_FILE)
    require_kept(made.own, where, may_replace, describe_change(opened.card, made.card))
    return made.card


def _made(opened: Opened, record: Record, wording: Wording) -> Made:
    """A fresh card of a record around what people wrote in the one of a folder or repo."""
    before = None if opened.folder is None else read_generated(opened.folder, opened.card)
    if before is None:
        before = known_generated(opened.record, opened.card, opened.assets, wording.templates)
    return documents.make_card(record, opened.card, opened.assets, wording, before)


@dataclass(frozen=True)
class Checked:
    """What is wrong with a card.

    Attributes:
        problems: Every figure and claim that is not what record and bytes say, as sentences; none if it holds.
        how: How it was compared: see `Comparison`.
    """

    problems: tuple[str, ...]
    how: str

    @property
    def remark(self) -> str:
        """What a person should know of how it was compared; empty where it is as exact as can be."""
        if self.how == "line by line":
            return ""
        return f"compared {self.how}: other templates made it; `hubtool card` makes it again"


def check(opened: Opened, templates: Path | None = None) -> Checked:
    """Hold the card against record and bytes.

    Raises:
        OutputError: The publisher's text cannot be separated from the generated card.
        UsageError: A template cannot be used.
    """
    if not opened.card:
        return Checked((f"{CARD_FILE}: missing", *opened.problems), "line by line")
    compared = check_card(opened.card, opened.subject, templates, opened.assets)
    findings = (f"{CARD_FILE}: {finding}" for finding in compared.findings)
    return Checked((*findings, *opened.problems), compared.how)


def diff(opened: Opened, card: str) -> str:
    """The change from the card that is there to `card`, as `diff -u` writes it; empty if there is none."""
    return describe_change(opened.card, card)


def write_card(opened: Opened, card: str, templates: Path | None = None) -> tuple[str, ...]:
    """Write the card of a folder, and its provenance; the names of the files that changed.

    Raises:
        OutputError: It is no folder.
        SourceError: It has no record.
    """
    folder = opened.folder
    if folder is None:
        raise OutputError("not a folder", where=opened.name, remedy="push it, or write what is printed to a file")
    written = {CARD_FILE: card.encode(), **make_statements(opened.record)}
    generated = render_card(opened.record, find_templates(folder, templates), assets=opened.assets)
    keep_templates(folder, templates)
    keep_generated(folder, generated)
    changed = [name for name, content in written.items() if _differs(folder / name, content)]
    for name in changed:
        write_beside(folder / name, written[name])
    return (*changed, *remove_stale(folder, written))


def _differs(path: Path, content: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != content


def push_card(
    api: HfApi,
    opened: Opened,
    templates: Path | None = None,
    *,
    dry_run: bool = False,
    may_replace: Replace = never,
) -> Pushed:
    """Commit the card of a folder or repo to its repo, with the record and what is made of it where those changed.

    What people wrote in the repo's own card is kept, and what they wrote in the folder's is added. With `dry_run`,
    nothing is committed.

    Raises:
        SourceError: It has no record.
        VerificationError: A record says what bytes do not, or the repo is another's copy.
        HubError: The repo holds other files than the record, someone has committed meanwhile, or the Hub refused.
        OutputError: Folder and repo have different prose in one section, or a file tells of the publisher's machine.
    """
    record = opened.record
    repo = opened.name if opened.folder is None else record.repo
    if repo is None:
        raise SourceError("not published yet", where=opened.name, remedy="publish it with `hubtool upload` first")
    there = opened if opened.folder is None else open_card(f"{HUB_PREFIX}{repo}", api)
    assert there.commit is not None
    if there.record.subject != record.subject:
        raise HubError(
            "the repo holds other files than the folder",
            where=repo,
            found=there.record.subject,
            expected=record.subject,
            remedy="upload the folder",
        )
    _require_true(opened)
    _require_true(there)
    worded = Wording(find_templates(opened.folder, templates), may_replace=may_replace)
    assets = sorted({*there.assets, *(pictures := _pictures(opened, there))})
    made = _made(replace(opened, assets=tuple(assets)), record, worded)
    base = read_base(opened.folder, api.endpoint, Destination(repo).key) if opened.folder else Base()
    page = Page(there.name, there.card, there.record, there.assets)
    if opened.folder is None:
        made = replace(made, own=Own())
    card = merge_page(made, page, base, opened.name, worded).encode()
    files = {CARD_FILE: card, **make_statements(record), **pictures}
    if encode_record(record) != encode_record(there.record):
        files[RECORD_FILE] = encode_record(record)
    known = {CARD_FILE: there.card.encode(), **there.statements}
    changed = {name: content for name, content in files.items() if known.get(name) != content}
    if not changed or dry_run:
        return Pushed(repo, there.commit, tuple(changed))
    message = f"Card regenerated with hubtool {hubtool.__version__}"
    commit = commit_documents(api, record, changed, Change(repo, there.commit, message))
    if opened.folder is not None:
        # What the page has and the folder lacks would count as deleted here the next time.
        keep_generated(opened.folder, made.generated)
        write_beside(opened.folder / CARD_FILE, card)
        keep_base(opened.folder, api.endpoint, Destination(repo).key, card, made.generated)
    return Pushed(repo, commit, tuple(changed))


def _require_true(opened: Opened) -> None:
    """Raise VerificationError if a card of this record would say what is not so, of the repo too."""
    problems = list(opened.disagreements)
    if change := find_change(opened.record):
        problems.append(change.detail)  # of this folder's files: the repo's may be as they were
    if problems:
        raise VerificationError(
            "record and bytes disagree",
            where=opened.name,
            found="; ".join(problems),
            remedy="publish the folder again with `hubtool upload`",
        )


def _pictures(opened: Opened, there: Opened) -> dict[str, bytes]:
    """The folder's pictures that the repo lacks, and all of them if the record has changed."""
    if opened.folder is None:
        return {}
    changed = opened.subject != there.subject
    names = opened.assets if changed else [name for name in opened.assets if name not in there.assets]
    return {name: (opened.folder / name).read_bytes() for name in names}


def with_pictures(opened: Opened, pictures: Mapping[str, bytes]) -> Opened:
    """The folder as it is with these pictures; see `write_pictures`.

    Raises:
        OutputError: It is no folder.
    """
    if opened.folder is None:
        raise OutputError("not a folder", where=opened.name, remedy="draw the pictures in a folder, and push it")
    return replace(opened, assets=tuple(sorted({*opened.assets, *pictures})))


def write_pictures(opened: Opened, pictures: Mapping[str, bytes]) -> None:
    """Write pictures to the folder."""
    assert opened.folder is not None, opened.name
    (opened.folder / ASSETS_PREFIX).mkdir(exist_ok=True)
    for name, content in pictures.items():
        write_beside(opened.folder / name, content)
