"""The checkpoint on the Hub that the tests read."""

from pathlib import Path

from hubtool.checkpoint.remote import HubSource

REPO = "someone/mini"
FINISHED = "someone/mini-3bit"


def read_shard(source: HubSource, name: str) -> bytes:
    """A shard's bytes, in two reads."""
    buffer = bytearray(source.nbytes(name))
    half = len(buffer) // 2
    source.read_into(name, 0, memoryview(buffer)[:half])
    source.read_into(name, half, memoryview(buffer)[half:])
    return bytes(buffer)


def shard_sizes(folder: Path) -> dict[str, int]:
    """Sizes of the shards that lie in a folder under their names."""
    return {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
