"""The control group that this process lives in, as in a container or a batch job: its limits and its pressure."""

from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 1 << 60
"""cgroup v1 writes a number near 2^63 where there is no limit."""

V1_ROOT = Path("/sys/fs/cgroup/memory")
V2_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
"""The second is where version 2 is mounted beside version 1."""


def limits() -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each control group that holds this process, of version 1 and 2."""
    for folder in _folders(V2_ROOTS[0], _own_path("")):
        yield from _limit(folder, "memory.max", "memory.current", ("inactive_file", "active_file"))
    for folder in _folders(V1_ROOT, _own_path("memory")):
        cache_keys = ("total_inactive_file", "total_active_file")
        yield from _limit(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", cache_keys)


def room() -> int | None:
    """Bytes that the groups leave, None if they have no limit."""
    return min((max(limit - used, 0) for limit, used in limits()), default=None)


def pressure_file() -> Path | None:
    """Where this process's own group tells its pressure, None if it is in none but the system's, or in version 1."""
    path = _own_path("")
    for root in V2_ROOTS if path is not None else ():
        own = root / str(path).lstrip("/")
        # A container sees its own group as the root, but only the system's has no limit to show.
        if (own / "memory.pressure").is_file() and (own != root or (own / "memory.max").is_file()):
            return own / "memory.pressure"
    return None


def _own_path(controller: str) -> str | None:
    """This process's group below the root, of a controller of version 1, or of version 2 if it is empty."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = [line.split(":", 2)[2] for line in lines if controller in line.split(":", 2)[1].split(",")]
    return found[0] if found else None


def _folders(root: Path, path: str | None) -> Iterator[Path]:
    """The folder of a group and those of the groups that hold it."""
    if path is not None:
        group = root / path.lstrip("/")
        yield from (group, *(parent for parent in group.parents if parent.is_relative_to(root)))


def _limit(folder: Path, limit: str, used: str, cache_keys: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    try:
        text = (folder / limit).read_text().strip()
        if text == "max" or int(text) >= NO_LIMIT:
            return
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Files that were read are given up before anything else: they do not count as used.
        yield int(text), int((folder / used).read_text()) - sum(int(stat.get(key, 0)) for key in cache_keys)
    except OSError:
        return
