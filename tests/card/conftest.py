"""The record of the published Flash, planned once."""

from collections.abc import Callable

import pytest

from hubtool.record import Record
from tests.card.records import full_size_record
from tests.fixtures import Samples


@pytest.fixture(scope="session")
def flash(published: Samples) -> Record:
    """The published Flash as `mixed_3_6`, without evidence."""
    return full_size_record(published("flash"))


@pytest.fixture(scope="session")
def flash_once(flash: Record) -> Callable[[], Record]:
    """The same, behind a function: hypothesis writes its arguments out, and the record is long."""
    return lambda: flash
