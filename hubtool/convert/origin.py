"""What an output folder was begun with, kept in `.hubtool/plan.json`, and whether the same is wanted now."""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from hubtool.checkpoint.source import CONFIG_FILE, Source
from hubtool.convert.device import require_backend
from hubtool.convert.job import ERROR_ROWS, Job
from hubtool.errors import OutputError
from hubtool.files.formats import decode_json
from hubtool.files.whole import STATE_DIR, reading, write_beside
from hubtool.plan.plan import Plan
from hubtool.record import RECORD_FILE

BYTE_FORMAT = 1
"""Changes whenever the same plan would give other bytes than before."""


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides the bytes of a folder, and the options of the first run in it.

    Attributes:
        plan: The plan's digest.
        source: A digest of the source's identity: see `source_signature`.
        byte_format: hubtool's own mark of how bytes are made; it changes when they would.
        backend: MLX's backend: quantizing on a GPU rounds about one weight in a hundred differently than on a CPU.
        mlx: MLX's version: another may round differently.
        error_rows: Every how many-th row's error is measured, in every run: 1 for all, 0 for none.
        commit: The source's commit then, if it was known; the same bytes may since stand under another.
        statistics: SHA-256 of the statistics that scales are fitted to; None if they are not fitted.
    """

    plan: str
    source: str
    byte_format: int
    backend: str
    mlx: str
    error_rows: int
    commit: str | None
    statistics: str | None = None


def source_signature(source: Source) -> str:
    """A digest of the source's config.json, headers and stamps, to notice that it is another one.

    Its commit is not in it: the same shards may stand under several.
    """
    digest = hashlib.sha256(f"{source.sha256(CONFIG_FILE)}\n".encode())
    for file, header in source.shards.items():
        digest.update(f"{file} {header.nbytes} {header.data_nbytes} {source.stamp(file)}\n".encode())
    return digest.hexdigest()


def check_folder(job: Job, source: Source) -> None:
    """Raise OutputError if the folder is not empty and was not begun with the same plan and source."""
    folder = job.folder
    if not holds_anything(folder):
        return
    begun = read_origin(folder)
    if begun is None:
        raise OutputError(
            "the output folder is not empty, and hubtool has not begun it",
            where=folder,
            remedy="give another --out, or empty it",
        )
    changes = describe_change(begun, make_origin(job.plan, source))
    if changes.keys() <= {"backend", "mlx"} and (folder / RECORD_FILE).is_file():
        return  # nothing is left to be made
    if changes:
        moved = "source" in changes and source.identity.repo and begun.commit not in (None, source.identity.commit)
        go_on = f"go on with {source.identity.repo}@{begun.commit}, " if moved else ""
        raise OutputError(
            "the output folder was begun with something else",
            where=folder,
            found=" and ".join(changes.values()),
            remedy=f"{go_on}give another --out, or remove the folder",
        )


def make_origin(plan: Plan, source: Source, error_rows: int = ERROR_ROWS) -> Origin:
    """What decides the output bytes of a plan over a source on this machine."""
    backend, mlx = require_backend(), importlib.metadata.version("mlx")
    fitted = plan.statistics is not None and any(step.fit != "nearest" for step in plan.steps)
    return Origin(
        plan=plan.digest,
        source=source_signature(source),
        byte_format=BYTE_FORMAT,
        backend=backend,
        mlx=mlx,
        error_rows=error_rows,
        commit=source.identity.commit,
        statistics=plan.statistics.digest if plan.statistics and fitted else None,
    )


def begun_error_rows(work: Sequence[Job], error_rows: int) -> int:
    """Every how many-th row's error is measured: as the first run in these folders did, else `error_rows`.

    Measuring can be given up at any time: 0 stays 0.

    Raises:
        OutputError: They were begun differently, and a pass has one sample for all.
    """
    if not error_rows:
        return 0
    origins = [read_origin(job.folder) for job in work]
    begun = {origin.error_rows for origin in origins if origin is not None}
    if len(begun) > 1:
        raise OutputError(
            "folders that were begun with different --measure-error",
            where=", ".join(str(job.folder) for job in work),
            remedy="convert them one at a time",
        )
    return begun.pop() if begun else error_rows


def begin_folder(job: Job, source: Source, error_rows: int) -> None:
    """Write down what a job's folder, which is held, is made from, and every how many-th row's error is measured."""
    begun = read_origin(job.folder)
    if begun is None:
        write_origin(job.folder, make_origin(job.plan, source, error_rows))
    elif begun.error_rows != error_rows:
        write_origin(job.folder, msgspec.structs.replace(begun, error_rows=error_rows))


def holds_anything(folder: Path) -> bool:
    """Whether a folder holds more than a run leaves that was killed before it made anything: its lock, and downloads.

    Raises:
        OutputError: The folder cannot be read.
    """
    state = folder / STATE_DIR
    with reading(folder):
        if not folder.exists():
            return False
        made = any((state / name).exists() for name in ("plan.json", "journal", "partial"))
        return made or any(path != state for path in folder.iterdir())


def read_origin(folder: Path) -> Origin | None:
    """What the folder was begun with, or None if no conversion was begun in it."""
    path = folder / STATE_DIR / "plan.json"
    if not path.is_file():
        return None
    remedy = "remove the folder and convert again"
    return decode_json(path.read_bytes(), Origin, path, error=OutputError, remedy=remedy)


def write_origin(folder: Path, origin: Origin) -> None:
    """Write down what the folder is made from."""
    write_beside(folder / STATE_DIR / "plan.json", msgspec.json.encode(origin))


def describe_change(begun: Origin, now: Origin) -> Mapping[str, str]:
    """What has changed since a folder was begun, in words, by field; empty if nothing has."""
    words = {
        "plan": "the recipe or the source's layout has changed",
        "source": "the source's files have changed",
        "byte_format": "hubtool makes other bytes now",
        "backend": "MLX's backend was another, which rounds differently",
        "mlx": f"MLX was {begun.mlx} and is {now.mlx}, which may round differently",
    }
    if begun.commit and now.commit and begun.commit != now.commit:
        words["source"] += f" between commit {begun.commit} and {now.commit}"
    if begun.statistics != now.statistics:
        words["plan"] = f"scales were fitted {_spoken_statistics(begun)} and are fitted {_spoken_statistics(now)}"
    return {name: text for name, text in words.items() if getattr(begun, name) != getattr(now, name)}


def _spoken_statistics(origin: Origin) -> str:
    return f"to the statistics {origin.statistics[:12]}" if origin.statistics else "to none"
