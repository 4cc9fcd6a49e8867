"""What needs no weights and no MLX: opening a source, planning what recipes make of it, measuring what is there."""

from collections.abc import Sequence
from pathlib import Path

from hubtool.architectures import read_model
from hubtool.errors import SourceError, UsageError
from hubtool.identity import UNKNOWN, parse_base_model
from hubtool.journal import STATE_DIR
from hubtool.measure import Measurement, measure, measure_files
from hubtool.plan import Plan, make_plan
from hubtool.recipe import load_recipe
from hubtool.record import RECORD_FILE, FileRecord, decode_record, read_record
from hubtool.source import LocalSource, Source, parse_spec

SOURCE_DIR = "source"
"""Where shards of a repo are fetched to, in the state of the folder that is made of them."""


def open_source(
    spec: str,
    base_model: str | None = None,
    *,
    out: Path | None = None,
    disk_limit: int | None = None,
    keep_source: bool = False,
) -> Source:
    """The checkpoint that a command line names.

    Args:
        spec: A folder, or `org/name[@revision]` on the Hub. A path that exists is a folder; `hub:` before a name says
            that it is not.
        base_model: What the publisher says it is, `ORG/NAME[@COMMIT]`.
        out: The folder that will be made of it: shards of a repo are fetched into its state. Without one, weights are
            read straight from the Hub.
        disk_limit: Most bytes of fetched shards at once.
        keep_source: Whether fetched shards stay.

    Raises:
        SourceError: There is no such folder.
        HubError: There is no such repo or revision, or the Hub does not let it be read.
        UsageError: `base_model` is not one or contradicts what is known; `disk_limit` is too small; `out` lies in the
            source.
    """
    stated = parse_base_model(base_model) if base_model else UNKNOWN
    repo = parse_spec(spec)
    if repo is None:
        source = LocalSource(Path(spec), stated)
        if out is not None and out.resolve().is_relative_to(source.folder.resolve()):
            raise UsageError(
                "the output would lie in the source, which is never written to",
                where=out,
                found=f"a folder of {spec}",
                expected="a folder outside it",
                remedy="give another --out",
            )
        return source
    from hubtool.downloads import Storage  # the Hub's client takes longer to import than a plan to make
    from hubtool.hub_source import HubSource

    storage = Storage(out / STATE_DIR / SOURCE_DIR, disk_limit, keep_source) if out else None
    return HubSource(*repo, stated=stated, storage=storage)


def inspect_source(spec: str) -> Measurement:
    """What a finished folder holds, or a repo on the Hub: there from headers and the Hub's hashes, without weights.

    Raises:
        SourceError: There is no such folder, a header cannot be read, or there are no shards.
        RecordError: There is a record that cannot be read.
        HubError: The Hub refused, or could not be reached.
    """
    repo = parse_spec(spec)
    if repo is None:
        folder = LocalSource(Path(spec)).folder
        return measure(folder, read_record(folder))
    from hubtool.hub_source import HubSource

    source = HubSource(*repo)
    names = source.published_files
    headers = source.headers([name for name in names if name.endswith(".safetensors")])
    if not headers:
        raise SourceError("no safetensors files", where=source.name, remedy="check the name")
    files = [FileRecord(name=name, sha256=source.sha256(name), nbytes=source.nbytes(name)) for name in names]
    record = decode_record(source.read_file(RECORD_FILE)) if RECORD_FILE in names else None
    return measure_files(headers, files, source.read_file, record)


def plan_source(source: Source, recipes: Sequence[str]) -> tuple[Plan, ...]:
    """A plan for each recipe, by name or file.

    Raises:
        SourceError: The checkpoint cannot be used.
        RecipeError: A recipe cannot be used, or not for this checkpoint.
    """
    chosen = [load_recipe(recipe) for recipe in recipes]
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    return tuple(make_plan(model, recipe) for recipe in chosen)
