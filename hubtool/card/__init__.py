"""The card: Markdown that is a pure function of the record, the templates and the publisher's prose; and its check.

The record's values become words and figures here; the templates lay them out and compute nothing.
"""

from hubtool.card.check import check_card
from hubtool.card.claims import current_evidence, describe_status, find_change
from hubtool.card.metadata import card_metadata, check_publishable
from hubtool.card.prose import find_prose_fault, read_prose
from hubtool.card.render import render_card
from hubtool.card.unrecorded import Unread, Unrecorded, describe_unrecorded

__all__ = [
    "Unread",
    "Unrecorded",
    "card_metadata",
    "check_card",
    "check_publishable",
    "current_evidence",
    "describe_status",
    "describe_unrecorded",
    "find_change",
    "find_prose_fault",
    "read_prose",
    "render_card",
]
