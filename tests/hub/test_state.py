"""Which Hub, and what of it: one key for all that a folder keeps of a destination, and for the question for consent."""

from pathlib import Path

import pytest

from hubtool.hub.state import Blob, State, destination_key, is_loopback
from hubtool.release.prose import keep_base, read_base

OF = "org/name@main"

LOOPBACK = (
    "http://127.0.0.1:8700",
    "http://127.0.0.1:9",
    "http://localhost",
    "http://LOCALHOST:1234/",
    "http://localhost.:80",
    "http://[::1]:80",
    "http://[::ffff:127.0.0.1]:80",
    "http://127.8.9.1",
)
ELSEWHERE = (
    "https://huggingface.co",
    "http://10.0.0.1",
    "http://127.0.0.1.evil.example",
    "http://localhost.evil.example",
    "http://evil.localhost",
    "http://localhost@evil.example",
    "http://0.0.0.0:80",
    "",
)


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [*((endpoint, True) for endpoint in LOOPBACK), *((endpoint, False) for endpoint in ELSEWHERE)],
)
def test_loopback_is_this_machine_alone(endpoint: str, loopback: bool) -> None:
    assert is_loopback(endpoint) == loopback


SAME = [
    LOOPBACK,
    ("https://huggingface.co", "https://huggingface.co/", "https://HuggingFace.co:443", "https://me:pw@huggingface.co"),
    ("http://hub.example:8080", "http://hub.example:8080/"),
    ("http://hub.example:8081",),
    ("http://hub.example", "http://hub.example:80"),
    ("https://hub.example:8080/team",),
    ("http://10.0.0.1:8080",),
]
"""Addresses of one Hub each."""


def test_two_hubs_share_a_key_only_if_they_are_one() -> None:
    keys = [{destination_key(endpoint, OF) for endpoint in endpoints} for endpoints in SAME]
    assert [len(each) for each in keys] == [1] * len(SAME)
    assert len(set.union(*keys)) == len(SAME)
    assert not [key for each in keys for key in each if "pw" in key]


@pytest.mark.parametrize("first", SAME)
def test_state_and_published_card_are_kept_for_the_same_hub(first: tuple[str, ...], tmp_path: Path) -> None:
    """What is known of one Hub is neither believed of another, nor forgotten of the same."""
    blob = Blob("0" * 64, 1)
    State(tmp_path, first[0], OF).add_blob("a", blob)
    keep_base(tmp_path, first[0], OF, b"the card")
    for endpoints in SAME:
        for endpoint in endpoints:
            known = endpoints == first
            assert State(tmp_path, endpoint, OF).blobs == ({"a": blob} if known else {})
            assert read_base(tmp_path, endpoint, OF).card == ("the card" if known else "")
            assert read_base(tmp_path, endpoint, "org/name@other").card == ""
