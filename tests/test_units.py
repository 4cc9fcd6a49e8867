"""Bytes, bits, and how they are written."""

import pytest

from hubtool import units


def test_effective_bits_are_those_of_the_published_conversions() -> None:
    assert units.format_bits(units.effective_bits(135_346_422_876, 284_334_567_511)) == "3.808"
    assert units.format_bits(units.effective_bits(106_355_393_628, 284_334_567_511)) == "2.992"


def test_effective_bits_are_not_rounded() -> None:
    assert units.effective_bits(10, 3) == 80 / 3


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1 kB"),
        (11_700_000, "11.7 MB"),
        (5 << 30, "5.37 GB"),
        (135_346_422_876, "135.35 GB"),
        (864_704_792_696, "864.70 GB"),
    ],
)
def test_sizes_are_decimal(nbytes: int, text: str) -> None:
    assert units.format_size(nbytes) == text


def test_gib_are_binary() -> None:
    assert units.format_gib(135_346_422_876) == "126.05 GiB"


def test_counts_are_exact() -> None:
    assert units.format_nbytes(135_346_422_876) == "135,346,422,876 bytes"
    assert units.format_count(284_334_567_511) == "284,334,567,511"


@pytest.mark.parametrize(
    ("parameters", "text"),
    [(999, "999"), (7_200_000, "7.2M"), (284_334_567_511, "284.3B"), (1_600_000_000_000, "1.6T")],
)
def test_parameters_are_spoken(parameters: int, text: str) -> None:
    assert units.format_parameters(parameters) == text


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (7_200_000, "7.2M"),
        (400_000_000, "0.4B"),
        (8_000_000_000, "8B"),
        (28_400_000_000, "28.4B"),
        (284_334_567_511, "284B"),
        (1_600_000_000_000, "1.6T"),
    ],
)
def test_parameters_are_shortened_as_the_hub_does(parameters: int, text: str) -> None:
    assert units.format_short_parameters(parameters) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (200, "3 min 20 s"), (3_900, "1 h 05 min")]
)
def test_durations_are_spoken(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text
