"""A checkpoint on the Hub, read at one commit: headers by ranged reads, weights fetched ahead of the converter.

To plan takes no weights: a request for the commit, one for the list of files, one each for config.json and the index,
and one a shard for its header.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from huggingface_hub import HfApi

from hubtool.checkpoint.identity import UNKNOWN, Identity, merge_identity
from hubtool.checkpoint.prefetch import Downloads, Storage, Traffic
from hubtool.checkpoint.source import Checkpoint, SourceSpec
from hubtool.checkpoint.tensors import Header, header_length, parse_header
from hubtool.errors import SourceError, redact
from hubtool.files.read import AGAIN
from hubtool.hub.client import HubFile, list_files, make_api, require_head
from hubtool.hub.patience import READING, PatientHub
from hubtool.hub.reader import RepoReader, read_hub_file

HEAD_NBYTES = 512 << 10
"""Read of a shard at first, which holds its header nearly always: V4-Flash's have up to 400 kB."""

HEADERS_AT_ONCE = 8


class HubSource(Checkpoint):
    """A checkpoint in a repo on the Hub.

    Without `storage`, `read_into` reads straight from the Hub; so it does where the storage's limit leaves no room.

    Args:
        repo: `org/name`.
        revision: A branch, tag or commit; `main` by default. It is resolved once, to a commit.
        api: The Hub; the one that HF_ENDPOINT and HF_TOKEN, or the stock login, name by default.
        stated: What the publisher says it is.
        storage: Where the shards named to `prepare` are fetched to.

    Raises:
        HubError: The Hub cannot be reached, has no such repo or revision, or does not let this token see it.
        UsageError: `stated` contradicts the Hub; `storage` has no room for a shard.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        *,
        api: HfApi | None = None,
        stated: Identity = UNKNOWN,
        storage: Storage | None = None,
    ) -> None:
        api = api or make_api()
        where = f"{repo}@{revision}" if revision else repo
        hub = PatientHub(api, READING)
        info = hub.attempt(
            f"{where} on {redact(api.endpoint)}", lambda: api.model_info(repo, revision=revision, expand=["sha"])
        )
        commit = require_head(info)
        self._listing = hub.attempt(where, lambda: list_files(api, info.id, commit, recursive=False))
        self.name = info.id
        self._endpoint = api.endpoint
        self.identity = merge_identity(Identity(info.id, "observed", commit, "observed"), stated)
        self._reader = RepoReader(api, info.id, commit)
        self._pass = 0
        self._hashes: dict[str, str] = {}
        self._optional: dict[str, bytes | None] = {}
        self._hub = hub
        self._unverified: set[str] = set()
        self._downloads = None if storage is None else Downloads(self._reader, storage, self._weights())

    @cached_property
    def spec(self) -> SourceSpec:
        """The repo at its commit, on its Hub; whoever opens it takes a token of their own."""
        return SourceSpec(self._reader.repo, self._reader.commit, self._endpoint, self.layout)

    @cached_property
    def shards(self) -> Mapping[str, Header]:
        """Headers by file name; every shard that the index names is there and as long as its header says."""
        return self.headers(self.shard_names)

    def headers(self, names: Iterable[str]) -> Mapping[str, Header]:
        """Headers of these files by name, several read at once.

        Raises:
            SourceError: A file is not there, or is not a safetensors file: see `parse_header`.
            HubError: The Hub refused, or could not be reached.
        """
        files = [self._existing(name) for name in names]
        with ThreadPoolExecutor(HEADERS_AT_ONCE, "hubtool-headers") as pool:
            try:
                return dict(zip([file.name for file in files], pool.map(self._header, files), strict=True))
            except BaseException:
                self._reader.stop()
                raise

    def _header(self, file: HubFile) -> Header:
        raw = self._reader.read(file.name, 0, min(HEAD_NBYTES, file.nbytes)) if file.nbytes else b""
        end = 8 + header_length(raw[:8], file.name, file.nbytes)
        if end > len(raw):
            raw += self._reader.read(file.name, len(raw), end)
        return parse_header(raw[8:end], file.name, file.nbytes)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the top folder's files that are not weights, sorted; hidden ones are left out."""
        return tuple(name for name in self.published_files if name not in self._weights())

    @property
    def published_files(self) -> tuple[str, ...]:
        """Names of all files of the top folder, sorted; hidden ones are left out."""
        return tuple(sorted(name for name in self._listing if not name.startswith(".")))

    def read_file(self, name: str) -> bytes:
        """The bytes of a small file.

        Raises:
            SourceError: There is no such file.
            HubError: The Hub refused, could not be reached, or sent other bytes than its own hash says.
        """
        file = self._existing(name)
        content = self._reader.read(name) if file.nbytes else b""
        digest = file.hasher()
        digest.update(content)
        if digest.hexdigest() != file.etag:
            raise self._reader.wrong_bytes(file, digest.hexdigest())
        self._hashes[name] = hashlib.sha256(content).hexdigest()
        return content

    def read_optional(self, name: str) -> bytes | None:
        """The bytes of a small file at a path in the repo, None if there is none."""
        if name not in self._optional:
            commit = self.identity.commit
            assert commit is not None
            self._optional[name] = read_hub_file(self._hub, self.name, commit, name)
        return self._optional[name]

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a shard, starting `offset` bytes into it; safe from several threads at once.

        Waits for a shard that is on its way, and reads straight from the Hub what is not.

        Raises:
            HubError: The Hub refused, or could not be reached; the pass was stopped.
            SourceError: The disk failed.
        """
        if self._downloads is not None and self._downloads.read_into(file, offset, buffer):
            return
        self._unverified.add(file)
        buffer[:] = self._reader.read(self._existing(file).name, offset, offset + len(buffer), stops=self._pass)
        if self._downloads is not None:
            self._downloads.count_direct(len(buffer))

    def sha256(self, file: str) -> str:
        """The SHA-256 of a file's bytes in hexadecimal.

        For a shard, what the Hub says: a fetched one is used only if its bytes come to that; for one in `unverified`
        it is no more than the Hub's word. Any other file that the Hub has no SHA-256 of is fetched.
        """
        known = self._existing(file).sha256 or self._hashes.get(file)
        if known is None:
            self.read_file(file)
            known = self._hashes[file]
        return known

    def prepare(self, files: Sequence[str]) -> None:
        """Start to fetch these shards in their order, as far as there is room; see `Source.prepare`."""
        self._pass = self._reader.stops
        if self._downloads is not None:
            self._downloads.prepare(files)

    def release(self, file: str) -> None:
        """Drop a shard that was fetched, unless it is to be kept; see `Source.release`."""
        if self._downloads is not None:
            self._downloads.release(file)

    def stop(self) -> None:
        """End the downloads, and the reads that wait; see `Source.stop`."""
        self._reader.stop()
        if self._downloads is not None:
            self._downloads.stop()

    def close(self) -> None:
        """End the downloads and close what was fetched; nothing may read any more."""
        self._reader.stop()
        if self._downloads is not None:
            self._downloads.close()

    @property
    def disk_nbytes(self) -> int:
        """Most bytes of disk that shards will take beside those that were fetched already."""
        return 0 if self._downloads is None else self._downloads.disk_nbytes

    @property
    def unverified(self) -> frozenset[str]:
        """Shards of which rows were read straight from the Hub, so that nobody saw all of their bytes."""
        return frozenset(self._unverified)

    @property
    def traffic(self) -> Traffic:
        """What was fetched so far; it changes while shards come."""
        return Traffic() if self._downloads is None else self._downloads.traffic

    def nbytes(self, file: str) -> int:
        """The size of a file in bytes."""
        return self._existing(file).nbytes

    def stamp(self, file: str) -> str:
        """The Hub's hash of the file."""
        return self._existing(file).etag

    def _existing(self, name: str) -> HubFile:
        file = self._listing.get(name)
        if file is None:
            commit = self.identity.commit
            raise SourceError("missing file", where=name, found=f"nothing in {self.name} at {commit}", remedy=AGAIN)
        return file

    def _weights(self) -> Mapping[str, HubFile]:
        return {name: file for name, file in self._listing.items() if name.endswith(".safetensors")}
