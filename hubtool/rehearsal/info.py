"""What the Hub derives from a repo's files: card data, tags, library, config, safetensors parameters."""

import functools
import struct
from collections.abc import Iterator
from pathlib import Path

from hubtool.errors import SourceError
from hubtool.files.formats import parse_object
from hubtool.files.header import parse_header_json
from hubtool.hub.page import hub_tags
from hubtool.hub.rules import count_parameters, read_metadata
from hubtool.rehearsal import git
from hubtool.rehearsal.blobs import HEADER_LIMIT
from hubtool.rehearsal.hub import Hub
from hubtool.rehearsal.repos import Commit, File, Repo
from hubtool.rehearsal.times import timestamp

CONFIG_KEYS = ("architectures", "model_type", "quantization_config", "auto_map")
"""Those of config.json that the Hub repeats."""


def describe(hub: Hub, repo: Repo, commit: Commit, *, blobs: bool) -> dict[str, object]:
    """The body of the model info endpoint.

    Args:
        hub: Holds the files.
        repo: The repo.
        commit: The revision asked for.
        blobs: Give size and hashes of every file.
    """
    card, config = card_data(hub, commit), read_config(hub, commit)
    info: dict[str, object] = {
        "_id": git.blob_oid(repo.name.encode())[:24],
        "id": repo.name,
        "modelId": repo.name,
        "author": repo.namespace,
        "sha": commit.oid,
        "createdAt": timestamp(repo.settings.created),
        "lastModified": timestamp(commit.date),
        "private": repo.settings.private,
        "gated": repo.settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": hub_tags(card, config, commit.files),
        "usedStorage": repo.used_nbytes,
        "siblings": [_sibling(path, file, blobs=blobs) for path, file in commit.files.items()],
        "spaces": [],
    }
    if card:
        info["cardData"] = card
    for key in ("pipeline_tag", "library_name"):
        if isinstance(card.get(key), str):
            info[key] = card[key]
    if config:
        info["config"] = {key: config[key] for key in CONFIG_KEYS if key in config}
    parameters = count_parameters(_tensors(hub, commit), config)
    if parameters:
        info["safetensors"] = {"parameters": parameters, "total": sum(parameters.values())}
    return info


def card_data(hub: Hub, commit: Commit) -> dict[str, object]:
    """The front matter of README.md, empty where there is none that can be read."""
    text = (hub.read_regular(commit.files.get("README.md")) or b"").decode("utf-8", "replace")
    try:
        return read_metadata(text)
    except SourceError:
        return {}


def read_config(hub: Hub, commit: Commit) -> dict[str, object]:
    """What config.json holds, empty where there is none that can be read."""
    try:
        return parse_object(hub.read_regular(commit.files.get("config.json")) or b"{}", "config.json")
    except SourceError:
        return {}


def _sibling(path: str, file: File, *, blobs: bool) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": path}
    if blobs:
        sibling |= {"size": file.nbytes, "blobId": file.oid}
    if blobs and file.sha256 is not None:
        pointer = len(git.lfs_pointer(file.sha256, file.nbytes))
        sibling["lfs"] = {"sha256": file.sha256, "size": file.nbytes, "pointerSize": pointer}
    return sibling


def _tensors(hub: Hub, commit: Commit) -> Iterator[tuple[str, str, list[int]]]:
    """Name, dtype and shape of every tensor in the safetensors files; files that cannot be read have none."""
    for path, file in commit.files.items():
        if path.endswith(".safetensors") and file.sha256 and (blob := hub.blobs.get(file.sha256)):
            yield from _header(blob.path)


@functools.lru_cache(maxsize=64)
def _header(path: Path) -> tuple[tuple[str, str, list[int]], ...]:
    """Name, dtype and shape of every tensor. Stored objects never change, so that a header is read once."""
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        header = stream.read(length) if 0 < length <= HEADER_LIMIT else b""
    try:
        _, entries = parse_header_json(header, path.name, "")
    except SourceError:
        return ()
    return tuple((name, entry.dtype, list(entry.shape)) for name, entry in entries.items())
