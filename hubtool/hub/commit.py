"""A commit, made once: what the stock client leaves unexplained is explained, and a lost answer is made up for."""

from collections.abc import Callable

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import BadRequestError

from hubtool.errors import OutputError
from hubtool.hub.client import said
from hubtool.hub.patience import PatientHub
from hubtool.record import CARD_FILE

Operation = CommitOperationAdd | CommitOperationDelete


def commit_once(hub: PatientHub, repo: str, call: Callable[[], CommitInfo], landed: Callable[[], str | None]) -> str:
    """The id of a commit.

    Args:
        hub: The Hub.
        repo: `org/name`.
        call: The stock client's `create_commit`, with fresh additions for each try.
        landed: Finds the commit if it was made although its answer was lost, or cannot be read.

    Raises:
        OutputError: The Hub refuses the card.
        HubError: The Hub refused, someone else has committed meanwhile, or it could not be reached.
    """

    def send() -> str:
        try:
            return str(call().oid)
        except ValueError as error:
            if not isinstance(error.__cause__, BadRequestError):
                raise
            raise card_refused(f"{repo}: {CARD_FILE}", said(error.__cause__)) from error

    return hub.attempt(f"{repo}: commit", send, landed)


def card_refused(where: object, found: str | None) -> OutputError:
    """The error for a card whose metadata the Hub does not take."""
    remedy = "correct its metadata, then run it again"
    return OutputError("the Hub refuses the card", where=where, found=found, remedy=remedy)
