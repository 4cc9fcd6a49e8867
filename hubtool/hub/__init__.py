"""The only writer to the Hub: all large contents first, then one commit that names every file, then verification.

Readers see the old state or the whole new one; a run that was cut off is simply run again; nothing is believed until
the Hub's own hashes say so.
"""

from hubtool.hub.blobs import Blobs
from hubtool.hub.finish import add_to_collection, commit_documents, default_tag, finish
from hubtool.hub.patience import Patience, PatientHub
from hubtool.hub.reading import has_record, read_hub_file, read_hub_record
from hubtool.hub.state import Blob, State
from hubtool.hub.target import Destination, Place, check_rights, find_place, make_place
from hubtool.hub.upload import (
    Outlook,
    Published,
    Upload,
    find_tag,
    foresee,
    published_names,
    record_digest,
    release_title,
    upload,
)
from hubtool.hub.verify import Verification, verify
from hubtool.hub.xet import is_xet_available

__all__ = [
    "Blob",
    "Blobs",
    "Destination",
    "Outlook",
    "Patience",
    "PatientHub",
    "Place",
    "Published",
    "State",
    "Upload",
    "Verification",
    "add_to_collection",
    "check_rights",
    "commit_documents",
    "default_tag",
    "find_place",
    "find_tag",
    "finish",
    "foresee",
    "has_record",
    "is_xet_available",
    "make_place",
    "published_names",
    "read_hub_file",
    "read_hub_record",
    "record_digest",
    "release_title",
    "upload",
    "verify",
]
