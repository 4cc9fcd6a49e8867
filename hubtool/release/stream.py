"""`publish --stream`: each shard is sent while it is made, so that none ever lies on this disk.

Where xet is off, one shard at a time is spooled instead, because LFS wants its hash before its bytes.

    .hubtool/stream/SHARD.json    a shard that was made: its SHA-256, and the errors of its pieces
    .hubtool/stream/SHARD         its bytes, where it has to be spooled, until it was sent
    .hubtool/hub/                 what the Hub has of it all

A restart makes and sends only the shards that the Hub does not have. Disk is one module's scales and biases, or one
shard where xet is off; memory is that of a conversion and what hf_xet buffers.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from huggingface_hub import HfApi

from hubtool.card.documents import write_documents_of
from hubtool.checkpoint.measure import measure_files
from hubtool.checkpoint.remote import HubSource
from hubtool.checkpoint.source import Source
from hubtool.checkpoint.tensors import Header, parse_header
from hubtool.convert.config import write_documents
from hubtool.convert.convert import Converted
from hubtool.convert.engine import Makers
from hubtool.convert.job import Effort, Job
from hubtool.convert.journal import Progress
from hubtool.convert.origin import begin_folder, check_folder
from hubtool.convert.piece import ErrorSums
from hubtool.convert.record import Findings, hashing, record_findings
from hubtool.convert.stream import ShardStream
from hubtool.errors import HubError, SourceError, VerificationError
from hubtool.files.formats import decode_json
from hubtool.files.read import file_sha256
from hubtool.files.whole import STATE_DIR, write_beside, writing
from hubtool.guard.machine import this_machine, versions
from hubtool.hub.blobs import Blobs
from hubtool.hub.destination import Destination, Place, Proposal, make_place
from hubtool.hub.patience import PatientHub
from hubtool.hub.state import Blob, State
from hubtool.hub.upload import release_title
from hubtool.plan.plan import Plan, Shard
from hubtool.progress import Advance, HighWater, Watch, uncounted
from hubtool.record import Evidence, FileRecord, Record, read_record

STREAM_DIR = "stream"

UNREAD = (
    "the shards were sent while they were made and never lay on a disk; their hashes and headers are compared with "
    "what the Hub has, but no value was read back, and the model was neither loaded nor run"
)


class _MadeShard(msgspec.Struct, frozen=True):
    """What is known of a shard that was made.

    Attributes:
        plan: Digest of the plan that it was made by.
        sha256: Of its bytes, as they were made.
        nbytes: Their number.
        errors: Squared error and squared weight by piece number, where they were measured.
        unverified: Files of the source that had been read by then without their hashes having been checked.
    """

    plan: str
    sha256: str
    nbytes: int
    errors: dict[int, ErrorSums]
    unverified: frozenset[str] = frozenset()


@dataclass
class Streaming:
    """A variant that is sent while it is made.

    Attributes:
        hub: The Hub.
        source: The checkpoint.
        job: A plan, and the folder of state and small files, which is held: see `open_folders`.
        to: Where to.
        watch: Told how it goes.
        effort: How the conversion works.
    """

    hub: PatientHub
    source: Source
    job: Job
    to: Destination
    watch: Watch
    effort: Effort = Effort()
    _made: dict[str, _MadeShard] = field(default_factory=dict, init=False)

    def send(self, found: Place) -> tuple[Converted, Mapping[str, Blob]]:
        """The folder without its shards, which the Hub has then; nothing is committed.

        Args:
            found: The destination as it stood when the rights to it were checked; it is made if it was not there.

        Raises:
            HubtoolError: Any stage failed; what was sent stays sent, and the same call goes on.
        """
        plan, folder = self.job.plan, self.job.folder
        begin_folder(self.job, self.source, self.effort.error_rows)
        self._state_dir.mkdir(exist_ok=True)
        proposal = Proposal(release_title(plan.recipe.name, plan.digest), f"{len(plan.shards)} shards")
        place = make_place(self.hub, self.to, self._state(), proposal, found)
        with hashing(self.source, folder / STATE_DIR) as begin:
            hashed = begin()
            held, made = self._send_shards(place)
            record = self._record(held | made, hashed)
        return Converted(folder, record, fresh=bool(made)), held | made

    def _state(self) -> State:
        return State(self.job.folder, self.hub.api.endpoint, self.to.key)

    @property
    def _state_dir(self) -> Path:
        return self.job.folder / STATE_DIR / STREAM_DIR

    def _send_shards(self, place: Place) -> tuple[dict[str, Blob], dict[str, Blob]]:
        """The shards that the Hub had already, and those that were made and sent now."""
        plan = self.job.plan
        blobs = Blobs(self.hub, self.to.repo, place.revision, self._state())
        held = blobs.held()
        for shard in plan.shards:
            made = self._read_made(shard)
            if made is not None:
                self._made[shard.file] = made
        there = {name: held[name] for name, made in self._made.items() if _is(made, held.get(name))}
        left = [index for index, shard in enumerate(plan.shards) if shard.file not in there]
        sent: dict[str, Blob] = {}
        if not left:
            self.watch.say(f"{self.to.repo} has every shard already: nothing to send")
            return there, sent
        total = sum(plan.shards[index].nbytes for index in left)
        with (
            Makers(self.source, self.effort.jobs, self.effort.error_rows) as makers,
            self.watch.stage("stream", total) as advance,
        ):
            stream = ShardStream(makers, plan, left, self._state_dir)
            for index in left:
                sent[plan.shards[index].file] = self._send_shard(stream, index, blobs, advance)
                stream.release(index)
        return there, sent

    def _send_shard(self, stream: ShardStream, index: int, blobs: Blobs, advance: Advance) -> Blob:
        shard = self.job.plan.shards[index]
        spool = self._state_dir / shard.file
        mark = HighWater(lambda nbytes: advance(nbytes, shard.file))

        def chunks() -> Iterator[bytes]:
            return _marked(self._noted(shard, stream.chunks(index)), mark)

        if blobs.by_xet:
            blob = blobs.send_stream(shard.file, chunks)
        else:
            if shard.file not in self._made or not spool.is_file():
                _write_spool(spool, chunks())
            expected = self._made[shard.file].sha256
            blob = blobs.send_file(shard.file, spool, expected, uncounted)
            spool.unlink()
        made = self._made[shard.file]
        if not _is(made, blob):
            raise HubError(
                "what was sent is not what was made",
                where=f"{self.to.repo}: {shard.file}",
                found=f"sha256 {blob.sha256}, {blob.nbytes} bytes",
                expected=f"sha256 {made.sha256}, {made.nbytes} bytes",
                remedy="run it again; if it stays so, check this machine's memory",
            )
        return blob

    def _noted(self, shard: Shard, chunks: Iterator[tuple[bytes, Mapping[int, ErrorSums]]]) -> Iterator[bytes]:
        """The bytes of a shard; when the last was taken, what they came to is written down."""
        digest, nbytes, errors = hashlib.sha256(), 0, dict[int, ErrorSums]()
        for chunk, measured in chunks:
            digest.update(chunk)
            nbytes += len(chunk)
            errors |= measured
            yield chunk
        made = _MadeShard(self.job.plan.digest, digest.hexdigest(), nbytes, errors, self.source.unverified)
        write_beside(self._state_dir / f"{shard.file}.json", msgspec.json.encode(made))
        self._made[shard.file] = made

    def _read_made(self, shard: Shard) -> _MadeShard | None:
        path = self._state_dir / f"{shard.file}.json"
        if not path.is_file():
            return None
        try:
            made = decode_json(path.read_bytes(), _MadeShard, path)
        except SourceError:
            return None  # a hint that cannot be read is none
        return made if made.plan == self.job.plan.digest and made.nbytes == shard.nbytes else None

    def _record(self, sent: Mapping[str, Blob], source_files: Future[tuple[FileRecord, ...]]) -> Record:
        """The record of what was sent, and the small files beside it; that of an earlier run if nothing has changed."""
        check_folder(self.job, self.source)  # the source may have changed since it was read
        plan, folder = self.job.plan, self.job.folder
        shards = [FileRecord(name=name, sha256=blob.sha256, nbytes=blob.nbytes) for name, blob in sent.items()]
        documents = [_file_record(folder / name) for name in write_documents(self.source, plan, folder)]
        files = tuple(sorted([*shards, *documents], key=lambda file: file.name))
        earlier = read_record(folder)
        if earlier is not None and earlier.files == files:
            return earlier
        headers = {shard.file: planned_header(shard) for shard in plan.shards}
        measurement = measure_files(headers, files, lambda name: (folder / name).read_bytes(), None)
        errors = {number: sums for made in self._made.values() for number, sums in made.errors.items()}
        unverified = {file for made in self._made.values() for file in made.unverified}
        progress = Progress(errors=errors, unverified=unverified)
        findings = Findings(folder, source_files.result(), measurement, files, progress, self.effort.error_rows)
        record = record_findings(self.source, plan, findings)
        record = msgspec.structs.replace(record, evidence=(_unread(record),))
        write_documents_of(folder, record)
        return record


def require_planned_headers(api: HfApi, repo: str, commit: str, plan: Plan) -> None:
    """Raise VerificationError if a header on the Hub, read there in part, is not the planned one."""
    found = HubSource(repo, commit, api=api).headers([shard.file for shard in plan.shards])
    wrong = [shard.file for shard in plan.shards if found[shard.file] != planned_header(shard)]
    if wrong:
        raise VerificationError(
            "headers on the Hub are not those that were planned", where=repo, found=", ".join(wrong)
        )


def planned_header(shard: Shard) -> Header:
    """The header that a shard of the plan has."""
    return parse_header(shard.header[8:], shard.file, shard.nbytes)


def _marked(chunks: Iterator[bytes], mark: HighWater) -> Iterator[bytes]:
    """The same bytes, each counted once when it was taken, though a repetition makes it again."""
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        mark.reach(done)


def _is(made: _MadeShard, blob: Blob | None) -> bool:
    return blob is not None and (blob.sha256, blob.nbytes) == (made.sha256, made.nbytes)


def _write_spool(path: Path, chunks: Iterator[bytes]) -> None:
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        for chunk in chunks:
            with writing(path):
                file.write(chunk)
    beside.rename(path)


def _file_record(path: Path) -> FileRecord:
    return FileRecord(name=path.name, sha256=file_sha256(path), nbytes=path.stat().st_size)


def _unread(record: Record) -> Evidence:
    """What was not validated, and why."""
    return Evidence(
        check="integrity",
        outcome="not_run",
        detail=UNREAD,
        figures={},
        machine=this_machine(),
        versions=versions(()),
        command="hubtool publish --stream",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        subject=record.subject,
    )
