"""What needs no weights and no MLX: opening a source, planning what recipes make of it, measuring what is there."""

from pathlib import Path
from typing import TYPE_CHECKING

from hubtool.checkpoint.identity import UNKNOWN, parse_base_model
from hubtool.checkpoint.source import LocalSource, Source, SourceSpec, parse_spec
from hubtool.errors import SourceError, UsageError
from hubtool.files.whole import STATE_DIR

if TYPE_CHECKING:
    from hubtool.checkpoint.remote import HubSource

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
    from hubtool.checkpoint.prefetch import Storage
    from hubtool.checkpoint.remote import HubSource

    storage = Storage(out / STATE_DIR / SOURCE_DIR, disk_limit, keep_source) if out else None
    return HubSource(*repo, stated=stated, storage=storage)


def reopen(spec: SourceSpec) -> Source:
    """The source that a spec of another process names, to be read and never fetched ahead.

    Raises:
        SourceError: There is no such folder here, or it holds another checkpoint.
        HubError: The Hub does not let it be read.
    """
    if spec.endpoint is None:
        return _same(LocalSource(Path(spec.name)), spec)
    from hubtool.checkpoint.remote import HubSource
    from hubtool.hub.client import make_api

    return _same(HubSource(spec.name, spec.commit, api=make_api(spec.endpoint)), spec)


def _same(source: "LocalSource | HubSource", spec: SourceSpec) -> Source:
    if source.layout != spec.layout:
        raise SourceError(
            "another checkpoint than the one that is converted",
            where=spec.name,
            found="other shards or another config.json on this machine",
            remedy="give every worker the same checkpoint under the same path",
        )
    return source
