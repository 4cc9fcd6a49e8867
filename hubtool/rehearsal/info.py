"""What the Hub derives from a repo's files: card data, tags, library, config, safetensors parameters."""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator

import yaml

from hubtool.hubrules import read_metadata
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
    card = card_data(hub, commit)
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
        "tags": _tags(card, commit),
        "usedStorage": repo.used_nbytes,
        "siblings": [_sibling(path, file, blobs=blobs) for path, file in commit.files.items()],
        "spaces": [],
    }
    if card:
        info["cardData"] = card
    for key in ("pipeline_tag", "library_name"):
        if isinstance(card.get(key), str):
            info[key] = card[key]
    config = _config(hub, commit)
    if config:
        info["config"] = {key: config[key] for key in CONFIG_KEYS if key in config}
    parameters = _parameters(hub, commit)
    if parameters:
        info["safetensors"] = {"parameters": dict(parameters), "total": sum(parameters.values())}
    return info


def card_data(hub: Hub, commit: Commit) -> dict[str, object]:
    """The front matter of README.md, empty where there is none that can be read."""
    text = (hub.read_regular(commit.files.get("README.md")) or b"").decode("utf-8", "replace")
    try:
        # YAML has dates, JSON has not: they are given as text.
        return dict(json.loads(json.dumps(read_metadata(text), default=str)))
    except yaml.YAMLError:
        return {}


def _config(hub: Hub, commit: Commit) -> dict[str, object]:
    try:
        config = json.loads(hub.read_regular(commit.files.get("config.json")) or b"{}")
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _tags(card: dict[str, object], commit: Commit) -> list[str]:
    """Library, formats and everything the card says that the Hub makes a tag of."""
    tags = [str(card["library_name"])] if "library_name" in card else []
    if any(path.endswith(".safetensors") for path in commit.files):
        tags.append("safetensors")
    tags += _strings(card.get("tags"))
    relation = card.get("base_model_relation")
    for base in _strings(card.get("base_model")):
        tags.append(f"base_model:{base}")
        if isinstance(relation, str):
            tags.append(f"base_model:{relation}:{base}")
    tags += [f"license:{name}" for name in _strings(card.get("license"))]
    tags += _strings(card.get("language"))
    return list(dict.fromkeys(tags))


def _strings(value: object) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item is not None]


def _sibling(path: str, file: File, *, blobs: bool) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": path}
    if blobs:
        sibling |= {"size": file.nbytes, "blobId": file.oid}
    if blobs and file.sha256 is not None:
        pointer = len(git.lfs_pointer(file.sha256, file.nbytes))
        sibling["lfs"] = {"sha256": file.sha256, "size": file.nbytes, "pointerSize": pointer}
    return sibling


def _parameters(hub: Hub, commit: Commit) -> Counter[str]:
    """Stored elements by dtype over all safetensors files, packed ones counted as they are stored."""
    counts: Counter[str] = Counter()
    for path, file in commit.files.items():
        if path.endswith(".safetensors"):
            for dtype, shape in _tensors(hub, file):
                counts[dtype] += math.prod(shape)
    return counts


def _tensors(hub: Hub, file: File) -> Iterator[tuple[str, list[int]]]:
    blob = hub.blobs.get(file.sha256) if file.sha256 else None
    if blob is None:
        return
    with blob.path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        header = stream.read(length) if 0 < length <= HEADER_LIMIT else b""
    try:
        tensors = json.loads(header)
        yield from ((entry["dtype"], entry["shape"]) for name, entry in tensors.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError):
        return
