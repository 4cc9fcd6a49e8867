"""What a finished folder holds, or a repo on the Hub, without its weights."""

from pathlib import Path

from hubtool.checkpoint.measure import Measurement, measure, measure_files
from hubtool.checkpoint.source import LocalSource, parse_spec
from hubtool.errors import SourceError
from hubtool.record import RECORD_FILE, FileRecord, decode_record, read_record


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
    from hubtool.checkpoint.remote import HubSource

    source = HubSource(*repo)
    names = source.published_files
    headers = source.headers([name for name in names if name.endswith(".safetensors")])
    if not headers:
        raise SourceError("no safetensors files", where=source.name, remedy="check the name")
    files = [FileRecord(name=name, sha256=source.sha256(name), nbytes=source.nbytes(name)) for name in names]
    record = decode_record(source.read_file(RECORD_FILE)) if RECORD_FILE in names else None
    return measure_files(headers, files, source.read_file, record)
