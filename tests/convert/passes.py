"""The shards of plans alone: what `convert_sources` does before it writes documents and records."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext

from hubtool.checkpoint.source import Source
from hubtool.convert.folder import Written, write_shards
from hubtool.convert.job import ERROR_ROWS, Effort, Job
from hubtool.convert.opened import open_folders
from hubtool.progress import Advance, uncounted


class Sayings:
    """A watch that hands on what is said, and shows no progress."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def stage(self, name: str, total_nbytes: int = 0) -> AbstractContextManager[Advance]:
        """A stage that nobody looks at."""
        return nullcontext(uncounted)


def convert(
    source: Source,
    work: Sequence[Job],
    jobs: int = 2,
    error_rows: int = ERROR_ROWS,
    say: Callable[[str], None] = lambda text: None,
    executor: Executor | None = None,
) -> Generator[Written, None, None]:
    """Open the folders and write their shards; closing it interrupts."""
    with open_folders(source, work, Effort(jobs, None, error_rows), Sayings(say)) as opened:
        yield from write_shards(opened, say, executor)
