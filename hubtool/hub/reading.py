"""Small files of a repo, and its record."""

from urllib.parse import quote

from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import _http as stock

from hubtool.errors import VerificationError
from hubtool.hub.patience import PatientHub
from hubtool.record import RECORD_FILE, Record, decode_record, encode_record


def read_hub_file(hub: PatientHub, repo: str, commit: str, name: str) -> bytes | None:
    """The bytes of a small file of a repo, None if there is no such file.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """

    def read() -> bytes | None:
        url = f"{hub.api.endpoint}/{repo}/resolve/{commit}/{quote(name)}"
        response = stock.get_session().get(url, headers=hub.api._build_hf_headers(), follow_redirects=True)
        try:
            stock.hf_raise_for_status(response)
        except EntryNotFoundError:
            return None
        return response.content

    return hub.attempt(f"{repo}: {name}", read)


def read_hub_record(hub: PatientHub, repo: str, commit: str) -> Record:
    """The record of a repo.

    Raises:
        VerificationError: The repo has none.
        RecordError: It cannot be read.
        HubError: The Hub refused, or could not be reached.
    """
    content = read_hub_file(hub, repo, commit, RECORD_FILE)
    if content is None:
        raise VerificationError(
            "has no record", where=repo, expected=RECORD_FILE, remedy="hubtool verifies what hubtool published"
        )
    return decode_record(content)


def has_record(hub: PatientHub, repo: str, commit: str, record: Record) -> bool:
    """Whether a repo at a commit has exactly this record: then it is the same release, whatever else has changed.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    return read_hub_file(hub, repo, commit, RECORD_FILE) == encode_record(record)
