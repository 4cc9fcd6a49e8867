"""Objects that go in parts by LFS, as the Hub has it for large ones: what may go wrong with a part or their sum."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import EXPIRED_ADDRESS, RATE_LIMITED, UNAVAILABLE, Answer, Effect, Fault
from tests.hub.test_faults import assert_published_once
from tests.publisher import Publisher

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def path() -> str:
    """Parts are LFS's."""
    return "lfs"


@pytest.fixture
def rehearsal(stock_client: None, tmp_path: Path) -> Iterator[RehearsalHub]:
    """A Hub that takes objects over 1 MiB in parts: the sample's one shard comes in three."""
    with RehearsalHub(tmp_path / "rehearsal", part_nbytes=1 << 20) as hub:
        yield hub


FAULTS: dict[str, tuple[Effect, Answer, int]] = {
    "limited": ("answer", RATE_LIMITED, 2),
    "unavailable for long": ("answer", UNAVAILABLE, 8),
    "expired address": ("answer", EXPIRED_ADDRESS, 1),
    "reset": ("reset", Answer(), 8),
    "done, then reset": ("reset-after", Answer(), 1),
    "done, then 500": ("answer-after", Answer(500), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("stage", ["put", "complete"])
def test_part_or_sum_that_fails_is_repeated(publisher: Publisher, stage: str, name: str) -> None:
    effect, answer, times = FAULTS[name]
    skip = 1 if stage == "put" else 0
    fault = Fault(stage, effect, answer, nbytes=100_000 if stage == "put" else 0, skip=skip, times=times)
    publisher.rehearsal.faults.add(fault)
    assert publisher.publish().verification.problems == ()
    assert fault.struck == times
    assert publisher.rehearsal.faults.calls["put"] >= 3
    assert_published_once(publisher)
