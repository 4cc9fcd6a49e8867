"""Commits of small files, after they were looked through for what is private."""

from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import HfApi

from hubtool.hub.finish import commit_documents as hub_commit_documents
from hubtool.hub.patience import PatientHub
from hubtool.record import Record
from hubtool.release.privacy import require_private_texts


@dataclass(frozen=True)
class Change:
    """A commit of small files.

    Attributes:
        repo: `org/name`.
        parent: The commit that it follows.
        message: Its title.
    """

    repo: str
    parent: str
    message: str


def commit_documents(api: HfApi | PatientHub, record: Record, documents: Mapping[str, bytes], change: Change) -> str:
    """The commit that gives a repo these small files and nothing else, after they were looked through.

    Raises:
        OutputError: A file tells of the publisher's machine.
        HubError: The Hub refused, someone else has committed meanwhile, or it could not be reached.
    """
    require_private_texts(change.repo, documents, [name for name in (change.repo, record.source.repo) if name])
    return hub_commit_documents(api, change.repo, documents, change.parent, change.message)
